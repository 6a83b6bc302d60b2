//! Batches to a server, over real connections.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Asked, files, ids, line, read, run, serve, settings};
use consort_batch::{End, HttpConfig, HttpTarget};
use consort_core::ErrorKind;
use serde_json::json;

fn good(asked: &Asked) -> (u16, &'static str, String) {
    let body = json!({ "said": asked.body["n"], "usage": { "prompt_tokens": 1, "completion_tokens": 1 } });
    (200, "X-Request-Id: req-7\r\n", format!("{body:#}"))
}

fn target(address: std::net::SocketAddr) -> Arc<HttpTarget> {
    // As others write base addresses.
    Arc::new(HttpTarget::new(HttpConfig::new(format!("http://{address}/v1/"))).unwrap())
}

fn input(count: usize) -> String {
    (0..count).map(|index| line(&format!("r{index}"), &json!({ "n": index }))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_most_requests_answers_all_of_them_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &input(60));
    // One in three is refused twice, and each refusal closes the door for a moment in which nobody is to come.
    let times = Mutex::new(HashMap::<u64, u32>::new());
    let (closed, early) = (Mutex::new(None::<Instant>), Arc::new(AtomicUsize::new(0)));
    let too_early = Arc::clone(&early);
    let address = serve(move |asked| {
        let mut times = times.lock().unwrap();
        let count = times.entry(asked.body["n"].as_u64().unwrap()).or_default();
        *count += 1;
        let mut closed = closed.lock().unwrap();
        let now = Instant::now();
        if closed.is_some_and(|until| now < until) {
            too_early.fetch_add(1, Ordering::Relaxed);
        }
        if *count <= 2 && asked.body["n"].as_u64().unwrap() % 3 == 0 {
            *closed = Some(now + Duration::from_millis(40));
            let error = json!({ "error": { "code": "rate_limit_exceeded", "message": "slow down" } });
            return Some((429, "Retry-After: 1\r\nretry-after-ms: 50\r\n", error.to_string()));
        }
        Some(good(asked))
    });
    let (end, figures) = run(&files, target(address), &settings(1)).await.unwrap();
    assert!(matches!(end, End::Complete), "{end:?}");
    assert_eq!((figures.succeeded, figures.failed()), (60, 0));
    assert_eq!(figures.retries, 20 * 2, "those refused come again");
    assert_eq!(early.load(Ordering::Relaxed), 0, "and not before they may");
    let lines = read(&files.output);
    assert_eq!(ids(&files.output), (0..60).map(|index| format!("r{index}")).collect::<Vec<_>>());
    assert_eq!(lines[7]["response"]["body"]["said"], 7);
    assert_eq!(lines[7]["response"]["request_id"], "req-7");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_and_pages_of_proxies_are_temporary() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &input(30));
    let times = Mutex::new(HashMap::<u64, u32>::new());
    let address = serve(move |asked| {
        let number = asked.body["n"].as_u64().unwrap();
        let mut times = times.lock().unwrap();
        let count = times.entry(number).or_default();
        *count += 1;
        match number {
            3 if *count == 1 => None,
            5 if *count == 1 => Some((502, "", "<html>\nbad gateway</html>".into())),
            7 => Some((400, "", json!({ "error": { "code": "invalid_value" } }).to_string())),
            9 => Some((403, "", "<html>no</html>".into())),
            _ => Some(good(asked)),
        }
    });
    let (end, figures) = run(&files, target(address), &settings(4)).await.unwrap();
    assert!(matches!(end, End::Complete), "{end:?}");
    assert_eq!((figures.retries, ids(&files.errors)), (2, vec!["r7".to_owned(), "r9".to_owned()]));
    let errors = read(&files.errors);
    assert_eq!(errors[1]["response"], json!({ "status_code": 403, "request_id": null, "body": "<html>no</html>" }));
    assert_eq!((figures.failures["invalid_value"], figures.failures["http_403"]), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_addresses_go_where_they_belong() {
    let folder = tempfile::tempdir().unwrap();
    let text = line("a", &json!({ "n": 1 })) + &line("b", &json!({ "n": 2 })).replace("chat/completions", "messages");
    let files = files(folder.path(), &text);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&seen);
    let address = serve(move |asked_now| {
        let header = |name: &str| asked_now.headers.iter().find(|pair| pair.0 == name).map(|pair| pair.1.clone());
        let kept = ["authorization", "x-api-key", "anthropic-version", "content-type"].map(header);
        asked.lock().unwrap().push((asked_now.path.clone(), kept));
        Some(good(asked_now))
    });
    let config = HttpConfig { api_key: Some("open-sesame".into()), ..HttpConfig::new(format!("http://{address}")) };
    assert!(!format!("{config:?}").contains("sesame"));
    run(&files, Arc::new(HttpTarget::new(config).unwrap()), &settings(1)).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let (bearer, json) = (text("Bearer open-sesame"), text("application/json"));
    let expected = [
        ("/v1/chat/completions".to_owned(), [bearer.clone(), None, None, json.clone()]),
        ("/v1/messages".to_owned(), [bearer, text("open-sesame"), text("2023-06-01"), json]),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_at_the_address_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path(), &input(5));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (end, figures) = run(&files, target(free), &settings(2)).await.unwrap();
    let End::Halted(error) = end else { panic!("{end:?}") };
    assert_eq!((error.kind(), figures.done()), (ErrorKind::Remote, 0));
}

#[test]
fn an_address_is_a_host_and_no_more() {
    for url in
        ["127.0.0.1:8000", "ftp://x", "http://", "http://user:password@host", "http://host/?key=x", "http://a b", ""]
    {
        let error = HttpTarget::new(HttpConfig::new(url)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
        assert!(!format!("{error:?}").contains("password"), "{error}");
    }
    if !cfg!(feature = "tls") {
        let error = HttpTarget::new(HttpConfig::new("https://host")).unwrap_err();
        assert!(error.message().contains("TLS"), "{error}");
    }
    for key in ["", "a b", "ä", "a\r\nx: y"] {
        let config = HttpConfig { api_key: Some(key.into()), ..HttpConfig::new("http://host") };
        assert_eq!(HttpTarget::new(config).unwrap_err().kind(), ErrorKind::InvalidConfig, "{key:?}");
    }
}
