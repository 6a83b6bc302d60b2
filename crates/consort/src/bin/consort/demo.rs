//! `consort demo`: a room. Three personas, two of them adapters, talk about one picture.
//!
//! Each persona keeps its own view of the conversation: what the others said stands in the user's turns, never in its own
//! mouth. What is shared comes first (the picture), what makes each one itself comes last (a note), so that as much as
//! possible of a prompt is found in the prefix cache.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::mpsc;
use std::time::Duration;

use consort::{ModelFiles, bundled};
use consort_core::{
    AdapterUse, ChatMessage, ChatPrompt, ContentPart, DeviceEvidence, Error, GenerateRequest, ImageInput, ModelBackend,
    Prompt, Result, Role, Thinking, block_on,
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::args::DemoArgs;
use crate::output::{self, PERSONAS, Table, styled};
use crate::picture::{self, Palette};
use crate::session::{self, Reply};

/// What the person in the room asks.
const QUESTIONS: [&str; 3] = ["What do you see?", "What colour is the circle?", "Where is the star?"];

/// The most tokens of a reply.
const MAX_TOKENS: u32 = 96;

/// How long the background work between two rounds may take before the demo goes on without it.
const SETTLE: Duration = Duration::from_secs(10);

struct Persona {
    name: &'static str,
    manner: &'static str,
    adapters: Vec<AdapterUse>,
    history: Vec<ChatMessage>,
}

/// One reply of one persona.
#[derive(Serialize)]
struct Turn {
    round: usize,
    persona: &'static str,
    question: &'static str,
    #[serde(flatten)]
    reply: Reply,
}

/// Runs the command.
pub fn run(args: &DemoArgs) -> Result<()> {
    let image = match &args.image {
        Some(path) => session::read_image(path)?,
        None => ImageInput::Encoded(bundled::DEMO_PICTURE.into()),
    };
    let backend = consort::load(args.engine.load_config(ModelFiles::Bundled))?;
    let mut personas = cast(&*backend)?;
    if !args.json {
        introduce(&*backend, &personas, &image)?;
    }
    let mut turns = Vec::new();
    for (round, question) in QUESTIONS.into_iter().enumerate() {
        if !args.json {
            anstream::println!("{} {question}", styled(output::HEADING, "You:"));
        }
        let said: Vec<(&str, String)> = personas.iter().map(|persona| (persona.name, last_words(persona))).collect();
        for persona in &mut personas {
            let others = said.iter().filter(|(name, words)| *name != persona.name && !words.is_empty());
            let mut text: String = others.map(|(name, words)| format!("{name} said: {words}\n")).collect();
            text.push_str(&format!("{question}\n(Answer as {}.)", persona.name));
            let mut content = vec![ContentPart::Text(text)];
            if round == 0 {
                content.insert(0, ContentPart::Image(image.clone()));
            }
            persona.history.push(ChatMessage::new(Role::User, content));
        }
        let replies = speak(&*backend, &personas, args.json)?;
        for (persona, reply) in personas.iter_mut().zip(replies) {
            persona.history.push(ChatMessage::text(Role::Assistant, reply.text.clone()));
            turns.push(Turn { round: round + 1, persona: persona.name, question, reply });
        }
        // A person reads for a while between two questions; the background uses that time, and so does the demo.
        settle(&*backend);
    }
    if args.json {
        let value = serde_json::json!({
            "model": backend.info().name,
            "turns": turns,
            "metrics": backend.metrics(),
            "evidence": backend.evidence(),
        });
        anstream::println!("{value:#}");
    } else {
        let memory = block_on(backend.memory())?;
        anstream::print!("{}", summary(&turns, &backend.evidence()));
        let metrics = backend.metrics();
        let line = format!(
            "memory {}, of it weights {}; prefix cache {} pasts, {}; the picture was encoded {} time(s)",
            output::bytes(memory.total()),
            output::bytes(memory.weights),
            metrics.cached_pasts,
            output::bytes(metrics.cached_bytes),
            metrics.images_encoded,
        );
        anstream::println!("{}", styled(output::FAINT, &line));
    }
    Ok(())
}

fn cast(backend: &dyn ModelBackend) -> Result<Vec<Persona>> {
    let persona = |name, manner, adapters| Persona { name, manner, adapters, history: Vec::new() };
    Ok(vec![
        persona("Ada", "the model as it is", Vec::new()),
        persona("Ben", "with the adapter `pirate`", vec![session::load_adapter(backend, "pirate")?]),
        persona("Clara", "with the adapter `butler`", vec![session::load_adapter(backend, "butler")?]),
    ])
}

fn last_words(persona: &Persona) -> String {
    let Some(message) = persona.history.last() else { return String::new() };
    let texts = message.content.iter().filter_map(|part| match part {
        ContentPart::Text(text) => Some(text.trim()),
        ContentPart::Image(_) => None,
    });
    texts.collect()
}

fn introduce(backend: &dyn ModelBackend, personas: &[Persona], image: &ImageInput) -> Result<()> {
    let info = backend.info();
    anstream::println!(
        "{} {} ({}, {:.1} million parameters, {})",
        styled(output::HEADING, "model:"),
        info.name,
        info.architecture,
        info.parameters as f64 / 1e6,
        info.weight_type
    );
    anstream::print!("{}", session::evidence_lines(&backend.evidence()));
    anstream::println!();
    anstream::print!("{}", draw(image)?);
    anstream::println!();
    for (persona, style) in personas.iter().zip(PERSONAS) {
        anstream::println!("  {} is {}", styled(style, persona.name), persona.manner);
    }
    anstream::println!();
    Ok(())
}

fn draw(image: &ImageInput) -> Result<String> {
    let prepared;
    let pixels = match image {
        ImageInput::Prepared(source) => source.rgb(),
        ImageInput::Encoded(bytes) => {
            prepared = consort::prepare_picture(bytes)?;
            prepared.rgb()
        }
    };
    let colour = anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never;
    if colour && std::io::stdout().is_terminal() {
        return Ok(picture::draw(pixels, 48, Palette::TrueColour));
    }
    let drawing = picture::draw(pixels, 48, Palette::Letters);
    let legend = picture::legend(&drawing);
    Ok(format!("{drawing}  ({legend})\n"))
}

/// All personas answer at once; the replies come back in the personas' order.
fn speak(backend: &dyn ModelBackend, personas: &[Persona], quiet: bool) -> Result<Vec<Reply>> {
    let mut streams = Vec::new();
    for persona in personas {
        streams.push(backend.generate(GenerateRequest {
            adapters: persona.adapters.clone(),
            max_tokens: Some(MAX_TOKENS),
            ..GenerateRequest::new(Prompt::Chat(ChatPrompt {
                messages: persona.history.clone(),
                thinking: Thinking::Off,
                ..ChatPrompt::default()
            }))
        })?);
    }
    let stage = Stage::new(personas, quiet);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for (index, stream) in streams.into_iter().enumerate() {
            let sender = sender.clone();
            scope.spawn(move || {
                // The receiver outlives the scope's threads, so a failed send cannot happen before the end.
                let outcome =
                    session::follow(stream, |piece| drop(sender.send((index, Line::Piece(piece.to_owned())))));
                drop(sender.send((index, Line::End(Box::new(outcome)))));
            });
        }
        drop(sender);
        let mut replies: HashMap<usize, Reply> = HashMap::new();
        for (index, line) in receiver {
            match line {
                Line::Piece(piece) => stage.add(index, &piece),
                Line::End(outcome) => drop(replies.insert(index, (*outcome)?)),
            }
        }
        stage.finish();
        let in_order = (0..personas.len()).map(|index| {
            replies
                .remove(&index)
                .ok_or_else(|| Error::new(consort_core::ErrorKind::Unexpected, "a persona did not finish its reply"))
        });
        in_order.collect()
    })
}

enum Line {
    Piece(String),
    End(Box<Result<Reply>>),
}

/// Where the personas' lines grow: side by side on a terminal, one after another elsewhere.
struct Stage {
    live: Option<MultiProgress>,
    lines: Vec<ProgressBar>,
    names: Vec<String>,
    quiet: bool,
    texts: std::cell::RefCell<Vec<String>>,
}

impl Stage {
    fn new(personas: &[Persona], quiet: bool) -> Self {
        let width = personas.iter().map(|persona| persona.name.len()).max().unwrap_or(0);
        let name = |(persona, style): (&Persona, anstyle::Style)| {
            let padding = " ".repeat(width - persona.name.len());
            format!("{}:{padding}", styled(style, persona.name))
        };
        let names: Vec<_> = personas.iter().zip(PERSONAS).map(name).collect();
        let texts = std::cell::RefCell::new(vec![String::new(); personas.len()]);
        let live = (!quiet && std::io::stdout().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        let mut lines = Vec::new();
        if let Some(live) = &live {
            for name in &names {
                let line = live.add(ProgressBar::new_spinner());
                line.set_style(
                    ProgressStyle::with_template("  {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
                );
                line.set_message(name.clone());
                lines.push(line);
            }
        }
        Self { live, lines, names, quiet, texts }
    }

    fn add(&self, index: usize, piece: &str) {
        let mut texts = self.texts.borrow_mut();
        texts[index].push_str(piece);
        if let Some(line) = self.lines.get(index) {
            line.set_message(format!("{} {}", self.names[index], texts[index].trim_end()));
        }
    }

    fn finish(&self) {
        if let Some(live) = &self.live {
            // The live lines are taken away and printed for good, so that they also survive in a scroll-back.
            for line in &self.lines {
                line.finish_and_clear();
            }
            drop(live.clear());
        }
        if !self.quiet {
            for (name, text) in self.names.iter().zip(self.texts.borrow().iter()) {
                anstream::println!("  {name} {}", text.trim_end());
            }
            anstream::println!();
        }
    }
}

fn settle(backend: &dyn ModelBackend) {
    let deadline = std::time::Instant::now() + SETTLE;
    while backend.metrics().background > 0 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn summary(turns: &[Turn], evidence: &DeviceEvidence) -> String {
    let mut table = Table::new(["persona", "round", "first token", "tokens/s", "prompt", "reused", "prefilled"]);
    for turn in turns {
        let usage = turn.reply.usage;
        table.row([
            turn.persona.to_owned(),
            turn.round.to_string(),
            usage.time_to_first_token.map_or_else(|| "-".into(), session::milliseconds),
            session::decode_rate(&usage).map_or_else(|| "-".into(), |rate| format!("{rate:.0}")),
            usage.prompt_tokens.to_string(),
            usage.reused_tokens.to_string(),
            (usage.prompt_tokens - usage.reused_tokens).to_string(),
        ]);
    }
    format!("{}\n{}", table.render(), session::evidence_lines(evidence))
}
