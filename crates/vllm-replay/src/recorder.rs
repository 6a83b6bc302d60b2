//! Stands between a client and a vLLM, passes everything through, and keeps what was said.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use consort_core::{Error, ErrorKind, Result};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderName};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::answer::{Asked, Ending, Protocol, framed};
use crate::key::Key;
use crate::link::{Body, Link, Part};
use crate::listen::{Answering, Host, Listener, Listening};
use crate::proto;
use crate::rules::{Rules, trimmed_metrics};
use crate::server::read;
use crate::transcript::{Conversation, Reply, Transcript};

/// The headers of an answer that are kept.
const KEPT: [&str; 3] = ["cache-control", "content-type", "retry-after"];
/// Headers of one connection alone, which are not passed on.
const OF_THE_HOP: [&str; 7] =
    ["connection", "content-length", "host", "keep-alive", "te", "transfer-encoding", "upgrade"];
/// What one answer may say, in bytes: more is passed on and not kept.
const MOST_KEPT: usize = 32 << 20;

/// What is recorded.
#[derive(Debug, Clone, Default)]
pub struct RecorderConfig {
    /// The vLLM's `host:port` for HTTP. Without it HTTP is refused.
    pub http_from: Option<String>,
    /// The vLLM's `host:port` for gRPC. Without it gRPC is refused.
    pub grpc_from: Option<String>,
    /// HTTP's address. By default a free port of loopback.
    pub http: Option<SocketAddr>,
    /// gRPC's address. By default a free port of loopback.
    pub grpc: Option<SocketAddr>,
    /// What is recorded, for people: the server and its version.
    pub source: String,
    /// The scene of what is recorded until [`Recorder::set_scene`].
    pub scene: String,
    /// What is volatile.
    pub rules: Rules,
    /// Whether pauses are left out. They make two recordings of the same thing differ.
    pub without_pauses: bool,
}

/// A running recorder.
pub struct Recorder {
    listener: Option<Listener>,
    proxy: Arc<Proxy>,
}

impl Recorder {
    /// Starts to record.
    ///
    /// # Errors
    ///
    /// [`Io`](ErrorKind::Io) if its ports cannot be listened on.
    pub fn start(config: RecorderConfig) -> Result<Self> {
        let listening = Listening { http: config.http, grpc: config.grpc, tls: None, idle_close: None };
        let proxy = Arc::new(Proxy {
            scene: Mutex::new(config.scene.clone()),
            config,
            kept: Mutex::default(),
            order: AtomicU64::new(0),
            open: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        });
        let listener = Listener::start(Arc::clone(&proxy), &listening)?;
        Ok(Self { listener: Some(listener), proxy })
    }

    fn address(&self, which: impl Fn(&Listener) -> SocketAddr) -> SocketAddr {
        self.listener.as_ref().map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)), which)
    }

    /// HTTP's address.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.address(|listener| listener.http)
    }

    /// gRPC's address.
    #[must_use]
    pub fn grpc(&self) -> SocketAddr {
        self.address(|listener| listener.grpc)
    }

    /// `http://127.0.0.1:port`.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http())
    }

    /// The same for gRPC's port.
    #[must_use]
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc())
    }

    /// The scene of what arrives from now on.
    pub fn set_scene(&self, scene: impl Into<String>) {
        *self.proxy.scene.lock().unwrap_or_else(PoisonError::into_inner) = scene.into();
    }

    /// Requests that could not be recorded: the vLLM was not there, or an answer was too long to keep.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.proxy.failures.load(Ordering::SeqCst)
    }

    /// How many conversations are being held.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.proxy.open.load(Ordering::SeqCst)
    }

    /// Ends, and gives what was recorded. Waits up to two seconds for conversations that are being held; those that last longer are
    /// recorded as left by their client.
    ///
    /// # Errors
    ///
    /// [`Remote`](ErrorKind::Remote) if requests could not be recorded.
    pub fn finish(mut self) -> Result<Transcript> {
        let end = Instant::now() + Duration::from_secs(2);
        while self.open() > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        // Ends the thread, and with it every conversation.
        drop(self.listener.take());
        if self.failures() > 0 {
            return Err(Error::new(
                ErrorKind::Remote,
                format!("{} requests could not be recorded: is the vLLM there?", self.failures()),
            )
            .with_operation("vllm_replay::record"));
        }
        let mut kept = std::mem::take(&mut *self.proxy.kept.lock().unwrap_or_else(PoisonError::into_inner));
        kept.sort_by_key(|(order, _)| *order);
        let mut transcript = Transcript {
            source: self.proxy.config.source.clone(),
            rules: self.proxy.config.rules.clone(),
            conversations: kept.into_iter().map(|(_, conversation)| conversation).collect(),
        };
        transcript.sort();
        Ok(transcript)
    }
}

struct Proxy {
    config: RecorderConfig,
    scene: Mutex<String>,
    kept: Mutex<Vec<(u64, Conversation)>>,
    order: AtomicU64,
    open: AtomicU64,
    failures: AtomicU64,
}

impl Host for Proxy {
    fn handle(self: Arc<Self>, protocol: Protocol, request: Request<Incoming>, _: Arc<Link>) -> Answering {
        Box::pin(async move {
            let Ok(asked) = read(protocol, request).await else {
                // Whoever goes before the request has arrived has asked nothing.
                return bad_gateway("the request did not arrive");
            };
            let mut tape = Tape::begin(Arc::clone(&self), &asked);
            let from = match protocol {
                Protocol::Http => &self.config.http_from,
                Protocol::Grpc => &self.config.grpc_from,
            };
            let answer = match from {
                Some(from) => forward(from, &asked).await,
                None => None,
            };
            let Some(answer) = answer else {
                tape.forget();
                return self.failed("the vLLM behind the recorder does not answer");
            };
            let (head, upstream) = answer.into_parts();
            tape.head(head.status, &head.headers);
            let mut response = Response::new(Body::empty());
            *response.status_mut() = head.status;
            for (name, value) in &head.headers {
                if !OF_THE_HOP.contains(&name.as_str()) {
                    response.headers_mut().append(name, value.clone());
                }
            }
            if let Some(length) = head.headers.get(CONTENT_LENGTH).filter(|_| protocol == Protocol::Http) {
                response.headers_mut().insert(CONTENT_LENGTH, length.clone());
            }
            if upstream.is_end_stream() {
                // An answer without a body stays one: gRPC's refusals are headers alone.
                tape.end(Ending::Complete);
            } else {
                let (sender, body) = Body::channel();
                *response.body_mut() = body;
                drop(tokio::spawn(pass(upstream, sender, tape)));
            }
            response
        })
    }
}

impl Proxy {
    fn failed(&self, message: &str) -> Response<Body> {
        self.failures.fetch_add(1, Ordering::SeqCst);
        bad_gateway(message)
    }
}

fn bad_gateway(message: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    if let Ok(message) = message.try_into() {
        response.headers_mut().insert(HeaderName::from_static("x-consort-recorder"), message);
    }
    response
}

/// Sends a request to the vLLM, on a connection of its own.
async fn forward(from: &str, asked: &Asked) -> Option<Response<Incoming>> {
    let stream = TcpStream::connect(from).await.ok()?;
    drop(stream.set_nodelay(true));
    let mut request = Request::builder().method(asked.method.as_str());
    for (name, value) in &asked.headers {
        if !OF_THE_HOP.contains(&name.as_str()) {
            request = request.header(name, value);
        }
    }
    let io = TokioIo::new(stream);
    match asked.protocol {
        Protocol::Http => {
            let request = request.uri(&asked.path).header(HOST, from);
            let request = request.body(Full::new(asked.body.clone())).ok()?;
            let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
            drop(tokio::spawn(connection));
            client.send_request(request).await.ok()
        }
        Protocol::Grpc => {
            let request = request.uri(format!("http://{from}{}", asked.path)).header("te", "trailers");
            let request = request.body(Full::new(framed(&asked.body))).ok()?;
            let (mut client, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.ok()?;
            drop(tokio::spawn(connection));
            client.send_request(request).await.ok()
        }
    }
}

/// Passes an answer's body on, part by part as it comes.
async fn pass(mut upstream: Incoming, sender: mpsc::Sender<Part>, mut tape: Tape) {
    loop {
        let frame = tokio::select! {
            frame = upstream.frame() => frame,
            // The client left, and with `upstream` we leave too.
            () = sender.closed() => return,
        };
        let frame = match frame {
            None => return tape.end(Ending::Complete),
            Some(Ok(frame)) => frame,
            Some(Err(_)) => {
                tape.end(Ending::Cut);
                drop(sender.send(Err(std::io::ErrorKind::ConnectionAborted.into())).await);
                return;
            }
        };
        if let Some(data) = frame.data_ref() {
            tape.data(data);
        }
        if let Some(trailers) = frame.trailers_ref() {
            tape.trailers(trailers);
        }
        if sender.send(Ok(frame)).await.is_err() {
            return;
        }
    }
}

/// What is kept of one conversation. Dropped before its end, the client left.
struct Tape {
    proxy: Arc<Proxy>,
    protocol: Protocol,
    order: u64,
    conversation: Option<Conversation>,
    path: String,
    sse: bool,
    /// What is not yet a whole event.
    rest: BytesMut,
    kept: usize,
    last: Instant,
}

impl Tape {
    fn begin(proxy: Arc<Proxy>, asked: &Asked) -> Self {
        proxy.open.fetch_add(1, Ordering::SeqCst);
        let conversation = Conversation {
            scene: proxy.scene.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            key: Key::of(asked, &proxy.config.rules),
            reply: Reply {
                status: 200,
                headers: Vec::new(),
                sized: false,
                events: Vec::new(),
                pauses: Vec::new(),
                trailers: Vec::new(),
                ending: Ending::Unanswered,
            },
        };
        Self {
            order: proxy.order.fetch_add(1, Ordering::SeqCst),
            protocol: asked.protocol,
            path: asked.path.clone(),
            conversation: Some(conversation),
            sse: false,
            rest: BytesMut::new(),
            kept: 0,
            last: Instant::now(),
            proxy,
        }
    }

    fn forget(&mut self) {
        self.conversation = None;
    }

    fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let Some(conversation) = &mut self.conversation else { return };
        let reply = &mut conversation.reply;
        (reply.status, reply.ending) = (status.as_u16(), Ending::Silence);
        reply.sized = self.protocol == Protocol::Http && headers.contains_key(CONTENT_LENGTH);
        for name in KEPT {
            if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
                reply.headers.push((name.to_owned(), value.to_owned()));
            }
        }
        self.sse =
            reply.headers.iter().any(|(name, value)| name == "content-type" && value.starts_with("text/event-stream"));
        // gRPC refuses with trailers alone, which stand among the headers.
        if headers.contains_key("grpc-status") {
            self.trailers(headers);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        let Some(conversation) = &mut self.conversation else { return };
        for name in ["grpc-message", "grpc-status", "grpc-status-details-bin"] {
            if let Some(value) = trailers.get(name).and_then(|value| value.to_str().ok()) {
                conversation.reply.trailers.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    fn data(&mut self, data: &Bytes) {
        self.kept += data.len();
        if self.kept > MOST_KEPT {
            if self.conversation.take().is_some() {
                self.proxy.failures.fetch_add(1, Ordering::SeqCst);
            }
            return;
        }
        self.rest.extend_from_slice(data);
        while let Some(event) = self.next_event() {
            self.event(event);
        }
    }

    /// Takes a whole event from what has come.
    fn next_event(&mut self) -> Option<Bytes> {
        match self.protocol {
            Protocol::Grpc => {
                let length = u32::from_be_bytes(self.rest.get(1..5)?.try_into().ok()?) as usize;
                (self.rest.len() >= length + 5).then(|| self.rest.split_to(length + 5).freeze().slice(5..))
            }
            Protocol::Http if self.sse => {
                let end = (0..self.rest.len()).find_map(|at| {
                    let rest = &self.rest[at..];
                    [&b"\n\n"[..], b"\r\n\r\n"]
                        .iter()
                        .find(|blank| rest.starts_with(blank))
                        .map(|blank| at + blank.len())
                })?;
                Some(self.rest.split_to(end).freeze())
            }
            // How a body that is no stream fell into chunks says nothing.
            Protocol::Http => None,
        }
    }

    fn event(&mut self, event: Bytes) {
        let Some(conversation) = &mut self.conversation else { return };
        let pause = u32::try_from(self.last.elapsed().as_millis()).unwrap_or(u32::MAX);
        self.last = Instant::now();
        let rules = &self.proxy.config.rules;
        let written = match self.protocol {
            Protocol::Grpc => normal_message(&self.path, &event, rules),
            Protocol::Http => std::str::from_utf8(&event).ok().map(|text| {
                let text = rules.answer(text);
                if rules.trim_metrics && self.path == "/metrics" { trimmed_metrics(&text) } else { text }.into_bytes()
            }),
        };
        conversation.reply.events.push(written.map_or(event, Bytes::from));
        if !self.proxy.config.without_pauses {
            conversation.reply.pauses.push(rounded(pause));
        }
    }

    fn end(&mut self, ending: Ending) {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest).freeze();
            self.event(rest);
        }
        if let Some(conversation) = &mut self.conversation {
            conversation.reply.ending = ending;
        }
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        if let Some(conversation) = self.conversation.take() {
            self.proxy.kept.lock().unwrap_or_else(PoisonError::into_inner).push((self.order, conversation));
        }
        self.proxy.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A message of gRPC by the rules. `None` if it stays as it is.
fn normal_message(method: &str, message: &[u8], rules: &Rules) -> Option<Vec<u8>> {
    let text = proto::faithful(method, message)?.to_string();
    let normal = rules.answer(&text);
    if normal == text {
        return None;
    }
    proto::answer_from_json(method, &serde_json::from_str(&normal).ok()?)
}

/// A pause to the next lower of 0, 1, 2, 5, 10, 20, 50, … 1000, so that two recordings seldom differ in it.
fn rounded(ms: u32) -> u32 {
    [1000, 500, 200, 100, 50, 20, 10, 5, 2, 1].into_iter().find(|step| ms >= *step).unwrap_or_default()
}
