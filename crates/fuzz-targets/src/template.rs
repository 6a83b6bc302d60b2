//! Chat templates from strangers, and conversations from others.

use consort_core::ErrorKind;
use consort_text::{ChatTemplate, ChatTemplateInput, TemplateLimits};
use serde_json::{Value, json};

/// Two parts: JSON (a list of messages, or an object of `messages`, `tools` and other variables), and the template.
///
/// # Panics
/// When an error is of another kind than was promised.
pub fn template(data: &[u8]) {
    let [input, source] = crate::parts(data);
    let limits = TemplateLimits { fuel: 20_000, output_bytes: 1 << 20, ..TemplateLimits::default() };
    let template = match ChatTemplate::with_limits(&String::from_utf8_lossy(source), limits) {
        Ok(template) => template,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::InvalidTemplate, "{error}"),
    };
    let input = serde_json::from_slice(input).unwrap_or_else(|_| json!([{ "role": "user", "content": "Hi" }]));
    if let Err(error) = template.render(&conversation(input)) {
        // A panic of the template engine is caught and typed as unexpected; here it is a finding.
        assert!(matches!(error.kind(), ErrorKind::InvalidTemplate | ErrorKind::InvalidRequest), "{error:?}");
    }
}

fn conversation(input: Value) -> ChatTemplateInput {
    let list = |value: Option<Value>| match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    match input {
        Value::Object(mut object) => ChatTemplateInput {
            messages: list(object.shift_remove("messages")),
            tools: list(object.shift_remove("tools")),
            add_generation_prompt: object.shift_remove("add_generation_prompt") == Some(Value::Bool(true)),
            enable_thinking: object.shift_remove("enable_thinking").and_then(|value| value.as_bool()),
            variables: object,
            now: Some(std::time::UNIX_EPOCH),
        },
        other => ChatTemplateInput { now: Some(std::time::UNIX_EPOCH), ..ChatTemplateInput::new(list(Some(other))) },
    }
}
