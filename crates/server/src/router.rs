//! Who answers what, and what every request passes first.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hyper::body::{Frame, SizeHint};

use crate::app::{App, Shared};
use crate::error::Failure;
use crate::metrics::Counted;
use crate::rooms::http as rooms;
use crate::telemetry::{Asked, RequestSpan};
use crate::{adapter_list, anthropic, guard, identity, openai, operations, page, personas, reload, status};

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Over TCP, where a page in a browser can reach the server as well: `Host` and `Origin` are checked.
    Tcp,
    /// Over a Unix domain socket, which no page can reach.
    Unix,
    /// From within this program, which nobody else can reach: no key is asked for, and there is always a place.
    Inside,
}

impl App {
    /// Everything that the server answers.
    pub fn router(&self, transport: Transport) -> Router {
        let gate = Gate { app: Arc::clone(&self.shared), transport };
        Router::new()
            .route("/health", get(operations::health))
            .route("/ready", get(operations::ready))
            .route("/metrics", get(operations::metrics))
            .route("/v1/models", get(openai::models::list))
            .route("/v1/models/{name}", get(openai::models::one))
            .route("/v1/chat/completions", post(openai::chat::handle))
            .route("/v1/completions", post(openai::completions::handle))
            .route("/v1/responses", post(openai::responses::handle))
            .route("/v1/messages", post(anthropic::messages))
            .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
            .route("/v1/embeddings", post(openai::embeddings::handle))
            .route("/v1/load_lora_adapter", post(openai::adapters::load))
            .route("/v1/unload_lora_adapter", post(openai::adapters::unload))
            .route("/tokenize", post(openai::tokens::tokenize))
            .route("/detokenize", post(openai::tokens::detokenize))
            .route("/v1/personas", get(personas::list))
            .route("/v1/personas/{name}", get(personas::one).put(personas::put).delete(personas::delete))
            .route("/v1/adapters", get(adapter_list::list))
            .route("/v1/status", get(status::status))
            .route("/v1/rooms", get(rooms::list).post(rooms::make))
            .route("/v1/rooms/{room}", get(rooms::one).patch(rooms::change).delete(rooms::delete))
            .route("/v1/rooms/{room}/messages", post(rooms::say))
            .route("/v1/rooms/{room}/stop", post(rooms::stop))
            .route("/v1/rooms/{room}/images/{image}", get(rooms::image))
            .route("/", get(page::file))
            .route("/index.html", get(page::file))
            .route("/app.js", get(page::file))
            .route("/app.css", get(page::file))
            .route("/v1/reload", post(reload::handle))
            .fallback(unknown)
            .method_not_allowed_fallback(wrong_method)
            .layer(from_fn_with_state(gate, pass))
            .layer(from_fn_with_state(Arc::clone(&self.shared), record))
            .with_state(Arc::clone(&self.shared))
    }
}

async fn unknown() -> Failure {
    Failure::not_found("unknown_url", "there is nothing at this address")
}

async fn wrong_method() -> Failure {
    Failure::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address is asked with another method")
}

#[derive(Clone)]
struct Gate {
    app: Arc<Shared>,
    transport: Transport,
}

/// Lets pass who may: by the names under which the request came, by its key, by what there is room for.
async fn pass(State(Gate { app, transport }): State<Gate>, request: Request, next: Next) -> Response {
    if transport == Transport::Tcp
        && let Err(failure) = guard::check(&app.config.server, request.uri(), request.headers())
    {
        return failure.into_response();
    }
    let path = request.uri().path();
    // Whoever watches over the process needs no key to see whether it lives; and the page asks for one.
    if matches!(path, "/health" | "/ready") || page::PATHS.contains(&path) {
        return next.run(request).await;
    }
    if transport == Transport::Inside {
        return next.run(request).await;
    }
    if let Err(failure) = app.keys.check(request.headers()) {
        return failure.into_response();
    }
    if path == "/metrics" {
        return next.run(request).await;
    }
    let Ok(place) = app.places.clone().try_acquire_owned() else {
        return Failure::overloaded("the server answers as many requests as it may; try again soon").into_response();
    };
    hold(next.run(request).await, place)
}

/// Counts and logs requests, gives each a name.
async fn record(State(app): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let id = identity::name("req_");
    let asked = Asked { method: request.method(), route: &route, id: &id, headers: request.headers() };
    let span = app.traces.request(&asked);
    let mut record = Record {
        _in_flight: Counted::new(&app.traffic, |traffic| &traffic.requests),
        span: span.clone(),
        id,
        method: request.method().clone(),
        route,
        status: None,
        began: Instant::now(),
    };
    let anthropic = anthropic::failure::is_spoken(request.uri().path(), request.headers());
    let mut response = span.clone().scope(next.run(request)).await;
    if anthropic {
        response = anthropic::failure::dressed(response, &record.id);
    }
    let status = response.status();
    record.status = Some(status);
    app.traffic.answered(&record.route, status.as_u16());
    if let Ok(id) = HeaderValue::try_from(record.id.as_str()) {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
    }
    // What comes later belongs to the request as well.
    hold(response, record).map(|inner| Body::new(Spanned { inner, span }))
}

/// What the log says of a request, when its answer has been sent or its client has gone.
struct Record {
    _in_flight: Counted,
    span: RequestSpan,
    id: String,
    method: Method,
    route: String,
    /// `None`: the client went away before there was an answer.
    status: Option<StatusCode>,
    began: Instant,
}

impl Drop for Record {
    fn drop(&mut self) {
        let milliseconds = self.began.elapsed().as_millis() as u64;
        let status = self.status.map_or(0, |status| status.as_u16());
        self.span.end(self.status);
        tracing::info!(id = %self.id, method = %self.method, route = %self.route, status, milliseconds, "request");
    }
}

/// Keeps something until a response has been sent, or dropped.
fn hold(response: Response, held: impl Send + Unpin + 'static) -> Response {
    response.map(|inner| Body::new(Holding { inner, _held: held }))
}

struct Holding<T> {
    inner: Body,
    _held: T,
}

impl<T: Unpin> hyper::body::Body for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body whose parts are made within a request's span.
struct Spanned {
    inner: Body,
    span: RequestSpan,
}

impl hyper::body::Body for Spanned {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { inner, span } = &mut *self;
        span.enter(|| Pin::new(inner).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
