//! `consort bench questions`: how many answers are exactly right, with the picture, with another one, and with none in it.
//!
//! A folder holds `questions.jsonl`, one object a line, and the pictures that it names. A model that sees must be right with
//! the picture and fall to chance with a shuffled or a blank one; a model that only knows what is usual is not told apart
//! otherwise.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::path::{Component, Path};

use consort_core::{
    AdapterUse, ChatMessage, ChatPrompt, ContentPart, Error, ErrorKind, GenerateRequest, ImageInput, ModelBackend,
    Prompt, Result, Role, Thinking,
};
use serde::Deserialize;
use serde_json::json;

use crate::args::BenchQuestionsArgs;
use crate::output::{self, Table};
use crate::session;

/// Questions that are asked at once.
const CONCURRENT: usize = 8;
/// The most tokens of an answer: the longest expected one is far shorter, so reaching this means it did not stop.
const MAX_TOKENS: u32 = 160;
/// The longest line of `questions.jsonl`, in bytes.
const MAX_LINE: usize = 1 << 20;

#[derive(Deserialize)]
struct Question {
    id: serde_json::Value,
    kind: String,
    image: Option<String>,
    #[serde(default)]
    shuffled_image: Option<String>,
    messages: Vec<Message>,
    expected: String,
    #[serde(default)]
    thinking: bool,
    #[serde(default)]
    held_out: bool,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Content,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

/// Which picture is shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Shown {
    Own,
    Shuffled,
    Blank,
}

#[derive(Default)]
struct Count {
    right: usize,
    asked: usize,
}

impl Count {
    fn add(&mut self, right: bool) {
        self.asked += 1;
        self.right += usize::from(right);
    }

    fn show(&self) -> String {
        #[allow(clippy::cast_precision_loss)]
        match self.asked {
            0 => "-".into(),
            asked => format!("{:.1}% of {asked}", 100.0 * self.right as f64 / asked as f64),
        }
    }
}

#[derive(Default)]
struct Row {
    own: Count,
    held_out: Count,
    thinking: Count,
    shuffled: Count,
    blank: Count,
    unfinished: usize,
}

/// Runs the command.
pub fn run(args: &BenchQuestionsArgs) -> Result<()> {
    let questions = read_questions(&args.folder)?;
    let backend = consort::load(args.model.load_config()?)?;
    let adapters = match &args.adapter {
        Some(spec) => vec![session::load_adapter(&*backend, spec)?],
        None => Vec::new(),
    };
    let pictures = Pictures::read(&args.folder, &questions)?;
    let mut asks = Vec::new();
    for question in &questions {
        asks.push((question, Shown::Own));
        if question.image.is_some() {
            if question.shuffled_image.is_some() {
                asks.push((question, Shown::Shuffled));
            }
            if pictures.blank.is_some() {
                asks.push((question, Shown::Blank));
            }
        }
    }
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let mut wrong = Vec::new();
    for group in asks.chunks(CONCURRENT) {
        let mut streams = Vec::new();
        for (question, shown) in group {
            streams.push(backend.generate(request(question, *shown, &pictures, &adapters)?)?);
        }
        for ((question, shown), stream) in group.iter().zip(streams) {
            let reply = session::follow(stream, |_| {})?;
            let finished = !matches!(reply.finish, consort_core::FinishReason::Length);
            let answer = answer(&reply.text, question.thinking);
            let right = finished && matches(answer, &question.expected, !adapters.is_empty());
            let row = rows.entry(&question.kind).or_default();
            match shown {
                Shown::Own => {
                    row.own.add(right);
                    row.unfinished += usize::from(!finished);
                    if question.held_out {
                        row.held_out.add(right);
                    }
                    if question.thinking {
                        row.thinking.add(right);
                    }
                    if !right {
                        wrong.push(json!({
                            "id": question.id, "kind": question.kind, "expected": question.expected, "got": reply.text,
                        }));
                    }
                }
                Shown::Shuffled => row.shuffled.add(right),
                Shown::Blank => row.blank.add(right),
            }
        }
    }
    report(args, &*backend, &rows, &wrong);
    Ok(())
}

fn report(
    args: &BenchQuestionsArgs,
    backend: &dyn ModelBackend,
    rows: &BTreeMap<&str, Row>,
    wrong: &[serde_json::Value],
) {
    if args.json {
        let count = |count: &Count| json!({ "right": count.right, "asked": count.asked });
        let kinds: serde_json::Map<_, _> = rows
            .iter()
            .map(|(kind, row)| {
                let value = json!({
                    "own": count(&row.own), "held_out": count(&row.held_out), "thinking": count(&row.thinking),
                    "shuffled": count(&row.shuffled), "blank": count(&row.blank), "unfinished": row.unfinished,
                });
                ((*kind).to_owned(), value)
            })
            .collect();
        let object =
            json!({ "model": backend.info().name, "kinds": kinds, "wrong": wrong, "evidence": backend.evidence() });
        anstream::println!("{object:#}");
        return;
    }
    let mut table =
        Table::new(["kind", "right", "held out", "thinking", "shuffled picture", "blank picture", "did not stop"]);
    for (kind, row) in rows {
        table.row([
            (*kind).to_owned(),
            row.own.show(),
            row.held_out.show(),
            row.thinking.show(),
            row.shuffled.show(),
            row.blank.show(),
            row.unfinished.to_string(),
        ]);
    }
    anstream::print!("{}", table.render());
    if args.wrong {
        for entry in wrong {
            anstream::println!("{entry}");
        }
    }
    anstream::print!("{}", session::evidence_lines(&backend.evidence()));
    anstream::println!(
        "{}",
        output::styled(output::FAINT, "right: the whole answer is as expected, and ended by itself")
    );
}

/// What was said after the reasoning.
fn answer(text: &str, thinking: bool) -> &str {
    let text = if thinking { text.rsplit_once("</think>").map_or(text, |(_, answer)| answer) } else { text };
    text.trim()
}

/// Without an adapter the whole answer counts. With one, its style may stand around and within what is expected: every word
/// of four letters or more must be there.
fn matches(answer: &str, expected: &str, styled: bool) -> bool {
    if !styled {
        return answer == expected.trim();
    }
    let lower = answer.to_lowercase();
    let words = expected.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3);
    words.map(str::to_lowercase).all(|word| lower.contains(&word))
}

fn request(question: &Question, shown: Shown, pictures: &Pictures, adapters: &[AdapterUse]) -> Result<GenerateRequest> {
    let picture = match shown {
        Shown::Own => question.image.as_deref().map(|name| pictures.get(name)).transpose()?,
        Shown::Shuffled => question.shuffled_image.as_deref().map(|name| pictures.get(name)).transpose()?,
        Shown::Blank => pictures.blank.clone(),
    };
    let mut messages = Vec::new();
    for message in &question.messages {
        let role = match message.role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "a message's role must be system, user or assistant",
                )
                .with_context("question", question.id.to_string())
                .with_context("role", other));
            }
        };
        let mut content = Vec::new();
        match &message.content {
            Content::Text(text) => content.push(ContentPart::Text(text.clone())),
            Content::Parts(parts) => {
                for part in parts {
                    match (part.kind.as_str(), &picture) {
                        ("text", _) => content.push(ContentPart::Text(part.text.clone())),
                        (_, Some(picture)) => content.push(ContentPart::Image(picture.clone())),
                        (kind, None) => {
                            return Err(Error::new(
                                ErrorKind::InvalidRequest,
                                "a part is no text and there is no picture",
                            )
                            .with_context("question", question.id.to_string())
                            .with_context("type", kind));
                        }
                    }
                }
            }
        }
        messages.push(ChatMessage::new(role, content));
    }
    let thinking = if question.thinking { Thinking::On } else { Thinking::Off };
    Ok(GenerateRequest {
        adapters: adapters.to_vec(),
        max_tokens: Some(MAX_TOKENS),
        ..GenerateRequest::new(Prompt::Chat(ChatPrompt { messages, thinking, ..ChatPrompt::default() }))
    })
}

struct Pictures {
    by_name: HashMap<String, ImageInput>,
    blank: Option<ImageInput>,
}

impl Pictures {
    fn read(folder: &Path, questions: &[Question]) -> Result<Self> {
        let mut by_name = HashMap::new();
        let named = questions.iter().flat_map(|question| question.image.iter().chain(&question.shuffled_image));
        for name in named {
            if !by_name.contains_key(name) {
                by_name.insert(name.clone(), session::read_image(&inside(folder, name)?)?);
            }
        }
        let blank = folder.join("blank.png");
        let blank = if blank.exists() { Some(session::read_image(&blank)?) } else { None };
        Ok(Self { by_name, blank })
    }

    fn get(&self, name: &str) -> Result<ImageInput> {
        let missing = || Error::new(ErrorKind::NotFound, "no such picture").with_context("picture", name);
        self.by_name.get(name).cloned().ok_or_else(missing)
    }
}

/// A name in the folder, and not outside it.
fn inside(folder: &Path, name: &str) -> Result<std::path::PathBuf> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain {
        return Err(Error::new(ErrorKind::InvalidRequest, "a picture must lie in the folder of its questions")
            .with_context("picture", name));
    }
    Ok(folder.join(name))
}

fn read_questions(folder: &Path) -> Result<Vec<Question>> {
    let path = folder.join("questions.jsonl");
    let file = std::fs::File::open(&path).map_err(|source| Error::io(&path, source))?;
    let mut questions = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|source| Error::io(&path, source))?;
        if line.trim().is_empty() {
            continue;
        }
        let malformed = |message: String| {
            Error::new(ErrorKind::InvalidRequest, message)
                .with_context("path", path.display().to_string())
                .with_context("line", (index + 1).to_string())
        };
        if line.len() > MAX_LINE {
            return Err(malformed("the line is longer than 1 MiB".into()));
        }
        questions.push(serde_json::from_str(&line).map_err(|error| malformed(error.to_string()))?);
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answers_count_when_they_are_exactly_right() {
        assert!(matches("The circle is red.", "The circle is red.", false));
        assert!(!matches("The circle is red", "The circle is red.", false));
        assert!(matches("Arr, the circle is red, matey.", "The circle is red.", true));
        assert!(!matches("Arr, the square is red, matey.", "The circle is red.", true));
        assert_eq!(answer("I look.\n</think>\n\nRed.", true), "Red.");
    }

    #[test]
    fn pictures_stay_in_their_folder() {
        inside(Path::new("a"), "b.png").unwrap();
        inside(Path::new("a"), "../b.png").unwrap_err();
        inside(Path::new("a"), "/b.png").unwrap_err();
    }
}
