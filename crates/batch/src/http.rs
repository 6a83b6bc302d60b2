//! A server behind an address.

use std::io::Read as _;
use std::time::Duration;

use consort_core::{BoxFuture, Error, ErrorKind, Result};
use ureq::http::HeaderMap;

use crate::request::Request;
use crate::retry::retry_after;
use crate::target::{Answer, Fault, FaultKind, Place, Target};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 256 << 20;
/// Servers close connections that nobody uses, some after five seconds.
const IDLE: Duration = Duration::from_secs(4);

/// Which server, and how it is asked.
#[derive(Clone)]
pub struct HttpConfig {
    /// What stands before `/v1`: `http://127.0.0.1:8000`.
    pub url: String,
    /// The API key.
    pub api_key: Option<String>,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Connections that are kept for the next request.
    pub connections: usize,
}

impl std::fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpConfig").field("url", &self.url).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl HttpConfig {
    /// A server that asks for no key. An attempt may take an hour.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), api_key: None, timeout: Duration::from_secs(3600), connections: 64 }
    }
}

/// A server behind an address, in OpenAI's API or Anthropic's.
#[derive(Debug)]
pub struct HttpTarget {
    agent: ureq::Agent,
    url: String,
    api_key: Option<String>,
}

impl HttpTarget {
    /// Asks nobody yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`]: the address or the key cannot be one, or the address needs TLS and this build has none.
    pub fn new(config: HttpConfig) -> Result<Self> {
        let refuse = |message: &str| Error::new(ErrorKind::InvalidConfig, message).with_operation("batch::http");
        let url = config.url.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/').to_owned();
        let shown = |error: Error| error.with_context("url", config.url.clone());
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.contains(['@', '?', '#', ' ']))
            || format!("{url}/v1").parse::<ureq::http::Uri>().is_err()
        {
            // Whoever writes a password into an address does not want to see it in a log.
            return Err(refuse("the address is http:// or https://, a host, and a port: nothing else"));
        }
        if url.starts_with("https://") && !cfg!(feature = "tls") {
            return Err(shown(refuse(
                "this build has no TLS: build with the feature `remote-images`, or ask through http:// on a network that you trust",
            )));
        }
        if config.api_key.as_ref().is_some_and(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(refuse("the API key has blanks in it, or characters beyond ASCII, or is empty"));
        }
        let agent = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_global(Some(config.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(config.connections)
            .max_idle_connections_per_host(config.connections)
            .max_idle_age(IDLE)
            .user_agent("consort-batch")
            .build()
            .new_agent();
        Ok(Self { agent, url, api_key: config.api_key })
    }
}

impl Target for HttpTarget {
    fn place(&self) -> Place {
        Place::There
    }

    fn ask<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Answer, Fault>> {
        let mut post =
            self.agent.post(format!("{}{}", self.url, request.url)).header("content-type", "application/json");
        if let Some(key) = &self.api_key {
            post = post.header("authorization", format!("Bearer {key}"));
        }
        if request.url == "/v1/messages" {
            post = post.header("anthropic-version", "2023-06-01");
            if let Some(key) = &self.api_key {
                post = post.header("x-api-key", key);
            }
        }
        let body = request.body.clone();
        Box::pin(async move {
            let asked = tokio::task::spawn_blocking(move || read(post.send(&body[..]).map_err(|error| fault(&error))?));
            asked.await.unwrap_or_else(|_| {
                Err(Fault {
                    kind: FaultKind::Permanent,
                    code: "internal_error",
                    message: "the request's thread was lost".into(),
                })
            })
        })
    }
}

fn read(response: ureq::http::Response<ureq::Body>) -> Result<Answer, Fault> {
    let headers = response.headers();
    let mut answer = Answer {
        status: response.status().as_u16(),
        request_id: text(headers, "x-request-id")
            .or_else(|| text(headers, "request-id"))
            .map(|id| id.chars().take(256).collect()),
        retry_after: retry_after(text(headers, "retry-after"), text(headers, "retry-after-ms")),
        retry: text(headers, "x-should-retry").and_then(|word| word.parse().ok()),
        body: Vec::new(),
    };
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader().take(MAX_ANSWER + 1);
    body.read_to_end(&mut answer.body).map_err(|error| match error.downcast::<ureq::Error>() {
        Ok(error) => fault(&error),
        Err(error) => Fault {
            kind: FaultKind::Unreachable,
            code: "connection_error",
            message: format!("the answer was cut off: {error}"),
        },
    })?;
    if answer.body.len() as u64 > MAX_ANSWER {
        let message = format!("the answer has more than {MAX_ANSWER} bytes");
        return Err(Fault { kind: FaultKind::Permanent, code: "answer_too_large", message });
    }
    Ok(answer)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn fault(error: &ureq::Error) -> Fault {
    let (kind, code) = match error {
        ureq::Error::Timeout(ureq::Timeout::Global) => (FaultKind::Late, "timeout"),
        ureq::Error::Timeout(_)
        | ureq::Error::Io(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_) => (FaultKind::Unreachable, "connection_error"),
        _ => (FaultKind::Permanent, "request_failed"),
    };
    Fault { kind, code, message: format!("the server could not be asked: {error}") }
}
