//! What a template is given.

use std::time::SystemTime;

use consort_core::{ChatMessage, ChatPrompt, ContentPart, Error, ErrorKind, Result, Thinking, ToolCall};
use minijinja::value::Value as TemplateValue;
use serde_json::{Map, Value, json};

use super::python::MAX_DEPTH;

/// The variables of a template, as transformers' `apply_chat_template` names them.
#[derive(Debug, Clone, Default)]
pub struct ChatTemplateInput {
    /// `messages`: objects with `role`, `content` and, as need be, `reasoning_content`, `tool_calls`, `tool_call_id`.
    pub messages: Vec<Value>,
    /// `tools`: JSON objects in the OpenAI form. When there are none, the variable is `none`.
    pub tools: Vec<Value>,
    /// `add_generation_prompt`: whether the model's turn is opened at the end.
    pub add_generation_prompt: bool,
    /// `enable_thinking`; `None` leaves it undefined.
    pub enable_thinking: Option<bool>,
    /// Further variables (`bos_token`, `add_vision_id`, ...). They do not replace those above.
    pub variables: Map<String, Value>,
    /// What `strftime_now` takes for now. `None`: the time of rendering.
    pub now: Option<SystemTime>,
}

impl ChatTemplateInput {
    /// Messages, and nothing else.
    #[must_use]
    pub fn new(messages: Vec<Value>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// A conversation, with the model's turn opened at the end.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`]: the arguments of a tool call are no JSON object.
    pub fn from_prompt(prompt: &ChatPrompt) -> Result<Self> {
        Ok(Self {
            messages: prompt.messages.iter().map(message).collect::<Result<_>>()?,
            tools: prompt.tools.clone(),
            add_generation_prompt: true,
            enable_thinking: match prompt.thinking {
                Thinking::TemplateDefault => None,
                Thinking::On => Some(true),
                Thinking::Off => Some(false),
            },
            ..Self::default()
        })
    }

    /// The variables, and how large the conversation is: bytes of text and number of values.
    pub(super) fn to_context(&self) -> Result<(TemplateValue, usize)> {
        let mut size = 0_usize;
        let mut values: Vec<(&Value, usize)> =
            self.messages.iter().chain(&self.tools).chain(self.variables.values()).map(|value| (value, 1)).collect();
        while let Some((value, depth)) = values.pop() {
            if depth > MAX_DEPTH {
                return Err(Error::new(ErrorKind::InvalidRequest, "a message or a tool is nested too deeply")
                    .with_operation("text::template")
                    .with_context("limit", MAX_DEPTH.to_string()));
            }
            size = size.saturating_add(1);
            match value {
                Value::String(text) => size = size.saturating_add(text.len()),
                Value::Array(items) => values.extend(items.iter().map(|item| (item, depth + 1))),
                Value::Object(items) => values.extend(items.values().map(|item| (item, depth + 1))),
                _ => {}
            }
        }
        let mut context: Vec<(&str, TemplateValue)> =
            self.variables.iter().map(|(name, value)| (name.as_str(), to_template(value))).collect();
        let messages: Vec<Value> = self.messages.iter().map(with_reasoning_names).collect();
        context.push(("messages", messages.iter().map(to_template).collect()));
        let tools = if self.tools.is_empty() { ().into() } else { self.tools.iter().map(to_template).collect() };
        context.push(("tools", tools));
        context.push(("documents", ().into()));
        context.push(("add_generation_prompt", self.add_generation_prompt.into()));
        if let Some(enable_thinking) = self.enable_thinking {
            context.push(("enable_thinking", enable_thinking.into()));
        }
        Ok((TemplateValue::from_pairs(context), size))
    }
}

/// A value for the template, its keys in order. The depth of `value` was checked.
fn to_template(value: &Value) -> TemplateValue {
    match value {
        Value::Null => ().into(),
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(to_template).collect(),
        Value::Object(items) => {
            TemplateValue::from_pairs(items.iter().map(|(key, value)| (key.as_str(), to_template(value))))
        }
    }
}

/// Fills in the names under which templates look for a message's reasoning, as transformers does.
fn with_reasoning_names(message: &Value) -> Value {
    let found = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|name| message.get(name).filter(|reasoning| !reasoning.is_null()));
    match (message, found) {
        (Value::Object(object), Some(reasoning)) => {
            let mut object = object.clone();
            object.entry("thinking").or_insert_with(|| reasoning.clone());
            object.insert("reasoning_content".into(), reasoning.clone());
            Value::Object(object)
        }
        _ => message.clone(),
    }
}

fn message(message: &ChatMessage) -> Result<Value> {
    let mut object = Map::new();
    object.insert("role".into(), message.role.as_str().into());
    object.insert("content".into(), content(&message.content));
    if let Some(reasoning) = &message.reasoning {
        object.insert("reasoning_content".into(), reasoning.as_str().into());
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(tool_call).collect::<Result<_>>()?;
        object.insert("tool_calls".into(), Value::Array(calls));
    }
    if let Some(id) = &message.tool_call_id {
        object.insert("tool_call_id".into(), id.as_str().into());
    }
    Ok(Value::Object(object))
}

fn content(parts: &[ContentPart]) -> Value {
    match parts {
        [] => "".into(),
        // Templates for models that do not see know only texts.
        [ContentPart::Text(text)] => text.as_str().into(),
        parts => parts
            .iter()
            .map(|part| match part {
                ContentPart::Text(text) => json!({ "type": "text", "text": text }),
                ContentPart::Image(_) => json!({ "type": "image" }),
            })
            .collect(),
    }
}

fn tool_call(call: &ToolCall) -> Result<Value> {
    let parsed = match &call.arguments {
        Value::Object(_) => Some(call.arguments.clone()),
        // The OpenAI form: an object, written as text.
        Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object),
        _ => None,
    };
    let Some(arguments) = parsed else {
        return Err(Error::new(ErrorKind::InvalidRequest, "the arguments of a tool call must be a JSON object")
            .with_operation("text::template")
            .with_context("function", call.name.clone()));
    };
    let mut object = Map::new();
    if let Some(id) = &call.id {
        object.insert("id".into(), id.as_str().into());
    }
    object.insert("type".into(), "function".into());
    object.insert("function".into(), json!({ "name": call.name, "arguments": arguments }));
    Ok(Value::Object(object))
}
