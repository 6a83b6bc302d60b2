//! Reading a request for a response.

use consort_core::{Priority, Thinking};
use serde_json::{Map, Value, json};

use super::items;
use crate::config::Limits;
use crate::conversation::{Conversation, Format, ToolChoice, Tools};
use crate::error::Failure;
use crate::fields::{Fields, missing};
use crate::openai::common;
use crate::sampling::SamplingSettings;
use crate::speak::Wish;

/// What of a response can be asked for beside it, and is there anyway.
const INCLUDED: [&str; 2] = ["reasoning.encrypted_content", "message.input_image.image_url"];
/// With each text the log probabilities of its tokens.
const LOGPROBS: &str = "message.output_text.logprobs";

/// A request, understood.
#[derive(Debug)]
pub(super) struct ResponseRequest {
    pub(super) model: String,
    pub(super) conversation: Conversation,
    pub(super) parallel: bool,
    pub(super) streamed: bool,
    /// What the response says again of its request.
    pub(super) echo: Map<String, Value>,
}

impl ResponseRequest {
    /// Reads a body, of which every field is understood or refused.
    ///
    /// # Errors
    /// The first field that is wrong, by name.
    pub(super) fn read(mut fields: Fields, limits: &Limits) -> Result<Self, Failure> {
        fields.unsupported(
            &["previous_response_id", "conversation", "prompt"],
            "nothing is stored here: send all of the conversation as `input`",
        )?;
        fields.unsupported(
            &["context_management", "background_options"],
            "the conversation is answered as it is, at once",
        )?;
        fields.unsupported(
            &["moderation", "access_programs", "image", "prompt_cache_options"],
            "this server has it not",
        )?;
        fields.only("store", &[json!(false)])?;
        fields.only("background", &[json!(false)])?;
        fields.only("truncation", &[json!("disabled")])?;
        fields.only("service_tier", &[json!("auto"), json!("default")])?;
        let mut echo = Map::new();
        for name in ["metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"] {
            let value = fields.take(name).unwrap_or_else(|| if name == "metadata" { json!({}) } else { Value::Null });
            echo.insert(name.into(), value);
        }
        // It counts calls of the API's own tools, of which there are none.
        echo.insert("max_tool_calls".into(), fields.get::<u32>("max_tool_calls")?.into());
        let mut wish = Wish {
            sampling: SamplingSettings::take(&mut fields)?,
            max_tokens: fields.get("max_output_tokens")?,
            priority: fields.get::<Priority>("priority")?,
            logprobs: logprobs(&mut fields, &mut echo)?,
            ..Wish::default()
        };
        if wish.max_tokens == Some(0) {
            return Err(Failure::value("max_output_tokens", "a reply has at least one token"));
        }
        echo.insert("max_output_tokens".into(), wish.max_tokens.into());
        let format = text(&mut fields, &mut echo)?;
        let thinking = reasoning(&mut fields, &mut echo)?;
        let tools = tools(&mut fields, limits.tools.get(), &mut echo)?;
        let choice = tool_choice(&mut fields, &tools, &mut echo)?;
        let parallel = fields.get::<bool>("parallel_tool_calls")?.unwrap_or(true);
        let (offer, structure) = tools.offer(&choice, parallel, format)?;
        wish.structure = structure;
        let instructions = fields.get::<String>("instructions")?;
        let messages = items::messages(&mut fields, instructions.as_deref(), limits)?;
        echo.insert("instructions".into(), instructions.into());
        let streamed = fields.get::<bool>("stream")?.unwrap_or(false);
        if let Some(mut options) = fields.object("stream_options")? {
            if !streamed {
                let message = "`stream_options` belongs to requests with `stream: true`";
                return Err(Failure::value("stream_options", message));
            }
            options.only("include_obfuscation", &[json!(false)])?;
            options.finish()?;
        }
        let request = Self {
            model: fields.require("model")?,
            conversation: Conversation { messages, offer, thinking, wish },
            parallel,
            streamed,
            echo,
        };
        fields.finish()?;
        Ok(request)
    }
}

fn logprobs(fields: &mut Fields, echo: &mut Map<String, Value>) -> Result<Option<u32>, Failure> {
    let mut wanted = false;
    for (param, value) in fields.list("include", 64)?.unwrap_or_default() {
        match value.as_str() {
            Some(LOGPROBS) => wanted = true,
            Some(other) if INCLUDED.contains(&other) => {}
            _ => return Err(Failure::unsupported(param, "this server has nothing of that kind to include")),
        }
    }
    let top = fields.get::<u32>("top_logprobs")?;
    if top.is_some_and(|top| top > 20) {
        return Err(Failure::value("top_logprobs", "`top_logprobs` is from 0 to 20"));
    }
    echo.insert("top_logprobs".into(), top.unwrap_or(0).into());
    match top {
        Some(top) if top > 0 && !wanted => {
            let message = format!("`top_logprobs` ({top}) belongs to requests with `include: [\"{LOGPROBS}\"]`");
            Err(Failure::value("top_logprobs", message))
        }
        top => Ok(wanted.then(|| top.unwrap_or(0))),
    }
}

fn text(fields: &mut Fields, echo: &mut Map<String, Value>) -> Result<Format, Failure> {
    let (mut format, mut shown) = (Format::Text, json!({ "type": "text" }));
    if let Some(mut text) = fields.object("text")? {
        text.only("verbosity", &[json!("medium")])?;
        let given = text.take("format");
        if let Some(given) = given {
            shown = given.clone();
            format = read_format(Fields::of(given, text.param("format"))?)?;
        }
        text.finish()?;
    }
    echo.insert("text".into(), json!({ "format": shown, "verbosity": "medium" }));
    Ok(format)
}

fn read_format(mut format: Fields) -> Result<Format, Failure> {
    let kind: String = format.require("type")?;
    let read = match kind.as_str() {
        "text" => Format::Text,
        "json_object" => Format::JsonObject,
        "json_schema" => {
            // A name and a description are for people; the schema is kept to whether it is called strict or not.
            format.require::<String>("name")?;
            format.get::<String>("description")?;
            format.get::<bool>("strict")?;
            Format::JsonSchema(format.take("schema").ok_or_else(|| missing(&format.param("schema")))?)
        }
        _ => return Err(Failure::value(format.param("type"), "it is text, json_object or json_schema")),
    };
    format.finish()?;
    Ok(read)
}

fn reasoning(fields: &mut Fields, echo: &mut Map<String, Value>) -> Result<Option<Thinking>, Failure> {
    let mut effort = None;
    if let Some(mut reasoning) = fields.object("reasoning")? {
        effort = reasoning.get::<String>("effort")?;
        // The reasoning itself is sent: there is no summary to choose.
        reasoning.only("summary", &[json!("auto")])?;
        reasoning.only("generate_summary", &[json!("auto")])?;
        reasoning.only("context", &[json!("auto")])?;
        reasoning.only("mode", &[json!("standard")])?;
        reasoning.finish()?;
    }
    let thinking =
        effort.as_deref().map(|effort| common::thinking_of_effort(effort, "reasoning.effort")).transpose()?;
    echo.insert("reasoning".into(), json!({ "effort": effort, "summary": null }));
    Ok(thinking)
}

fn tools(fields: &mut Fields, most: usize, echo: &mut Map<String, Value>) -> Result<Tools, Failure> {
    let (mut tools, mut shown) = (Tools::default(), Vec::new());
    for (param, value) in fields.list("tools", most)?.unwrap_or_default() {
        let mut again = value.clone();
        let mut tool = Fields::of(value, param)?;
        let kind: String = tool.require("type")?;
        if kind != "function" {
            return Err(Failure::unsupported(
                tool.param("type"),
                "tools are functions here: this server runs none of its own",
            ));
        }
        tool.only("defer_loading", &[json!(false)])?;
        tool.only("async", &[json!(false)])?;
        tool.only("allowed_callers", &[json!(["direct"])])?;
        tool.unsupported(&["output_schema"], "write into the description what comes of a call")?;
        tools.take(&mut tool, "parameters")?;
        tool.finish()?;
        // Clients demand both.
        for name in ["parameters", "strict"] {
            if let Some(again) = again.as_object_mut().filter(|again| again.get(name).is_none_or(Value::is_null)) {
                again.insert(name.into(), if name == "strict" { json!(false) } else { Value::Null });
            }
        }
        shown.push(again);
    }
    echo.insert("tools".into(), shown.into());
    Ok(tools)
}

fn tool_choice(fields: &mut Fields, tools: &Tools, echo: &mut Map<String, Value>) -> Result<ToolChoice, Failure> {
    let given = fields.take("tool_choice");
    echo.insert("tool_choice".into(), given.clone().unwrap_or_else(|| "auto".into()));
    let choice = match given {
        None => None,
        Some(Value::String(word)) => Some(match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => {
                let message = "`tool_choice` is none, auto, required, or names a function";
                return Err(Failure::value("tool_choice", message));
            }
        }),
        Some(value) => {
            let mut named = Fields::of(value, "tool_choice")?;
            let kind: String = named.require("type")?;
            if kind != "function" {
                return Err(Failure::unsupported("tool_choice.type", "`tool_choice` can name a function only"));
            }
            let name: String = named.require("name")?;
            named.finish()?;
            if !tools.has(&name) {
                return Err(Failure::value("tool_choice.name", "no tool has this name"));
            }
            Some(ToolChoice::Named(name))
        }
    };
    tools.chosen(choice)
}
