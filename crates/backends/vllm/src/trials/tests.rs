//! Servers that heed everything, nothing, or fail.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use consort_core::{BoxFuture, SpecialTokens};

use super::*;
use crate::call::ChunkStream;
use crate::facts::ServerFacts;

type Script = fn(&Call) -> Result<Chunk>;

/// A server that does what a function says.
struct Scripted {
    reply: Script,
    adapters: fn() -> Result<()>,
    calls: Mutex<Vec<Call>>,
}

impl Transport for Scripted {
    fn probe(&self) -> BoxFuture<'_, Result<ServerFacts>> {
        unreachable!("the trials are its part")
    }

    fn health(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn generate<'a>(&'a self, call: &'a Arc<Call>) -> BoxFuture<'a, Result<ChunkStream>> {
        self.calls.lock().unwrap().push(Call::clone(call));
        let chunk = (self.reply)(call);
        Box::pin(async { Ok(Box::pin(futures_util::stream::iter([Ok(chunk?)])) as ChunkStream) })
    }

    fn load_adapter<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { (self.adapters)() })
    }

    fn unload_adapter<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn tokenize<'a>(&'a self, _: &'a str, _: SpecialTokens) -> BoxFuture<'a, Result<Vec<TokenId>>> {
        Box::pin(async { Err(Error::unsupported(crate::NAME, "tokenize")) })
    }

    fn write<'a>(&'a self, _: &'a CallPrompt) -> BoxFuture<'a, Result<Vec<TokenId>>> {
        Box::pin(async { Err(Error::unsupported(crate::NAME, "write")) })
    }

    fn detokenize<'a>(&'a self, _: &'a [TokenId]) -> BoxFuture<'a, Result<String>> {
        Box::pin(async { Err(Error::unsupported(crate::NAME, "detokenize")) })
    }
}

fn tried_with(reply: Script, adapters: fn() -> Result<()>) -> (Result<Tried>, Vec<Call>) {
    let transport = Scripted { reply, adapters, calls: Mutex::default() };
    let subject =
        Subject { transport: &transport, model: "m", image_token: Some(99), adapters: Some("/share/"), prompts: true };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tried = runtime.block_on(run(&subject));
    (tried, transport.calls.into_inner().unwrap())
}

fn entry(token: TokenId, logprob: f32, count: u32) -> PositionLogprobs {
    let top = (0..count).map(|rank| TokenLogprob { token: 50 + rank, logprob: logprob - rank as f32 }).collect();
    PositionLogprobs { chosen: TokenLogprob { token, logprob }, top }
}

/// Continues with 10, 11, 12 …, and heeds nothing.
fn heedless(call: &Call) -> Result<Chunk> {
    let ids = (10..10 + call.max_tokens).collect();
    Ok(Chunk { ids, finish: Some(Finish::Length), ..Chunk::default() })
}

/// Heeds everything.
fn faithful(call: &Call) -> Result<Chunk> {
    let mut chunk = heedless(call)?;
    let CallPrompt::Tokens { ids: prompt, pictures } = &call.prompt else { unreachable!() };
    chunk.prompt_tokens = Some(prompt.len() + 3 * pictures.len());
    chunk.cached_tokens = Some(0);
    if call.sampling.temperature > 0.0 {
        chunk.ids.iter_mut().for_each(|id| *id += call.sampling.seed as u32);
    }
    for &(token, _) in &call.sampling.logit_bias {
        chunk.ids.iter_mut().filter(|id| **id == token).for_each(|id| *id += 100);
    }
    if let Some(at) = chunk.ids.iter().position(|id| call.stop_tokens.contains(id)) {
        chunk.ids.truncate(at + 1);
        chunk.finish = Some(Finish::Token(chunk.ids[at]));
    }
    if let Some(Structure::Regex(regex)) = &call.structure {
        chunk.ids = match regex.as_str() {
            "[0-9]{3}" => vec![20, 21, 22, 0],
            "[a-z]{3}" => vec![30, 31, 0],
            _ => return Err(Error::new(ErrorKind::InvalidGrammar, "the bracket is not closed")),
        };
        chunk.finish = Some(Finish::End);
    }
    let shade = pictures.first().map_or(0.0, |picture| f32::from(blake3::hash(&picture.bytes).as_bytes()[0]));
    if let Some(count) = call.logprobs {
        chunk.logprobs = chunk.ids.iter().map(|&id| entry(id, -1.0 - shade, count)).collect();
    }
    if let Some(count) = call.prompt_logprobs {
        let rest = prompt[1..].iter().map(|&id| Some(entry(id, -2.0, count)));
        chunk.prompt_logprobs = Some(std::iter::once(None).chain(rest).collect());
    }
    Ok(chunk)
}

fn missing() -> Result<()> {
    Err(Error::new(ErrorKind::NotFound, "No adapter found for /share"))
}

fn verdicts(tried: &Tried) -> Vec<(&'static str, Verdict)> {
    tried.findings.iter().map(|finding| (finding.name, finding.verdict)).collect()
}

#[test]
fn a_server_that_heeds_everything_is_found_to() {
    let (tried, calls) = tried_with(faithful, missing);
    let tried = tried.unwrap();
    assert!(tried.findings.iter().all(|finding| finding.verdict == Verdict::Works), "{:#?}", tried.findings);
    let all = Abilities {
        tokens_in_and_out: true,
        pictures_with_tokens: true,
        logprobs: true,
        prompt_logprobs: true,
        structured_output: true,
        logit_bias: true,
        seed: true,
        priority: true,
        adapters: true,
        tells_cached_tokens: true,
        ..Abilities::default()
    };
    assert_eq!(tried.abilities, all);
    let ids: std::collections::BTreeSet<_> = calls.iter().map(|call| call.id.clone()).collect();
    assert_eq!(ids.len(), calls.len(), "each request has a name of its own");
    for call in &calls {
        let CallPrompt::Tokens { ids, .. } = &call.prompt else { unreachable!() };
        assert!(ids.len() > 1 && !call.salt.is_empty() && call.max_tokens <= 12, "{call:?}");
    }
}

#[test]
fn a_server_that_heeds_nothing_is_found_out() {
    let (tried, _) = tried_with(heedless, || Ok(()));
    let tried = tried.unwrap();
    let ignored = Verdict::Ignored;
    assert_eq!(
        verdicts(&tried),
        [
            ("tokens_in_and_out", Verdict::Works),
            ("stop_tokens", ignored),
            ("logprobs", ignored),
            ("prompt_logprobs", ignored),
            ("structured_output", ignored),
            ("malformed_structure_is_refused", ignored),
            ("logit_bias", ignored),
            ("forbidden_tokens", ignored),
            ("seed", ignored),
            ("priority", Verdict::Works),
            ("tells_cached_tokens", ignored),
            ("pictures_with_tokens", ignored),
            ("adapters", ignored),
        ]
    );
    let some = Abilities { tokens_in_and_out: true, priority: true, ..Abilities::default() };
    assert_eq!(tried.abilities, some);
}

#[test]
fn refusals_are_told_from_failures() {
    let (tried, _) = tried_with(
        |call| match (&call.structure, call.logprobs) {
            (Some(_), _) => Err(Error::new(ErrorKind::Remote, "the engine stumbled")),
            (None, Some(_)) => Err(Error::new(ErrorKind::InvalidRequest, "no log probabilities")),
            _ => faithful(call),
        },
        || Err(Error::new(ErrorKind::Unsupported, "not allowed")),
    );
    let tried = tried.unwrap();
    let of = |name| tried.findings.iter().find(|finding| finding.name == name).unwrap();
    assert_eq!(of("structured_output").verdict, Verdict::Untried);
    assert_eq!(of("malformed_structure_is_refused").verdict, Verdict::Untried);
    assert_eq!(of("logprobs").verdict, Verdict::Refused);
    assert!(of("logprobs").seen.contains("no log probabilities"));
    assert_eq!(of("adapters").verdict, Verdict::Refused);
    assert!(!tried.abilities.structured_output && !tried.abilities.logprobs && !tried.abilities.adapters);
    assert!(tried.abilities.seed);
    let of = |adapters| {
        let (tried, _) = tried_with(faithful, adapters);
        let tried = tried.unwrap();
        assert_eq!(tried.abilities.adapters, tried.findings.last().unwrap().verdict == Verdict::Works);
        tried.findings.last().unwrap().verdict
    };
    let broken = || {
        let said = "Call to add_lora method failed: Expected `bool`, got `null` - at `$[4]`";
        Err(Error::new(ErrorKind::Remote, said))
    };
    assert_eq!(of(broken), Verdict::Refused);
    assert_eq!(of(|| Err(Error::new(ErrorKind::NotFound, "the folder is not seen"))), Verdict::Refused);
    assert_eq!(of(|| Err(Error::new(ErrorKind::Remote, "cut"))), Verdict::Untried);
}

#[test]
fn without_tokens_nothing_else_is_tried() {
    let (tried, calls) = tried_with(|_| Err(Error::unsupported(crate::NAME, "tokens")), missing);
    assert_eq!(verdicts(&tried.unwrap()), [("tokens_in_and_out", Verdict::Refused)]);
    assert_eq!(calls.len(), 1);
    let text = |_: &Call| Ok(Chunk { text: "words".into(), finish: Some(Finish::End), ..Chunk::default() });
    let (tried, _) = tried_with(text, missing);
    let tried = tried.unwrap();
    assert_eq!(verdicts(&tried), [("tokens_in_and_out", Verdict::Ignored)]);
    assert_eq!(tried.abilities, Abilities::default());
    let (failed, _) = tried_with(|_| Err(Error::new(ErrorKind::InvalidConfig, "the key")), missing);
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::InvalidConfig);
}

#[test]
fn the_pictures_are_pictures() {
    let picture = plain([220, 30, 30]).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(&*picture.bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    assert_eq!(pixels, [220, 30, 30].repeat(64 * 64));
}
