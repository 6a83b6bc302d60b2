//! A client without a network.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request};
use consort::{Backend, LoadConfig, ModelFiles, RemoteModel, bundled};
use consort_core::{Device, DevicePolicy, ModelBackend, Result};
use consort_server::{AdapterLibrary, App, Config, Keys, Parts, TextFloor, Transport};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) struct Client {
    pub app: App,
    pub backend: Arc<dyn ModelBackend>,
    router: Router,
}

pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// The JSON of an answer that must be a good one.
    pub(crate) fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// `(status, code, param)` of an error, whose shape is checked.
    pub(crate) fn error(&self) -> (u16, String, Option<String>) {
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error: {body}"));
        assert_eq!(
            error.keys().map(String::as_str).collect::<Vec<_>>(),
            ["message", "type", "param", "code"],
            "{body}"
        );
        assert!(!error["message"].as_str().unwrap().is_empty());
        (self.status, error["code"].as_str().unwrap().to_owned(), error["param"].as_str().map(str::to_owned))
    }

    /// The data of a stream's events, which must end with `[DONE]`.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.headers["content-type"], "text/event-stream; charset=utf-8");
        let text = self.text();
        let mut events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{text}");
        events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

impl Client {
    pub(crate) async fn new() -> Self {
        Self::with("").await
    }

    /// With this configuration, over etude and its two adapters.
    pub(crate) async fn with(config: &str) -> Self {
        Self::with_keys(config, Keys::none()).await
    }

    pub(crate) async fn with_keys(config: &str, keys: Keys) -> Self {
        Self::open(config, keys, None).await.unwrap()
    }

    /// With servers beside the engine here.
    pub(crate) async fn open(config: &str, keys: Keys, remote: Option<RemoteModel>) -> Result<Self> {
        let backend = remote.is_some().then_some(Backend::Native);
        let policy = DevicePolicy::Named(Device::Cpu);
        Self::load(config, keys, LoadConfig { backend, policy, remote, ..LoadConfig::new(ModelFiles::Bundled) }).await
    }

    /// With servers, and no engine here.
    pub(crate) async fn remote(config: &str, remote: RemoteModel) -> Result<Self> {
        let load = LoadConfig { remote: Some(remote), ..LoadConfig::new(ModelFiles::Bundled) };
        Self::load(config, Keys::none(), load).await
    }

    async fn load(config: &str, keys: Keys, load: LoadConfig) -> Result<Self> {
        let config = Config::parse(config)?;
        let mut load = LoadConfig { threads: NonZeroUsize::new(1), ..load };
        if let Some(queued) = config.scheduler.max_queued {
            load.scheduler.max_queued = queued.get();
        }
        if let Some(running) = config.scheduler.max_running {
            load.scheduler.max_running = running.get();
        }
        if let Some(bytes) = config.scheduler.adapter_bytes {
            load.scheduler.adapter_bytes = bytes;
        }
        let backend = consort::load(load)?;
        let (tokenizer, template) = consort::open_text(&ModelFiles::Bundled).unwrap();
        let text = TextFloor { tokenizer: Some(tokenizer), template };
        let own = bundled::ADAPTERS.map(|adapter| (adapter.name.to_owned(), adapter.files()));
        let adapters = AdapterLibrary::new(own, &config.adapters.folders).unwrap();
        let app = App::open(Parts { backend: Arc::clone(&backend), text, config, keys, adapters }).await?;
        let router = app.router(Transport::Tcp);
        Ok(Self { app, backend, router })
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    /// Begins an answer without reading it.
    pub(crate) async fn begin(&self, path: &str, body: &Value) -> axum::response::Response {
        self.router.clone().oneshot(request("POST", path, Body::from(body.to_string()))).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request("GET", path, Body::empty())).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(request("POST", path, Body::from(body.to_string()))).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(request("PUT", path, Body::from(body.to_string()))).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(request("DELETE", path, Body::empty())).await
    }

    /// A greedy reply to one question, with `more` in the request.
    pub(crate) async fn chat(&self, question: &str, more: Value) -> Answer {
        self.post("/v1/chat/completions", chat(question, &more)).await
    }
}

pub(crate) fn request(method: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost:8080")
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}

/// A greedy request of one question, without thinking; `more` goes before it.
pub(crate) fn chat(question: &str, more: &Value) -> Value {
    let mut body = json!({
        "model": "etude",
        "messages": [{ "role": "user", "content": question }],
        "temperature": 0,
        "chat_template_kwargs": { "enable_thinking": false },
    });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// A file of the repository.
pub(crate) fn etude(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/etude").join(path)
}
