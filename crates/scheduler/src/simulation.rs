//! The scheduler on the caller's thread and on virtual time.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use consort_core::{Engine, Result};
use consort_prompt::FrontEnd;

use crate::clock::{Clock, VirtualClock};
use crate::config::SchedulerConfig;
use crate::keeper::Keeper;
use crate::library::Library;
use crate::scheduled::{Scheduled, Shared};
use crate::worker::{Turn, Worker};

/// What a turn of a [`Simulation`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// Something; the next turn may do more.
    Worked,
    /// Nothing, and it will do nothing before so much time has passed (`None`: ever), unless somebody asks for something, a
    /// reader reads, or a stream is dropped.
    Idle(Option<Duration>),
}

/// A [`Scheduled`] whose thread is the caller's and whose time passes only when it is told to.
///
/// Everything else is what an application gets: requests go in through [`backend`](Self::backend), and each
/// [`turn`](Self::turn) is one turn of the very loop that otherwise runs on the engine's thread. With an engine that
/// advances the clock by what its work would take, hours of load are tried in seconds, and the same way each time.
///
/// Calls of the backend that wait for an answer (loading an adapter, `memory`) are answered by a turn: poll them between
/// turns, or they wait for ever.
///
/// ```
/// use std::time::Duration;
///
/// use consort_core::{Engine, Result};
/// use consort_scheduler::{FrontEnd, SchedulerConfig, Simulation, Turned, VirtualClock};
///
/// /// Lets the load that is under way come to its end; how long it took.
/// fn finish<E: Engine>(simulation: &mut Simulation<E>) -> Duration {
///     loop {
///         match simulation.turn() {
///             Turned::Worked => {}
///             Turned::Idle(Some(after)) => simulation.clock().advance(after),
///             Turned::Idle(None) => return simulation.clock().elapsed(),
///         }
///     }
/// }
/// # fn show<E: Engine + 'static>(make: impl FnOnce(VirtualClock) -> Result<E>) -> Result<()> {
/// let mut simulation = Simulation::new(make, FrontEnd::default(), SchedulerConfig::default())?;
/// finish(&mut simulation);
/// # Ok(())
/// # }
/// ```
pub struct Simulation<E: Engine> {
    scheduled: Arc<Scheduled<E>>,
    worker: Worker<E>,
    clock: VirtualClock,
}

impl<E: Engine> std::fmt::Debug for Simulation<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation")
            .field("backend", &self.scheduled)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> Simulation<E> {
    /// A scheduler over the engine that `make` makes, which is given the clock to advance.
    ///
    /// # Errors
    /// What `make` returns, and [`InvalidConfig`](consort_core::ErrorKind::InvalidConfig) for a setting without meaning.
    pub fn new(
        make: impl FnOnce(VirtualClock) -> Result<E>,
        front_end: FrontEnd,
        config: SchedulerConfig,
    ) -> Result<Self> {
        let clock = VirtualClock::default();
        let engine = make(clock.clone())?;
        let shared = Arc::new(Shared::new(&engine, front_end, config, Clock::Virtual(clock.clone()))?);
        let (commands, inbox) = mpsc::channel();
        let keeper = Keeper::Here { shared: Arc::clone(&shared), commands: commands.clone() };
        let keeper = (shared.config.cache_bytes > 0).then_some(keeper);
        let library = Library::here(commands.clone());
        let worker = Worker::new(engine, Arc::clone(&shared), inbox, keeper, library.clone());
        Ok(Self { scheduled: Arc::new(Scheduled::driven(shared, commands, library)), worker, clock })
    }

    /// The backend, to be asked as any other.
    #[must_use]
    pub fn backend(&self) -> Arc<Scheduled<E>> {
        Arc::clone(&self.scheduled)
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &VirtualClock {
        &self.clock
    }

    /// One turn of the scheduler's loop.
    pub fn turn(&mut self) -> Turned {
        match self.worker.turn() {
            Turn::Worked => Turned::Worked,
            Turn::Idle(until) => Turned::Idle(until.map(|until| self.clock.until(until))),
            // Only the backend's drop shuts it down, and here is one of its handles.
            Turn::Ended => Turned::Idle(None),
        }
    }
}
