//! From a conversation to parts, and the places in it that are worth keeping.

use std::sync::Arc;

use consort_core::{Error, ErrorKind, ImageSource, ModelInfo, Prompt, PromptPart, Result, SpecialTokens, TokenId};
use consort_prompt::{FrontEnd, Prompter, Written};
use consort_text::{ChatTemplateInput, Detokenizer, Tokenizer};
use serde_json::json;

/// A place in a prompt where its past may be kept, in tokens from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Border {
    pub(crate) at: usize,
    pub(crate) kind: BorderKind,
}

/// Why a place is worth keeping; the worthier first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BorderKind {
    /// Before the generation prompt, which no later prompt repeats.
    Turn,
    /// Before an activated adapter acts, up to where personas share everything.
    Activation,
    /// Where siblings were seen to part.
    Parting,
    /// After an image.
    Image,
    /// Before the last message.
    Message,
}

/// What a later turn needs to know of this one.
#[derive(Debug)]
pub(crate) struct Conversation {
    input: ChatTemplateInput,
    images: Vec<Arc<dyn ImageSource>>,
}

/// A prompt that engines understand.
pub(crate) struct Prepared {
    pub(crate) parts: Vec<PromptPart>,
    pub(crate) borders: Vec<Border>,
    /// Present for chat prompts.
    pub(crate) conversation: Option<Arc<Conversation>>,
}

/// A front end bound to a model, which knows where pasts may be kept.
#[derive(Clone)]
pub(crate) struct Preparer {
    prompter: Prompter,
    message_start: Option<TokenId>,
    max_tokens: usize,
}

impl Preparer {
    pub(crate) fn new(front_end: FrontEnd, backend: &'static str, info: &ModelInfo, max_tokens: usize) -> Self {
        let prompter = Prompter::new(front_end, backend, info.image_token);
        let message_start = prompter.tokenizer().and_then(|tokenizer| tokenizer.token_to_id("<|im_start|>"));
        Self { prompter, message_start, max_tokens }
    }

    /// # Errors
    /// [`ErrorKind::Unsupported`] where a part of the front end is missing, else what that part refuses.
    pub(crate) fn prepare(&self, prompt: Prompt) -> Result<Prepared> {
        match prompt {
            Prompt::Chat(chat) => {
                let Written { parts, turn, input, images } =
                    self.prompter.write(&chat, |tokens| self.check_length(tokens))?;
                let borders = self.borders_of(&parts, Some(turn));
                Ok(Prepared { parts, borders, conversation: Some(Arc::new(Conversation { input, images })) })
            }
            Prompt::Parts(parts) => {
                let borders = self.borders_of(&parts, None);
                Ok(Prepared { parts, borders, conversation: None })
            }
        }
    }

    /// What every prompt that continues this conversation after `reply` begins with. Empty: nothing.
    pub(crate) fn next_turn(&self, conversation: &Conversation, reply: &str) -> Result<Vec<PromptPart>> {
        let mut input = conversation.input.clone();
        input.messages.push(json!({ "role": "assistant", "content": reply }));
        self.prompter.next_turn(&input, &conversation.images)
    }

    pub(crate) fn tokenize(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>> {
        self.prompter.tokenize(text, special)
    }

    pub(crate) fn detokenize(&self, tokens: &[TokenId]) -> Result<String> {
        self.prompter.detokenize(tokens)
    }

    pub(crate) fn tokenizer(&self) -> Option<&Tokenizer> {
        self.prompter.tokenizer()
    }

    /// For a new reply.
    pub(crate) fn detokenizer(&self) -> Option<Detokenizer> {
        self.prompter.detokenizer()
    }

    /// How many tokens a reply to a prompt of `tokens` tokens can have.
    pub(crate) fn room(&self, tokens: usize) -> usize {
        self.max_tokens.saturating_sub(tokens)
    }

    /// # Errors
    /// [`ErrorKind::InvalidRequest`]: the prompt and one token of a reply do not fit into a sequence.
    pub(crate) fn check_length(&self, tokens: usize) -> Result<()> {
        if tokens < self.max_tokens {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidRequest, "the prompt leaves no room for a reply; shorten it")
            .with_context("prompt_tokens", tokens.to_string())
            .with_context("max_sequence_tokens", self.max_tokens.to_string()))
    }

    /// `turn`: before the generation prompt, where that is known. Else the last message's start is taken for it or, with
    /// no messages at all, the place before the last token: what extends the prompt, or repeats it, finds it there.
    fn borders_of(&self, parts: &[PromptPart], turn: Option<usize>) -> Vec<Border> {
        let (mut borders, mut starts, mut length) = (Vec::new(), Vec::new(), 0usize);
        for part in parts {
            match part {
                PromptPart::Tokens(tokens) => {
                    let found = tokens.iter().enumerate().filter(|(_, token)| Some(**token) == self.message_start);
                    starts.extend(found.map(|(index, _)| length + index));
                    length += tokens.len();
                }
                PromptPart::Image(image) => {
                    length = length.saturating_add(image.grid().tokens());
                    borders.push(Border { at: length, kind: BorderKind::Image });
                }
            }
        }
        let turn = turn.or_else(|| starts.last().copied()).unwrap_or(length.saturating_sub(1));
        if let Some(&start) = starts.iter().rev().find(|start| **start < turn) {
            borders.push(Border { at: start, kind: BorderKind::Message });
        }
        borders.push(Border { at: turn, kind: BorderKind::Turn });
        borders
    }
}

/// Chooses where a prompt's past is kept: the place before the generation prompt in any case, then the worthiest others
/// that are far enough from what is kept already and from each other, `most` in all. Ascending.
pub(crate) fn choose_borders(
    candidates: impl IntoIterator<Item = Border>,
    reused: usize,
    length: usize,
    most: usize,
    min_gain: usize,
) -> Vec<usize> {
    let mut candidates: Vec<_> =
        candidates.into_iter().filter(|border| border.at > reused && border.at < length).collect();
    // Of equal worth, the later one saves more.
    candidates.sort_by(|a, b| a.kind.cmp(&b.kind).then(b.at.cmp(&a.at)));
    let mut chosen: Vec<Border> = Vec::new();
    let near = |at: usize, other: usize| at.abs_diff(other) < min_gain.max(1);
    for border in candidates {
        if chosen.len() >= most {
            break;
        }
        // However short the question after a picture is: the next one about the same picture begins where the picture ends.
        // And however short what a persona reads on its own before its turn is: the others begin before it.
        let apart = |other: &Border| {
            let alone = match border.kind {
                BorderKind::Image => other.kind == BorderKind::Turn,
                BorderKind::Activation => other.kind == BorderKind::Turn && border.at < other.at,
                _ => false,
            };
            alone || !near(border.at, other.at)
        };
        if border.kind == BorderKind::Turn || (!near(border.at, reused) && chosen.iter().all(apart)) {
            chosen.push(border);
        }
    }
    let mut chosen: Vec<usize> = chosen.into_iter().map(|border| border.at).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worthiest_places_are_kept_and_not_too_many() {
        let border = |at, kind| Border { at, kind };
        let all = [
            border(100, BorderKind::Turn),
            border(90, BorderKind::Message),
            border(60, BorderKind::Image),
            border(30, BorderKind::Image),
            border(45, BorderKind::Parting),
            border(200, BorderKind::Message),
        ];
        let chosen = |reused, most, gain| choose_borders(all, reused, 150, most, gain);
        assert_eq!(chosen(0, 9, 10), [30, 45, 60, 90, 100]);
        assert_eq!(chosen(0, 9, 16), [45, 100]);
        assert_eq!(chosen(0, 2, 1), [45, 100]);
        assert_eq!(chosen(0, 3, 1), [45, 60, 100]);
        assert_eq!(chosen(95, 9, 16), [100]);
        assert_eq!(chosen(0, 0, 1), [0usize; 0]);
        assert_eq!(choose_borders([border(0, BorderKind::Turn)], 0, 9, 3, 1), [0usize; 0]);
        let short_question =
            [border(70, BorderKind::Turn), border(60, BorderKind::Image), border(8, BorderKind::Message)];
        assert_eq!(choose_borders(short_question, 0, 75, 4, 16), [60, 70]);
        let persona = |at| [border(70, BorderKind::Turn), border(at, BorderKind::Activation)];
        assert_eq!(choose_borders(persona(68), 0, 75, 4, 16), [68, 70]);
        assert_eq!(choose_borders(persona(72), 0, 75, 4, 16), [70]);
        assert_eq!(choose_borders(persona(70), 0, 75, 4, 16), [70]);
    }
}
