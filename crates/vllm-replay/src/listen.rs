//! Listening on loopback, in a thread of its own, so that tests without a runtime can use it.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use consort_core::{Error, ErrorKind, Result};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::answer::Protocol;
use crate::fault::Cut;
use crate::link::{Body, Link, Wire};
use crate::tls::Acceptor;

/// A future that a host answers with.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Who answers requests.
pub(crate) trait Host: Send + Sync + 'static {
    /// Answers one. The future is dropped when the client leaves.
    fn handle(self: Arc<Self>, protocol: Protocol, request: Request<Incoming>, link: Arc<Link>) -> Answering;
}

/// Where and how a server listens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listening {
    /// HTTP's address. By default a free port of loopback.
    pub(crate) http: Option<SocketAddr>,
    /// gRPC's address. By default a free port of loopback.
    pub(crate) grpc: Option<SocketAddr>,
    /// TLS for both.
    pub(crate) tls: Option<Acceptor>,
    /// Connections that are idle for so long are closed.
    pub(crate) idle_close: Option<Duration>,
}

enum Command {
    Stop(std::sync::mpsc::SyncSender<Result<()>>),
    Listen(std::sync::mpsc::SyncSender<Result<()>>),
    Quit,
}

/// Connections that are open, and how many there were.
#[derive(Default)]
struct Connections {
    open: Vec<Weak<Link>>,
    accepted: u64,
}

/// A running listener. Ends when it is dropped.
pub(crate) struct Listener {
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    commands: mpsc::UnboundedSender<Command>,
    connections: Arc<Mutex<Connections>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens on both addresses.
    pub(crate) fn start(host: Arc<impl Host>, listening: &Listening) -> Result<Self> {
        let failed = |what: &'static str| {
            move |error: std::io::Error| {
                Error::new(ErrorKind::Io, format!("{what}: {error}")).with_operation("vllm_replay::listen")
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed("the server's runtime does not start"))?;
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let bind = |address| runtime.block_on(TcpListener::bind(address));
        let cannot = "the address cannot be listened on";
        let http = bind(listening.http.unwrap_or(free)).map_err(failed(cannot))?;
        let grpc = bind(listening.grpc.unwrap_or(free)).map_err(failed(cannot))?;
        let addresses = (http.local_addr().map_err(failed(cannot))?, grpc.local_addr().map_err(failed(cannot))?);
        let (commands, inbox) = mpsc::unbounded_channel();
        let connections = Arc::new(Mutex::new(Connections::default()));
        let porter = Porter {
            host,
            tls: listening.tls.clone(),
            idle_close: listening.idle_close,
            connections: Arc::clone(&connections),
        };
        let thread = std::thread::Builder::new()
            .name("vllm-replay".into())
            .spawn(move || {
                runtime.block_on(manage(porter, addresses, (http, grpc), inbox));
                runtime.shutdown_background();
            })
            .map_err(failed("the server's thread does not start"))?;
        Ok(Self { http: addresses.0, grpc: addresses.1, commands, connections, thread: Some(thread) })
    }

    fn ask(&self, command: impl FnOnce(std::sync::mpsc::SyncSender<Result<()>>) -> Command) -> Result<()> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let gone = || Error::new(ErrorKind::Unexpected, "the server's thread has ended");
        self.commands.send(command(answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    /// Closes the listening sockets: connecting is refused. Connections stay.
    pub(crate) fn stop(&self) -> Result<()> {
        self.ask(Command::Stop)
    }

    /// Listens again on the same addresses.
    pub(crate) fn again(&self) -> Result<()> {
        self.ask(Command::Listen)
    }

    /// Breaks every open connection.
    pub(crate) fn cut(&self, how: Cut) {
        for link in &self.connections.lock().unwrap_or_else(PoisonError::into_inner).open {
            if let Some(link) = link.upgrade() {
                link.kill(how);
            }
        }
    }

    /// How many connections were accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).accepted
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.open.retain(|link| link.strong_count() > 0);
        connections.open.len()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.commands.send(Command::Quit));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Who opens the door: what each accepted connection needs.
struct Porter<H> {
    host: Arc<H>,
    tls: Option<Acceptor>,
    idle_close: Option<Duration>,
    connections: Arc<Mutex<Connections>>,
}

impl<H> Clone for Porter<H> {
    fn clone(&self) -> Self {
        Self {
            host: Arc::clone(&self.host),
            tls: self.tls.clone(),
            idle_close: self.idle_close,
            connections: Arc::clone(&self.connections),
        }
    }
}

async fn manage<H: Host>(
    porter: Porter<H>,
    addresses: (SocketAddr, SocketAddr),
    listeners: (TcpListener, TcpListener),
    mut inbox: mpsc::UnboundedReceiver<Command>,
) {
    let open = |(http, grpc)| {
        [(http, Protocol::Http), (grpc, Protocol::Grpc)]
            .map(|(listener, protocol)| tokio::spawn(porter.clone().accept(listener, protocol)))
    };
    let mut doors = Some(open(listeners));
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Stop(answer) => {
                for door in doors.take().into_iter().flatten() {
                    door.abort();
                    // The socket is closed when the task is gone.
                    drop(door.await);
                }
                drop(answer.send(Ok(())));
            }
            Command::Listen(answer) => {
                let result = if doors.is_some() {
                    Ok(())
                } else {
                    listen_again(addresses).await.map(|again| doors = Some(open(again)))
                };
                drop(answer.send(result));
            }
            Command::Quit => return,
        }
    }
}

async fn listen_again((http, grpc): (SocketAddr, SocketAddr)) -> Result<(TcpListener, TcpListener)> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("the address cannot be listened on again: {error}"))
            .with_operation("vllm_replay::listen_again")
    };
    Ok((TcpListener::bind(http).await.map_err(failed)?, TcpListener::bind(grpc).await.map_err(failed)?))
}

impl<H: Host> Porter<H> {
    async fn accept(self, listener: TcpListener, protocol: Protocol) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().serve(stream, protocol))),
                // Too many open files, or a client that left already: neither ends a server.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn serve(self, stream: TcpStream, protocol: Protocol) {
        drop(stream.set_nodelay(true));
        let link = Arc::new(Link::default());
        {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.accepted += 1;
            connections.open.retain(|link| link.strong_count() > 0);
            connections.open.push(Arc::downgrade(&link));
        }
        let wire = Wire::new(stream, Arc::clone(&link));
        let conversation = async {
            match &self.tls {
                None => self.converse(TokioIo::new(wire), protocol, &link).await,
                Some(tls) => {
                    if let Some(secured) = tls.accept(wire, protocol).await {
                        self.converse(TokioIo::new(secured), protocol, &link).await;
                    }
                }
            }
        };
        tokio::select! {
            () = conversation => {}
            () = link.killed() => {}
            () = link.idle_for(self.idle_close) => {}
        }
    }

    async fn converse<I>(&self, io: I, protocol: Protocol, link: &Arc<Link>)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let service = service_fn(|request| {
            let answering = Arc::clone(&self.host).handle(protocol, request, Arc::clone(link));
            async move { Ok::<_, std::convert::Infallible>(answering.await) }
        });
        // A client that breaks a connection is no failure of the server.
        match protocol {
            Protocol::Http => drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await),
            Protocol::Grpc => {
                drop(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await,
                );
            }
        }
    }
}
