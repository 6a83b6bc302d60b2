//! A conversation in a file: JSON, or Markdown for people with the same JSON in a comment at its end.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::command::ThinkMode;
use super::state::{Answer, Conversation, Ending, Entry, Persona, Picture, Question};

/// The version of what is written.
const VERSION: u32 = 1;
/// The longest transcript that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// What stands before the JSON in Markdown.
const MARK: &str = "<!-- consort-chat: ";
/// What stands after it.
const END_MARK: &str = " -->";

/// A conversation as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcript {
    /// The version of the format.
    consort_chat: u32,
    /// The model's name, for people.
    pub model: String,
    /// Whether the model thinks.
    pub think: ThinkMode,
    /// The most tokens of a reply, if it was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Who answers next.
    current: String,
    personas: Vec<Persona>,
    entries: Vec<KeptEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum KeptEntry {
    Question(KeptQuestion),
    Answer(Answer),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptQuestion {
    text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pictures: Vec<KeptPicture>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// A picture is not copied; its digest tells whether the file is still the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptPicture {
    path: PathBuf,
    blake3: String,
}

impl Transcript {
    /// What is to be kept of a conversation.
    pub fn of(conversation: &Conversation, model: &str, think: ThinkMode, max_tokens: Option<u32>) -> Self {
        let entries = conversation.entries.iter().map(|entry| match entry {
            Entry::Answer(answer) => KeptEntry::Answer(answer.clone()),
            Entry::Question(question) => KeptEntry::Question(KeptQuestion {
                text: question.text.clone(),
                pictures: question.pictures.iter().map(KeptPicture::of).collect(),
                note: question.note.clone(),
            }),
        });
        Self {
            consort_chat: VERSION,
            model: model.to_owned(),
            think,
            max_tokens,
            current: conversation.current().name.clone(),
            personas: conversation.personas().to_vec(),
            entries: entries.collect(),
        }
    }

    /// Writes it. A file that is no transcript is not replaced.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when something else is there, and those of writing.
    pub fn write(&self, path: &Path) -> Result<()> {
        if path.exists() && read_state(path).is_err() {
            let message = "there is a file of this name that is no transcript; it is not replaced";
            return Err(Error::new(ErrorKind::InvalidRequest, message).with_context("path", path.display().to_string()));
        }
        let text = if is_markdown(path) { self.to_markdown()? } else { self.to_json()? + "\n" };
        // Whole or not at all: what was kept before is not lost when the disk is full.
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        std::fs::write(&part, text).map_err(|source| Error::io(&part, source))?;
        std::fs::rename(&part, path).map_err(|source| Error::io(path, source))
    }

    /// Reads one, of either form.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when it is none or contradicts itself, and those of reading.
    pub fn read(path: &Path) -> Result<Self> {
        read_state(path).map_err(|error| error.with_context("path", path.display().to_string()))
    }

    /// The conversation. The files of its pictures are read and must be what they were.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for personas that contradict each other or a picture that changed, and those of reading.
    pub fn conversation(&self) -> Result<Conversation> {
        let mut conversation = Conversation::new(self.personas.clone())?;
        let known = |name: &str| {
            let there = self.personas.iter().any(|persona| persona.name == name);
            let message = "the transcript names a persona that it does not describe";
            if there { Ok(()) } else { Err(Error::new(ErrorKind::InvalidRequest, message).with_context("name", name)) }
        };
        known(&self.current)?;
        conversation.switch_to(&self.current)?;
        for entry in &self.entries {
            conversation.entries.push(match entry {
                KeptEntry::Answer(answer) => {
                    known(&answer.persona)?;
                    Entry::Answer(answer.clone())
                }
                KeptEntry::Question(question) => {
                    question.note.as_deref().map_or(Ok(()), known)?;
                    Entry::Question(Question {
                        text: question.text.clone(),
                        pictures: question.pictures.iter().map(KeptPicture::read).collect::<Result<_>>()?,
                        note: question.note.clone(),
                    })
                }
            });
        }
        Ok(conversation)
    }

    fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map(|json| without_angles(&json)).map_err(unwritable)
    }

    fn to_markdown(&self) -> Result<String> {
        let mut text = format!("# A conversation with {}\n", self.model);
        for persona in self.personas.iter().filter(|persona| persona.system.is_some()) {
            let _ = write!(text, "\n*{}:* {}\n", persona.name, persona.system.as_deref().unwrap_or_default());
        }
        for entry in &self.entries {
            match entry {
                KeptEntry::Question(question) => {
                    for picture in &question.pictures {
                        let _ = write!(text, "\n![picture](<{}>)\n", picture.path.display());
                    }
                    let _ = write!(text, "\n**You:** {}\n", question.text);
                }
                KeptEntry::Answer(answer) => {
                    if let Some(reasoning) = &answer.reasoning {
                        let _ = write!(text, "\n> {}\n", reasoning.trim().replace('\n', "\n> "));
                    }
                    let ending = match answer.ending {
                        Ending::Whole => "",
                        Ending::Stopped | Ending::Cut => " […]",
                    };
                    let _ = write!(text, "\n**{}:** {}{ending}\n", answer.persona, answer.text);
                }
            }
        }
        let json = serde_json::to_string(self).map(|json| without_angles(&json)).map_err(unwritable)?;
        let _ = write!(text, "\n{MARK}{json}{END_MARK}\n");
        Ok(text)
    }
}

/// In JSON these two stand in strings only. Escaped, nothing that was said can look like the marks.
fn without_angles(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e")
}

fn unwritable(source: serde_json::Error) -> Error {
    Error::new(ErrorKind::Unexpected, "the conversation could not be written as JSON").with_source(source)
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("md"))
}

fn read_state(path: &Path) -> Result<Transcript> {
    let length = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
    let refuse = |message: String| Error::new(ErrorKind::InvalidRequest, message);
    if length > MAX_BYTES {
        return Err(refuse(format!("a transcript has at most {MAX_BYTES} bytes, and this file {length}")));
    }
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    let text = String::from_utf8(bytes).map_err(|_| refuse("the file is no transcript: it is no UTF-8".into()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Transcript> {
    let refuse = |message: String| Error::new(ErrorKind::InvalidRequest, message);
    // The comment is the last thing in the file; whatever was said before may look like one.
    let json = match text.rsplit_once(MARK) {
        Some((_, comment)) => comment.trim_end().strip_suffix(END_MARK).unwrap_or(comment),
        None => text,
    };
    let transcript: Transcript = serde_json::from_str(json)
        .map_err(|error| refuse(format!("the file is no transcript of `consort chat`: {error}")))?;
    if transcript.consort_chat != VERSION {
        return Err(refuse("the transcript is of another version of `consort chat`".into())
            .with_context("version", transcript.consort_chat.to_string()));
    }
    Ok(transcript)
}

impl KeptPicture {
    fn of(picture: &Picture) -> Self {
        Self { path: picture.path.clone(), blake3: blake3::hash(&picture.bytes).to_hex().to_string() }
    }

    fn read(&self) -> Result<Picture> {
        let bytes = std::fs::read(&self.path).map_err(|source| Error::io(&self.path, source))?;
        if blake3::hash(&bytes).to_hex().as_str() != self.blake3 {
            let message = "this picture is not the one of the conversation any more";
            return Err(
                Error::new(ErrorKind::InvalidRequest, message).with_context("path", self.path.display().to_string())
            );
        }
        Ok(Picture { path: self.path.clone(), bytes: bytes.into() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn conversation(folder: &Path, words: &[String]) -> Conversation {
        let mut chat = Conversation::new(vec![Persona::new("Ada").unwrap(), Persona::new("Ben").unwrap()]).unwrap();
        chat.current_mut().system = Some("You are Ada.".into());
        let path = folder.join("picture.png");
        std::fs::write(&path, [1, 2, 3]).unwrap();
        chat.attached.push(Picture { path, bytes: [1, 2, 3].into() });
        for (index, word) in words.iter().enumerate() {
            chat.switch_to(["Ada", "Ben"][index % 2]).unwrap();
            chat.ask(word);
            chat.answer(word.clone(), (index == 0).then(|| "I think.".into()), Ending::Whole);
        }
        chat
    }

    /// What a model would be told: all that matters of a conversation.
    fn told(conversation: &Conversation) -> String {
        format!("{:?} {:?}", conversation.personas(), conversation.prompt())
    }

    fn round_trip(folder: &Path, chat: &Conversation, name: &str) -> Conversation {
        let path = folder.join(name);
        Transcript::of(chat, "Etude", ThinkMode::Off, Some(7)).write(&path).unwrap();
        let kept = Transcript::read(&path).unwrap();
        assert_eq!((kept.model.as_str(), kept.think, kept.max_tokens), ("Etude", ThinkMode::Off, Some(7)));
        kept.conversation().unwrap()
    }

    #[test]
    fn both_forms_bring_everything_back() {
        let folder = tempfile::tempdir().unwrap();
        let words = ["Hello!", "<!-- consort-chat: {} -->", "a\n\n**You:** b", "\u{1F600} \"quoted\" \\"];
        let chat = conversation(folder.path(), &words.map(Into::into));
        for name in ["chat.json", "chat.md", "chat"] {
            assert_eq!(told(&round_trip(folder.path(), &chat, name)), told(&chat), "{name}");
        }
        let markdown = std::fs::read_to_string(folder.path().join("chat.md")).unwrap();
        for expected in ["**You:** Hello!", "**Ada:** Hello!", "> I think.", "*Ada:* You are Ada.", "![picture]"] {
            assert!(markdown.contains(expected), "{expected:?} is missing:\n{markdown}");
        }
    }

    #[test]
    fn only_transcripts_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let chat = conversation(folder.path(), &["One".into()]);
        let kept = Transcript::of(&chat, "Etude", ThinkMode::Off, None);
        let other = folder.path().join("other.txt");
        std::fs::write(&other, "mine").unwrap();
        assert_eq!(kept.write(&other).unwrap_err().kind(), ErrorKind::InvalidRequest);
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "mine");
        let path = folder.path().join("chat.json");
        kept.write(&path).unwrap();
        kept.write(&path).unwrap();
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let chat = conversation(folder.path(), &["One".into(), "Two".into()]);
        let path = folder.path().join("chat.json");
        Transcript::of(&chat, "Etude", ThinkMode::Off, None).write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let refused = |text: &str| parse(text).and_then(|kept| kept.conversation()).err().map(|error| error.kind());
        assert_eq!(refused(&text), None);
        for (from, to) in [
            ("\"consort_chat\": 1", "\"consort_chat\": 2"),
            ("\"current\": \"Ben\"", "\"current\": \"Eve\""),
            ("\"persona\": \"Ada\"", "\"persona\": \"Eve\""),
            ("\"name\": \"Ben\"", "\"name\": \"Ada\""),
            ("\"name\": \"Ben\"", "\"name\": \"B\\u0007en\""),
            ("\"note\": \"Ben\"", "\"note\": \"Eve\""),
            ("\"entries\"", "\"entires\""),
        ] {
            assert!(text.contains(from), "{from}");
            assert_eq!(refused(&text.replacen(from, to, 1)), Some(ErrorKind::InvalidRequest), "{to}");
        }
        std::fs::write(folder.path().join("picture.png"), [3, 2, 1]).unwrap();
        assert_eq!(refused(&text), Some(ErrorKind::InvalidRequest), "the picture changed");
        std::fs::remove_file(folder.path().join("picture.png")).unwrap();
        assert_eq!(refused(&text), Some(ErrorKind::NotFound), "the picture is gone");
    }

    proptest! {
        #[test]
        fn any_words_come_back(words in prop::collection::vec("\\PC{0,30}|<!-- consort-chat: |[\\n\"\\\\>-]{0,9}", 1..6)) {
            let folder = tempfile::tempdir().unwrap();
            let chat = conversation(folder.path(), &words);
            for name in ["chat.json", "chat.md"] {
                prop_assert_eq!(told(&round_trip(folder.path(), &chat, name)), told(&chat));
            }
        }

        #[test]
        fn no_file_breaks_it(text in "\\PC{0,60}|(<!-- consort-chat: )?\\{[\"a-z_:0-9,\\[\\]{}]{0,60}") {
            prop_assert!(parse(&text).is_err());
        }
    }
}
