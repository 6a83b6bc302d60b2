//! Server-sent events (WHATWG HTML, "Server-sent events").

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_core::Stream;
use serde_json::Value;
use tokio::time::{Instant, Sleep};

/// After so long without an event a comment is sent, so that nobody between takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The comment.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// An event without a name.
pub(crate) fn data(value: &Value) -> Bytes {
    // JSON has no line breaks outside of texts, and escapes those within.
    Bytes::from(format!("data: {value}\n\n"))
}

/// An event with a name of the server's own.
pub(crate) fn named(name: &str, value: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {value}\n\n"))
}

/// The event that ends a stream of OpenAI's API.
pub(crate) const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// A response of events. When its reader goes away, the stream is dropped.
pub(crate) fn response(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let sleep = Box::pin(tokio::time::sleep(KEEP_ALIVE));
    let mut response = Response::new(Body::from_stream(KeptAlive { events: Box::pin(events), sleep }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would undo the streaming.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct KeptAlive<S> {
    events: Pin<Box<S>>,
    sleep: Pin<Box<Sleep>>,
}

impl<S: Stream<Item = Bytes>> Stream for KeptAlive<S> {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = match self.events.as_mut().poll_next(context) {
            Poll::Ready(next) => next,
            Poll::Pending => match self.sleep.as_mut().poll(context) {
                Poll::Ready(()) => Some(Bytes::from_static(COMMENT)),
                Poll::Pending => return Poll::Pending,
            },
        };
        self.sleep.as_mut().reset(Instant::now() + KEEP_ALIVE);
        Poll::Ready(next.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::StreamExt as _;
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        assert_eq!(data(&json!({ "a": "b\n\ndata: c" })), "data: {\"a\":\"b\\n\\ndata: c\"}\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_by_comments() {
        let events = futures_util::stream::once(async {
            tokio::time::sleep(Duration::from_secs(40)).await;
            DONE
        });
        let response = response(events.boxed());
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, ": keep-alive\n\n: keep-alive\n\ndata: [DONE]\n\n");
    }
}
