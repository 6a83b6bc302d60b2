//! The chat at work: commands are obeyed, replies are asked for and shown.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use consort::bundled;
use consort_core::{
    ChatMessage, ChatPrompt, Error, ErrorKind, GenerateRequest, ModelBackend, Prompt, Result, Usage, block_on,
};
use consort_text::{ChatTemplate, ReplyStart};

use super::args::ChatArgs;
use super::command::{AdapterCommand, Command, HELP, ThinkMode, UseMode};
use super::interrupt::Interrupt;
use super::reply::{self, Part, Spoken};
use super::settings::{MAX_TOKENS, Settings};
use super::state::{Conversation, Ending, Persona, PersonaAdapter, Picture, Switched};
use super::transcript::Transcript;
use crate::args::adapter_spec;
use crate::output::{self, FAINT, PERSONAS, Table, styled};
use crate::session::{decode_rate, evidence_lines, milliseconds};

/// Who listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// A person at a terminal.
    Terminal,
    /// A program: words go to the standard output, everything else to stderr.
    Pipe,
}

/// What comes after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next line.
    Listen,
    /// The end.
    Leave,
}

/// What came of asking for a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// An answer, perhaps the beginning of one.
    Something,
    /// It was stopped before its first word.
    Nothing,
}

/// What a reply took, and whose it was.
struct Took {
    persona: String,
    usage: Usage,
    ending: Ending,
}

/// A chat with a model.
pub struct Session {
    backend: Arc<dyn ModelBackend>,
    template: Option<ChatTemplate>,
    interrupt: Interrupt,
    manner: Manner,
    conversation: Conversation,
    think: ThinkMode,
    max_tokens: Option<u32>,
    /// Adapters that are loaded, with their folders or files.
    loaded: BTreeMap<String, Option<PathBuf>>,
    took: Vec<Took>,
}

impl Session {
    /// A chat as the command line asks for it.
    ///
    /// # Errors
    /// Those of adapters, pictures and transcripts that it names.
    pub fn new(
        backend: Arc<dyn ModelBackend>,
        template: Option<ChatTemplate>,
        interrupt: Interrupt,
        manner: Manner,
        args: &ChatArgs,
    ) -> Result<Self> {
        let cast = args.cast(&backend.info().name)?;
        args.sampling.sampling().validate()?;
        let conversation = Conversation::new(cast.iter().map(|given| given.persona.clone()).collect())?;
        let mut session = Self {
            backend,
            template,
            interrupt,
            manner,
            conversation,
            think: args.think,
            max_tokens: Some(args.max_tokens).filter(|most| *most != MAX_TOKENS),
            loaded: BTreeMap::new(),
            took: Vec::new(),
        };
        for (index, given) in cast.iter().enumerate() {
            let mut adapters = Vec::new();
            for spec in &given.adapters {
                let (name, scale) = adapter_spec(spec)?;
                let (name, path) = named(name);
                session.need_adapter(&name, path.as_deref())?;
                adapters.push(PersonaAdapter { name, path, scale });
            }
            if let Some(persona) = session.conversation.personas_mut().get_mut(index) {
                persona.adapters = adapters;
            }
        }
        if let Some(path) = &args.load {
            session.load(path)?;
        }
        for path in &args.image {
            session.attach(path)?;
        }
        Ok(session)
    }

    /// Says who is there.
    pub fn greet(&self) {
        if self.manner == Manner::Pipe {
            return;
        }
        let info = self.backend.info();
        self.tell(&format!(
            "{} {} ({}, {})",
            styled(output::HEADING, "model:"),
            info.name,
            info.architecture,
            info.weight_type
        ));
        anstream::print!("{}", evidence_lines(&self.backend.evidence()));
        self.note("/help lists the commands, Ctrl-C stops a reply, Ctrl-D leaves");
    }

    /// What stands before the line that is typed.
    pub fn prompt(&self) -> String {
        match self.conversation.personas() {
            [_] => "> ".into(),
            _ => format!("to {}> ", self.conversation.current().name),
        }
    }

    /// Does what was asked for.
    ///
    /// # Errors
    /// What stands in its way; the conversation is then as it was.
    pub fn obey(&mut self, command: Command) -> Result<Next> {
        match command {
            Command::Nothing => {}
            Command::Quit => return Ok(Next::Leave),
            Command::Help => self.tell(HELP),
            Command::Say(text) => {
                self.conversation.ask(&text);
                let outcome = self.speak();
                if !matches!(outcome, Ok(Said::Something)) {
                    self.conversation.undo();
                }
                self.note_silence(outcome?, "the question is taken back");
            }
            Command::Regenerate => {
                let before = self.conversation.clone();
                self.conversation.regenerate()?;
                let outcome = self.speak();
                if !matches!(outcome, Ok(Said::Something)) {
                    self.conversation = before;
                }
                self.note_silence(outcome?, "the answer before stays");
            }
            Command::Undo => match self.conversation.undo() {
                Some(question) => self.note(&format!("taken back: {}", first_line(&question.text))),
                None => self.note("there is nothing to take back"),
            },
            Command::Reset => {
                self.conversation.reset();
                self.note("the conversation is forgotten");
            }
            Command::Image(path) => self.attach(&path)?,
            Command::Personas => self.tell(self.personas().trim_end()),
            Command::Persona { name, system } => self.switch(&name, system)?,
            Command::ShowSystem => match &self.conversation.current().system {
                Some(system) => self.tell(system),
                None => self.note("there is no system prompt"),
            },
            Command::System(system) => {
                self.conversation.current_mut().system = system;
                self.note("the system prompt is changed");
            }
            Command::Adapter(command) => self.adapter(command)?,
            Command::Think(mode) => {
                self.think = mode;
                self.note(match mode {
                    ThinkMode::On | ThinkMode::Fold => "it thinks before it answers",
                    ThinkMode::Off => "it answers at once",
                    ThinkMode::Template => "it thinks as its template has it",
                });
            }
            Command::ShowSettings => self.tell(self.settings().describe().trim_end()),
            Command::Set { name, value } => {
                let mut settings = self.settings();
                settings.set(&name, value.as_deref())?;
                self.conversation.current_mut().sampling = settings.sampling;
                self.max_tokens = settings.max_tokens;
                self.note(&format!("{name} is {}", value.as_deref().unwrap_or("its default")));
            }
            Command::Save(path) => {
                let name = &self.backend.info().name;
                Transcript::of(&self.conversation, name, self.think, self.max_tokens).write(&path)?;
                self.note(&format!("kept in {}", path.display()));
            }
            Command::Load(path) => self.load(&path)?,
            Command::Stats => {
                let text = self.stats()?;
                self.tell(text.trim_end());
            }
        }
        Ok(Next::Listen)
    }

    /// Says something that nobody asked to have in a file.
    pub fn note(&self, text: &str) {
        anstream::eprintln!("{}", styled(FAINT, text));
    }

    /// Says what was asked for.
    fn tell(&self, text: &str) {
        anstream::println!("{text}");
    }

    fn settings(&self) -> Settings {
        Settings { sampling: self.conversation.current().sampling.clone(), max_tokens: self.max_tokens }
    }

    /// Lets the current persona answer.
    fn speak(&mut self) -> Result<Said> {
        let start = self.reply_start();
        let stream = self.backend.generate(self.request()?)?;
        let mut page = Page::new(self);
        let outcome = reply::follow(stream, start, &self.interrupt, |part| page.show(part));
        page.end();
        let spoken = outcome?;
        self.note(&self.status(&spoken));
        let persona = self.conversation.current().name.clone();
        self.took.push(Took { persona, usage: spoken.usage, ending: spoken.ending });
        if spoken.ending == Ending::Stopped && spoken.text.trim().is_empty() {
            return Ok(Said::Nothing);
        }
        self.conversation.answer(spoken.text, spoken.reasoning, spoken.ending);
        Ok(Said::Something)
    }

    fn note_silence(&self, said: Said, consequence: &str) {
        if said == Said::Nothing {
            self.note(&format!("nothing was said yet: {consequence}"));
        }
    }

    fn request(&self) -> Result<GenerateRequest> {
        let persona = self.conversation.current();
        let mut sampling = persona.sampling.sampling();
        sampling.seed = sampling.seed.wrapping_add(self.conversation.attempts());
        let messages = self.conversation.prompt();
        if messages.iter().flat_map(ChatMessage::images).next().is_some() && !self.backend.capability().image_input {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this model reads only: it was loaded without a vision projector",
            ));
        }
        Ok(GenerateRequest {
            adapters: persona.adapter_uses(),
            sampling,
            stop: persona.sampling.stop_rules(Vec::new()),
            max_tokens: Some(self.max_tokens.unwrap_or(MAX_TOKENS)),
            ..GenerateRequest::new(Prompt::Chat(ChatPrompt {
                messages,
                thinking: self.think.into(),
                ..ChatPrompt::default()
            }))
        })
    }

    /// Whether the template opens the model's reasoning.
    fn reply_start(&self) -> ReplyStart {
        let template = self.template.as_ref();
        template.map_or(ReplyStart::Undecided, |template| template.reply_start(self.think.into()))
    }

    fn status(&self, spoken: &Spoken) -> String {
        let usage = &spoken.usage;
        let thought = match spoken.reasoning_tokens {
            0 => String::new(),
            tokens => format!(" ({tokens} of reasoning)"),
        };
        let rate = decode_rate(usage).map_or_else(|| "-".into(), |rate| format!("{rate:.0}"));
        let first = usage.time_to_first_token.map_or_else(|| "-".into(), milliseconds);
        let ending = match spoken.ending {
            Ending::Whole => "",
            Ending::Stopped => "stopped; ",
            Ending::Cut => "cut at the most tokens; ",
        };
        let capability = self.backend.capability();
        format!(
            "{ending}{} tokens{thought}, {rate} tokens/s, first token {first}, {} of {} prompt tokens reused, context {} of {}",
            usage.completion_tokens,
            usage.reused_tokens,
            usage.prompt_tokens,
            usage.prompt_tokens + usage.completion_tokens,
            capability.max_sequence_tokens,
        )
    }

    fn switch(&mut self, name: &str, system: Option<String>) -> Result<()> {
        let switched = self.conversation.switch_to(name)?;
        if system.is_some() {
            self.conversation.current_mut().system = system;
        }
        self.note(&match switched {
            Switched::Known => format!("{name} answers"),
            Switched::New => format!("{name} is new, and answers"),
        });
        Ok(())
    }

    fn personas(&self) -> String {
        let mut table = Table::new(["persona", "adapters", "system prompt", "answers"]);
        for (index, persona) in self.conversation.personas().iter().enumerate() {
            let system = persona.system.as_deref().map_or_else(|| "-".into(), first_line);
            let next = if index == self.conversation.current_index() { "next" } else { "" };
            table.row([persona.name.clone(), adapters_of(persona), system, next.into()]);
        }
        table.render()
    }

    fn attach(&mut self, path: &Path) -> Result<()> {
        if !self.backend.capability().image_input {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this model reads only: it was loaded without a vision projector",
            ));
        }
        let bytes: Arc<[u8]> = std::fs::read(path).map_err(|source| Error::io(path, source))?.into();
        // Now, and not with the next message: whoever attached it is still looking at it.
        let named = |error: Error| error.with_context("path", path.display().to_string());
        let picture = consort::prepare_picture(&bytes).map_err(named)?;
        let (width, height) = (picture.rgb().width, picture.rgb().height);
        // Where it lies, for a transcript that is loaded from another folder.
        let path = path.canonicalize().map_err(|source| Error::io(path, source))?;
        self.note(&format!("the next message shows {} ({width} × {height})", path.display()));
        self.conversation.attached.push(Picture { path, bytes });
        Ok(())
    }

    fn adapter(&mut self, command: AdapterCommand) -> Result<()> {
        match command {
            AdapterCommand::List => self.tell(self.adapters().trim_end()),
            AdapterCommand::Off => {
                self.conversation.current_mut().adapters.clear();
                self.note("it speaks without adapters");
            }
            AdapterCommand::Drop(name) => {
                if let Some(user) =
                    self.conversation.personas().iter().find(|p| p.adapters.iter().any(|a| a.name == name))
                {
                    let message = "a persona speaks with this adapter: /adapter off takes it away";
                    return Err(Error::new(ErrorKind::InvalidRequest, message)
                        .with_context("adapter", name)
                        .with_context("persona", user.name.clone()));
                }
                block_on(self.backend.unload_adapter(&name))?;
                self.loaded.remove(&name);
                self.note(&format!("{name} is forgotten"));
            }
            AdapterCommand::Use { name, path, scale, mode } => {
                let (name, path) = match path {
                    Some(path) => (name, Some(path)),
                    None if self.loaded.contains_key(&name) => {
                        let path = self.loaded.get(&name).cloned().flatten();
                        (name, path)
                    }
                    None => named(&name),
                };
                self.need_adapter(&name, path.as_deref())?;
                let used = PersonaAdapter { name: name.clone(), path, scale };
                let adapters = &mut self.conversation.current_mut().adapters;
                match mode {
                    UseMode::Alone => *adapters = vec![used],
                    UseMode::Beside => {
                        adapters.retain(|adapter| adapter.name != name);
                        adapters.push(used);
                    }
                }
                self.note(&format!("it speaks with {}", adapters_of(self.conversation.current())));
            }
        }
        Ok(())
    }

    /// Loads an adapter that is not loaded yet, or is loaded from another place.
    fn need_adapter(&mut self, name: &str, path: Option<&Path>) -> Result<()> {
        if self.loaded.get(name).is_some_and(|loaded| loaded.as_deref() == path) {
            return Ok(());
        }
        let files = match (path, bundled::adapter(name)) {
            (Some(path), _) => consort::adapter_at(path),
            (None, Some(adapter)) => adapter.files(),
            (None, None) => {
                let message = "there is no such adapter: name its PEFT folder or its GGUF file as well";
                return Err(Error::new(ErrorKind::NotFound, message).with_context("adapter", name));
            }
        };
        block_on(self.backend.load_adapter(name, files))?;
        self.loaded.insert(name.to_owned(), path.map(Path::to_owned));
        Ok(())
    }

    fn adapters(&self) -> String {
        let mut table = Table::new(["adapter", "from", "rank", "layers", "bytes", "used by"]);
        for status in self.backend.adapters() {
            let info = &status.info;
            let id = &*info.key.id;
            let from = self.loaded.get(id).cloned().flatten();
            let users = self.conversation.personas().iter().filter_map(|persona| {
                let adapter = persona.adapters.iter().find(|adapter| adapter.name == id)?;
                Some(format!("{} × {}", persona.name, adapter.scale))
            });
            let users = users.collect::<Vec<_>>().join(", ");
            table.row([
                id.to_owned(),
                from.map_or_else(|| "the program".into(), |path| path.display().to_string()),
                info.rank.to_string(),
                info.layers.to_string(),
                output::bytes(info.bytes),
                users,
            ]);
        }
        let unloaded = bundled::ADAPTERS.iter().filter(|adapter| !self.loaded.contains_key(adapter.name));
        for adapter in unloaded {
            table.row([
                adapter.name.into(),
                "the program".into(),
                "-".into(),
                "-".into(),
                "-".into(),
                "not loaded".into(),
            ]);
        }
        table.render()
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let kept = Transcript::read(path)?;
        let conversation = kept.conversation()?;
        for adapter in conversation.personas().iter().flat_map(|persona| &persona.adapters) {
            self.need_adapter(&adapter.name, adapter.path.as_deref())?;
        }
        for persona in conversation.personas() {
            persona.sampling.sampling().validate()?;
        }
        let questions =
            conversation.entries.iter().filter(|entry| matches!(entry, super::state::Entry::Question(_))).count();
        self.conversation = conversation;
        (self.think, self.max_tokens) = (kept.think, kept.max_tokens.filter(|most| *most > 0));
        let other = if kept.model == self.backend.info().name {
            String::new()
        } else {
            format!(", which was with {}", kept.model)
        };
        self.note(&format!("the conversation of {questions} questions goes on{other}"));
        Ok(())
    }

    fn stats(&self) -> Result<String> {
        let mut table = Table::new(["persona", "tokens", "tokens/s", "first token", "prompt", "reused", "ended"]);
        for took in &self.took {
            let usage = &took.usage;
            let ending = match took.ending {
                Ending::Whole => "by itself",
                Ending::Stopped => "stopped",
                Ending::Cut => "cut",
            };
            table.row([
                took.persona.clone(),
                usage.completion_tokens.to_string(),
                decode_rate(usage).map_or_else(|| "-".into(), |rate| format!("{rate:.0}")),
                usage.time_to_first_token.map_or_else(|| "-".into(), milliseconds),
                usage.prompt_tokens.to_string(),
                usage.reused_tokens.to_string(),
                ending.into(),
            ]);
        }
        let (memory, metrics) = (block_on(self.backend.memory())?, self.backend.metrics());
        Ok(format!(
            "{}memory {}, of it weights {}; prefix cache {} pasts, {}; {} images encoded",
            table.render(),
            output::bytes(memory.total()),
            output::bytes(memory.weights),
            metrics.cached_pasts,
            output::bytes(metrics.cached_bytes),
            metrics.images_encoded,
        ))
    }
}

/// An adapter by the name of a bundled one, or by its folder or file, whose own name it then has.
fn named(given: &str) -> (String, Option<PathBuf>) {
    if bundled::adapter(given).is_some() {
        return (given.to_owned(), None);
    }
    let path = Path::new(given);
    let name = path.file_name().map_or_else(|| given.to_owned(), |name| name.to_string_lossy().into_owned());
    // Absolute, for a transcript that is loaded from another folder.
    (name, Some(path.canonicalize().unwrap_or_else(|_| path.to_owned())))
}

fn adapters_of(persona: &Persona) -> String {
    let names: Vec<_> =
        persona.adapters.iter().map(|adapter| format!("{} × {}", adapter.name, adapter.scale)).collect();
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

fn first_line(text: &str) -> String {
    let mut line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    if line.len() < text.trim_end().len() {
        line.push('…');
    }
    line
}

/// Where a reply is written as it comes.
struct Page {
    manner: Manner,
    think: ThinkMode,
    label: Option<String>,
    written: Written,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Nothing,
    Reasoning,
    Words,
}

impl Page {
    fn new(session: &Session) -> Self {
        let personas = session.conversation.personas();
        let (persona, index) = (session.conversation.current(), session.conversation.current_index());
        let style = PERSONAS[index % PERSONAS.len()];
        // Alone, its words need no name before them.
        let label = (personas.len() > 1).then(|| format!("{} ", styled(style, &format!("{}:", persona.name))));
        Self { manner: session.manner, think: session.think, label, written: Written::Nothing }
    }

    fn show(&mut self, part: Part<'_>) {
        match part {
            Part::Reasoning(text) if self.manner == Manner::Terminal => {
                if self.written == Written::Nothing {
                    self.write(&self.label.clone().unwrap_or_default());
                    if self.think == ThinkMode::Fold {
                        self.write(&styled(FAINT, "(it thinks)"));
                    }
                    self.written = Written::Reasoning;
                }
                if self.think != ThinkMode::Fold {
                    self.write(&styled(FAINT, &self.printable(text)));
                }
            }
            // In a pipe only words are worth having; /save keeps the reasoning.
            Part::Reasoning(_) => {}
            Part::Words(text) => {
                match self.written {
                    Written::Nothing => self.write(&self.label.clone().unwrap_or_default()),
                    Written::Reasoning => self.write("\n"),
                    Written::Words => {}
                }
                self.written = Written::Words;
                self.write(&self.printable(text));
            }
        }
    }

    fn end(&self) {
        self.write("\n");
    }

    /// What a model says is not trusted to leave a terminal as it was; a program gets it as it is.
    fn printable(&self, text: &str) -> String {
        let harmless = |c: char| self.manner == Manner::Pipe || !c.is_control() || matches!(c, '\n' | '\t');
        text.chars().map(|c| if harmless(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
    }

    fn write(&self, text: &str) {
        let mut stdout = anstream::stdout();
        // A closed pipe ends the program at the next line; there is nothing better to do with a lost reader here.
        drop(write!(stdout, "{text}").and_then(|()| stdout.flush()));
    }
}
