//! What a request for one turn of a conversation comes to, whatever protocol it came by.

use std::sync::Arc;
use std::time::Instant;

use consort_core::{ChatMessage, ChatPrompt, Prompt, Structure, Thinking};
use consort_text::{CallCount, CallForm, Otherwise};
use serde_json::{Map, Value, json};

use crate::app::Shared;
use crate::error::Failure;
use crate::fields::{Fields, wrong_type};
use crate::registry::Member;
use crate::reply::{Calls, Reading, Reply};
use crate::speak::{Ask, Wish, as_heard};

/// A conversation that waits for its next turn.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) offer: Offer,
    /// `None`: as the persona has it.
    pub(crate) thinking: Option<Thinking>,
    pub(crate) wish: Wish,
}

/// What the model is offered to call, and what its calls are.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// The tools that it is shown, in OpenAI's form.
    pub(crate) tools: Vec<Value>,
    pub(crate) calls: Calls,
}

impl Conversation {
    /// The prompt, as a persona hears it.
    pub(crate) fn heard(self, member: &Member) -> (ChatPrompt, Wish, Calls) {
        let thinking = self.thinking.unwrap_or_else(|| member.persona.thinking());
        let messages = as_heard(member, self.messages);
        (ChatPrompt { messages, tools: self.offer.tools, thinking }, self.wish, self.offer.calls)
    }

    /// Begins so many replies.
    ///
    /// # Errors
    /// Those of [`Shared::speak`].
    pub(crate) async fn begin(
        self,
        app: &Shared,
        member: &Arc<Member>,
        choices: usize,
        arrived: Instant,
    ) -> Result<Vec<Reply>, Failure> {
        let (chat, wish, calls) = self.heard(member);
        let reading = Reading::Turn { start: app.text.start(chat.thinking), tools: chat.tools.clone(), calls };
        app.speak(member, vec![Ask { prompt: Prompt::Chat(chat), choices }], &wish, &reading, arrived).await
    }
}

/// The tools of a request.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// As the model is shown them, in OpenAI's form.
    pub(crate) shown: Vec<Value>,
    /// Whether one of them is to be called strictly by its schema.
    pub(crate) strict: bool,
}

impl Tools {
    /// Takes a function's `name`, `description`, `strict` and its schema, which the protocol has under `schema`.
    ///
    /// # Errors
    /// A wrong one, by name; a name that another tool has.
    pub(crate) fn take(&mut self, function: &mut Fields, schema: &str) -> Result<(), Failure> {
        let name: String = function.require("name")?;
        check_function_name(&name, &function.param("name"))?;
        if self.has(&name) {
            return Err(Failure::value(function.param("name"), "another tool has this name"));
        }
        let mut shown = Map::new();
        shown.insert("name".into(), name.into());
        if let Some(description) = function.get::<String>("description")? {
            shown.insert("description".into(), description.into());
        }
        let param = function.param(schema);
        match function.take(schema) {
            None => {}
            Some(schema @ Value::Object(_)) => {
                shown.insert("parameters".into(), schema);
            }
            Some(other) => return Err(wrong_type(&param, "an object (a JSON Schema)", &other)),
        }
        self.strict |= function.get::<bool>("strict")?.unwrap_or(false);
        self.shown.push(json!({ "type": "function", "function": shown }));
        Ok(())
    }

    /// Whether there is a tool of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.shown.iter().any(|tool| name_of(tool) == Some(name))
    }

    /// What a choice that was made, or not, means with these tools.
    ///
    /// # Errors
    /// There is nothing to choose from.
    pub(crate) fn chosen(&self, choice: Option<ToolChoice>) -> Result<ToolChoice, Failure> {
        match choice {
            None | Some(ToolChoice::Auto) if self.shown.is_empty() => Ok(ToolChoice::None),
            None => Ok(ToolChoice::Auto),
            Some(ToolChoice::None) => Ok(ToolChoice::None),
            Some(_) if self.shown.is_empty() => {
                Err(Failure::value("tool_choice", "`tool_choice` belongs to requests with `tools`"))
            }
            Some(choice) => Ok(choice),
        }
    }

    /// What the model is offered, and the form that holds the reply to what was asked for. `format` is the answer's.
    ///
    /// # Errors
    /// A name that cannot stand in the form of calls.
    pub(crate) fn offer(
        self,
        choice: &ToolChoice,
        parallel: bool,
        format: Format,
    ) -> Result<(Offer, Option<Structure>), Failure> {
        let count = if parallel { CallCount::Several } else { CallCount::One };
        let structure = match (choice, format) {
            (ToolChoice::Required, _) => Some(call_form(&self.shown, count, Otherwise::Call)?),
            (ToolChoice::Named(name), _) => {
                let named = |tool: &&Value| name_of(tool) == Some(name.as_str());
                let tools: Vec<Value> = self.shown.iter().filter(named).cloned().collect();
                Some(call_form(&tools, count, Otherwise::Call)?)
            }
            (ToolChoice::Auto, Format::Text) if self.strict => Some(call_form(&self.shown, count, Otherwise::Text)?),
            (ToolChoice::Auto, Format::JsonObject) => {
                Some(call_form(&self.shown, count, Otherwise::Json(&json!({ "type": "object" })))?)
            }
            (ToolChoice::Auto, Format::JsonSchema(schema)) => {
                Some(call_form(&self.shown, count, Otherwise::Json(&schema))?)
            }
            (_, Format::Text) => None,
            (_, Format::JsonObject) => Some(Structure::JsonObject),
            (_, Format::JsonSchema(schema)) => Some(Structure::json_schema(schema)),
        };
        let calls = match (choice, parallel) {
            (ToolChoice::None, _) => Calls::Text,
            (_, true) => Calls::Several,
            (_, false) => Calls::One,
        };
        // Who must not call is shown nothing to call.
        let tools = if *choice == ToolChoice::None { Vec::new() } else { self.shown };
        Ok((Offer { tools, calls }, structure))
    }
}

/// Whether the model calls.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
}

/// What the answer is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Format {
    Text,
    JsonObject,
    JsonSchema(Value),
}

fn name_of(tool: &Value) -> Option<&str> {
    tool.pointer("/function/name").and_then(Value::as_str)
}

fn check_function_name(name: &str, param: &str) -> Result<(), Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(Failure::value(param, "a function's name has 1 to 64 letters, digits, `_`, `-` and `.`"))
    }
}

fn call_form(tools: &[Value], count: CallCount, otherwise: Otherwise<'_>) -> Result<Structure, Failure> {
    CallForm { tools, count, otherwise }.structure().map_err(|error| Failure::from(error).or_param("tools"))
}

/// A call's arguments as they stand in a conversation: an object, written as a text or as it is.
///
/// # Errors
/// They are something else.
pub(crate) fn arguments(given: Option<Value>, param: &str) -> Result<Value, Failure> {
    let arguments = match given {
        None => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::Null),
        Some(other) => other,
    };
    if arguments.is_object() {
        Ok(arguments)
    } else {
        Err(Failure::value(param, "the arguments are a JSON object, written as a string"))
    }
}
