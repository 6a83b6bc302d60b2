//! Asking from within this program, without a socket.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use crate::app::App;
use crate::router::Transport;

/// Everything that the server answers, for requests from within: no socket, no host, no key. Cheap to clone.
///
/// ```
/// use consort_server::App;
///
/// async fn say_hello(app: &App) -> String {
///     let body = r#"{"model": "etude", "messages": [{"role": "user", "content": "Hello!"}]}"#;
///     let answer = app.inside().ask("/v1/chat/completions", body).await;
///     String::from_utf8_lossy(&answer.body).into_owned()
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Inside {
    service: TowerToHyperService<Router>,
}

/// What came of a request, good or bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// By which the server calls the request.
    pub request_id: Option<String>,
    /// After how long trying again may help.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Bytes,
}

impl App {
    /// A way to ask from within this program. All limits of the configuration hold, but for that of requests at once.
    #[must_use]
    pub fn inside(&self) -> Inside {
        Inside { service: TowerToHyperService::new(self.router(Transport::Inside)) }
    }
}

impl Inside {
    /// Posts a JSON body, and reads the answer to its end. When the future is dropped, the request is cancelled.
    pub async fn ask(&self, path: &str, body: impl Into<Bytes>) -> Answered {
        let failed = |status: StatusCode| Answered {
            status: status.as_u16(),
            request_id: None,
            retry_after: None,
            body: Bytes::new(),
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Body::from(body.into()));
        let Ok(request) = request else { return failed(StatusCode::NOT_FOUND) };
        let Ok(response) = self.service.call(request).await;
        let (head, body) = response.into_parts();
        match body.collect().await {
            Ok(body) => Answered {
                status: head.status.as_u16(),
                request_id: text(&head.headers, "x-request-id").map(str::to_owned),
                retry_after: text(&head.headers, "retry-after")
                    .and_then(|text| text.parse().ok())
                    .map(Duration::from_secs),
                body: body.to_bytes(),
            },
            Err(_) => failed(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
