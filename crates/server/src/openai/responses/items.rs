//! Reading a conversation of items.

use consort_core::{ChatMessage, ContentPart, Role, ToolCall};
use serde_json::{Value, json};

use crate::config::Limits;
use crate::conversation;
use crate::error::Failure;
use crate::fields::{Fields, missing, wrong_type};
use crate::pictures::Pictures;
use crate::speak::joined;

/// The instructions and the conversation.
///
/// # Errors
/// The first item that cannot be read, by name.
pub(super) fn messages(
    fields: &mut Fields,
    instructions: Option<&str>,
    limits: &Limits,
) -> Result<Vec<ChatMessage>, Failure> {
    let mut reader = Reader { pictures: Pictures::new(limits), read: Vec::new() };
    if let Some(instructions) = instructions {
        reader.read.push(ChatMessage::text(Role::System, instructions));
    }
    let param = fields.param("input");
    match fields.take("input") {
        None => return Err(missing(&param)),
        Some(Value::String(text)) => reader.read.push(ChatMessage::text(Role::User, text)),
        Some(Value::Array(items)) => {
            let most = limits.messages.get();
            if items.is_empty() || items.len() > most {
                return Err(Failure::value(param, format!("there are 1 to {most} items")));
            }
            for (at, item) in items.into_iter().enumerate() {
                reader.item(Fields::of(item, format!("{param}[{at}]"))?)?;
            }
        }
        Some(other) => return Err(wrong_type(&param, "a string or an array", &other)),
    }
    Ok(reader.read)
}

struct Reader<'a> {
    pictures: Pictures<'a>,
    read: Vec<ChatMessage>,
}

impl Reader<'_> {
    fn item(&mut self, mut item: Fields) -> Result<(), Failure> {
        // What stands with an item where it came out of this API.
        item.harmless(&["id", "status"]);
        let kind = item.get::<String>("type")?;
        match kind.as_deref() {
            None | Some("message") => self.message(&mut item)?,
            Some("reasoning") => self.reasoning(&mut item)?,
            Some("function_call") => {
                let call = call(&mut item)?;
                self.call(call);
            }
            Some("function_call_output") => self.output(&mut item)?,
            Some(_) => {
                let message = "items are messages, reasoning, function_call and function_call_output here";
                return Err(Failure::unsupported(item.param("type"), message));
            }
        }
        item.finish()
    }

    /// A call belongs to the model's turn before it, or begins one.
    fn call(&mut self, call: ToolCall) {
        match self.read.last_mut() {
            Some(last) if last.role == Role::Assistant => last.tool_calls.push(call),
            _ => {
                let mut turn = ChatMessage::new(Role::Assistant, Vec::new());
                turn.tool_calls.push(call);
                self.read.push(turn);
            }
        }
    }

    fn message(&mut self, item: &mut Fields) -> Result<(), Failure> {
        let role: String = item.require("role")?;
        let role = match role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => return Err(Failure::value(item.param("role"), "a role is system, developer, user or assistant")),
        };
        // Whether the model was done when it said it.
        item.harmless(&["phase"]);
        let param = item.param("content");
        let content = item.take("content").ok_or_else(|| missing(&param))?;
        let parts = self.parts(content, &param, role)?;
        match self.read.last_mut() {
            // Reasoning goes before what came of it.
            Some(last) if role == Role::Assistant && only_reasoned(last) => last.content = parts,
            _ => self.read.push(ChatMessage::new(role, parts)),
        }
        Ok(())
    }

    fn reasoning(&mut self, item: &mut Fields) -> Result<(), Failure> {
        item.unsupported(&["encrypted_content"], "it was written by another server, and cannot be read here")?;
        let mut texts = Vec::new();
        for (key, kind) in [("content", "reasoning_text"), ("summary", "summary_text")] {
            for (param, part) in item.list(key, 4096)?.unwrap_or_default() {
                let mut part = Fields::of(part, param)?;
                part.only("type", &[json!(kind)])?;
                texts.push(part.require::<String>("text")?);
                part.finish()?;
            }
        }
        let mut message = ChatMessage::new(Role::Assistant, Vec::new());
        message.reasoning = Some(texts.join("\n\n"));
        self.read.push(message);
        Ok(())
    }

    fn output(&mut self, item: &mut Fields) -> Result<(), Failure> {
        let id: String = item.require("call_id")?;
        item.only("caller", &[json!({ "type": "direct" })])?;
        item.unsupported(&["namespace"], "functions have no namespaces here")?;
        // Which function it was stands with the call already.
        item.harmless(&["name"]);
        let known = self.read.iter().flat_map(|message| &message.tool_calls).any(|call| call.id.as_ref() == Some(&id));
        if !known {
            return Err(Failure::value(item.param("call_id"), "no call before it has this id"));
        }
        let param = item.param("output");
        let output = item.take("output").ok_or_else(|| missing(&param))?;
        let mut message = ChatMessage::new(Role::Tool, self.parts(output, &param, Role::Tool)?);
        message.tool_call_id = Some(id);
        self.read.push(message);
        Ok(())
    }

    fn parts(&mut self, content: Value, param: &str, role: Role) -> Result<Vec<ContentPart>, Failure> {
        let parts = match content {
            Value::String(text) => return Ok(vec![ContentPart::Text(text)]),
            Value::Array(parts) => parts,
            other => return Err(wrong_type(param, "a string or an array", &other)),
        };
        if parts.is_empty() && role != Role::Assistant {
            return Err(Failure::value(param, "there must be at least one part"));
        }
        let part = |(at, part): (usize, Value)| {
            let mut part = Fields::of(part, format!("{param}[{at}]"))?;
            let kind: String = part.require("type")?;
            let read = match (kind.as_str(), role) {
                ("input_text", Role::System | Role::User | Role::Tool) => ContentPart::Text(part.require("text")?),
                ("output_text", Role::Assistant) => {
                    part.only("annotations", &[json!([])])?;
                    // What the model thought of it then changes nothing now.
                    part.harmless(&["logprobs"]);
                    ContentPart::Text(part.require("text")?)
                }
                ("refusal", Role::Assistant) => ContentPart::Text(part.require("refusal")?),
                ("input_image", Role::User | Role::Tool) => self.picture(&mut part)?,
                ("input_text" | "output_text" | "refusal" | "input_image", _) => {
                    let message = "a part of this type does not stand in a message of this role";
                    return Err(Failure::value(part.param("type"), message));
                }
                _ => {
                    let message = "parts are of the type input_text, input_image or output_text here";
                    return Err(Failure::unsupported(part.param("type"), message));
                }
            };
            // What was read before is found again without being asked.
            part.harmless(&["prompt_cache_breakpoint"]);
            part.finish()?;
            Ok(read)
        };
        Ok(joined(parts.into_iter().enumerate().map(part).collect::<Result<_, Failure>>()?))
    }

    fn picture(&mut self, part: &mut Fields) -> Result<ContentPart, Failure> {
        part.unsupported(&["file_id"], "there are no files here: send the picture itself, as a data address")?;
        // Every picture is read as finely as the model's processor has it.
        part.only("detail", &[json!("auto"), json!("high")])?;
        let (url, param): (String, _) = (part.require("image_url")?, part.param("image_url"));
        self.pictures.at(&url, &param)
    }
}

fn only_reasoned(message: &ChatMessage) -> bool {
    message.role == Role::Assistant
        && message.reasoning.is_some()
        && message.content.is_empty()
        && message.tool_calls.is_empty()
}

fn call(item: &mut Fields) -> Result<ToolCall, Failure> {
    let id: String = item.require("call_id")?;
    item.only("caller", &[json!({ "type": "direct" })])?;
    item.only("async", &[json!(false)])?;
    item.unsupported(&["namespace"], "functions have no namespaces here")?;
    let name = item.require("name")?;
    let param = item.param("arguments");
    let arguments = conversation::arguments(item.take("arguments"), &param)?;
    Ok(ToolCall { id: Some(id), name, arguments })
}
