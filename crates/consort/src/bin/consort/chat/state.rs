//! The conversation: who takes part, what was said, and how each persona sees it. No terminal, no files, no model.

use std::path::PathBuf;
use std::sync::Arc;

use consort_core::{AdapterUse, ChatMessage, ContentPart, Error, ErrorKind, ImageInput, Result, Role};
use serde::{Deserialize, Serialize};

use crate::sampling::SamplingArgs;

/// The most personas of a conversation.
pub const MAX_PERSONAS: usize = 64;
/// The longest name, in characters.
const MAX_NAME: usize = 32;

/// One who answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Persona {
    /// The name, one word.
    pub name: String,
    /// What makes it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// With which adapters it speaks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<PersonaAdapter>,
    /// How its tokens are chosen.
    #[serde(default)]
    pub sampling: SamplingArgs,
}

/// An adapter of a persona.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonaAdapter {
    /// The name under which it is loaded.
    pub name: String,
    /// The PEFT folder or the GGUF file; `None`: it is part of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Factor on its own scale.
    pub scale: f32,
}

impl Persona {
    /// A persona that is the model as it is.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a name that is no single word.
    pub fn new(name: &str) -> Result<Self> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), system: None, adapters: Vec::new(), sampling: SamplingArgs::default() })
    }

    /// Its adapters as a request names them.
    pub fn adapter_uses(&self) -> Vec<AdapterUse> {
        self.adapters.iter().map(|adapter| AdapterUse { id: adapter.name.clone(), scale: adapter.scale }).collect()
    }
}

/// Names stand in prompts and commands: one word without surprises.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`].
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '\'');
    let begins = name.chars().next().is_some_and(char::is_alphanumeric);
    if begins && name.chars().all(plain) && name.chars().count() <= MAX_NAME {
        return Ok(());
    }
    let message = format!("a name is one word of at most {MAX_NAME} letters, digits, `-`, `_`, `.` and `'`");
    Err(Error::new(ErrorKind::InvalidRequest, message).with_context("name", format!("{name:?}")))
}

/// A picture of the conversation.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Where it was read from.
    pub path: PathBuf,
    /// The file's bytes.
    pub bytes: Arc<[u8]>,
}

/// What the person said.
#[derive(Debug, Clone)]
pub struct Question {
    /// The words.
    pub text: String,
    /// The pictures, before the words.
    pub pictures: Vec<Picture>,
    /// Who is asked by name, in a conversation of several: the note "(Answer as NAME.)".
    pub note: Option<String>,
}

/// How a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself.
    Whole,
    /// The person stopped it.
    Stopped,
    /// It reached the limit of its tokens, or the context's end.
    Cut,
}

/// What a persona said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Who.
    pub persona: String,
    /// The words.
    pub text: String,
    /// What it thought before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// How it ended.
    pub ending: Ending,
}

/// A part of the conversation.
#[derive(Debug, Clone)]
pub enum Entry {
    /// The person's.
    Question(Question),
    /// A persona's.
    Answer(Answer),
}

/// The conversation. There is always a persona, and one of them is the one who answers next.
#[derive(Debug, Clone)]
pub struct Conversation {
    personas: Vec<Persona>,
    current: usize,
    /// What was said, oldest first.
    pub entries: Vec<Entry>,
    /// Pictures for the next question.
    pub attached: Vec<Picture>,
    /// How often the last question was answered anew.
    attempts: u64,
}

impl Conversation {
    /// Personas who have said nothing yet; the first answers first.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when there is none, a name occurs twice, or there are too many.
    pub fn new(personas: Vec<Persona>) -> Result<Self> {
        if personas.is_empty() || personas.len() > MAX_PERSONAS {
            let message = format!("a conversation has 1 to {MAX_PERSONAS} personas");
            return Err(
                Error::new(ErrorKind::InvalidRequest, message).with_context("personas", personas.len().to_string())
            );
        }
        for (index, persona) in personas.iter().enumerate() {
            check_name(&persona.name)?;
            if personas.iter().take(index).any(|other| other.name == persona.name) {
                return Err(Error::new(ErrorKind::InvalidRequest, "two personas have the same name")
                    .with_context("name", persona.name.clone()));
            }
        }
        Ok(Self { personas, current: 0, entries: Vec::new(), attached: Vec::new(), attempts: 0 })
    }

    /// All personas.
    pub fn personas(&self) -> &[Persona] {
        &self.personas
    }

    /// The place of the persona who answers next.
    pub fn current_index(&self) -> usize {
        self.current
    }

    /// Who answers next.
    pub fn current(&self) -> &Persona {
        &self.personas[self.current]
    }

    /// Who answers next, to be changed. Its name must stay.
    pub fn current_mut(&mut self) -> &mut Persona {
        &mut self.personas[self.current]
    }

    /// All personas, to be changed. Their names must stay.
    pub fn personas_mut(&mut self) -> &mut [Persona] {
        &mut self.personas
    }

    /// Lets `name` answer next. A new name is a new persona, which begins with the sampling of the one before it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for a name that is no single word, or one persona too many.
    pub fn switch_to(&mut self, name: &str) -> Result<Switched> {
        if let Some(index) = self.personas.iter().position(|persona| persona.name == name) {
            self.current = index;
            return Ok(Switched::Known);
        }
        if self.personas.len() >= MAX_PERSONAS {
            let message = format!("a conversation has at most {MAX_PERSONAS} personas");
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let persona = Persona { sampling: self.current().sampling.clone(), ..Persona::new(name)? };
        self.personas.push(persona);
        self.current = self.personas.len() - 1;
        Ok(Switched::New)
    }

    /// Adds a question with the pictures that were attached.
    pub fn ask(&mut self, text: &str) {
        // In company a note says who answers, as in a room; it stays where it stood, so that later prompts begin the same.
        let note = (self.personas.len() > 1).then(|| self.current().name.clone());
        let pictures = std::mem::take(&mut self.attached);
        self.entries.push(Entry::Question(Question { text: text.to_owned(), pictures, note }));
        self.attempts = 0;
    }

    /// Adds the current persona's answer.
    pub fn answer(&mut self, text: String, reasoning: Option<String>, ending: Ending) {
        let persona = self.current().name.clone();
        self.entries.push(Entry::Answer(Answer { persona, text, reasoning, ending }));
    }

    /// Takes the last question back, and what was answered to it. Its pictures are attached again, so that nothing that
    /// failed has to be looked up anew.
    pub fn undo(&mut self) -> Option<Question> {
        let at = self.entries.iter().rposition(|entry| matches!(entry, Entry::Question(_)))?;
        let taken = self.entries.drain(at..).next();
        self.attempts = 0;
        match taken {
            Some(Entry::Question(question)) => {
                self.attached.splice(0..0, question.pictures.iter().cloned());
                Some(question)
            }
            _ => None,
        }
    }

    /// Takes the last answer back, so that the current persona can answer anew.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] when nothing was asked.
    pub fn regenerate(&mut self) -> Result<()> {
        if let Some(Entry::Answer(_)) = self.entries.last() {
            self.entries.pop();
        }
        let Some(Entry::Question(_)) = self.entries.last() else {
            return Err(Error::new(ErrorKind::InvalidRequest, "nothing was asked that could be answered anew"));
        };
        let note = (self.personas.len() > 1).then(|| self.current().name.clone());
        if let Some(Entry::Question(question)) = self.entries.last_mut() {
            question.note = note;
        }
        self.attempts += 1;
        Ok(())
    }

    /// Added to the seed, so that an answer anew is another one wherever chance has a part in it.
    pub fn attempts(&self) -> u64 {
        self.attempts
    }

    /// Forgets what was said and attached. The personas stay.
    pub fn reset(&mut self) {
        self.entries.clear();
        self.attached.clear();
        self.attempts = 0;
    }

    /// The conversation as the current persona sees it: its own words are the model's, everybody else's stand in the user's
    /// turns, the others' with their names. Never are another's words put into its mouth.
    pub fn prompt(&self) -> Vec<ChatMessage> {
        let me = self.current();
        let mut messages = Vec::new();
        if let Some(system) = &me.system {
            messages.push(ChatMessage::text(Role::System, system.clone()));
        }
        let mut heard = Heard::default();
        for entry in &self.entries {
            match entry {
                Entry::Question(question) => heard.question(question, &me.name),
                Entry::Answer(answer) if answer.persona == me.name => {
                    messages.extend(heard.take());
                    messages.push(ChatMessage {
                        reasoning: answer.reasoning.clone(),
                        ..ChatMessage::text(Role::Assistant, answer.text.clone())
                    });
                }
                Entry::Answer(answer) => heard.line(&format!("{} said: {}", answer.persona, answer.text.trim())),
            }
        }
        messages.extend(heard.take());
        messages
    }
}

/// Whether a persona was there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switched {
    /// It was.
    Known,
    /// It was made.
    New,
}

/// What a persona heard since it last spoke: one message of the user.
#[derive(Default)]
struct Heard {
    parts: Vec<ContentPart>,
}

impl Heard {
    fn question(&mut self, question: &Question, listener: &str) {
        for picture in &question.pictures {
            self.parts.push(ContentPart::Image(ImageInput::Encoded(Arc::clone(&picture.bytes))));
        }
        self.line(&question.text);
        if question.note.as_deref() == Some(listener) {
            self.line(&format!("(Answer as {listener}.)"));
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(ContentPart::Text(text)) = self.parts.last_mut() {
            text.push('\n');
            text.push_str(line);
        } else {
            self.parts.push(ContentPart::Text(line.to_owned()));
        }
    }

    fn take(&mut self) -> Option<ChatMessage> {
        let parts = std::mem::take(&mut self.parts);
        (!parts.is_empty()).then(|| ChatMessage::new(Role::User, parts))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn room(names: &[&str]) -> Conversation {
        Conversation::new(names.iter().map(|name| Persona::new(name).unwrap()).collect()).unwrap()
    }

    /// `user: ...` and `assistant: ...`, one string a message; pictures as `[picture]`.
    fn shown(conversation: &Conversation) -> Vec<String> {
        let part = |part: &ContentPart| match part {
            ContentPart::Text(text) => text.clone(),
            ContentPart::Image(_) => "[picture]".into(),
        };
        let message =
            |m: &ChatMessage| format!("{}: {}", m.role.as_str(), m.content.iter().map(part).collect::<String>());
        conversation.prompt().iter().map(message).collect()
    }

    #[test]
    fn alone_it_is_a_plain_dialogue() {
        let mut chat = room(&["Etude"]);
        chat.current_mut().system = Some("Be kind.".into());
        chat.ask("Hello!");
        chat.answer("Hi.".into(), Some("I greet.".into()), Ending::Whole);
        chat.ask("And now?");
        assert_eq!(shown(&chat), ["system: Be kind.", "user: Hello!", "assistant: Hi.", "user: And now?"]);
        assert_eq!(chat.prompt()[2].reasoning.as_deref(), Some("I greet."));
    }

    #[test]
    fn anothers_words_are_never_its_own() {
        let mut chat = room(&["Ada", "Ben"]);
        chat.ask("What do you see?");
        chat.answer("A circle.".into(), None, Ending::Whole);
        chat.switch_to("Ben").unwrap();
        chat.ask("And you?");
        assert_eq!(shown(&chat), ["user: What do you see?\nAda said: A circle.\nAnd you?\n(Answer as Ben.)"]);
        chat.answer("Arr, a circle.".into(), None, Ending::Whole);
        chat.switch_to("Ada").unwrap();
        chat.ask("Where?");
        let expected = [
            "user: What do you see?\n(Answer as Ada.)",
            "assistant: A circle.",
            "user: And you?\nBen said: Arr, a circle.\nWhere?\n(Answer as Ada.)",
        ];
        assert_eq!(shown(&chat), expected);
    }

    #[test]
    fn what_a_persona_sees_only_grows() {
        // Or the prefix cache would have nothing to give.
        let mut chat = room(&["Ada", "Ben"]);
        let mut before: [Vec<String>; 2] = [Vec::new(), Vec::new()];
        for round in 0..4 {
            for (index, name) in ["Ada", "Ben"].into_iter().enumerate() {
                chat.switch_to(name).unwrap();
                chat.ask(&format!("Question {round} to {name}?"));
                let now = shown(&chat);
                assert!(now.starts_with(&before[index]), "{now:?} does not begin with {:?}", before[index]);
                chat.answer(format!("Answer {round} of {name}."), None, Ending::Whole);
                before[index] = shown(&chat);
            }
        }
    }

    #[test]
    fn pictures_stand_where_they_were_attached() {
        let mut chat = room(&["Etude"]);
        chat.attached.push(Picture { path: "a.png".into(), bytes: Arc::new([1]) });
        chat.ask("What colour?");
        assert!(chat.attached.is_empty());
        assert_eq!(shown(&chat), ["user: [picture]What colour?"]);
        let taken = chat.undo().unwrap();
        assert_eq!((taken.text.as_str(), chat.attached.len(), chat.entries.len()), ("What colour?", 1, 0));
        chat.ask("Which colour?");
        assert_eq!(shown(&chat), ["user: [picture]Which colour?"]);
    }

    #[test]
    fn undo_takes_a_question_with_all_its_answers() {
        let mut chat = room(&["Etude"]);
        assert!(chat.undo().is_none());
        chat.ask("One?");
        chat.answer("1".into(), None, Ending::Whole);
        chat.ask("Two?");
        chat.answer("2".into(), None, Ending::Whole);
        assert_eq!(chat.undo().unwrap().text, "Two?");
        assert_eq!(shown(&chat), ["user: One?", "assistant: 1"]);
    }

    #[test]
    fn answering_anew_takes_the_last_answer_and_another_seed() {
        let mut chat = room(&["Ada", "Ben"]);
        assert_eq!(chat.regenerate().unwrap_err().kind(), ErrorKind::InvalidRequest);
        chat.ask("One?");
        chat.answer("1".into(), None, Ending::Whole);
        chat.regenerate().unwrap();
        assert_eq!(chat.attempts(), 1);
        assert_eq!(shown(&chat), ["user: One?\n(Answer as Ada.)"]);
        // A reply that failed left no answer: it can be tried again all the same, and by another.
        chat.switch_to("Ben").unwrap();
        chat.regenerate().unwrap();
        assert_eq!(chat.attempts(), 2);
        assert_eq!(shown(&chat), ["user: One?\n(Answer as Ben.)"]);
        chat.ask("Two?");
        assert_eq!(chat.attempts(), 0);
    }

    #[test]
    fn reset_keeps_the_personas() {
        let mut chat = room(&["Ada", "Ben"]);
        chat.current_mut().system = Some("Be kind.".into());
        chat.ask("One?");
        chat.reset();
        assert!(chat.entries.is_empty());
        assert_eq!(chat.personas().len(), 2);
        assert_eq!(chat.current().system.as_deref(), Some("Be kind."));
    }

    #[test]
    fn names_are_single_words() {
        for good in ["Ada", "R2-D2", "O'Neil", "Zoë", "a.b_c"] {
            check_name(good).unwrap();
        }
        for bad in ["", "two words", "a\nb", "-x", "<|im_end|>", &"x".repeat(33)] {
            assert_eq!(check_name(bad).unwrap_err().kind(), ErrorKind::InvalidRequest, "{bad:?}");
        }
        assert!(Conversation::new(Vec::new()).is_err());
        assert!(Conversation::new(vec![Persona::new("A").unwrap(), Persona::new("A").unwrap()]).is_err());
        let mut chat = room(&["P0"]);
        for index in 1..MAX_PERSONAS {
            assert_eq!(chat.switch_to(&format!("P{index}")).unwrap(), Switched::New);
        }
        assert_eq!(chat.switch_to("P1").unwrap(), Switched::Known);
        chat.switch_to("one-too-many").unwrap_err();
    }
}
