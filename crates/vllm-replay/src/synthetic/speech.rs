//! The model that everybody knows, and one reply of it.

use crate::synthetic::{Imitation, Reply};

/// The token after `last`: `(31 × last + 7 + the sum of the adapter name's bytes) mod ordinary`. Without an adapter the name is
/// empty.
///
/// ```
/// use consort_vllm_replay::next_token;
///
/// assert_eq!(next_token(3, "", 1266), 100);
/// assert_eq!(next_token(3, "a", 1266), 197);
/// ```
#[must_use]
pub fn next_token(last: u32, adapter: &str, ordinary: u32) -> u32 {
    let adapter: u64 = adapter.bytes().map(u64::from).sum();
    let next = (u64::from(last) * 31 + 7 + adapter) % u64::from(ordinary.max(1));
    u32::try_from(next).unwrap_or_default()
}

/// What a request wants.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) prompt: Vec<u32>,
    pub(super) adapter: String,
    pub(super) max_tokens: u32,
    pub(super) ignore_end: bool,
    pub(super) stop_tokens: Vec<u32>,
    /// How many of the most probable tokens to tell, if log probabilities are wanted.
    pub(super) logprobs: Option<u32>,
}

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    Length,
    End,
    Stop(u32),
}

impl Finish {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::End | Self::Stop(_) => "stop",
        }
    }

    /// `stop_reason` in JSON.
    pub(super) fn stop_reason(self) -> String {
        match self {
            Self::Stop(token) => token.to_string(),
            Self::Length | Self::End => "null".into(),
        }
    }
}

/// One token of a reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spoken {
    pub(super) token: u32,
    /// The token's place, from 0.
    pub(super) place: u32,
    /// With the last one, why it is the last.
    pub(super) finish: Option<Finish>,
}

/// A reply, token by token.
pub(super) fn speak(imitation: &Imitation, wish: &Wish) -> impl Iterator<Item = Spoken> + Send + use<> {
    let config = &imitation.config;
    let (reply, end, ordinary) = (config.reply.clone(), config.end_token, config.ordinary);
    let room = config.max_model_len.saturating_sub(u32::try_from(wish.prompt.len()).unwrap_or(u32::MAX));
    let most = wish.max_tokens.min(room).max(1);
    let (adapter, ignore_end, stops) = (wish.adapter.clone(), wish.ignore_end, wish.stop_tokens.clone());
    let mut last = wish.prompt.last().copied().unwrap_or_default();
    let mut place = 0;
    let mut over = false;
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let said = match &reply {
            Reply::Model { tokens } => {
                tokens.is_none_or(|tokens| place < tokens).then(|| next_token(last, &adapter, ordinary))
            }
            Reply::Tokens(tokens) => tokens.get(place as usize).copied(),
        };
        let token = match said {
            Some(token) => token,
            None if ignore_end => next_token(last, &adapter, ordinary),
            None => end,
        };
        let finish = if said.is_none() && !ignore_end {
            Some(Finish::End)
        } else if stops.contains(&token) {
            Some(Finish::Stop(token))
        } else if place + 1 >= most {
            Some(Finish::Length)
        } else {
            None
        };
        let spoken = Spoken { token, place, finish };
        over = finish.is_some();
        last = token;
        place += 1;
        Some(spoken)
    })
}

/// The `nth` most probable token instead of `token`, and its log probability: the token itself with -0.5, and each further one,
/// whose number is one higher, with one less.
pub(super) fn alternative(token: u32, nth: u32, ordinary: u32) -> (u32, f32) {
    #[allow(clippy::cast_precision_loss)]
    let logprob = -0.5 - nth as f32;
    if nth == 0 { (token, logprob) } else { ((token + nth) % ordinary.max(1), logprob) }
}
