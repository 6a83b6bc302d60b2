//! Against a server that does what a script says.
#![allow(clippy::unwrap_used)]

mod mapping;
mod server;
mod streams;
mod whole;

use consort_core::{Error, Sampling};
use futures_util::StreamExt as _;

use crate::call::{Call, CallPrompt, Chunk, ChunkStream};
use crate::config::{Endpoint, VllmConfig};

/// Three tokens, of which up to eight more come.
fn call() -> Call {
    Call {
        id: "request-1".into(),
        model: "base".into(),
        adapter: None,
        prompt: CallPrompt::Tokens { ids: vec![1, 2, 3], pictures: Vec::new() },
        sampling: Sampling::default(),
        stop_strings: Vec::new(),
        stop_tokens: Vec::new(),
        min_tokens: 0,
        ignore_end: false,
        max_tokens: 8,
        logprobs: None,
        prompt_logprobs: None,
        structure: None,
        priority: None,
        salt: "salt".into(),
        bypass: false,
    }
}

fn config() -> VllmConfig {
    VllmConfig::new(vec!["grpc://server:1".parse::<Endpoint>().unwrap()])
}

/// Everything that comes, up to and with an error.
async fn all(stream: &mut ChunkStream) -> (Vec<Chunk>, Option<Error>) {
    let mut chunks = Vec::new();
    while let Some(next) = stream.next().await {
        match next {
            Ok(chunk) => chunks.push(chunk),
            Err(error) => {
                assert!(stream.next().await.is_none(), "nothing comes after an error");
                return (chunks, Some(error));
            }
        }
    }
    (chunks, None)
}
