//! Reading a conversation of messages and blocks.

use std::collections::HashSet;

use consort_core::{ChatMessage, ContentPart, Role, ToolCall};
use serde_json::{Value, json};

use crate::config::Limits;
use crate::error::Failure;
use crate::fields::{Fields, missing, wrong_type};
use crate::pictures::Pictures;
use crate::speak::joined;

/// The instructions and the conversation.
///
/// # Errors
/// The first block that cannot be read, by name.
pub(super) fn messages(fields: &mut Fields, limits: &Limits) -> Result<Vec<ChatMessage>, Failure> {
    let mut reader = Reader {
        pictures: Pictures::new(limits),
        calls: HashSet::new(),
        read: Vec::new(),
        blocks: limits.messages.get(),
    };
    let param = fields.param("system");
    if let Some(system) = fields.take("system") {
        let parts = reader.texts(system, &param)?;
        reader.read.push(ChatMessage::new(Role::System, parts));
    }
    let list = fields.list("messages", limits.messages.get())?.ok_or_else(|| missing("messages"))?;
    let mut last = None;
    for (param, value) in list {
        let mut message = Fields::of(value, param)?;
        let role: String = message.require("role")?;
        let param = message.param("content");
        let content = message.take("content").ok_or_else(|| missing(&param))?;
        match role.as_str() {
            "user" => reader.user(content, &param)?,
            "assistant" => reader.assistant(content, &param)?,
            "system" => {
                let parts = reader.texts(content, &param)?;
                reader.read.push(ChatMessage::new(Role::System, parts));
            }
            _ => return Err(Failure::value(message.param("role"), "a role is user, assistant or system")),
        }
        last = Some(message.param("role"));
        message.finish()?;
    }
    match (last, reader.read.last()) {
        (None, _) => Err(Failure::value("messages", "there must be at least one message")),
        (Some(param), Some(message)) if message.role == Role::Assistant => {
            let message = "a reply is not begun for the model here: the last message is the user's";
            Err(Failure::unsupported(param, message))
        }
        _ => Ok(reader.read),
    }
}

struct Reader<'a> {
    pictures: Pictures<'a>,
    /// The ids of the calls that were read.
    calls: HashSet<String>,
    read: Vec<ChatMessage>,
    /// How many more blocks may come.
    blocks: usize,
}

impl Reader<'_> {
    /// What the user says, and what came of calls. Turns of the same speaker are one turn, as in the API.
    fn user(&mut self, content: Value, param: &str) -> Result<(), Failure> {
        let mut said = Vec::new();
        for (mut block, kind) in self.blocks(content, param)? {
            match kind.as_str() {
                "text" => said.push(text(&mut block)?),
                "image" => said.push(self.picture(&mut block)?),
                "tool_result" => {
                    // What was said before it stands before it.
                    self.say(std::mem::take(&mut said));
                    let result = self.result(&mut block)?;
                    self.read.push(result);
                }
                _ => return Err(other_block(&block, &kind)),
            }
            block.finish()?;
        }
        self.say(said);
        Ok(())
    }

    fn say(&mut self, said: Vec<ContentPart>) {
        if said.is_empty() {
            return;
        }
        match self.read.last_mut() {
            Some(before) if before.role == Role::User => join(&mut before.content, said),
            _ => self.read.push(ChatMessage::new(Role::User, joined(said))),
        }
    }

    fn assistant(&mut self, content: Value, param: &str) -> Result<(), Failure> {
        let mut message = ChatMessage::new(Role::Assistant, Vec::new());
        for (mut block, kind) in self.blocks(content, param)? {
            match kind.as_str() {
                "text" => message.content.push(text(&mut block)?),
                "thinking" => {
                    let thought: String = block.require("thinking")?;
                    // Nothing here is signed.
                    block.get::<String>("signature")?;
                    message.reasoning = Some(message.reasoning.take().unwrap_or_default() + &thought);
                }
                "tool_use" => message.tool_calls.push(self.call(&mut block)?),
                "redacted_thinking" => {
                    let message = "what is redacted cannot be read here: leave the block out";
                    return Err(Failure::unsupported(block.param("type"), message));
                }
                _ => return Err(other_block(&block, &kind)),
            }
            block.finish()?;
        }
        message.content = joined(message.content);
        match self.read.last_mut() {
            Some(before) if before.role == Role::Assistant => {
                join(&mut before.content, message.content);
                before.tool_calls.extend(message.tool_calls);
                if let Some(thought) = message.reasoning {
                    before.reasoning =
                        Some(before.reasoning.take().map_or_else(String::new, |t| t + "\n\n") + &thought);
                }
            }
            _ => self.read.push(message),
        }
        Ok(())
    }

    /// The blocks of a content with their types; a text counts as one.
    fn blocks(&mut self, content: Value, param: &str) -> Result<Vec<(Fields, String)>, Failure> {
        let blocks = match content {
            Value::String(text) => vec![json!({ "type": "text", "text": text })],
            Value::Array(blocks) if blocks.is_empty() => {
                return Err(Failure::value(param, "there must be at least one block"));
            }
            Value::Array(blocks) => blocks,
            other => return Err(wrong_type(param, "a string or an array", &other)),
        };
        self.blocks = self
            .blocks
            .checked_sub(blocks.len())
            .ok_or_else(|| Failure::value(param, "the conversation has more blocks than are taken"))?;
        let block = |(at, block): (usize, Value)| {
            let mut block = Fields::of(block, format!("{param}[{at}]"))?;
            let kind = block.require("type")?;
            block.harmless(&["cache_control"]);
            Ok((block, kind))
        };
        blocks.into_iter().enumerate().map(block).collect()
    }

    /// A content of texts alone.
    fn texts(&mut self, content: Value, param: &str) -> Result<Vec<ContentPart>, Failure> {
        let mut parts = Vec::new();
        for (mut block, kind) in self.blocks(content, param)? {
            if kind != "text" {
                return Err(Failure::unsupported(block.param("type"), "instructions are texts"));
            }
            parts.push(text(&mut block)?);
            block.finish()?;
        }
        Ok(joined(parts))
    }

    fn picture(&mut self, block: &mut Fields) -> Result<ContentPart, Failure> {
        block.unsupported(&["transformations"], "pictures are brought to the model's size here")?;
        let mut source = block.object("source")?.ok_or_else(|| missing(&block.param("source")))?;
        let kind: String = source.require("type")?;
        let picture = match kind.as_str() {
            "base64" => {
                let media: String = source.require("media_type")?;
                // What it is, its bytes tell.
                if !media.starts_with("image/") {
                    return Err(Failure::value(
                        source.param("media_type"),
                        "it is a type of pictures, such as image/png",
                    ));
                }
                let (data, param): (String, _) = (source.require("data")?, source.param("data"));
                self.pictures.written(&data, &param)?
            }
            "url" => {
                let (url, param): (String, _) = (source.require("url")?, source.param("url"));
                self.pictures.at(&url, &param)?
            }
            "file" => {
                let message = "there are no files here: send the picture itself, in base64";
                return Err(Failure::unsupported(source.param("type"), message));
            }
            _ => return Err(Failure::value(source.param("type"), "a picture's source is base64 or url")),
        };
        source.finish()?;
        Ok(picture)
    }

    fn call(&mut self, block: &mut Fields) -> Result<ToolCall, Failure> {
        let id: String = block.require("id")?;
        block.only("caller", &[json!({ "type": "direct" })])?;
        block.unsupported(&["toolset_name"], "there are no tool sets here")?;
        let name = block.require("name")?;
        let param = block.param("input");
        let arguments = match block.take("input") {
            Some(input @ Value::Object(_)) => input,
            Some(other) => return Err(wrong_type(&param, "an object", &other)),
            None => return Err(missing(&param)),
        };
        if !self.calls.insert(id.clone()) {
            return Err(Failure::value(block.param("id"), "another call has this id"));
        }
        Ok(ToolCall { id: Some(id), name, arguments })
    }

    fn result(&mut self, block: &mut Fields) -> Result<ChatMessage, Failure> {
        let id: String = block.require("tool_use_id")?;
        if !self.calls.contains(&id) {
            return Err(Failure::value(block.param("tool_use_id"), "no call before it has this id"));
        }
        block.unsupported(&["toolset_name"], "there are no tool sets here")?;
        let failed = block.get::<bool>("is_error")?.unwrap_or(false);
        let param = block.param("content");
        let mut parts = Vec::new();
        if let Some(content) = block.take("content").filter(|content| *content != json!([])) {
            for (mut inner, kind) in self.blocks(content, &param)? {
                match kind.as_str() {
                    "text" => parts.push(text(&mut inner)?),
                    "image" => parts.push(self.picture(&mut inner)?),
                    _ => return Err(other_block(&inner, &kind)),
                }
                inner.finish()?;
            }
        }
        if failed {
            // The family's form of results knows no errors; the model is told in words.
            parts.insert(0, ContentPart::Text(if parts.is_empty() { "Error".into() } else { "Error: ".into() }));
        }
        let mut message = ChatMessage::new(Role::Tool, joined(parts));
        message.tool_call_id = Some(id);
        Ok(message)
    }
}

fn text(block: &mut Fields) -> Result<ContentPart, Failure> {
    let text = block.require("text")?;
    // The replies of this server have the field, with nothing in it.
    block.only("citations", &[json!([])])?;
    Ok(ContentPart::Text(text))
}

fn other_block(block: &Fields, kind: &str) -> Failure {
    let param = block.param("type");
    match kind {
        "text" | "image" | "thinking" | "tool_use" | "tool_result" => {
            Failure::value(param, "a block of this type does not stand in a message of this role")
        }
        _ => Failure::unsupported(param, "blocks are of the type text, image, thinking, tool_use or tool_result here"),
    }
}

/// Adds one turn of a speaker to another one.
fn join(before: &mut Vec<ContentPart>, after: Vec<ContentPart>) {
    let mut all = std::mem::take(before);
    if !all.is_empty() && !after.is_empty() {
        all.push(ContentPart::Text("\n\n".into()));
    }
    all.extend(after);
    *before = joined(all);
}
