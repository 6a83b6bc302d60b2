//! Pictures that stand at another server.

use consort_core::ErrorKind;
use consort_server::Config;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::client::{Client, etude};

fn question(url: &str) -> Value {
    let parts =
        json!([{ "type": "text", "text": "What do you see?" }, { "type": "image_url", "image_url": { "url": url } }]);
    json!({ "messages": [{ "role": "user", "content": parts }] })
}

#[tokio::test]
async fn a_picture_of_an_allowed_address_is_seen_and_no_other() {
    let picture = std::fs::read(etude("demo.png")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = picture.clone();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let count = stream.read(&mut head).await.unwrap();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            bytes.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        String::from_utf8(head[..count].to_vec()).unwrap()
    });
    let client = Client::with(&format!("[server]\nimage_prefixes = [\"http://{address}/public/\"]\n")).await;
    let seen = client.chat("", question(&format!("http://{address}/public/demo.png"))).await.good();
    let head = served.await.unwrap();
    assert!(head.starts_with("GET /public/demo.png HTTP/1.1\r\n"), "{head}");
    assert!(!head.to_lowercase().contains("authorization"), "{head}");
    // The same as if it had come in the request.
    use base64::Engine as _;
    let data = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(&picture));
    let sent = client.chat("", question(&data)).await.good();
    assert_eq!(seen["choices"], sent["choices"]);
    assert_eq!(seen["usage"]["prompt_tokens"], sent["usage"]["prompt_tokens"]);
    let param = Some("messages[0].content[1].image_url.url".to_owned());
    for url in [format!("http://{address}/private/demo.png"), "https://example.org/cat.png".into()] {
        assert_eq!(client.chat("", question(&url)).await.error(), (400, "remote_image".into(), param.clone()), "{url}");
    }
    // Nobody listens there any more.
    let gone = client.chat("", question(&format!("http://{address}/public/demo.png"))).await;
    assert_eq!(gone.error(), (400, "remote_image_failed".into(), param));
    assert!(!gone.text().contains("refused"), "what is within is not told: {}", gone.text());
}

#[test]
fn a_prefix_that_allows_more_than_it_says_is_refused() {
    for prefix in ["http://pictures.example.org/public", "http://me@pictures.example.org/", "pictures.example.org/"] {
        let error = Config::parse(&format!("[server]\nimage_prefixes = [\"{prefix}\"]\n")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains("server.image_prefixes[0]"), "{error}");
    }
}
