//! Traces, as a collector receives them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};

use consort_server::{Listen, Server};
use serde_json::json;
use tokio::sync::oneshot;

use crate::client::{Client, chat, request};

/// A collector that takes one batch: its head and its bytes.
fn collector() -> (SocketAddr, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        let (head, length) = loop {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "the sender went away");
            all.extend_from_slice(&buffer[..count]);
            let Some(end) = all.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = String::from_utf8(all.drain(..end + 4).collect()).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let length: usize = length.parse().unwrap();
            break (head, length);
        };
        while all.len() < length {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "the batch was cut off");
            all.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        send.send((head, all)).unwrap();
    });
    (address, receive)
}

fn count(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).filter(|window| *window == part).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_reply_are_spans_of_the_callers_trace() {
    let (collector, batches) = collector();
    let config =
        format!("[telemetry]\ntraces = true\notlp_endpoint = \"http://{collector}/\"\nservice_name = \"the-room\"\n");
    let client = Client::with(&config).await;
    let listen = Listen { tcp: Some(SocketAddr::from(([127, 0, 0, 1], 0))), socket: None };
    let server = Server::bind(client.app.clone(), &listen).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let done = tokio::spawn(server.run_until(async move { drop(stopped.await) }));

    let body = chat("Tell me a story about a fox.", &json!({ "stream": true, "model": "pirate" }));
    let mut asked = request("POST", "/v1/chat/completions", body.to_string().into());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    asked.headers_mut().insert("traceparent", parent.parse().unwrap());
    let answer = client.send(asked).await;
    let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
    assert!(answer.text().contains("Arr"), "{}", answer.text());
    drop(stop);
    done.await.unwrap();

    let (head, batch) = batches.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    let trace = [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];
    assert_eq!(count(&batch, &trace), 2, "the request and its reply are in the caller's trace");
    let caller = [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31];
    assert_eq!(count(&batch, &caller), 1, "the request alone is below the caller's span");
    for there in [
        "the-room",
        "POST /v1/chat/completions",
        "chat pirate",
        "http.response.status_code",
        "gen_ai.operation.name",
        "gen_ai.usage.output_tokens",
        "gen_ai.response.finish_reasons",
        "first token",
        "finished",
        id.as_str(),
    ] {
        assert!(count(&batch, there.as_bytes()) > 0, "{there} is missing");
    }
    for said in ["fox", "Arr"] {
        assert_eq!(count(&batch, said.as_bytes()), 0, "what was said stands in a span: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_disturbs_nobody() {
    // A port that nobody listens on.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::with(&format!("[telemetry]\ntraces = true\notlp_endpoint = \"http://{nobody}\"\n")).await;
    client.chat("Hello!", json!({ "max_tokens": 2 })).await.good();
}
