//! What a line means: a message, or a command.

use std::path::PathBuf;

use clap::ValueEnum;
use consort_core::{Error, ErrorKind, Result, Thinking};
use serde::{Deserialize, Serialize};

/// What `/help` shows.
pub const HELP: &str = "  /image PATH                    show a picture with the next message
  /persona                       list the personas
  /persona NAME [SYSTEM PROMPT]  let NAME answer; a new name is a new persona
  /system [TEXT|none]            show, set or take away the system prompt of the persona
  /adapter                       list the adapters
  /adapter NAME [PATH] [SCALE]   let the persona speak with this adapter alone; +NAME adds it to what it has
  /adapter off                   let the persona speak without adapters
  /adapter drop NAME             forget an adapter
  /think on|off|fold             let the model think first; fold does not show what
  /set [NAME VALUE|default]      show or change a setting of the persona: temperature, top-p, seed, max-tokens, ...
  /regenerate                    answer the last question anew
  /undo                          take back the last question and its answer
  /reset                         forget the conversation; personas and settings stay
  /save FILE                     keep the conversation: Markdown for .md, else JSON
  /load FILE                     go on with a conversation that was kept
  /stats                         what the replies took
  /help                          this list
  /quit                          leave (Ctrl-D, or Ctrl-C twice)

  A \\ at the end of a line continues it; \"\"\" begins and ends a text of several lines. // begins a message with a slash.
  Ctrl-C stops a reply.";

/// The names of the commands, for completion.
pub const NAMES: [&str; 16] = [
    "/adapter",
    "/exit",
    "/help",
    "/image",
    "/load",
    "/persona",
    "/quit",
    "/regenerate",
    "/reset",
    "/save",
    "/set",
    "/stats",
    "/system",
    "/think",
    "/undo",
    "/?",
];

/// Whether the model thinks first, and what is shown of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThinkMode {
    /// It thinks first, and that is shown on a terminal.
    On,
    /// It thinks first, and only how much is shown.
    Fold,
    /// It answers at once.
    Off,
    /// As the model's template does when nothing is said.
    Template,
}

impl From<ThinkMode> for Thinking {
    fn from(mode: ThinkMode) -> Self {
        match mode {
            ThinkMode::On | ThinkMode::Fold => Self::On,
            ThinkMode::Off => Self::Off,
            ThinkMode::Template => Self::TemplateDefault,
        }
    }
}

/// What is to be done with an adapter.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterCommand {
    /// List what is loaded.
    List,
    /// Speak with it.
    Use {
        /// Its name.
        name: String,
        /// Its PEFT folder or GGUF file, when it is not loaded yet and no part of the program.
        path: Option<PathBuf>,
        /// Factor on its own scale.
        scale: f32,
        /// Beside the others or in their place.
        mode: UseMode,
    },
    /// Speak without adapters.
    Off,
    /// Unload it.
    Drop(String),
}

/// Whether an adapter is used alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseMode {
    /// In place of what was used.
    Alone,
    /// Beside what is used.
    Beside,
}

/// A line that was understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Say this to the persona.
    Say(String),
    /// A blank line.
    Nothing,
    /// Show a picture with the next message.
    Image(PathBuf),
    /// List the personas.
    Personas,
    /// Let this persona answer.
    Persona {
        /// Its name.
        name: String,
        /// Its new system prompt.
        system: Option<String>,
    },
    /// Show the system prompt.
    ShowSystem,
    /// Set it, or take it away.
    System(Option<String>),
    /// Adapters.
    Adapter(AdapterCommand),
    /// Whether the model thinks.
    Think(ThinkMode),
    /// Show the settings.
    ShowSettings,
    /// Change one; `None`: back to its default.
    Set {
        /// Its name.
        name: String,
        /// Its value.
        value: Option<String>,
    },
    /// Answer anew.
    Regenerate,
    /// Take back.
    Undo,
    /// Forget what was said.
    Reset,
    /// Keep the conversation.
    Save(PathBuf),
    /// Go on with one.
    Load(PathBuf),
    /// Show what the replies took.
    Stats,
    /// List the commands.
    Help,
    /// Leave.
    Quit,
}

impl Command {
    /// Understands what was typed, which may have several lines.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a command that does not exist or lacks something.
    pub fn parse(text: &str) -> Result<Self> {
        let Some(command) = text.strip_prefix('/') else {
            return Ok(if text.trim().is_empty() { Self::Nothing } else { Self::Say(text.to_owned()) });
        };
        if command.starts_with('/') {
            return Ok(Self::Say(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let given = (!rest.is_empty()).then_some(rest);
        let path =
            |usage: &'static str| given.map(|rest| PathBuf::from(unquoted(rest))).ok_or_else(|| usage_error(usage));
        let bare = |command: Self| match given {
            None => Ok(command),
            Some(extra) => Err(refuse(format!("/{name} takes nothing after it")).with_context("found", extra)),
        };
        match name {
            "image" => path("/image PATH").map(Self::Image),
            "persona" => Ok(match given {
                None => Self::Personas,
                Some(rest) => {
                    let (name, system) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                    let system = system.trim();
                    Self::Persona { name: name.to_owned(), system: (!system.is_empty()).then(|| system.to_owned()) }
                }
            }),
            "system" => Ok(match given {
                None => Self::ShowSystem,
                Some("none") => Self::System(None),
                Some(text) => Self::System(Some(text.to_owned())),
            }),
            "adapter" => adapter(rest).map(Self::Adapter),
            "think" => match rest {
                "on" => Ok(Self::Think(ThinkMode::On)),
                "off" => Ok(Self::Think(ThinkMode::Off)),
                "fold" => Ok(Self::Think(ThinkMode::Fold)),
                _ => Err(usage_error("/think on|off|fold")),
            },
            "set" => match given.map(|rest| rest.split_once(char::is_whitespace)) {
                None => Ok(Self::ShowSettings),
                Some(Some((name, value))) => {
                    let value = value.trim();
                    Ok(Self::Set { name: name.to_owned(), value: (value != "default").then(|| value.to_owned()) })
                }
                Some(None) => Err(usage_error("/set NAME VALUE, or /set NAME default")),
            },
            "save" => path("/save FILE").map(Self::Save),
            "load" => path("/load FILE").map(Self::Load),
            "regenerate" => bare(Self::Regenerate),
            "undo" => bare(Self::Undo),
            "reset" => bare(Self::Reset),
            "stats" => bare(Self::Stats),
            "help" | "?" => bare(Self::Help),
            "quit" | "exit" => bare(Self::Quit),
            _ => Err(refuse("there is no such command; /help lists them, and // begins a message with a slash")
                .with_context("command", format!("/{name}"))),
        }
    }
}

fn adapter(rest: &str) -> Result<AdapterCommand> {
    const USAGE: &str = "/adapter NAME [PATH] [SCALE], /adapter off, /adapter drop NAME";
    let words = words(rest)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let scale = |word: &str| word.parse::<f32>().ok().filter(|scale| scale.is_finite());
    let (name, path, factor) = match words.as_slice() {
        [] => return Ok(AdapterCommand::List),
        ["off"] => return Ok(AdapterCommand::Off),
        ["drop", name] => return Ok(AdapterCommand::Drop((*name).to_owned())),
        ["off" | "drop", ..] => return Err(usage_error(USAGE)),
        [name] => (*name, None, 1.0),
        [name, word] => match scale(word) {
            Some(factor) => (*name, None, factor),
            None => (*name, Some(PathBuf::from(word)), 1.0),
        },
        [name, path, word] => (*name, Some(PathBuf::from(path)), scale(word).ok_or_else(|| usage_error(USAGE))?),
        _ => return Err(usage_error(USAGE)),
    };
    let (name, mode) = name.strip_prefix('+').map_or((name, UseMode::Alone), |name| (name, UseMode::Beside));
    if name.is_empty() {
        return Err(usage_error(USAGE));
    }
    Ok(AdapterCommand::Use { name: name.to_owned(), path, scale: factor, mode })
}

/// Words with blanks between them; quotes keep a word with blanks together. A backslash is a character like any other, for
/// the sake of Windows' paths.
fn words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, after) = if first == '"' {
            rest[1..].split_once('"').ok_or_else(|| refuse("a quote is not closed"))?
        } else {
            rest.split_once(char::is_whitespace).unwrap_or((rest, ""))
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    Ok(words)
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidRequest, message)
}

fn usage_error(usage: &'static str) -> Error {
    refuse(format!("it is used as {usage}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Command {
        Command::parse(text).unwrap()
    }

    #[test]
    fn messages_are_messages() {
        assert_eq!(parse("Hello!"), Command::Say("Hello!".into()));
        assert_eq!(parse("a\n/b"), Command::Say("a\n/b".into()));
        assert_eq!(parse("//etc/hosts?"), Command::Say("/etc/hosts?".into()));
        assert_eq!(parse("  \t"), Command::Nothing);
    }

    #[test]
    fn commands_are_commands() {
        assert_eq!(parse("/image a picture.png"), Command::Image("a picture.png".into()));
        assert_eq!(parse("/image \"a picture.png\""), Command::Image("a picture.png".into()));
        assert_eq!(parse("/persona"), Command::Personas);
        assert_eq!(parse("/persona Ada"), Command::Persona { name: "Ada".into(), system: None });
        let system = Some("You are Ada.\nBe kind.".to_owned());
        assert_eq!(parse("/persona Ada You are Ada.\nBe kind."), Command::Persona { name: "Ada".into(), system });
        assert_eq!(parse("/system"), Command::ShowSystem);
        assert_eq!(parse("/system none"), Command::System(None));
        assert_eq!(parse("/system none of it"), Command::System(Some("none of it".into())));
        assert_eq!(parse("/think fold"), Command::Think(ThinkMode::Fold));
        assert_eq!(parse("/set"), Command::ShowSettings);
        let set = |name: &str, value: Option<&str>| Command::Set { name: name.into(), value: value.map(Into::into) };
        assert_eq!(parse("/set temperature 0.7"), set("temperature", Some("0.7")));
        assert_eq!(parse("/set top-p  default"), set("top-p", None));
        for (line, command) in [
            ("/regenerate", Command::Regenerate),
            ("/undo", Command::Undo),
            ("/reset", Command::Reset),
            ("/stats", Command::Stats),
            ("/help", Command::Help),
            ("/?", Command::Help),
            ("/quit", Command::Quit),
            ("/exit ", Command::Quit),
            ("/save x.md", Command::Save("x.md".into())),
            ("/load x.json", Command::Load("x.json".into())),
        ] {
            assert_eq!(parse(line), command);
        }
    }

    #[test]
    fn adapters_have_a_folder_and_a_scale_or_not() {
        let adapter = |text: &str| match parse(text) {
            Command::Adapter(command) => command,
            other => panic!("{other:?}"),
        };
        let used = |name: &str, path: Option<&str>, scale, mode| AdapterCommand::Use {
            name: name.into(),
            path: path.map(Into::into),
            scale,
            mode,
        };
        assert_eq!(adapter("/adapter"), AdapterCommand::List);
        assert_eq!(adapter("/adapter off"), AdapterCommand::Off);
        assert_eq!(adapter("/adapter drop pirate"), AdapterCommand::Drop("pirate".into()));
        assert_eq!(adapter("/adapter pirate"), used("pirate", None, 1.0, UseMode::Alone));
        assert_eq!(adapter("/adapter +pirate 0.5"), used("pirate", None, 0.5, UseMode::Beside));
        assert_eq!(adapter("/adapter p dir/p"), used("p", Some("dir/p"), 1.0, UseMode::Alone));
        assert_eq!(adapter("/adapter p \"C:\\my dir\" -0.5"), used("p", Some("C:\\my dir"), -0.5, UseMode::Alone));
    }

    #[test]
    fn what_is_wrong_says_how_it_is_used() {
        for (line, expected) in [
            ("/imge x.png", "/imge"),
            ("/image", "/image PATH"),
            ("/think", "on|off|fold"),
            ("/think perhaps", "on|off|fold"),
            ("/set temperature", "/set NAME VALUE"),
            ("/save", "/save FILE"),
            ("/undo it", "takes nothing"),
            ("/adapter drop", "drop NAME"),
            ("/adapter a b c", "SCALE"),
            ("/adapter a b 1 2", "SCALE"),
            ("/adapter +", "NAME"),
            ("/adapter a \"b", "quote"),
        ] {
            let error = Command::parse(line).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            assert!(error.to_string().contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn help_and_completion_know_every_command() {
        for name in NAMES {
            assert!(name == "/?" || name == "/exit" || HELP.contains(&format!("  {name}")), "{name}");
            if let Err(error) = Command::parse(name) {
                assert!(error.to_string().contains("used as"), "{name}: {error}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_typed_breaks_it(text in "/?(image|persona|adapter|set|think|system)? ?[ -~\\n\\PC]{0,40}") {
            // A result or an error; a message comes back as it was.
            if let Ok(Command::Say(said)) = Command::parse(&text) {
                let escaped = format!("/{said}");
                prop_assert!(text == said || text == escaped);
            }
        }
    }
}
