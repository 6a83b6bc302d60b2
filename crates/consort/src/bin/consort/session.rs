//! What the commands share: opening a backend, reading files, and following replies.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use consort_core::{
    AdapterUse, DeviceEvidence, Error, ErrorKind, Event, EventStream, FinishReason, ImageInput, ModelBackend,
    PositionLogprobs, Result, TokenId, Usage, block_on,
};
use serde::Serialize;

use crate::args::adapter_spec;
use crate::output;

/// Loads what `--adapter` names and tells how a request uses it.
pub fn load_adapter(backend: &dyn ModelBackend, spec: &str) -> Result<AdapterUse> {
    let (name, scale) = adapter_spec(spec)?;
    block_on(backend.load_adapter(name, consort::adapter_files(name)))?;
    Ok(AdapterUse { id: name.to_owned(), scale })
}

/// Reads a picture's bytes.
pub fn read_image(path: &Path) -> Result<ImageInput> {
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    Ok(ImageInput::Encoded(bytes.into()))
}

/// The longest text that is read from a file or the standard input, in bytes.
const MAX_TEXT: u64 = 16 << 20;

/// Reads all of the standard input.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] when it is no UTF-8 or longer than 16 MiB.
pub fn read_stdin() -> Result<String> {
    read_limited(std::io::stdin()).map_err(|error| error.with_context("path", "the standard input"))
}

/// Reads a text file.
///
/// # Errors
/// As [`read_stdin`], and those of opening it.
pub fn read_text(path: &Path) -> Result<String> {
    let file = std::fs::File::open(path).map_err(|source| Error::io(path, source))?;
    read_limited(file).map_err(|error| error.with_context("path", path.display().to_string()))
}

fn read_limited(from: impl std::io::Read) -> Result<String> {
    let mut text = String::new();
    from.take(MAX_TEXT + 1).read_to_string(&mut text).map_err(|source| {
        Error::new(ErrorKind::InvalidRequest, "the text could not be read as UTF-8").with_source(source)
    })?;
    if text.len() as u64 > MAX_TEXT {
        return Err(Error::new(ErrorKind::InvalidRequest, "the text is longer than 16 MiB"));
    }
    Ok(text)
}

/// A whole reply.
#[derive(Debug, Clone, Serialize)]
pub struct Reply {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// One entry per token, when asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<PositionLogprobs>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub usage: Usage,
}

/// Follows a reply to its end; `on_text` sees each piece of text as it comes.
pub fn follow(stream: EventStream, mut on_text: impl FnMut(&str)) -> Result<Reply> {
    let (mut text, mut tokens, mut all_logprobs) = (String::new(), Vec::new(), Vec::new());
    for event in stream.blocking() {
        match event? {
            Event::Tokens { ids, text: piece, logprobs } => {
                tokens.extend(ids);
                all_logprobs.extend(logprobs);
                if !piece.is_empty() {
                    on_text(&piece);
                    text.push_str(&piece);
                }
            }
            Event::Finished { reason, usage } => {
                return Ok(Reply { text, tokens, logprobs: all_logprobs, finish: reason, usage });
            }
            _ => {}
        }
    }
    Err(Error::new(ErrorKind::Unexpected, "the reply ended without a finish reason"))
}

/// Tokens per second after the first.
pub fn decode_rate(usage: &Usage) -> Option<f64> {
    let steps = usage.completion_tokens.checked_sub(1).filter(|steps| *steps > 0)?;
    let seconds = usage.decode_time.as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    (seconds > 0.0).then(|| steps as f64 / seconds)
}

/// A duration for people.
pub fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

/// Device evidence in two lines.
pub fn evidence_lines(evidence: &DeviceEvidence) -> String {
    let parts: Vec<_> = evidence
        .placements
        .iter()
        .map(|placement| format!("{} on {}", placement.component, placement.device))
        .collect();
    let proof = serde_json::to_value(evidence.established_by).ok();
    let proof = proof.as_ref().and_then(|value| value.as_str()).unwrap_or("unknown").replace('_', " ");
    format!(
        "{} {} on {} ({})\n  {}\n",
        output::styled(output::HEADING, "device:"),
        evidence.backend,
        evidence.device,
        evidence.device_name,
        output::styled(output::FAINT, &format!("seen: {}; established by {proof}", parts.join(", "))),
    )
}
