//! The bare client: a blocking socket with HTTP, and nothing behind it.

use std::io::Read;
use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, Result, TokenId};
use serde_json::{Value, json};

use super::run::Times;

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Connections that were not used for so long are not used again: below the five seconds after which vLLM closes them.
const IDLE: Duration = Duration::from_secs(4);
/// The longest reply that is read, in bytes.
const MOST: usize = 64 << 20;
/// The longest answer to anything else.
const MOST_ANSWER: u64 = 1 << 20;

/// A bare client of one server.
#[derive(Debug, Clone)]
pub(super) struct Bare {
    agent: ureq::Agent,
    url: String,
    model: String,
}

impl Bare {
    /// Asks the server what its model is called.
    pub(super) fn find(url: &str) -> Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("http://") {
            let message = "a bare client speaks plain HTTP: give an address that begins with http://";
            return Err(Error::new(ErrorKind::InvalidConfig, message)
                .with_operation("bench::overhead")
                .with_context("url", url));
        }
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            // As ours: a connection is kept, and used again while the server surely keeps it too.
            .max_idle_age(IDLE)
            .max_idle_connections(64)
            .max_idle_connections_per_host(64)
            .build()
            .new_agent();
        let mut response =
            agent.get(format!("{url}/v1/models")).call().map_err(|source| failed(&url, "is not reached", source))?;
        let body = response.body_mut().with_config().limit(MOST_ANSWER).read_to_vec();
        let body = body.map_err(|source| failed(&url, "does not answer", source))?;
        let models: Value = serde_json::from_slice(&body).unwrap_or_default();
        let model = models.pointer("/data/0/id").and_then(Value::as_str).map(str::to_owned);
        let model = model.ok_or_else(|| remote("the server lists no model").with_context("url", url.clone()))?;
        Ok(Self { agent, url, model })
    }

    /// The body of a request, as ours has it.
    pub(super) fn body(&self, prompt: &[TokenId], tokens: u32, id: &str) -> String {
        json!({
            "request_id": id,
            "token_ids": prompt,
            "sampling_params": {
                "max_tokens": tokens, "min_tokens": 0, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
                "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": true,
                "detokenize": false,
            },
            "model": self.model,
            "cache_salt": "consort-bench",
            "stream": true,
            "stream_options": { "include_usage": true },
        })
        .to_string()
    }

    /// One reply: when it was asked for, and when each token came.
    pub(super) fn ask(&self, body: &str) -> Result<Times> {
        let url = format!("{}/inference/v1/generate", self.url);
        let asked = Instant::now();
        let request = self.agent.post(&url).header("content-type", "application/json");
        let response = request.send(body).map_err(|source| failed(&self.url, "does not answer", source))?;
        let status = response.status();
        let mut reader = response.into_body().into_reader();
        if !status.is_success() {
            let message = match status.as_u16() {
                404 => "the server does not take tokens; start vLLM with `--enable-scale-out`",
                _ => "the server refuses the request",
            };
            return Err(remote(message).with_context("url", url).with_context("status", status.as_u16().to_string()));
        }
        let mut splitter = Splitter::default();
        let mut part = vec![0_u8; 64 << 10];
        loop {
            let read = reader.read(&mut part).map_err(|source| remote("the reply was cut off").with_source(source))?;
            if read == 0 {
                break;
            }
            splitter.feed(part.get(..read).unwrap_or_default())?;
        }
        Ok(Times { asked, came: splitter.tokens() })
    }
}

/// Splits a stream of events at its blank lines, and keeps when each was whole.
#[derive(Default)]
struct Splitter {
    body: Vec<u8>,
    /// Where each event ends, and when that was seen.
    ends: Vec<(usize, Instant)>,
    scanned: usize,
}

impl Splitter {
    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        if self.body.len() + bytes.len() > MOST {
            return Err(remote("the reply is too long"));
        }
        self.body.extend_from_slice(bytes);
        while let Some(rest) = self.body.get(self.scanned..)
            && let Some(at) = rest.windows(2).position(|pair| pair == b"\n\n")
        {
            self.scanned += at + 2;
            self.ends.push((self.scanned, Instant::now()));
        }
        // A blank line may be cut in two.
        self.scanned = self.scanned.max(self.body.len().saturating_sub(1));
        Ok(())
    }

    /// When each event came that brings tokens. Looked at when the reply is over, where it costs nothing that is measured.
    fn tokens(&self) -> Vec<Instant> {
        let mut begin = 0;
        let mut came = Vec::with_capacity(self.ends.len());
        for &(end, at) in &self.ends {
            let event = self.body.get(begin..end).unwrap_or_default();
            begin = end;
            let data = event.strip_prefix(b"data: ").unwrap_or_default();
            let value: Value = serde_json::from_slice(data.trim_ascii()).unwrap_or_default();
            let ids = value.pointer("/choices/0/token_ids").and_then(Value::as_array);
            if ids.is_some_and(|ids| !ids.is_empty()) {
                came.push(at);
            }
        }
        came
    }
}

fn remote(message: &str) -> Error {
    Error::new(ErrorKind::Remote, message).with_operation("bench::overhead")
}

fn failed(url: &str, what: &str, source: ureq::Error) -> Error {
    remote(&format!("the server {what}: {source}")).with_context("url", url.to_owned()).with_source(source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn reply(tokens: usize) -> Vec<u8> {
        let event = |token| format!("data: {{\"choices\":[{{\"index\":0,\"token_ids\":[{token}]}}]}}\n\n");
        let mut text: String = (0..tokens).map(event).collect();
        text += "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3}}\n\ndata: [DONE]\n\n";
        text.into_bytes()
    }

    proptest! {
        #[test]
        fn any_cut_of_the_bytes_gives_every_token(tokens in 0..9_usize, size in 1..200_usize) {
            let mut splitter = Splitter::default();
            for part in reply(tokens).chunks(size) {
                splitter.feed(part).unwrap();
            }
            prop_assert_eq!(splitter.ends.len(), tokens + 2);
            let came = splitter.tokens();
            prop_assert_eq!(came.len(), tokens);
            prop_assert!(came.is_sorted());
        }
    }

    #[test]
    fn an_event_that_was_cut_off_is_none() {
        let mut splitter = Splitter::default();
        splitter.feed(b"data: {\"choices\":[{\"token_ids\":[7]}]}\n").unwrap();
        assert!(splitter.tokens().is_empty());
        splitter.feed(b"\n").unwrap();
        assert_eq!(splitter.tokens().len(), 1);
    }

    #[test]
    fn only_plain_http_is_bare() {
        assert_eq!(Bare::find("https://127.0.0.1:1").unwrap_err().kind(), ErrorKind::InvalidConfig);
        assert_eq!(Bare::find("http://127.0.0.1:1").unwrap_err().kind(), ErrorKind::Remote);
    }
}
