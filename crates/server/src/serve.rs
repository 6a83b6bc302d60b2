//! Listening, and the end of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use consort_core::{Error, ErrorKind, Result};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::app::App;
use crate::metrics::Counted;
use crate::reload::Attendant;
use crate::router::Transport;
use crate::shutdown::{self, Phase};
#[cfg(unix)]
use crate::socket::Socket;

/// After the cut, so long for the last words.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// After a connection could not be accepted (the system has no more of something).
const PAUSE: Duration = Duration::from_millis(50);
/// The most headers of a request, and their most bytes.
const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 64 << 10;

/// Where to listen: one of them at least.
#[derive(Debug, Clone, Default)]
pub struct Listen {
    /// A TCP address.
    pub tcp: Option<SocketAddr>,
    /// The path of a Unix domain socket.
    pub socket: Option<PathBuf>,
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    app: App,
    tcp: Option<TcpListener>,
    #[cfg(unix)]
    socket: Option<Socket>,
    attendant: Attendant,
}

impl Server {
    /// Opens the doors.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`]: nowhere to listen, an address beyond this machine without an API key (unless
    /// `allow_anyone` says so), a socket that somebody listens on. Else what the system says.
    pub async fn bind(app: App, listen: &Listen) -> Result<Self> {
        if listen.tcp.is_none() && listen.socket.is_none() {
            return Err(refuse("there is nowhere to listen: name an address or a socket"));
        }
        let tcp = match listen.tcp {
            None => None,
            Some(address) => {
                let open = !address.ip().is_loopback()
                    && !app.shared.keys.are_demanded()
                    && !app.shared.config.server.allow_anyone;
                if open {
                    return Err(refuse(
                        "this address can be reached from other machines, and no API key is demanded: name a key (api_key_env, \
                         api_key_file), or say that anyone may ask (allow_anyone)",
                    )
                    .with_context("listen", address.to_string()));
                }
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| {
                    failed("this address cannot be listened on", source).with_context("listen", address.to_string())
                })?)
            }
        };
        #[cfg(not(unix))]
        if listen.socket.is_some() {
            return Err(Error::new(ErrorKind::Unsupported, "this system has no Unix domain sockets"));
        }
        let attendant = Attendant::new(&app)?;
        Ok(Self {
            app,
            tcp,
            #[cfg(unix)]
            socket: listen.socket.as_deref().map(Socket::bind).transpose()?,
            attendant,
        })
    }

    /// The TCP address, with the port that the system gave.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until the system asks the process to end (SIGTERM, Ctrl-C): then nobody new is let in, and replies that run
    /// have `drain_seconds` to end. What runs still, or is asked to end a second time, is cut: it ends with what it has.
    pub async fn run(self) {
        self.run_until(shutdown::asked_to_end()).await;
    }

    /// The same, until `stop`.
    pub async fn run_until(self, stop: impl Future<Output = ()>) {
        let Self { app, tcp, attendant, .. } = self;
        let graceful = Arc::new(GracefulShutdown::new());
        let door = Door {
            graceful: Arc::clone(&graceful),
            places: Arc::new(Semaphore::new(app.shared.config.limits.connections.get().min(Semaphore::MAX_PERMITS))),
            app: app.clone(),
        };
        let mut doors = tokio::task::JoinSet::new();
        if let Some(listener) = tcp {
            doors.spawn(door.clone().tcp(listener));
        }
        #[cfg(unix)]
        if let Some(socket) = self.socket {
            doors.spawn(door.clone().unix(socket));
        }
        drop(door);
        let attendant = tokio::spawn(attendant.attend(app.clone()));
        stop.await;
        attendant.abort();
        tracing::info!("no more requests are taken; replies that run have their time");
        app.shared.shutdown.advance(Phase::Draining);
        // Listeners go first, so that whoever comes is refused by the system and can go elsewhere.
        while doors.join_next().await.is_some() {}
        let drain = Duration::from_secs(app.shared.config.server.drain_seconds);
        let mut done = pin!(async {
            // The doors are gone, and with them every other hand on it.
            if let Some(graceful) = Arc::into_inner(graceful) {
                graceful.shutdown().await;
            }
        });
        let again = async {
            tokio::select! {
                () = tokio::time::sleep(drain) => {}
                () = shutdown::asked_to_end() => {}
            }
        };
        tokio::select! {
            () = &mut done => {}
            () = again => {
                tracing::warn!("replies are cut off");
                app.shared.shutdown.advance(Phase::Cut);
                if tokio::time::timeout(LAST_WORDS, done).await.is_err() {
                    tracing::warn!("connections were closed that nobody reads from");
                }
            }
        }
        // Replies that were the last have their spans sent as well.
        let traces = app.shared.traces.clone();
        if tokio::task::spawn_blocking(move || traces.shut_down()).await.is_err() {
            tracing::warn!("the last traces were not sent");
        }
    }
}

/// Lets connections in, as many as may.
#[derive(Debug, Clone)]
struct Door {
    app: App,
    graceful: Arc<GracefulShutdown>,
    places: Arc<Semaphore>,
}

impl Door {
    async fn tcp(self, listener: TcpListener) {
        let mut closing = self.app.shared.shutdown.reached(Phase::Draining);
        loop {
            let next = async {
                let place = Arc::clone(&self.places).acquire_owned().await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>((listener.accept().await?, place))
            };
            let accepted = tokio::select! {
                biased;
                () = &mut closing => return,
                accepted = next => accepted,
            };
            match accepted {
                Ok(((stream, _), place)) => {
                    // Tokens are small, and somebody waits for each.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "a connection keeps its delay");
                    }
                    self.serve(stream, Transport::Tcp, place);
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    #[cfg(unix)]
    async fn unix(self, socket: Socket) {
        let mut closing = self.app.shared.shutdown.reached(Phase::Draining);
        loop {
            let next = async {
                let place = Arc::clone(&self.places).acquire_owned().await.map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>((socket.accept().await?, place))
            };
            let accepted = tokio::select! {
                biased;
                () = &mut closing => return,
                accepted = next => accepted,
            };
            match accepted {
                Ok((stream, place)) => self.serve(stream, Transport::Unix, place),
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn pause(&self, error: &std::io::Error) {
        tracing::warn!(%error, "a connection could not be accepted");
        tokio::time::sleep(PAUSE).await;
    }

    fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        transport: Transport,
        place: tokio::sync::OwnedSemaphorePermit,
    ) {
        let service = TowerToHyperService::new(self.app.router(transport));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.app.shared.config.limits.head_time())
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        let counted = Counted::new(&self.app.shared.traffic, |traffic| &traffic.connections);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // A client that went away, or does not speak HTTP.
                tracing::debug!(%error, "a connection broke");
            }
            drop((place, counted));
        });
    }
}

fn refuse(message: &str) -> Error {
    Error::new(ErrorKind::InvalidConfig, message).with_operation("server::bind")
}

pub(crate) fn failed(message: &str, source: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{message}: {source}")).with_operation("server::bind").with_source(source)
}
