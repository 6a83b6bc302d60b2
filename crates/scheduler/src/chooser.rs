//! Who chooses a reply's tokens: the sampler, the structure and the rules of the reply's end.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};

use consort_core::{
    Capability, EndTokens, Error, ErrorKind, ModelInfo, PositionLogprobs, Result, Sampling, StopRules, Structure,
    StructureScope, TokenId,
};
use consort_grammar::{Compiler, GrammarLimits, Vocabulary};
use consort_sampling::{Allowed, Sampler, TokenMask, Workspace, logprobs};
use consort_text::{ReplyStart, SpecialText, Tokenizer};

use crate::masks::{Masks, Ready, wait};
use crate::past::Past;

/// What ends the reasoning.
const END_OF_REASONING: &str = "</think>";
/// A generation prompt that opens the reasoning ends within so many tokens.
const OPENING_TOKENS: usize = 16;
/// The family's template puts so many line ends between reasoning and answer.
const MOST_LINE_ENDS: usize = 2;
/// A token that ends the reasoning and says more is chosen anew this often.
const MOST_RETRIES: usize = 32;

/// What all choosers of a backend share.
pub(crate) struct Choosing {
    name: &'static str,
    vocab_size: usize,
    end_tokens: Arc<[TokenId]>,
    tokenizer: Option<Tokenizer>,
    compiler: Option<Compiler>,
    masks: Arc<Masks>,
    workspace: Arc<Mutex<Workspace>>,
}

impl Choosing {
    pub(crate) fn new(name: &'static str, info: &ModelInfo, tokenizer: Option<Tokenizer>) -> Result<Self> {
        let vocabulary =
            tokenizer.as_ref().map(|t| Vocabulary::new(t, info.vocab_size, &info.stop_tokens)).transpose()?;
        Ok(Self {
            name,
            vocab_size: info.vocab_size,
            end_tokens: info.stop_tokens.clone().into(),
            tokenizer,
            compiler: vocabulary.map(|vocabulary| Compiler::new(vocabulary, GrammarLimits::default())),
            masks: Arc::default(),
            workspace: Arc::default(),
        })
    }

    /// Whether replies can be held to a structure.
    pub(crate) fn structures(&self) -> bool {
        self.compiler.is_some()
    }

    /// For log probabilities of a prompt.
    pub(crate) fn workspace(&self) -> Arc<Mutex<Workspace>> {
        Arc::clone(&self.workspace)
    }

    /// Compiles what a request asks for.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a tokenizer, [`ErrorKind::InvalidGrammar`].
    pub(crate) fn structure(&self, structure: &Structure) -> Result<Ready> {
        let compiler = self
            .compiler
            .as_ref()
            .ok_or_else(|| Error::unsupported(self.name, "structured output without a tokenizer"))?;
        let mut matcher = compiler.compile(structure).map_err(|error| error.with_backend(self.name))?;
        let mask = matcher.mask()?;
        Ok((matcher, mask))
    }

    /// A chooser for a reply to this prompt.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] that names the field; [`ErrorKind::Unsupported`] for what needs a tokenizer.
    pub(crate) fn chooser(
        &self,
        sampling: Sampling,
        rules: &StopRules,
        structure: Option<(Ready, StructureScope)>,
        prompt: &Past,
    ) -> Result<Chooser> {
        if let Some((token, _)) = sampling.logit_bias.iter().find(|(token, _)| *token as usize >= self.vocab_size) {
            return Err(Error::new(ErrorKind::InvalidRequest, "a token of the logit bias is beyond the vocabulary")
                .with_context("field", "logit_bias")
                .with_context("token", token.to_string()));
        }
        let needs_text = sampling.dry.as_ref().is_some_and(|dry| !dry.breakers.is_empty());
        Capability::require(!needs_text || self.tokenizer.is_some(), self.name, "DRY's breakers without a tokenizer")?;
        let said = prompt.text_tokens().map(|token| (token, text_of(self.tokenizer.as_ref(), token)));
        let sampler = Sampler::new(sampling, said)?;
        let structured = structure.map(|(ready, scope)| self.structured(ready, scope, prompt));
        Ok(Chooser {
            sampler,
            structured,
            tokenizer: self.tokenizer.clone(),
            masks: Arc::clone(&self.masks),
            workspace: Arc::clone(&self.workspace),
            end_tokens: Arc::clone(&self.end_tokens),
            stop_tokens: rules.tokens.clone(),
            ends: rules.end_tokens,
            min_tokens: rules.min_tokens as usize,
            said: 0,
        })
    }

    fn structured(&self, ready: Ready, scope: StructureScope, prompt: &Past) -> Structured {
        let mut ending: Vec<TokenId> = prompt.text_tokens_reversed().take(OPENING_TOKENS).collect();
        ending.reverse();
        let opening = self.tokenizer.as_ref().map(|t| t.decode(&ending, SpecialText::Show)).unwrap_or_default();
        if scope == StructureScope::Answer && ReplyStart::after(&opening) == ReplyStart::Reasoning {
            Structured::Reasoning { tail: Vec::new(), ready: Box::new(ready) }
        } else {
            Structured::Here { ready: Box::new(ready), line_ends: MOST_LINE_ENDS }
        }
    }
}

fn text_of(tokenizer: Option<&Tokenizer>, token: TokenId) -> &[u8] {
    tokenizer.and_then(|tokenizer| tokenizer.token_bytes(token)).unwrap_or_default()
}

/// How far a reply is in its structure.
enum Structured {
    /// The model reasons freely; the structure begins after that.
    Reasoning { tail: Vec<u8>, ready: Box<Ready> },
    /// What may come next is known. Before an answer's first token the template's line ends may come.
    Here { ready: Box<Ready>, line_ends: usize },
    /// It is being worked out.
    Ahead(Receiver<Result<Ready>>),
    /// It failed, and the reply with it.
    Lost,
}

/// What came of a choice.
pub(crate) enum Choice {
    Token(TokenId),
    /// An end token of the model, which ends the reply.
    End(TokenId),
    /// A stop token of the request.
    Stop(TokenId),
    /// The structure is complete, and the model has no token to say so.
    Complete,
}

/// Chooses the tokens of one reply. It lives as long as the reply, so that one that was suspended and computed anew goes on as
/// if nothing had happened.
pub(crate) struct Chooser {
    sampler: Sampler,
    structured: Option<Structured>,
    tokenizer: Option<Tokenizer>,
    masks: Arc<Masks>,
    workspace: Arc<Mutex<Workspace>>,
    end_tokens: Arc<[TokenId]>,
    stop_tokens: Vec<TokenId>,
    ends: EndTokens,
    min_tokens: usize,
    /// How many tokens it has chosen.
    said: usize,
}

impl Chooser {
    /// Chooses from `row`, `[vocab_size]`, and takes the choice into account.
    pub(crate) fn choose(&mut self, row: &[f32]) -> Result<Choice> {
        if let Some(Structured::Ahead(receiver)) = &self.structured {
            match wait(receiver) {
                Ok(ready) => {
                    self.structured = Some(Structured::Here { ready: Box::new(ready), line_ends: MOST_LINE_ENDS });
                }
                Err(error) => {
                    self.structured = Some(Structured::Lost);
                    return Err(error);
                }
            }
        }
        let early = self.said < self.min_tokens;
        let (mask, at_end) = match &mut self.structured {
            Some(Structured::Here { ready, line_ends }) => {
                let (matcher, mask) = &mut **ready;
                if self.end_tokens.is_empty() && matcher.is_complete() {
                    return Ok(Choice::Complete);
                }
                let mut open = mask.clone();
                if early || self.ends == EndTokens::Ignore {
                    self.end_tokens.iter().for_each(|&token| open.forbid(token));
                }
                if early {
                    self.stop_tokens.iter().for_each(|&token| open.forbid(token));
                }
                // Where nothing else can follow, the end is the end.
                let at_end = open.count() == 0;
                if at_end {
                    open.clone_from(mask);
                }
                if *line_ends < MOST_LINE_ENDS {
                    allow_line_ends(&mut open, self.tokenizer.as_ref(), MOST_LINE_ENDS - *line_ends);
                }
                (Some(open), at_end)
            }
            Some(Structured::Lost) => {
                return Err(Error::new(ErrorKind::Unexpected, "the reply goes on after its structure failed"));
            }
            _ => (None, false),
        };
        let mut forbidden: Vec<TokenId> = Vec::new();
        let reasoning = matches!(self.structured, Some(Structured::Reasoning { .. }));
        // An answer has yet to come.
        if mask.is_none() && (early || reasoning) {
            forbidden.extend(self.end_tokens.iter().chain(&self.stop_tokens));
        }
        let token = self.sample(row, mask.as_ref(), &mut forbidden)?;
        self.said += 1;
        if self.end_tokens.contains(&token) && (self.ends == EndTokens::Stop || at_end) {
            return Ok(Choice::End(token));
        }
        if self.stop_tokens.contains(&token) {
            return Ok(Choice::Stop(token));
        }
        let text = text_of(self.tokenizer.as_ref(), token);
        self.sampler.accept(token, text);
        self.structured = match self.structured.take() {
            Some(Structured::Here { ready, line_ends }) => {
                let (mut matcher, mask) = *ready;
                if mask.allows(token) {
                    matcher.commit(token)?;
                    Some(Structured::Ahead(self.masks.order(matcher)))
                } else {
                    let line_ends = line_ends + text.len();
                    Some(Structured::Here { ready: Box::new((matcher, mask)), line_ends })
                }
            }
            Some(Structured::Reasoning { mut tail, ready }) => {
                tail.extend_from_slice(text);
                Some(match rest_after_reasoning(&tail) {
                    Some(rest) => Structured::Here { line_ends: rest.len(), ready },
                    None => {
                        tail.drain(..tail.len().saturating_sub(END_OF_REASONING.len() - 1));
                        Structured::Reasoning { tail, ready }
                    }
                })
            }
            other => other,
        };
        Ok(Choice::Token(token))
    }

    fn sample(&self, row: &[f32], mask: Option<&TokenMask>, forbidden: &mut Vec<TokenId>) -> Result<TokenId> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..MOST_RETRIES {
            let token = self.sampler.sample(row, Allowed { mask, forbidden }, &mut workspace)?;
            let Some(Structured::Reasoning { tail, .. }) = &self.structured else { return Ok(token) };
            let said = [tail, text_of(self.tokenizer.as_ref(), token)].concat();
            match rest_after_reasoning(&said) {
                // The structure begins with a token.
                Some(rest) if !rest.iter().all(|&byte| byte == b'\n') => forbidden.push(token),
                _ => return Ok(token),
            }
        }
        Err(Error::new(ErrorKind::Unexpected, "the model's vocabulary has no token that ends its reasoning alone"))
    }

    /// Log probabilities of a token under the model's own distribution.
    pub(crate) fn logprobs(&self, row: &[f32], token: TokenId, count: usize) -> Result<PositionLogprobs> {
        logprobs(row, token, count, &mut self.workspace.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What follows the end of the reasoning, if that is there.
fn rest_after_reasoning(said: &[u8]) -> Option<&[u8]> {
    let mark = END_OF_REASONING.as_bytes();
    let place = said.windows(mark.len()).position(|window| window == mark)?;
    said.get(place + mark.len()..)
}

fn allow_line_ends(mask: &mut TokenMask, tokenizer: Option<&Tokenizer>, most: usize) {
    // As byte-level vocabularies spell them.
    for spelling in ["Ċ", "ĊĊ"].into_iter().take(most) {
        if let Some(token) = tokenizer.and_then(|tokenizer| tokenizer.token_to_id(spelling)) {
            mask.allow(token);
        }
    }
}
