//! `consort run`: one prompt, one reply.

use std::io::Write as _;

use consort_core::{ChatMessage, ChatPrompt, ContentPart, GenerateRequest, Prompt, Result, Role};

use crate::args::RunArgs;
use crate::{output, session};

/// Runs the command.
pub fn run(args: &RunArgs) -> Result<()> {
    let prompt = if args.prompt == "-" { session::read_stdin()? } else { args.prompt.clone() };
    let backend = consort::load(args.model.load_config()?)?;
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
        sampling: args.sampling.sampling(),
        stop: args.sampling.stop_rules(args.stop.clone()),
        structure: args.structure.structure()?,
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
