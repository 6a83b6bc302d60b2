//! One TCP connection, with a handle by which it can be broken, and the body of one answer on it.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use crate::fault::Cut;

/// The handle of a connection.
#[derive(Debug, Default)]
pub(crate) struct Link {
    how: Mutex<Option<Cut>>,
    killed: Notify,
    active: AtomicUsize,
    idle: Notify,
}

impl Link {
    /// Breaks the connection. What was sent before is on its way already.
    pub(crate) fn kill(&self, how: Cut) {
        self.how.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(how);
        self.killed.notify_one();
    }

    /// Waits until it is broken.
    pub(crate) async fn killed(&self) {
        self.killed.notified().await;
    }

    /// An answer begins on it.
    pub(crate) fn enter(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
    }

    /// An answer ended on it.
    pub(crate) fn leave(&self) {
        if self.active.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify_one();
        }
    }

    /// Waits until nothing was answered on it for so long. Without a limit, for ever.
    pub(crate) async fn idle_for(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            // Another answer that ends begins the count anew.
            let again = tokio::time::timeout(limit, self.idle.notified()).await.is_ok();
            if !again && self.active.load(Ordering::SeqCst) == 0 {
                return;
            }
        }
    }
}

/// The stream of a connection, which ends as its [`Link`] says.
pub(crate) struct Wire {
    stream: Option<TcpStream>,
    link: Arc<Link>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, link: Arc<Link>) -> Self {
        Self { stream: Some(stream), link }
    }

    fn stream(self: Pin<&mut Self>) -> Option<Pin<&mut TcpStream>> {
        self.get_mut().stream.as_mut().map(Pin::new)
    }
}

/// The answer of a stream that was taken away already.
fn gone<T>() -> Poll<std::io::Result<T>> {
    Poll::Ready(Err(std::io::ErrorKind::NotConnected.into()))
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.stream().map_or_else(gone, |stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.stream().map_or_else(gone, |stream| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stream().map_or_else(gone, |stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stream().map_or_else(gone, |stream| stream.poll_shutdown(cx))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        match *self.link.how.lock().unwrap_or_else(PoisonError::into_inner) {
            // Closing a socket that lingers for no time sends RST.
            Some(Cut::Reset) => drop(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))),
            Some(Cut::Close | Cut::Stream) => {
                // A socket that is closed with bytes unread would send RST too: say FIN first, and read for a while.
                drop(socket2::SockRef::from(&stream).shutdown(std::net::Shutdown::Write));
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(async move {
                        let mut rest = [0_u8; 1024];
                        let drain = async { while matches!(stream.read(&mut rest).await, Ok(read) if read > 0) {} };
                        drop(tokio::time::timeout(Duration::from_secs(2), drain).await);
                    });
                }
            }
            None => {}
        }
    }
}

/// What a body is made of: data, trailers, or a break.
pub(crate) type Part = Result<Frame<Bytes>, std::io::Error>;

/// The body of an answer: what another task sends.
pub(crate) struct Body {
    parts: Option<mpsc::Receiver<Part>>,
}

impl Body {
    /// No body.
    pub(crate) fn empty() -> Self {
        Self { parts: None }
    }

    /// A body, and where to send its parts. Room for one, so that a client that leaves is noticed at the next part.
    pub(crate) fn channel() -> (mpsc::Sender<Part>, Self) {
        let (sender, parts) = mpsc::channel(1);
        (sender, Self { parts: Some(parts) })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Part>> {
        self.get_mut().parts.as_mut().map_or(Poll::Ready(None), |parts| parts.poll_recv(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.parts.is_none() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}
