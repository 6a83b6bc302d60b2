//! Reading a request for a message.

use consort_core::{Priority, StopRules, Thinking};
use serde_json::json;

use super::content;
use crate::config::Limits;
use crate::conversation::{Conversation, Format, ToolChoice, Tools};
use crate::error::Failure;
use crate::fields::{Fields, missing};
use crate::sampling::SamplingSettings;
use crate::speak::Wish;

/// The fewest tokens that a budget for thinking may name, as in the API.
const LEAST_BUDGET: u32 = 1024;

/// A request, understood.
#[derive(Debug)]
pub(super) struct MessageRequest {
    pub(super) model: String,
    pub(super) conversation: Conversation,
    /// The most tokens of the reply.
    pub(super) most: u32,
    pub(super) streamed: bool,
}

impl MessageRequest {
    /// Reads a body, of which every field is understood or refused.
    ///
    /// # Errors
    /// The first field that is wrong, by name.
    pub(super) fn read(mut fields: Fields, limits: &Limits) -> Result<Self, Failure> {
        fields
            .unsupported(&["container", "mcp_servers", "context_management"], "this server runs no tools of its own")?;
        fields.unsupported(&["diagnostics"], "`usage` tells what the cache gave")?;
        fields.only("service_tier", &[json!("auto"), json!("standard_only")])?;
        let most: u32 = fields.require("max_tokens")?;
        let wish = Wish {
            sampling: SamplingSettings::take(&mut fields)?,
            stop: StopRules { strings: fields.get("stop_sequences")?.unwrap_or_default(), ..StopRules::default() },
            max_tokens: Some(most),
            priority: fields.get::<Priority>("priority")?,
            ..Wish::default()
        };
        let streamed = fields.get::<bool>("stream")?.unwrap_or(false);
        fields.harmless(&["metadata"]);
        let (model, conversation) = common(fields, limits, wish, Some(most))?;
        Ok(Self { model, conversation, most, streamed })
    }
}

/// Reads a request to count tokens: the model and the conversation.
///
/// # Errors
/// The first field that is wrong, by name.
pub(super) fn read_count(fields: Fields, limits: &Limits) -> Result<(String, Conversation), Failure> {
    common(fields, limits, Wish::default(), None)
}

/// What both have, to the last field.
fn common(
    mut fields: Fields,
    limits: &Limits,
    mut wish: Wish,
    most: Option<u32>,
) -> Result<(String, Conversation), Failure> {
    fields
        .unsupported(&["inference_geo", "user_profile_id", "workspace_id"], "there is one place, and one workspace")?;
    fields.only("speed", &[json!("standard")])?;
    // What was read before is found again without being asked.
    fields.harmless(&["cache_control"]);
    let format = format(&mut fields)?;
    let tools = tools(&mut fields, limits.tools.get())?;
    let (choice, parallel) = tool_choice(&mut fields, &tools)?;
    let (offer, structure) = tools.offer(&choice, parallel, format)?;
    wish.structure = structure;
    let conversation = Conversation {
        thinking: thinking(&mut fields, most)?,
        messages: content::messages(&mut fields, limits)?,
        offer,
        wish,
    };
    let model = fields.require("model")?;
    fields.finish()?;
    Ok((model, conversation))
}

/// What the answer is: by `output_config`, or by `output_format`, as it was called before.
fn format(fields: &mut Fields) -> Result<Format, Failure> {
    let mut format = fields.object("output_format")?;
    if let Some(mut config) = fields.object("output_config")? {
        // The model knows no degrees.
        config.only("effort", &[json!("high")])?;
        if let Some(newer) = config.object("format")? {
            if format.is_some() {
                return Err(Failure::value("output_format", "`output_config.format` took the place of this field"));
            }
            format = Some(newer);
        }
        config.finish()?;
    }
    let Some(mut format) = format else { return Ok(Format::Text) };
    let kind: String = format.require("type")?;
    if kind != "json_schema" {
        return Err(Failure::value(format.param("type"), "it is json_schema"));
    }
    let schema = format.take("schema").ok_or_else(|| missing(&format.param("schema")))?;
    format.finish()?;
    Ok(Format::JsonSchema(schema))
}

fn thinking(fields: &mut Fields, most: Option<u32>) -> Result<Option<Thinking>, Failure> {
    let Some(mut config) = fields.object("thinking")? else { return Ok(None) };
    let kind: String = config.require("type")?;
    let thinking = match kind.as_str() {
        "disabled" => Thinking::Off,
        "adaptive" => Thinking::On,
        "enabled" => {
            let budget: u32 = config.require("budget_tokens")?;
            let param = config.param("budget_tokens");
            if budget < LEAST_BUDGET || most.is_some_and(|most| budget >= most) {
                let message = format!("a budget has {LEAST_BUDGET} tokens at least, and fewer than `max_tokens`");
                return Err(Failure::value(param, message));
            }
            return Err(Failure::unsupported(
                param,
                "the model does not know a budget: `{\"type\": \"adaptive\"}` lets it think as long as it likes, within `max_tokens`",
            ));
        }
        "between_tools" => {
            let message = "the model thinks before it answers, or not at all";
            return Err(Failure::unsupported(config.param("type"), message));
        }
        _ => return Err(Failure::value(config.param("type"), "it is disabled, adaptive or enabled")),
    };
    if thinking == Thinking::On {
        config.only("display", &[json!("summarized")])?;
    }
    config.finish()?;
    Ok(Some(thinking))
}

fn tools(fields: &mut Fields, most: usize) -> Result<Tools, Failure> {
    let mut tools = Tools::default();
    for (param, value) in fields.list("tools", most)?.unwrap_or_default() {
        let mut tool = Fields::of(value, param)?;
        if tool.get::<String>("type")?.is_some_and(|kind| kind != "custom") {
            let message = "tools are the client's own here (`custom`): this server runs none";
            return Err(Failure::unsupported(tool.param("type"), message));
        }
        tool.only("defer_loading", &[json!(false)])?;
        tool.only("allowed_callers", &[json!(["direct"])])?;
        tool.unsupported(&["input_examples"], "write examples into the description")?;
        // Calls are sent when they are whole.
        tool.harmless(&["cache_control", "eager_input_streaming"]);
        if !tool.has("input_schema") {
            return Err(missing(&tool.param("input_schema")));
        }
        tools.take(&mut tool, "input_schema")?;
        tool.finish()?;
    }
    Ok(tools)
}

/// Whether the model calls, and whether more than once.
fn tool_choice(fields: &mut Fields, tools: &Tools) -> Result<(ToolChoice, bool), Failure> {
    let Some(mut given) = fields.object("tool_choice")? else { return Ok((tools.chosen(None)?, true)) };
    let kind: String = given.require("type")?;
    let choice = match kind.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => {
            let name: String = given.require("name")?;
            if !tools.has(&name) {
                return Err(Failure::value(given.param("name"), "no tool has this name"));
            }
            ToolChoice::Named(name)
        }
        _ => return Err(Failure::value(given.param("type"), "it is auto, any, tool or none")),
    };
    let alone = given.get::<bool>("disable_parallel_tool_use")?.unwrap_or(false);
    given.finish()?;
    Ok((tools.chosen(Some(choice))?, !alone))
}
