//! What the server knows of the model's text: how replies begin, what a token is, how a conversation is written.

use std::sync::Arc;

use consort_core::{ChatPrompt, ModelBackend, Result, Thinking, TokenId};
use consort_text::{ChatTemplate, ChatTemplateInput, PromptRenderer, ReplyStart, Tokenizer};

/// The tokenizer and the template that came with the model. Without them the server still answers: log probabilities then
/// show tokens as the backend spells them, and reasoning is told by the reply alone.
#[derive(Debug, Clone, Default)]
pub struct TextFloor {
    /// Text to tokens and back.
    pub tokenizer: Option<Tokenizer>,
    /// Conversations to text.
    pub template: Option<ChatTemplate>,
}

/// The same, ready for use.
pub(crate) struct Text {
    backend: Arc<dyn ModelBackend>,
    tokenizer: Option<Tokenizer>,
    renderer: Option<PromptRenderer>,
    /// How replies begin, as the template has it, with thinking and without.
    starts: [ReplyStart; 3],
}

impl Text {
    pub(crate) fn new(backend: Arc<dyn ModelBackend>, floor: TextFloor) -> Self {
        let TextFloor { tokenizer, template } = floor;
        let start =
            |thinking| template.as_ref().map_or(ReplyStart::Undecided, |template| template.reply_start(thinking));
        let starts = [Thinking::TemplateDefault, Thinking::On, Thinking::Off].map(start);
        let renderer = template.zip(tokenizer.clone()).map(|(template, t)| PromptRenderer::new(template, t));
        Self { backend, tokenizer, renderer, starts }
    }

    /// How a reply begins.
    pub(crate) fn start(&self, thinking: Thinking) -> ReplyStart {
        let [default, on, off] = self.starts;
        match thinking {
            Thinking::TemplateDefault => default,
            Thinking::On => on,
            Thinking::Off => off,
        }
    }

    /// The bytes that a token stands for; not always characters.
    pub(crate) fn token_bytes(&self, token: TokenId) -> Vec<u8> {
        match &self.tokenizer {
            Some(tokenizer) => tokenizer.token_bytes(token).unwrap_or_default().to_vec(),
            None => self.backend.detokenize(&[token]).unwrap_or_default().into_bytes(),
        }
    }

    /// A token's spelling in the vocabulary.
    pub(crate) fn spelling(&self, token: TokenId) -> String {
        let spelled = self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.id_to_token(token));
        spelled.map_or_else(|| String::from_utf8_lossy(&self.token_bytes(token)).into_owned(), str::to_owned)
    }

    /// A conversation as tokens, each picture as one. `None` where the template or the tokenizer is out of reach.
    ///
    /// # Errors
    /// What the template refuses.
    pub(crate) fn render(&self, chat: &ChatPrompt, turn: Turn) -> Result<Option<Vec<TokenId>>> {
        let Some(renderer) = &self.renderer else { return Ok(None) };
        let mut input = ChatTemplateInput::from_prompt(chat)?;
        input.add_generation_prompt = turn == Turn::Opened;
        Ok(Some(renderer.render(&input)?.tokens))
    }
}

/// Whether the model's turn is opened at the end of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Opened,
    NotOpened,
}
