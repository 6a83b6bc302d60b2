//! Prompts as they cross: tokens with pictures beside them, or a conversation that the server writes.

use std::sync::Arc;

use consort_core::{Capability, ChatMessage, ContentPart, Error, ErrorKind, Prompt, PromptPart, Result, Thinking};
use serde_json::{Value, json};

use crate::backend::{VllmRemoteBackend, Write};
use crate::call::CallPrompt;
use crate::replica::Replica;
use crate::{http, picture};

/// A prompt as it crosses.
pub(crate) struct Outgoing {
    pub(crate) prompt: CallPrompt,
    /// How many tokens it has, where that is known here.
    pub(crate) tokens: Option<usize>,
}

impl VllmRemoteBackend {
    /// A prompt as these servers take it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] for one that is none or too long, [`ErrorKind::Unsupported`] for what the servers cannot take,
    /// what writing a conversation gives, and what asking a server gives where it writes.
    pub(crate) fn out(&self, prompt: Prompt) -> Result<Outgoing> {
        match prompt {
            Prompt::Parts(parts) => self.out_parts(&parts),
            Prompt::Chat(chat) if self.prompter.can_write() && self.tokens_admit(&chat.messages) => {
                let written = self.prompter.write(&chat, |tokens| self.check_length(tokens))?;
                self.out_parts(&written.parts)
            }
            Prompt::Chat(chat) => {
                let thinking = match chat.thinking {
                    Thinking::TemplateDefault => None,
                    Thinking::On => Some(true),
                    Thinking::Off => Some(false),
                };
                let messages = chat.messages.iter().map(message).collect::<Result<Vec<_>>>()?;
                let has_pictures = chat.messages.iter().any(|message| message.images().next().is_some());
                let prompt = CallPrompt::Chat { messages: messages.into(), tools: chat.tools, thinking };
                let facts = self.crossing.replicas.all.iter().find_map(|replica| replica.facts());
                let abilities = facts.map(|facts| facts.abilities).unwrap_or_default();
                if has_pictures || !abilities.tokenize || !(abilities.completions || abilities.tokens_in_and_out) {
                    return Ok(Outgoing { prompt, tokens: None });
                }
                // Tokens are better: log probabilities and stop tokens are by id, and a reply can be continued.
                let ids = self.ask(self.config.timeouts.control, Write(prompt))?;
                let tokens = Some(ids.len());
                self.check_length(ids.len())?;
                Ok(Outgoing { prompt: CallPrompt::Tokens { ids, pictures: Vec::new() }, tokens })
            }
        }
    }

    /// Whether a conversation can go as tokens: pictures beside them need a way of their own.
    fn tokens_admit(&self, messages: &[ChatMessage]) -> bool {
        let has_pictures = messages.iter().any(|message| message.images().next().is_some());
        let beside = |replica: &Arc<Replica>| replica.facts().is_none_or(|facts| facts.abilities.pictures_with_tokens);
        !has_pictures || self.crossing.replicas.all.iter().all(beside)
    }

    fn out_parts(&self, parts: &[PromptPart]) -> Result<Outgoing> {
        let invalid = |message: &str| Error::new(ErrorKind::InvalidRequest, message).with_context("field", "prompt");
        let (mut ids, mut pictures, mut count) = (Vec::new(), Vec::new(), 0usize);
        for part in parts {
            match part {
                PromptPart::Tokens(tokens) => {
                    for &token in tokens {
                        if Some(token) == self.info.image_token {
                            return Err(invalid("the image token stands for an image, which is a part of its own")
                                .with_context("token", token.to_string()));
                        }
                        if self.info.vocab_size > 0 && token as usize >= self.info.vocab_size {
                            return Err(
                                invalid("a token is beyond the vocabulary").with_context("token", token.to_string())
                            );
                        }
                    }
                    ids.extend_from_slice(tokens);
                    count = count.saturating_add(tokens.len());
                }
                PromptPart::Image(source) => {
                    Capability::require(self.capability.image_input, crate::NAME, "image input")?;
                    let token = self.info.image_token.ok_or_else(|| {
                        Error::unsupported(crate::NAME, "pictures beside tokens without the model's tokenizer")
                    })?;
                    ids.push(token);
                    pictures.push(picture::of_source(&**source)?);
                    count = count.saturating_add(source.grid().tokens());
                    self.check_length(count)?;
                }
            }
        }
        if count == 0 {
            return Err(invalid("the prompt is empty"));
        }
        self.check_length(count)?;
        if count < self.config.min_prompt_tokens {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "so short a prompt ends the engine of some versions of vLLM; set `min_prompt_tokens` to 1 where it does not",
            )
            .with_backend(crate::NAME)
            .with_operation("generate")
            .with_context("prompt_tokens", count.to_string()));
        }
        Ok(Outgoing { prompt: CallPrompt::Tokens { ids, pictures }, tokens: Some(count) })
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let most = self.capability.max_sequence_tokens;
        if tokens < most {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidRequest, "the prompt leaves no room for a reply; shorten it")
            .with_context("prompt_tokens", tokens.to_string())
            .with_context("max_sequence_tokens", most.to_string()))
    }
}

/// A message in OpenAI's form.
fn message(message: &ChatMessage) -> Result<Value> {
    let part = |part: &ContentPart| -> Result<Value> {
        Ok(match part {
            ContentPart::Text(text) => json!({ "type": "text", "text": text }),
            ContentPart::Image(image) => {
                let picture = picture::of_input(image)?;
                json!({ "type": "image_url", "image_url": { "url": http::address(&picture) } })
            }
        })
    };
    let content = match message.content.as_slice() {
        [ContentPart::Text(text)] => Value::from(text.as_str()),
        parts => parts.iter().map(part).collect::<Result<Vec<_>>>()?.into(),
    };
    let mut object = json!({ "role": message.role.as_str(), "content": content });
    if let Some(reasoning) = &message.reasoning {
        object["reasoning_content"] = reasoning.as_str().into();
    }
    if !message.tool_calls.is_empty() {
        let call = |call: &consort_core::ToolCall| {
            let arguments = call.arguments.to_string();
            json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
        };
        object["tool_calls"] = message.tool_calls.iter().map(call).collect();
    }
    if let Some(id) = &message.tool_call_id {
        object["tool_call_id"] = id.as_str().into();
    }
    Ok(object)
}
