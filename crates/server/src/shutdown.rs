//! The end of serving: first nobody new, then a time for those who are being answered, then the cut.

use std::pin::Pin;

use tokio::sync::watch;

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// All is well.
    Serving,
    /// Nobody new; replies run to their ends.
    Draining,
    /// Replies end with what they have.
    Cut,
}

/// Tells everybody.
#[derive(Debug)]
pub(crate) struct Shutdown(watch::Sender<Phase>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Shutdown {
    /// How far the end has come.
    pub(crate) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Goes on to a phase. There is no way back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// Ends when the phase has come. Never, if the server is gone before.
    pub(crate) fn reached(&self, phase: Phase) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut watch = self.0.subscribe();
        Box::pin(async move {
            if watch.wait_for(|now| *now >= phase).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// Ends when the system asks the process to end: SIGTERM, or Ctrl-C. Where such signals cannot be heard, never.
pub async fn asked_to_end() {
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let terminated = async {
            match signal(SignalKind::terminate()) {
                Ok(mut signal) => drop(signal.recv().await),
                Err(_) => std::future::pending::<()>().await,
            }
        };
        tokio::select! {
            () = interrupted => {}
            () = terminated => {}
        }
    }
    #[cfg(not(unix))]
    interrupted.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_no_way_back() {
        let shutdown = Shutdown::default();
        let (draining, cut) = (shutdown.reached(Phase::Draining), shutdown.reached(Phase::Cut));
        shutdown.advance(Phase::Draining);
        draining.await;
        shutdown.advance(Phase::Cut);
        shutdown.advance(Phase::Draining);
        assert_eq!(shutdown.phase(), Phase::Cut);
        cut.await;
    }
}
