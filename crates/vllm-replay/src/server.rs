//! A server of answers: counts who comes, leaves and asks, applies the script, and can be stopped, paused and broken.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use consort_core::Result;
use http_body::Frame;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Response, StatusCode};
use tokio::sync::{mpsc, watch};

use crate::answer::{Answer, Asked, GrpcCode, Piece, Protocol};
use crate::fault::{Cut, Script};
use crate::link::{Body, Link, Part};
use crate::listen::{Answering, Host, Listener, Listening};
use crate::perform::{Head, Performance, Step, plan};
use crate::tls::ServerTls;

/// The longest request that is read: 64 MiB. Pictures are the largest.
const MOST_BODY: usize = 64 << 20;
/// How many requests are remembered for [`Server::asked`].
const MOST_ASKED: usize = 4096;

/// What every server of this crate can be told.
#[derive(Debug, Clone, Default)]
pub struct ServerConfig {
    /// The script of faults. None by default.
    pub script: Script,
    /// HTTP's address. By default a free port of loopback.
    pub http: Option<SocketAddr>,
    /// gRPC's address. By default a free port of loopback.
    pub grpc: Option<SocketAddr>,
    /// A certificate: both ports then speak TLS alone.
    pub tls: Option<ServerTls>,
    /// Closes connections on which nothing was answered for so long, as servers and proxies do. By default they stay.
    pub idle_close: Option<Duration>,
}

/// What a server has counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests that arrived.
    pub requests: u64,
    /// Requests that are being answered.
    pub in_flight: u64,
    /// Answers that went out to their end, or to the end that the script gave them.
    pub ended: u64,
    /// Answers whose client left before their end.
    pub cancelled: u64,
}

/// Who makes answers.
pub(crate) trait Answers: Send + Sync + 'static {
    /// The text in which [`When`](crate::When) looks.
    fn key(&self, asked: &Asked) -> String;
    /// The true answer.
    fn answer(&self, asked: &Asked) -> Answer;
}

/// A running server, on two ports of loopback: one for HTTP/1.1, one for gRPC. It has a thread of its own and ends when it is
/// dropped.
pub struct Server {
    listener: Listener,
    stage: Arc<Stage>,
    tls: Option<ServerTls>,
}

impl Server {
    pub(crate) fn start(answers: Arc<dyn Answers>, config: &ServerConfig) -> Result<Self> {
        let stage = Arc::new(Stage {
            answers,
            state: Mutex::new(State { script: config.script.clone(), ..State::default() }),
            paused: watch::Sender::new(false),
        });
        let listening = Listening {
            http: config.http,
            grpc: config.grpc,
            tls: config.tls.as_ref().map(ServerTls::acceptor).transpose()?,
            idle_close: config.idle_close,
        };
        let listener = Listener::start(Arc::clone(&stage), &listening)?;
        Ok(Self { listener, stage, tls: config.tls.clone() })
    }

    /// HTTP's address.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.listener.http
    }

    /// gRPC's address.
    #[must_use]
    pub fn grpc(&self) -> SocketAddr {
        self.listener.grpc
    }

    /// `http://127.0.0.1:port`; with TLS `https://localhost:port`.
    #[must_use]
    pub fn http_url(&self) -> String {
        self.url(self.listener.http)
    }

    /// The same for gRPC's port.
    #[must_use]
    pub fn grpc_url(&self) -> String {
        self.url(self.listener.grpc)
    }

    fn url(&self, address: SocketAddr) -> String {
        match self.tls {
            None => format!("http://{address}"),
            Some(_) => format!("https://localhost:{}", address.port()),
        }
    }

    /// Replaces the script, whose counts begin anew.
    pub fn set_script(&self, script: Script) {
        self.stage.state().script = script;
    }

    /// How often each fault of the script has fired.
    #[must_use]
    pub fn fired(&self) -> Vec<u64> {
        self.stage.state().script.fired()
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.stage.state().counts
    }

    /// How many clients left before their answer's end.
    #[must_use]
    pub fn cancelled(&self) -> u64 {
        self.counts().cancelled
    }

    /// The requests so far, in the order of arrival; of more than 4096 the last.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.stage.state().asked.iter().cloned().collect()
    }

    /// Waits until the counts are as wished, at most so long. Says whether they were.
    #[must_use]
    pub fn wait_until(&self, limit: Duration, wished: impl Fn(Counts) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            if wished(self.counts()) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Closes the listening sockets: connecting is refused until [`Server::listen_again`]. Open connections stay.
    ///
    /// # Errors
    ///
    /// [`Unexpected`](consort_core::ErrorKind::Unexpected) if the server's thread has ended.
    pub fn stop_listening(&self) -> Result<()> {
        self.listener.stop()
    }

    /// Listens again, on the same ports.
    ///
    /// # Errors
    ///
    /// [`Io`](consort_core::ErrorKind::Io) if another program has taken a port.
    pub fn listen_again(&self) -> Result<()> {
        self.listener.again()
    }

    /// Breaks every open connection.
    pub fn cut_connections(&self, how: Cut) {
        self.listener.cut(how);
    }

    /// How many connections were accepted so far, on both ports.
    #[must_use]
    pub fn connections_accepted(&self) -> u64 {
        self.listener.accepted()
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections_open(&self) -> usize {
        self.listener.open()
    }

    /// The switch of [`Server::pause`], for a server that is paused by a request.
    pub(crate) fn paused_sender(&self) -> watch::Sender<bool> {
        self.stage.paused.clone()
    }

    /// Generation stands still: what is healthy stays so, and replies wait. As vLLM's `/pause` with mode `keep`.
    pub fn pause(&self) {
        self.stage.paused.send_replace(true);
    }

    /// Generation goes on.
    pub fn resume(&self) {
        self.stage.paused.send_replace(false);
    }
}

#[derive(Default)]
struct State {
    script: Script,
    counts: Counts,
    asked: VecDeque<Asked>,
}

struct Stage {
    answers: Arc<dyn Answers>,
    state: Mutex<State>,
    paused: watch::Sender<bool>,
}

impl Stage {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, from its arrival to its end. Dropped before its end, it counts as cancelled.
struct Visit {
    stage: Arc<Stage>,
    link: Arc<Link>,
    ended: bool,
}

impl Visit {
    fn begin(stage: Arc<Stage>, link: Arc<Link>) -> Self {
        link.enter();
        let mut state = stage.state();
        state.counts.requests += 1;
        state.counts.in_flight += 1;
        drop(state);
        Self { stage, link, ended: false }
    }

    fn end(&mut self) {
        self.ended = true;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = self.stage.state();
        state.counts.in_flight -= 1;
        if self.ended {
            state.counts.ended += 1;
        } else {
            state.counts.cancelled += 1;
        }
        drop(state);
        self.link.leave();
    }
}

impl Host for Stage {
    fn handle(self: Arc<Self>, protocol: Protocol, request: Request<Incoming>, link: Arc<Link>) -> Answering {
        Box::pin(async move {
            let mut visit = Visit::begin(Arc::clone(&self), Arc::clone(&link));
            let performance = match read(protocol, request).await {
                Ok(asked) => {
                    let key = self.answers.key(&asked);
                    let faults = {
                        let mut state = self.state();
                        if state.asked.len() == MOST_ASKED {
                            state.asked.pop_front();
                        }
                        state.asked.push_back(asked.clone());
                        state.script.meet(&key)
                    };
                    let answer = self.answers.answer(&asked);
                    plan(&asked, answer, faults)
                }
                Err(answer) => {
                    let asked = Asked {
                        protocol,
                        method: String::new(),
                        path: String::new(),
                        headers: Vec::new(),
                        body: Bytes::new(),
                    };
                    plan(&asked, *answer, Vec::new())
                }
            };
            let Performance { head, gated, mut steps } = performance;
            if gated {
                self.gate().await;
            }
            let (status, headers, length) = match head {
                Head::Answer { status, headers, length } => (status, headers, length),
                Head::Silence => std::future::pending().await,
                Head::Cut(how) => {
                    visit.end();
                    link.kill(how);
                    std::future::pending().await
                }
            };
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            put(response.headers_mut(), &headers);
            if let Some(length) = length {
                response.headers_mut().insert(hyper::header::CONTENT_LENGTH, length.into());
            }
            match steps.next() {
                None => visit.end(),
                // A refusal is trailers alone: they stand in the place of the headers.
                Some(Step::Trailers(trailers))
                    if trailers.iter().any(|(name, value)| name == "grpc-status" && value != "0") =>
                {
                    put(response.headers_mut(), &trailers);
                    visit.end();
                }
                Some(first) => {
                    let (sender, body) = Body::channel();
                    *response.body_mut() = body;
                    let all = std::iter::once(first).chain(steps);
                    drop(tokio::spawn(Arc::clone(&self).perform(all, sender, visit)));
                }
            }
            response
        })
    }
}

impl Stage {
    async fn gate(&self) {
        drop(self.paused.subscribe().wait_for(|paused| !paused).await);
    }

    async fn perform(
        self: Arc<Self>,
        steps: impl Iterator<Item = Step> + Send,
        sender: mpsc::Sender<Part>,
        mut visit: Visit,
    ) {
        for step in steps {
            match step {
                Step::Piece(Piece { pause, bytes }) | Step::Raw(Piece { pause, bytes }) => {
                    if !pause.is_zero() {
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            () = sender.closed() => return,
                        }
                    }
                    if sender.send(Ok(Frame::data(bytes))).await.is_err() {
                        return;
                    }
                }
                Step::Gate => tokio::select! {
                    () = self.gate() => {}
                    () = sender.closed() => return,
                },
                Step::Silence => {
                    sender.closed().await;
                    return;
                }
                Step::Cut(how) => {
                    // What was sent before goes out when the connection's task is polled next; this runtime has one thread.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    visit.end();
                    if how == Cut::Stream {
                        drop(sender.send(Err(std::io::ErrorKind::ConnectionAborted.into())).await);
                    } else {
                        visit.link.kill(how);
                        sender.closed().await;
                    }
                    return;
                }
                Step::Trailers(trailers) => {
                    let mut map = HeaderMap::new();
                    put(&mut map, &trailers);
                    if sender.send(Ok(Frame::trailers(map))).await.is_err() {
                        return;
                    }
                }
            }
        }
        visit.end();
    }
}

fn put(map: &mut HeaderMap, headers: &[(String, String)]) {
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) {
            map.append(name, value);
        }
    }
}

/// Reads a request to its end. Otherwise the answer that refuses it.
pub(crate) async fn read(protocol: Protocol, request: Request<Incoming>) -> Result<Asked, Box<Answer>> {
    let refuse = |status: u16, code, message: &str| {
        Box::new(match protocol {
            Protocol::Http => Answer::whole(status, "text/plain; charset=utf-8", message.to_owned()),
            Protocol::Grpc => Answer::refusal(code, message),
        })
    };
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MOST_BODY).collect().await;
    let mut body = body
        .map_err(|_| refuse(413, GrpcCode::RESOURCE_EXHAUSTED, "the request is longer than 64 MiB, or broke off"))?
        .to_bytes();
    if protocol == Protocol::Grpc {
        let length = body.get(1..5).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
        match length {
            Some(length) if body[0] == 0 && body.len() as u64 == u64::from(length) + 5 => body = body.slice(5..),
            _ => return Err(refuse(400, GrpcCode::UNIMPLEMENTED, "a call is one message that is not compressed")),
        }
    }
    let headers = head
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect();
    let path = head.uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str).to_owned();
    Ok(Asked { protocol, method: head.method.as_str().to_owned(), path, headers, body })
}
