//! Who may ask, and how much.

use axum::body::Body;
use axum::http::Request;
use consort_server::{Keys, Transport};
use serde_json::json;
use tower::ServiceExt as _;

use crate::client::{Client, chat, request};

#[tokio::test]
async fn a_key_is_demanded_where_there_is_one() {
    let client = Client::with_keys("", Keys::new(["open-sesame"]).unwrap()).await;
    for path in ["/v1/models", "/v1/personas", "/metrics", "/nowhere"] {
        let answer = client.get(path).await;
        assert_eq!(answer.error(), (401, "invalid_api_key".into(), None), "{path}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    let with = async |path: &str, name: &str, value: &str| {
        let mut request = request("GET", path, Body::empty());
        request.headers_mut().insert(axum::http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        client.send(request).await
    };
    assert_eq!(with("/v1/models", "authorization", "Bearer open-sesame").await.status, 200);
    assert_eq!(with("/v1/models", "x-api-key", "open-sesame").await.status, 200);
    assert_eq!(with("/v1/models", "authorization", "Bearer open-sesamE").await.status, 401);
    // Whether it lives everybody may see, and on what it computes who has a key.
    assert_eq!(client.get("/health").await.good(), json!({ "status": "ok" }));
    assert_eq!(client.get("/ready").await.good(), json!({ "status": "ready" }));
    let told = with("/ready", "x-api-key", "open-sesame").await.good();
    assert_eq!(
        (told["evidence"]["backend"].as_str(), told["evidence"]["device"].as_str()),
        (Some("native"), Some("cpu"))
    );
}

#[tokio::test]
async fn other_names_and_other_pages_are_refused() {
    let client = Client::new().await;
    let with = async |host: &str, origin: Option<&str>| {
        let mut request = request(
            "POST",
            "/v1/chat/completions",
            Body::from(chat("Hello!", &json!({ "max_tokens": 1 })).to_string()),
        );
        request.headers_mut().insert("host", host.parse().unwrap());
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        client.send(request).await
    };
    assert_eq!(with("evil.example:8080", None).await.error().1, "host_not_allowed");
    assert_eq!(with("localhost:8080", Some("https://evil.example")).await.error().1, "origin_not_allowed");
    let own = with("127.0.0.1:8080", Some("http://127.0.0.1:8080")).await;
    assert_eq!(own.status, 200);
    assert!(own.headers.keys().all(|name| !name.as_str().starts_with("access-control")), "CORS is off");
    let preflight = {
        let mut request = request("OPTIONS", "/v1/chat/completions", Body::empty());
        request.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
        client.send(request).await
    };
    assert_eq!(preflight.status, 403);
    // No page reaches a Unix socket, and clients name it as they like.
    let unix = client.app.router(Transport::Unix);
    let request = Request::get("/v1/models").header("host", "anything").body(Body::empty()).unwrap();
    assert_eq!(unix.oneshot(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn bodies_have_a_type_and_a_size() {
    let client = Client::with("[limits]\nbody_bytes = 1000\nbody_seconds = 1\n").await;
    let send = async |kind: Option<&str>, body: Body| {
        let mut request = Request::post("/v1/chat/completions").header("host", "localhost");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        client.send(request.body(body).unwrap()).await
    };
    let small = || Body::from(chat("Hello!", &json!({ "max_tokens": 1 })).to_string());
    assert_eq!(send(Some("application/json; charset=utf-8"), small()).await.status, 200);
    // What a page of another origin could send without being asked.
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonp")] {
        assert_eq!(send(kind, small()).await.error().0, 415, "{kind:?}");
    }
    assert_eq!(send(Some("application/json"), Body::from(vec![b' '; 1001])).await.error().0, 413);
    // Without a declared length.
    let pieces = futures_util::stream::repeat_with(|| Ok::<_, std::convert::Infallible>(vec![b' '; 100]));
    assert_eq!(send(Some("application/json"), Body::from_stream(pieces)).await.error().0, 413);
    let never = futures_util::stream::pending::<Result<Vec<u8>, std::convert::Infallible>>();
    assert_eq!(send(Some("application/json"), Body::from_stream(never)).await.error().0, 408);
    let broken = futures_util::stream::iter([Err::<Vec<u8>, _>(std::io::Error::other("gone"))]);
    assert_eq!(send(Some("application/json"), Body::from_stream(broken)).await.error().1, "invalid_body");
}

#[tokio::test]
async fn there_is_room_for_so_many_requests() {
    let client = Client::with("[limits]\nrequests = 1\n").await;
    let ask = chat("Tell me a story about a fox.", &json!({ "stream": true }));
    let running = client.begin("/v1/chat/completions", &ask).await;
    assert_eq!(running.status(), 200);
    let refused = client.get("/v1/models").await;
    assert_eq!((refused.error().0, refused.headers["retry-after"].as_bytes()), (429, &b"1"[..]));
    assert_eq!(client.get("/health").await.status, 200, "watchers are let in");
    assert_eq!(client.get("/metrics").await.status, 200);
    drop(running);
    assert_eq!(client.get("/v1/models").await.status, 200, "the place is free when the answer is gone");
}

#[tokio::test]
async fn a_full_queue_is_told_at_once() {
    let client = Client::with("[scheduler]\nmax_queued = 1\nmax_running = 1\n").await;
    let long = chat("Tell me a story about a fox.", &json!({ "stream": true, "ignore_eos": true }));
    let mut running = Vec::new();
    let mut refusals = 0;
    for _ in 0..8 {
        let response = client.begin("/v1/chat/completions", &long).await;
        if response.status() == 429 {
            assert!(response.headers().contains_key("retry-after"));
            refusals += 1;
        } else {
            assert_eq!(response.status(), 200);
            running.push(response);
        }
    }
    assert!(refusals > 0, "one runs, one waits, and {} more were taken", running.len());
    assert_eq!(client.backend.metrics().refused, refusals);
    let metrics = client.get("/metrics").await.text();
    assert!(metrics.contains(&format!("consort_persona_refused_total{{persona=\"etude\"}} {refusals}")), "{metrics}");
}
