//! A model's template, tokenizer and image processor, bound to a backend.

use std::fmt;
use std::sync::Arc;

use consort_core::{
    ChatMessage, ChatPrompt, Error, ErrorKind, ImageInput, ImageSource, PromptPart, Result, SpecialTokens, TokenId,
};
use consort_text::{
    ChatTemplate, ChatTemplateInput, Detokenizer, PromptRenderer, SpecialText, TokenPart, Tokenizer, split_at_images,
};
use consort_vision::ImageProcessor;

/// What stands between people and tokens. An engine knows nothing of it; it belongs to the model's files.
///
/// What is `None` is refused as `Unsupported` by name. Prompts of token parts need none of it; their replies then have
/// tokens and no text.
#[derive(Clone, Default)]
pub struct FrontEnd {
    /// Text to tokens and back.
    pub tokenizer: Option<Tokenizer>,
    /// Conversations to text.
    pub template: Option<ChatTemplate>,
    /// Picture files to images.
    pub image_processor: Option<ImageProcessor>,
}

impl fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontEnd")
            .field("tokenizer", &self.tokenizer.is_some())
            .field("template", &self.template.is_some())
            .field("image_processor", &self.image_processor.is_some())
            .finish()
    }
}

/// A conversation as an engine reads it.
#[derive(Debug, Clone)]
pub struct Written {
    /// The whole prompt.
    pub parts: Vec<PromptPart>,
    /// How many of its tokens, those of images included, come before the generation prompt, which opens the model's turn.
    pub turn: usize,
    /// The conversation as the template was given it.
    pub input: ChatTemplateInput,
    /// Its images, in order.
    pub images: Vec<Arc<dyn ImageSource>>,
}

/// A front end bound to a backend, whose name its errors say.
#[derive(Clone)]
pub struct Prompter {
    backend: &'static str,
    tokenizer: Option<Tokenizer>,
    renderer: Option<PromptRenderer>,
    image_processor: Option<ImageProcessor>,
    image_token: Option<TokenId>,
}

impl fmt::Debug for Prompter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompter").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl Prompter {
    /// Binds a front end. `image_token` is the token that stands for an image in a rendered prompt, when the model sees.
    #[must_use]
    pub fn new(front_end: FrontEnd, backend: &'static str, image_token: Option<TokenId>) -> Self {
        let FrontEnd { tokenizer, template, image_processor } = front_end;
        Self {
            backend,
            renderer: template.zip(tokenizer.clone()).map(|(template, t)| PromptRenderer::new(template, t)),
            tokenizer,
            image_processor,
            image_token,
        }
    }

    /// Whether conversations can be written here.
    #[must_use]
    pub fn can_write(&self) -> bool {
        self.renderer.is_some()
    }

    /// Writes a conversation. `check` sees the tokens of the images so far before the next one is decoded, so that a
    /// prompt which cannot fit costs little.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where a part of the front end is missing, else what that part or `check` refuses.
    pub fn write(&self, chat: &ChatPrompt, check: impl Fn(usize) -> Result<()>) -> Result<Written> {
        let renderer = self.renderer()?;
        let mut images = Vec::new();
        for image in chat.messages.iter().flat_map(ChatMessage::images) {
            images.push(self.image(image)?);
            check(images.iter().map(|image| image.grid().tokens()).fold(0, usize::saturating_add))?;
        }
        let input = ChatTemplateInput::from_prompt(chat)?;
        let rendered = renderer.render(&input)?;
        let parts = self.with_images(&rendered.tokens, &images)?;
        let before = rendered.tokens.get(..rendered.generation_border).unwrap_or_default();
        let turn = self.with_images_so_far(before, &images)?.iter().map(part_len).sum();
        Ok(Written { parts, turn, input, images })
    }

    /// What every prompt begins with that continues `input`, which ends with the model's reply. Empty: nothing.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn next_turn(&self, input: &ChatTemplateInput, images: &[Arc<dyn ImageSource>]) -> Result<Vec<PromptPart>> {
        let tokens = self.renderer()?.next_turn_prefix(input)?;
        self.with_images_so_far(&tokens, images)
    }

    /// An image as engines take it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without an image processor, [`ErrorKind::InvalidImage`].
    pub fn image(&self, image: &ImageInput) -> Result<Arc<dyn ImageSource>> {
        match image {
            ImageInput::Prepared(source) => Ok(Arc::clone(source)),
            ImageInput::Encoded(bytes) => {
                let processor = self
                    .image_processor
                    .as_ref()
                    .ok_or_else(|| self.missing("picture files without an image processor"))?;
                Ok(Arc::new(processor.decode(Arc::clone(bytes))?))
            }
        }
    }

    /// Text to tokens.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a tokenizer, and what the tokenizer refuses.
    pub fn tokenize(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        self.tokenizer.as_ref().ok_or_else(|| self.missing("tokenize"))?.encode(text, special)
    }

    /// Tokens to text, special ones shown.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a tokenizer.
    pub fn detokenize(&self, tokens: &[TokenId]) -> Result<String> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| self.missing("detokenize"))?;
        Ok(tokenizer.decode(tokens, SpecialText::Show))
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// For a new reply: special tokens are hidden.
    #[must_use]
    pub fn detokenizer(&self) -> Option<Detokenizer> {
        self.tokenizer.as_ref().map(|tokenizer| Detokenizer::new(tokenizer, SpecialText::Hide))
    }

    fn renderer(&self) -> Result<&PromptRenderer> {
        self.renderer.as_ref().ok_or_else(|| self.missing("chat prompts without a chat template"))
    }

    fn missing(&self, operation: &'static str) -> Error {
        Error::unsupported(self.backend, operation)
    }

    fn with_images(&self, tokens: &[TokenId], images: &[Arc<dyn ImageSource>]) -> Result<Vec<PromptPart>> {
        let Some(image_token) = self.image_token else {
            return match images {
                [] if tokens.is_empty() => Ok(Vec::new()),
                [] => Ok(vec![PromptPart::Tokens(tokens.to_vec())]),
                _ => Err(self.missing("image input")),
            };
        };
        let mut parts = Vec::new();
        for part in split_at_images(tokens, image_token, images.len())? {
            parts.push(match part {
                TokenPart::Tokens(tokens) => PromptPart::Tokens(tokens),
                TokenPart::Image(index) => {
                    let missing = || Error::new(ErrorKind::Unexpected, "an image of the prompt is missing");
                    PromptPart::Image(Arc::clone(images.get(index).ok_or_else(missing)?))
                }
            });
        }
        Ok(parts)
    }

    /// The same for the beginning of a prompt, which may hold fewer of the images.
    fn with_images_so_far(&self, tokens: &[TokenId], images: &[Arc<dyn ImageSource>]) -> Result<Vec<PromptPart>> {
        let count = tokens.iter().filter(|&&token| Some(token) == self.image_token).count();
        self.with_images(tokens, images.get(..count).unwrap_or(images))
    }
}

fn part_len(part: &PromptPart) -> usize {
    match part {
        PromptPart::Tokens(tokens) => tokens.len(),
        PromptPart::Image(image) => image.grid().tokens(),
    }
}
