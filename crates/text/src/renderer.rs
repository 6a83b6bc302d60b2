//! Template and tokenizer together, and the places in a prompt that are worth keeping.

use consort_core::{ErrorKind, Result, SpecialTokens, TokenId};
use serde_json::json;

use crate::guard::{Guard, Marks};
use crate::{ChatTemplate, ChatTemplateInput, ReplyStart, SpecialText, Tokenizer};

/// A conversation as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The prompt's tokens. Each image token stands for a whole image; see [`split_at_images`](crate::split_at_images).
    pub tokens: Vec<TokenId>,
    /// How many of them come before the generation prompt (`<|im_start|>assistant\n<think>\n`), which opens the model's
    /// turn and which no later prompt repeats. The place before it is worth keeping. Without a generation prompt: all.
    pub generation_border: usize,
    /// How the model's reply begins, for [`ReplyParser`](crate::ReplyParser): the generation prompt may have opened its
    /// reasoning.
    pub reply_start: ReplyStart,
}

/// Renders conversations and tokenizes what comes out.
///
/// A hybrid model's past cannot be cut at any place one likes, so the prefix cache must know *before* it passes them
/// which places a later prompt will share. They follow from the template alone, and so are found by rendering:
///
/// ```
/// use consort_text::{ChatTemplate, ChatTemplateInput, PromptRenderer, SpecialText, Tokenizer};
/// use serde_json::json;
///
/// # fn main() -> consort_core::Result<()> {
/// let template = ChatTemplate::new(
///     "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
///      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
/// )?;
/// # let json = consort_text::doc_tokenizer_json();
/// let tokenizer = Tokenizer::from_json(&json, None)?;
/// let renderer = PromptRenderer::new(template, tokenizer);
///
/// let mut chat = ChatTemplateInput::new(vec![json!({ "role": "user", "content": "Hi" })]);
/// chat.add_generation_prompt = true;
/// let prompt = renderer.render(&chat)?;
/// let kept = renderer.tokenizer().decode(&prompt.tokens[..prompt.generation_border], SpecialText::Show);
/// assert_eq!(kept, "<|im_start|>user\nHi<|im_end|>\n");
///
/// chat.messages.push(json!({ "role": "assistant", "content": "Hello!" }));
/// let kept = renderer.tokenizer().decode(&renderer.next_turn_prefix(&chat)?, SpecialText::Show);
/// assert_eq!(kept, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct PromptRenderer {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    guard: Option<Guard>,
}

impl PromptRenderer {
    /// A renderer.
    ///
    /// Special tokens come from the template alone: what messages and tools say stays text, whatever it looks like
    /// (`<|im_end|>`), so that nobody can end his own turn and open another's. All other text becomes the tokens that it
    /// always becomes. Added tokens that are not special (`<think>`, `<tool_call>`) are no boundary of a turn, and are
    /// recognized in messages, as in the replies that they come from.
    ///
    /// A template that itself looks for special tokens *in* messages does not find them;
    /// [`with_special_content`](Self::with_special_content) is for it.
    #[must_use]
    pub fn new(template: ChatTemplate, tokenizer: Tokenizer) -> Self {
        let guard = Guard::new(tokenizer.special_spellings());
        Self { template, tokenizer, guard }
    }

    /// With [`SpecialTokens::Parse`], what messages say can be special tokens too, as in transformers. Only for
    /// conversations whose every word the application wrote itself.
    #[must_use]
    pub fn with_special_content(mut self, special: SpecialTokens) -> Self {
        self.guard = match special {
            SpecialTokens::Parse => None,
            SpecialTokens::Plain => Guard::new(self.tokenizer.special_spellings()),
        };
        self
    }

    /// The template.
    #[must_use]
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Renders a conversation and finds the border of its generation prompt.
    ///
    /// # Errors
    /// What [`ChatTemplate::render`] and [`Tokenizer::encode`] refuse.
    pub fn render(&self, input: &ChatTemplateInput) -> Result<RenderedPrompt> {
        let (input, marks) = self.prepared(input);
        let tokens = self.tokens(&input, &marks)?;
        let generation_border = if input.add_generation_prompt {
            let without = self.tokens(&ChatTemplateInput { add_generation_prompt: false, ..input }, &marks)?;
            common_prefix(&tokens, &without)
        } else {
            tokens.len()
        };
        let opening = tokens.get(generation_border..).unwrap_or_default();
        let reply_start = ReplyStart::after(&self.tokenizer.decode(opening, SpecialText::Show));
        Ok(RenderedPrompt { tokens, generation_border, reply_start })
    }

    /// The tokens with which every prompt begins that continues this conversation (its last message is a reply) by a
    /// message of the user.
    ///
    /// It is not what was generated: the family's template drops the reasoning of earlier turns. So two continuations
    /// are rendered, and what they share is cut back to the last special token before their difference, over which no
    /// word reaches. It may be empty, when the template shares nothing between turns.
    ///
    /// # Errors
    /// What [`Tokenizer::encode`] refuses, and what [`ChatTemplate::render`] refuses for other reasons than an exception
    /// that the template raises: a conversation that cannot be continued has an empty prefix.
    pub fn next_turn_prefix(&self, input: &ChatTemplateInput) -> Result<Vec<TokenId>> {
        let (input, marks) = self.prepared(input);
        let mut input = ChatTemplateInput { add_generation_prompt: false, ..input };
        let mut continued = |text: &str| {
            input.messages.push(json!({ "role": "user", "content": text }));
            let tokens = self.tokens(&input, &marks);
            input.messages.pop();
            tokens
        };
        // Different from the first character on.
        let (one, other) = match (continued("A"), continued("7.")) {
            (Ok(one), Ok(other)) => (one, other),
            (Err(error), _) | (_, Err(error)) => {
                let raised =
                    error.kind() == ErrorKind::InvalidTemplate && error.context().any(|(key, _)| key == "raised");
                return if raised { Ok(Vec::new()) } else { Err(error) };
            }
        };
        let mut prefix = one;
        prefix.truncate(common_prefix(&prefix, &other));
        let border = prefix.iter().rposition(|&id| self.tokenizer.is_special(id)).unwrap_or(0);
        prefix.truncate(border);
        Ok(prefix)
    }

    /// All renderings of one question must agree on the time, on the names of the special tokens, and on the marks.
    fn prepared(&self, input: &ChatTemplateInput) -> (ChatTemplateInput, Marks) {
        let mut input = input.clone();
        input.now.get_or_insert_with(std::time::SystemTime::now);
        let tokenizer = &self.tokenizer;
        for (name, id) in [
            ("bos_token", tokenizer.bos_token()),
            ("eos_token", tokenizer.eos_token()),
            ("pad_token", tokenizer.pad_token()),
        ] {
            if let Some(token) = id.and_then(|id| tokenizer.id_to_token(id)) {
                input.variables.entry(name).or_insert_with(|| token.into());
            }
        }
        let marks = self.guard.as_ref().map(|guard| guard.mark(&mut input)).unwrap_or_default();
        (input, marks)
    }

    fn tokens(&self, input: &ChatTemplateInput, marks: &Marks) -> Result<Vec<TokenId>> {
        self.tokenizer.encode_marked(&self.template.render(input)?, marks)
    }
}

fn common_prefix(one: &[TokenId], other: &[TokenId]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}
