//! Reading a request for a chat completion.

use consort_core::{ChatMessage, ContentPart, Role, Thinking, ToolCall};
use serde_json::{Value, json};

use crate::config::Limits;
use crate::conversation::{self, Conversation, Format, ToolChoice, Tools};
use crate::error::Failure;
use crate::fields::{Fields, missing, wrong_type};
use crate::image;
use crate::openai::common::{self, Delivery, HARMLESS};
use crate::speak::joined;

/// A request, understood.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) model: String,
    pub(crate) conversation: Conversation,
    pub(crate) choices: usize,
    pub(crate) delivery: Delivery,
}

impl ChatRequest {
    /// Reads a body, of which every field is understood or refused.
    ///
    /// # Errors
    /// The first field that is wrong, by name.
    pub(crate) fn read(mut fields: Fields, limits: &Limits) -> Result<Self, Failure> {
        fields.unsupported(&["functions", "function_call"], "use `tools` and `tool_choice`, which took their place")?;
        fields.unsupported(
            &["audio", "web_search_options", "prediction", "moderation"],
            "this model reads and sees only",
        )?;
        fields.only("modalities", &[json!(["text"])])?;
        fields.only("store", &[json!(false)])?;
        fields.only("service_tier", &[json!("auto"), json!("default")])?;
        fields.only("verbosity", &[json!("medium")])?;
        fields.harmless(&HARMLESS);
        let mut wish = common::wish(&mut fields)?;
        wish.max_tokens = max_tokens(&mut fields)?;
        wish.logprobs = logprobs(&mut fields)?;
        let tools = tools(&mut fields, limits.tools.get())?;
        let choice = tool_choice(&mut fields, &tools)?;
        let parallel = fields.get::<bool>("parallel_tool_calls")?.unwrap_or(true);
        let (offer, structure) = tools.offer(&choice, parallel, format(&mut fields)?)?;
        wish.structure = structure;
        let request = Self {
            model: fields.require("model")?,
            conversation: Conversation {
                messages: messages(&mut fields, limits)?,
                offer,
                thinking: thinking(&mut fields)?,
                wish,
            },
            choices: common::choices(&mut fields, limits.choices.get())?,
            delivery: common::delivery(&mut fields)?,
        };
        fields.finish()?;
        Ok(request)
    }
}

fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, Failure> {
    let (old, new) = (fields.get::<u32>("max_tokens")?, fields.get::<u32>("max_completion_tokens")?);
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            Err(Failure::value("max_tokens", "`max_tokens` and `max_completion_tokens` say different things"))
        }
        (Some(0), _) | (_, Some(0)) => Err(Failure::value("max_completion_tokens", "a reply has at least one token")),
        (old, new) => Ok(new.or(old)),
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u32>, Failure> {
    let wanted = fields.get::<bool>("logprobs")?.unwrap_or(false);
    match (wanted, fields.get::<u32>("top_logprobs")?) {
        (false, Some(_)) => {
            Err(Failure::value("top_logprobs", "`top_logprobs` belongs to requests with `logprobs: true`"))
        }
        (true, Some(top)) if top > 20 => Err(Failure::value("top_logprobs", "`top_logprobs` is from 0 to 20")),
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None) => Ok(None),
    }
}

fn thinking(fields: &mut Fields) -> Result<Option<Thinking>, Failure> {
    let effort = fields.get::<String>("reasoning_effort")?;
    let template = fields.object("chat_template_kwargs")?;
    let from_effort =
        effort.as_deref().map(|effort| common::thinking_of_effort(effort, "reasoning_effort")).transpose()?;
    let Some(mut template) = template else { return Ok(from_effort) };
    let enabled = template.get::<bool>("enable_thinking")?;
    template.finish()?;
    Ok(enabled.map(|on| if on { Thinking::On } else { Thinking::Off }).or(from_effort))
}

fn tools(fields: &mut Fields, most: usize) -> Result<Tools, Failure> {
    let mut tools = Tools::default();
    for (param, value) in fields.list("tools", most)?.unwrap_or_default() {
        let mut tool = Fields::of(value, param)?;
        let kind: String = tool.require("type")?;
        if kind != "function" {
            return Err(Failure::unsupported(tool.param("type"), "tools are functions here"));
        }
        let mut function = tool.object("function")?.ok_or_else(|| missing(&tool.param("function")))?;
        tools.take(&mut function, "parameters")?;
        function.finish()?;
        tool.finish()?;
    }
    Ok(tools)
}

fn tool_choice(fields: &mut Fields, tools: &Tools) -> Result<ToolChoice, Failure> {
    let choice = match fields.take("tool_choice") {
        None => None,
        Some(Value::String(word)) => Some(match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => {
                return Err(Failure::value(
                    "tool_choice",
                    "`tool_choice` is none, auto, required, or names a function",
                ));
            }
        }),
        Some(value) => {
            let mut named = Fields::of(value, "tool_choice")?;
            let kind: String = named.require("type")?;
            if kind != "function" {
                return Err(Failure::unsupported("tool_choice.type", "`tool_choice` can name a function only"));
            }
            let mut function = named.object("function")?.ok_or_else(|| missing("tool_choice.function"))?;
            let name: String = function.require("name")?;
            function.finish()?;
            named.finish()?;
            if !tools.has(&name) {
                return Err(Failure::value("tool_choice.function.name", "no tool has this name"));
            }
            Some(ToolChoice::Named(name))
        }
    };
    tools.chosen(choice)
}

fn format(fields: &mut Fields) -> Result<Format, Failure> {
    let Some(mut format) = fields.object("response_format")? else { return Ok(Format::Text) };
    let kind: String = format.require("type")?;
    let read = match kind.as_str() {
        "text" => Format::Text,
        "json_object" => Format::JsonObject,
        "json_schema" => {
            let param = format.param("json_schema");
            let mut given = format.object("json_schema")?.ok_or_else(|| missing(&param))?;
            // A name and a description are for people; the schema is kept to whether it is called strict or not.
            given.require::<String>("name")?;
            given.get::<String>("description")?;
            given.get::<bool>("strict")?;
            let schema = given.take("schema").unwrap_or_else(|| json!({}));
            given.finish()?;
            Format::JsonSchema(schema)
        }
        _ => return Err(Failure::value("response_format.type", "it is text, json_object or json_schema")),
    };
    format.finish()?;
    Ok(read)
}

/// The conversation.
pub(crate) fn messages(fields: &mut Fields, limits: &Limits) -> Result<Vec<ChatMessage>, Failure> {
    let list = fields.list("messages", limits.messages.get())?.ok_or_else(|| missing("messages"))?;
    if list.is_empty() {
        return Err(Failure::value("messages", "there must be at least one message"));
    }
    let mut images = 0;
    list.into_iter().map(|(param, value)| message(Fields::of(value, param)?, limits, &mut images)).collect()
}

fn message(mut fields: Fields, limits: &Limits, images: &mut usize) -> Result<ChatMessage, Failure> {
    let role: String = fields.require("role")?;
    let role = match role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        "function" => {
            return Err(Failure::unsupported(
                fields.param("role"),
                "messages of the role `function` are those of `tool` now",
            ));
        }
        _ => return Err(Failure::value(fields.param("role"), "a role is system, developer, user, assistant or tool")),
    };
    let content = content(&mut fields, role, limits, images)?;
    let mut message = ChatMessage::new(role, content);
    match role {
        Role::Assistant => {
            fields.unsupported(&["audio", "function_call"], "it cannot stand in a conversation here")?;
            if let Some(refusal) = fields.get::<String>("refusal")? {
                message.content.push(ContentPart::Text(refusal));
            }
            let (long, short) = (fields.get("reasoning_content")?, fields.get("reasoning")?);
            message.reasoning = long.or(short);
            for (param, call) in fields.list("tool_calls", 128)?.unwrap_or_default() {
                message.tool_calls.push(tool_call(Fields::of(call, param)?)?);
            }
            if message.content.is_empty() && message.tool_calls.is_empty() && message.reasoning.is_none() {
                return Err(missing(&fields.param("content")));
            }
        }
        Role::Tool => {
            message.tool_call_id = Some(fields.require("tool_call_id")?);
            // Which function it was stands with the call already.
            fields.harmless(&["name"]);
        }
        Role::System | Role::User => {}
    }
    fields.unsupported(&["name"], "the model does not see it: write who speaks into the message")?;
    fields.finish()?;
    Ok(message)
}

fn content(fields: &mut Fields, role: Role, limits: &Limits, images: &mut usize) -> Result<Vec<ContentPart>, Failure> {
    let param = fields.param("content");
    let parts = match fields.take("content") {
        Some(Value::String(text)) => return Ok(vec![ContentPart::Text(text)]),
        None if role == Role::Assistant => return Ok(Vec::new()),
        None => return Err(missing(&param)),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong_type(&param, "a string or an array", &other)),
    };
    if parts.is_empty() && role != Role::Assistant {
        return Err(Failure::value(param, "there must be at least one part"));
    }
    let parts = parts.into_iter().enumerate().map(|(at, part)| {
        let mut part = Fields::of(part, format!("{param}[{at}]"))?;
        let kind: String = part.require("type")?;
        let read = match kind.as_str() {
            "text" => ContentPart::Text(part.require("text")?),
            "refusal" if role == Role::Assistant => ContentPart::Text(part.require("refusal")?),
            "image_url" if role == Role::User || role == Role::Tool => {
                *images += 1;
                if *images > limits.images {
                    return Err(Failure::value(
                        part.param("type"),
                        format!("a request may have {} pictures", limits.images),
                    ));
                }
                picture(&mut part, limits)?
            }
            "image_url" => {
                return Err(Failure::unsupported(
                    part.param("type"),
                    "pictures stand in messages of the user or of tools",
                ));
            }
            _ => return Err(Failure::unsupported(part.param("type"), "parts are of the type text or image_url here")),
        };
        part.finish()?;
        Ok(read)
    });
    Ok(joined(parts.collect::<Result<_, Failure>>()?))
}

fn picture(part: &mut Fields, limits: &Limits) -> Result<ContentPart, Failure> {
    let mut address = part.object("image_url")?.ok_or_else(|| missing(&part.param("image_url")))?;
    let url: String = address.require("url")?;
    // Every picture is read as finely as the model's processor has it.
    address.only("detail", &[json!("auto"), json!("high")])?;
    let param = address.param("url");
    address.finish()?;
    Ok(ContentPart::Image(image::from_url(&url, &param, limits.image_bytes.get())?))
}

fn tool_call(mut fields: Fields) -> Result<ToolCall, Failure> {
    let id = fields.get("id")?;
    fields.only("type", &[json!("function")])?;
    // Where it stood in a stream: clients that put it together themselves leave it in.
    fields.harmless(&["index"]);
    let mut function = fields.object("function")?.ok_or_else(|| missing(&fields.param("function")))?;
    let name = function.require("name")?;
    let param = function.param("arguments");
    let arguments = conversation::arguments(function.take("arguments"), &param)?;
    function.finish()?;
    fields.finish()?;
    Ok(ToolCall { id, name, arguments })
}
