//! `consort run`: one prompt, one reply.

use std::io::{Read as _, Write as _};

use consort::ModelFiles;
use consort_core::{
    ChatMessage, ChatPrompt, ContentPart, Error, ErrorKind, GenerateRequest, Prompt, Result, Role, Sampling, StopRules,
};

use crate::args::RunArgs;
use crate::{output, session};

/// The largest prompt that is read from the standard input, in bytes.
const MAX_STDIN: u64 = 16 << 20;

/// Runs the command.
pub fn run(args: &RunArgs) -> Result<()> {
    let prompt = if args.prompt == "-" { read_stdin()? } else { args.prompt.clone() };
    let model = match &args.model {
        Some(path) => ModelFiles::find(path, args.mmproj.as_deref())?,
        None => ModelFiles::Bundled,
    };
    let backend = session::open(&args.engine, model)?;
    let mut adapters = Vec::new();
    for spec in &args.adapter {
        adapters.push(session::load_adapter(&*backend, spec)?);
    }
    let mut content = Vec::new();
    for path in &args.image {
        content.push(ContentPart::Image(session::read_image(path)?));
    }
    content.push(ContentPart::Text(prompt));
    let mut messages = Vec::new();
    if let Some(system) = &args.system {
        messages.push(ChatMessage::text(Role::System, system.clone()));
    }
    messages.push(ChatMessage::new(Role::User, content));
    let request = GenerateRequest {
        adapters,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            seed: args.seed,
            ..Sampling::default()
        },
        stop: StopRules { strings: args.stop.clone(), ..StopRules::default() },
        max_tokens: Some(args.max_tokens),
        ..GenerateRequest::new(Prompt::Chat(ChatPrompt {
            messages,
            thinking: args.think.into(),
            ..ChatPrompt::default()
        }))
    };
    let stream = backend.generate(request)?;
    if args.json {
        let reply = session::follow(stream, |_| {})?;
        let value = serde_json::json!({ "model": backend.info().name, "reply": reply, "evidence": backend.evidence() });
        anstream::println!("{value:#}");
        return Ok(());
    }
    let mut stdout = anstream::stdout();
    let reply = session::follow(stream, |piece| {
        // A closed pipe ends the program at the next write; there is nothing better to do with a lost reader here.
        let _ = write!(stdout, "{piece}").and_then(|()| stdout.flush());
    })?;
    anstream::println!();
    let usage = reply.usage;
    let first = usage.time_to_first_token.map_or_else(|| "-".into(), session::milliseconds);
    let rate = session::decode_rate(&usage).map_or_else(|| "-".into(), |rate| format!("{rate:.0} tokens/s"));
    let line = format!(
        "{} + {} tokens, first token {first}, {rate}, on {}",
        usage.prompt_tokens,
        usage.completion_tokens,
        backend.evidence().device
    );
    anstream::eprintln!("{}", output::styled(output::FAINT, &line));
    Ok(())
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().take(MAX_STDIN + 1).read_to_string(&mut text).map_err(|source| {
        Error::new(ErrorKind::InvalidRequest, "the prompt could not be read as UTF-8").with_source(source)
    })?;
    if text.len() as u64 > MAX_STDIN {
        return Err(Error::new(ErrorKind::InvalidRequest, "the prompt is longer than 16 MiB"));
    }
    Ok(text)
}
