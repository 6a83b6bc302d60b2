//! The page, and what it shows of the server.

use axum::body::Body;
use axum::http::Request;
use consort_server::{Keys, Transport};
use http_body_util::BodyExt as _;
use serde_json::json;
use tower::ServiceExt as _;

use crate::client::{Client, request};

fn dist(file: &str) -> Vec<u8> {
    std::fs::read(format!("{}/page/dist/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[tokio::test]
async fn the_committed_files_are_what_is_served_and_without_a_key() {
    let client = Client::with_keys("", Keys::new(["open-sesame"]).unwrap()).await;
    assert_eq!(client.get("/v1/status").await.status, 401);
    for (path, file, kind) in [
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/index.html", "index.html", "text/html; charset=utf-8"),
        ("/app.js", "app.js", "text/javascript; charset=utf-8"),
        ("/app.css", "app.css", "text/css; charset=utf-8"),
    ] {
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.body.to_vec()), (200, dist(file)), "{path}");
        for (header, value) in [
            ("content-type", kind),
            (
                "content-security-policy",
                "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                 object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            ),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(answer.headers[header], value, "{path}");
        }
        let tag = answer.headers["etag"].to_str().unwrap().to_owned();
        assert!(tag.len() > 10 && tag.starts_with('"') && tag.ends_with('"'), "{tag}");
        for (known, status) in [(tag.as_str(), 304), (&format!("\"x\", W/{tag}"), 304), ("*", 304), ("\"x\"", 200)] {
            let asked = Request::get(path).header("host", "localhost").header("if-none-match", known);
            let answer = client.send(asked.body(Body::empty()).unwrap()).await;
            assert_eq!((answer.status, answer.body.is_empty()), (status, status == 304), "{path}: {known}");
            assert_eq!(answer.headers["etag"], tag);
        }
        let foreign = Request::get(path).header("host", "evil.example").body(Body::empty()).unwrap();
        assert_eq!(client.send(foreign).await.error().1, "host_not_allowed");
        assert_eq!(client.send(request("POST", path, Body::empty())).await.error().0, 405);
        let head = client.send(request("HEAD", path, Body::empty())).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        // No page reaches a socket, and no `Host` is asked for there.
        let router = client.app.router(Transport::Unix);
        let answer = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), dist(file));
    }
    assert_eq!(client.get("/app.js.map").await.status, 401);
}

#[tokio::test]
async fn the_status_is_what_the_backend_says() {
    let client = Client::new().await;
    let status = client.get("/v1/status").await.good();
    let info = client.backend.info();
    assert_eq!(
        status["model"],
        json!({ "name": "etude", "architecture": info.architecture, "parameters": info.parameters, "context_length": info.context_length, "vision": true })
    );
    assert!(info.parameters > 3_000_000);
    let evidence = client.backend.evidence();
    assert_eq!((&status["evidence"]["backend"], &status["evidence"]["device"]), (&json!("native"), &json!("cpu")));
    assert_eq!(status["evidence"]["device_name"], evidence.device_name);
    assert_eq!(status["evidence"]["established_by"], "single_device_kernels");
    let placements = status["evidence"]["placements"].as_array().unwrap();
    assert_eq!(placements.len(), evidence.placements.len());
    assert!(placements.iter().all(|placement| placement["device"] == "cpu" && placement["component"].is_string()));
    let metrics = &status["metrics"];
    assert_eq!((&metrics["running"], &metrics["queued"]), (&json!(0), &json!(0)));
    assert_eq!(
        (&metrics["reused_share"], &metrics["tokens_per_second"]),
        (&json!(null), &json!(null)),
        "nothing was measured yet"
    );
    assert!(metrics["memory"]["weights"].as_u64().unwrap() > 1_000_000);
    assert_eq!(metrics["memory"].as_object().unwrap().len(), 6);
    for _ in 0..2 {
        client.chat("Hello!", json!({})).await.good();
    }
    let metrics = client.get("/v1/status").await.good()["metrics"].clone();
    assert!(metrics["reused_share"].as_f64().unwrap() > 0.0 && metrics["reused_share"].as_f64().unwrap() < 1.0);
    assert!(metrics["tokens_per_second"].as_f64().unwrap() > 0.0 && metrics["cached_pasts"].as_u64().unwrap() > 0);
    // What the page may send fits into a request.
    let limits = &status["limits"];
    let whole = limits["image_bytes"].as_u64().unwrap() * limits["images_per_message"].as_u64().unwrap();
    assert!(whole / 3 * 4 + limits["content_bytes"].as_u64().unwrap() < 32 << 20);
    assert_eq!((&limits["content_bytes"], &limits["image_types"][1]), (&json!(65536), &json!("image/jpeg")));
}

#[tokio::test]
async fn adapters_and_personas_tell_what_is_in_memory() {
    let client = Client::with(
        "[[persona]]\nname = \"ben\"\nadapters = [{ name = \"pirate\" }]\npinned = true\ncolor = \"#D64545\"\n\
         [[persona]]\nname = \"clara\"\nadapters = [{ name = \"butler\" }]\nthinking = true\n[[persona]]\nname = \"ada\"\n",
    )
    .await;
    let list = client.get("/v1/adapters").await.good();
    let [butler, pirate] = list["data"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!(butler, &json!({ "name": "butler", "loaded": false, "resident": false, "pinned": false }));
    assert_eq!(
        (&pirate["name"], &pirate["resident"], &pirate["pinned"]),
        (&json!("pirate"), &json!(true), &json!(true))
    );
    assert_eq!((&pirate["rank"], &pirate["activated"]), (&json!(8), &json!(false)));
    assert!(pirate["bytes"].as_u64().unwrap() > 100_000);
    let personas = client.get("/v1/personas").await.good();
    let shown = |at: usize, field: &str| personas["data"][at][field].clone();
    assert_eq!(
        (shown(0, "name"), shown(0, "system"), shown(0, "thinking"), shown(0, "resident")),
        (json!("ada"), json!(""), json!(null), json!(true))
    );
    assert_eq!((shown(0, "adapters"), shown(0, "color")), (json!([]), json!(null)));
    assert_eq!(
        (shown(1, "resident"), shown(1, "color"), shown(1, "adapters")),
        (json!(true), json!("#D64545"), json!([{ "name": "pirate", "scale": 1.0 }]))
    );
    assert_eq!((shown(2, "resident"), shown(2, "thinking")), (json!(false), json!(true)));
    client.chat("Hello!", json!({ "model": "clara", "max_tokens": 2 })).await.good();
    assert_eq!(client.get("/v1/personas/clara").await.good()["resident"], true);
    // What is shown can be put back, and means the same.
    for at in 0..3 {
        let name = shown(at, "name");
        let put = client.put(&format!("/v1/personas/{}", name.as_str().unwrap()), personas["data"][at].clone()).await;
        assert_eq!(put.status, 200, "{}", put.text());
    }
    let again = client.get("/v1/personas").await.good();
    assert_eq!((&again["data"][0], &again["data"][1]["color"]), (&personas["data"][0], &json!("#D64545")));
    for (name, body, param) in [("USER", json!({}), "name"), ("eve", json!({ "color": "red" }), "color")] {
        assert_eq!(client.put(&format!("/v1/personas/{name}"), body).await.error().2.as_deref(), Some(param));
    }
}
