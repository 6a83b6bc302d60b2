//! A server with an OpenAI-compatible address.

use std::collections::BTreeMap;
use std::io::{BufReader, Read as _};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use consort_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::sse::{Events, remote};
use super::target::{About, Beat, Beats, Counted, Process, Target, Transport, adapter, picture};
use super::workload::{Ask, Part, Speaker};

/// The longest answer that is read where no stream is expected, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// How requests name an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdapterStyle {
    /// As the model (vLLM, and this project's server): the adapter's name stands where the model's does.
    #[default]
    Model,
    /// In llama-server's `lora` list, by the order in which it was started with them.
    Lora,
}

/// Which server, and how it is asked.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// The name by which the report calls it.
    pub name: String,
    /// Its base address: `http://127.0.0.1:8080`. What stands before `/v1`.
    pub url: String,
    /// The model that requests name. `None`: the first that the server lists.
    pub model: Option<String>,
    /// Names of adapters that the workload means by index.
    pub adapters: Vec<String>,
    /// How requests name them.
    pub adapter_style: AdapterStyle,
    /// Fields that are added to each request, or replace what it has.
    pub extra: serde_json::Map<String, Value>,
    /// Settings that the report shows.
    pub settings: BTreeMap<String, String>,
    /// How long one reply may take.
    pub timeout: Duration,
}

impl HttpConfig {
    /// A server at an address, asked as it is.
    #[must_use]
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            model: None,
            adapters: Vec::new(),
            adapter_style: AdapterStyle::default(),
            extra: serde_json::Map::new(),
            settings: BTreeMap::new(),
            timeout: Duration::from_secs(1800),
        }
    }
}

/// A server with an OpenAI-compatible address, over plain HTTP.
#[derive(Debug)]
pub struct HttpTarget {
    about: About,
    agent: ureq::Agent,
    config: HttpConfig,
    model: String,
    process: Process,
}

impl HttpTarget {
    /// Asks the server what it has. `process` is where its memory can be seen, when we started it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for an address that is not plain HTTP, [`ErrorKind::Remote`] when the server does not
    /// answer as it should.
    pub fn connect(mut config: HttpConfig, process: Process) -> Result<Self> {
        config.url = config.url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        if !config.url.starts_with("http://") {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "servers are measured over plain HTTP: give an address that begins with http://",
            )
            .with_operation("bench::http")
            .with_context("url", config.url.clone()));
        }
        let agent = agent(config.timeout);
        let models = get(&agent, &format!("{}/v1/models", config.url))?;
        let listed = models.pointer("/data/0/id").and_then(Value::as_str).map(str::to_owned);
        let model = config
            .model
            .clone()
            .or_else(|| listed.clone())
            .ok_or_else(|| remote("the server lists no model: name one").with_context("url", config.url.clone()))?;
        // llama-server tells of itself here; others don't have it.
        let props = get(&agent, &format!("{}/props", config.url)).ok();
        let build = props.as_ref().and_then(|props| props.get("build_info")).and_then(Value::as_str);
        let owner = models.pointer("/data/0/owned_by").and_then(Value::as_str);
        let engine = match (owner, build) {
            (Some(owner), Some(build)) => format!("{owner} {build}"),
            (Some(owner), None) => owner.to_owned(),
            (None, _) => "unknown server".to_owned(),
        };
        let mut settings = config.settings.clone();
        settings.insert("model".into(), model.rsplit(['/', '\\']).next().unwrap_or_default().to_owned());
        let about = About {
            name: config.name.clone(),
            transport: Transport::Http,
            engine,
            model: None,
            evidence: None,
            settings,
        };
        Ok(Self { about, agent, config, model, process })
    }

    fn body(&self, ask: &Ask, pictures: &[Arc<[u8]>]) -> Result<Value> {
        let mut messages = Vec::with_capacity(ask.messages.len());
        for message in &ask.messages {
            let role = match message.role {
                Speaker::System => "system",
                Speaker::User => "user",
                Speaker::Assistant => "assistant",
            };
            let content = match message.parts.as_slice() {
                [Part::Text(text)] => json!(text),
                parts => Value::Array(parts.iter().map(|part| content(part, pictures)).collect::<Result<_>>()?),
            };
            messages.push(json!({ "role": role, "content": content }));
        }
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": { "include_usage": true },
            // Not OpenAI's: llama-server's and vLLM's. Servers that do not know them ignore them, and say by their usage
            // that replies were shorter.
            "ignore_eos": true,
            "cache_prompt": true,
            "chat_template_kwargs": { "enable_thinking": false },
        });
        let Some(fields) = body.as_object_mut() else { return Ok(body) };
        if let Some(index) = ask.adapter {
            let name = adapter(&self.config.adapters, index)?;
            match self.config.adapter_style {
                AdapterStyle::Model => fields.insert("model".into(), json!(name)),
                // Those that are not named keep the scale that the server was started with, so all are.
                AdapterStyle::Lora => {
                    let scale = |id: usize| json!({ "id": id, "scale": if id == index { 1.0 } else { 0.0 } });
                    fields.insert("lora".into(), (0..self.config.adapters.len()).map(scale).collect())
                }
            };
        }
        for (key, value) in &self.config.extra {
            fields.insert(key.clone(), value.clone());
        }
        Ok(body)
    }
}

fn content(part: &Part, pictures: &[Arc<[u8]>]) -> Result<Value> {
    Ok(match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Picture(index) => {
            let encoded = base64::engine::general_purpose::STANDARD.encode(picture(pictures, *index)?);
            json!({ "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{encoded}") } })
        }
    })
}

/// A client whose answers with an error status are answers.
pub(super) fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        // A kept connection that the server closes meanwhile would cost a request. Each pays for its own.
        .max_idle_connections(0)
        .build()
        .new_agent()
}

/// An address's JSON.
fn get(agent: &ureq::Agent, url: &str) -> Result<Value> {
    let response = agent.get(url).call().map_err(|source| failed(url, source))?;
    let (status, text) = (response.status(), read(response)?);
    if !status.is_success() {
        return Err(remote("the server answered with an error status")
            .with_context("url", url)
            .with_context("status", status.as_u16().to_string()));
    }
    serde_json::from_str(&text)
        .map_err(|source| remote("the server's answer is no JSON").with_context("url", url).with_source(source))
}

pub(super) fn failed(url: &str, source: ureq::Error) -> Error {
    let timed_out = matches!(source, ureq::Error::Timeout(_));
    let kind = if timed_out { ErrorKind::DeadlineExceeded } else { ErrorKind::Remote };
    Error::new(kind, format!("the server could not be asked: {source}"))
        .with_operation("bench::http")
        .with_context("url", url)
        .with_source(source)
}

fn read(response: ureq::http::Response<ureq::Body>) -> Result<String> {
    let mut bytes = Vec::new();
    let mut body = response.into_body().into_reader().take(MAX_ANSWER);
    body.read_to_end(&mut bytes).map_err(|source| remote("the answer was cut off").with_source(source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Target for HttpTarget {
    fn about(&self) -> &About {
        &self.about
    }

    fn ask(&self, ask: &Ask, pictures: &[Arc<[u8]>]) -> Result<Beats> {
        let url = format!("{}/v1/chat/completions", self.config.url);
        let body = self.body(ask, pictures)?.to_string();
        let request = self.agent.post(&url).header("content-type", "application/json");
        let response = request.send(body).map_err(|source| failed(&url, source))?;
        let status = response.status();
        if !status.is_success() {
            let kind = match status.as_u16() {
                429 | 503 => ErrorKind::Overloaded,
                400..=499 => ErrorKind::InvalidRequest,
                _ => ErrorKind::Remote,
            };
            let text: String = read(response)?.chars().take(500).collect();
            return Err(Error::new(kind, format!("the server refused: {text}"))
                .with_operation("bench::http")
                .with_context("status", status.as_u16().to_string()));
        }
        Ok(Box::new(Reply {
            events: Events::new(BufReader::new(response.into_body().into_reader())),
            finished: false,
            counted: Counted::default(),
            over: false,
        }))
    }

    fn process(&self) -> Process {
        self.process
    }
}

/// A reply in the OpenAI form. Dropping it closes the connection, by which servers know that nobody listens.
struct Reply<R> {
    events: Events<R>,
    /// A finish reason came.
    finished: bool,
    counted: Counted,
    over: bool,
}

impl<R: std::io::BufRead> Reply<R> {
    /// # Errors
    /// [`ErrorKind::Remote`] for a stream that is cut, ends without a finish reason, or carries an error.
    fn beat(&mut self) -> Result<Beat> {
        loop {
            let Some(data) = self.events.next()? else {
                return Err(remote("the stream was cut off before its end"));
            };
            if data.trim() == "[DONE]" {
                if !self.finished {
                    return Err(remote("the stream ended without a finish reason"));
                }
                return Ok(Beat::End(self.counted));
            }
            let event: Value = serde_json::from_str(&data)
                .map_err(|source| remote("an event of the stream is no JSON").with_source(source))?;
            if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
                let message = error.get("message").and_then(Value::as_str).unwrap_or("it does not say which");
                let message: String = message.chars().take(500).collect();
                return Err(remote(format!("the server sent an error: {message}")));
            }
            self.count(&event);
            let choice = event.pointer("/choices/0");
            self.finished |= choice.and_then(|choice| choice.get("finish_reason")).is_some_and(Value::is_string);
            if choice.is_some_and(carries_text) {
                return Ok(Beat::Tokens(1));
            }
        }
    }

    fn count(&mut self, event: &Value) {
        let number = |path: &str| event.pointer(path).and_then(Value::as_u64);
        let counted = &mut self.counted;
        counted.prompt = number("/usage/prompt_tokens").or(counted.prompt);
        counted.completion = number("/usage/completion_tokens").or(counted.completion);
        // OpenAI's field, then llama-server's.
        counted.reused =
            number("/usage/prompt_tokens_details/cached_tokens").or(number("/timings/cache_n")).or(counted.reused);
    }
}

/// Whether a choice brings text, of whatever kind.
fn carries_text(choice: &Value) -> bool {
    let text = |path: &str| choice.pointer(path).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    let calls = choice.pointer("/delta/tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
    text("/delta/content") || text("/delta/reasoning_content") || text("/delta/reasoning") || text("/text") || calls
}

impl<R: std::io::BufRead> Iterator for Reply<R> {
    type Item = Result<Beat>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let beat = self.beat();
        self.over = !matches!(beat, Ok(Beat::Tokens(_)));
        Some(beat)
    }
}
