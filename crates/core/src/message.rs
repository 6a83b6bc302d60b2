//! Chat messages, before any template.

use serde::Serialize;

use crate::ImageInput;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions. The family's template admits them at the beginning only.
    System,
    /// The person, or whoever is not the model.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The role's name in chat templates.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A piece of a message.
#[derive(Debug, Clone)]
pub enum ContentPart {
    /// Text.
    Text(String),
    /// A picture, at this place in the text.
    Image(ImageInput),
}

/// A call of a tool that the model made in an earlier turn.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// The id by which the result refers to it; some clients leave it out.
    pub id: Option<String>,
    /// The function's name.
    pub name: String,
    /// Its arguments: a JSON object.
    pub arguments: serde_json::Value,
}

/// One message of a conversation.
#[derive(Debug, Clone)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<ContentPart>,
    /// The reasoning that came before it (assistant messages).
    pub reasoning: Option<String>,
    /// The tools that it called (assistant messages).
    pub tool_calls: Vec<ToolCall>,
    /// Which call this answers (tool messages).
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A message of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self::new(role, vec![ContentPart::Text(text.into())])
    }

    /// A message of several parts.
    #[must_use]
    pub fn new(role: Role, content: Vec<ContentPart>) -> Self {
        Self { role, content, reasoning: None, tool_calls: Vec::new(), tool_call_id: None }
    }

    /// The images in it, in order.
    pub fn images(&self) -> impl Iterator<Item = &ImageInput> {
        self.content.iter().filter_map(|part| match part {
            ContentPart::Image(image) => Some(image),
            ContentPart::Text(_) => None,
        })
    }
}

/// Whether the model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    /// As the template does when nothing is said.
    #[default]
    TemplateDefault,
    /// It thinks.
    On,
    /// It answers at once.
    Off,
}

/// A conversation to be continued by the model.
#[derive(Debug, Clone, Default)]
pub struct ChatPrompt {
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// Tools that the model may call: JSON objects in the OpenAI form.
    pub tools: Vec<serde_json::Value>,
    /// Whether it thinks first.
    pub thinking: Thinking,
}
