//! Don't repeat yourself: how long the end of what was said agrees with earlier places.

use std::collections::HashMap;

use consort_core::{Dry, TokenId};

/// Repetitions that are longer than the allowed length by more than this cost no more than one that is longer by this: with
/// a base above 1.1 nothing is left of such a token's probability.
const MOST_EXCESS: u32 = 256;

/// An earlier place, and how many tokens up to it equal the last ones.
type Match = (usize, u32);

/// Prompt and reply, with the places where their end was said before.
///
/// With `L(i)` the number of tokens up to place `i` that equal the last ones, a token more makes `L'(i) = L(i − 1) + 1` where
/// the same token stands and 0 elsewhere. So only the places of one token are looked at, which are linked.
#[derive(Debug, Clone)]
pub(crate) struct Repetitions {
    dry: Dry,
    tokens: Vec<TokenId>,
    /// For each place, whether a breaker ends in it.
    breaks: Vec<bool>,
    /// For each place, the one before it with the same token, plus one. 0: none.
    before: Vec<u32>,
    /// The last place of each token, plus one.
    last: HashMap<TokenId, u32>,
    /// The latest place first.
    matches: Vec<Match>,
    /// Used by turns with `matches`.
    spare: Vec<Match>,
    /// The last bytes of the text, in which a breaker may have begun.
    tail: Vec<u8>,
}

impl Repetitions {
    /// Reads a prompt. The places are found at its end at once: one by one, a prompt of one token a million times would take
    /// the square of that.
    pub(crate) fn new<'t>(dry: Dry, prompt: impl Iterator<Item = (TokenId, &'t [u8])>) -> Self {
        let mut this = Self {
            dry,
            tokens: Vec::new(),
            breaks: Vec::new(),
            before: Vec::new(),
            last: HashMap::new(),
            matches: Vec::new(),
            spare: Vec::new(),
            tail: Vec::new(),
        };
        for (token, text) in prompt {
            this.append(token, text);
        }
        this.find_matches();
        this
    }

    pub(crate) fn push(&mut self, token: TokenId, text: &[u8]) {
        self.append(token, text);
        let here = self.tokens.len() - 1;
        self.spare.clear();
        if !self.breaks.get(here).copied().unwrap_or(true) {
            let mut old = self.matches.iter().copied().peekable();
            let mut place = self.earlier(here);
            let begin = self.window_begin();
            while let Some(at) = place.filter(|&at| at >= begin) {
                while old.next_if(|&(other, _)| other + 1 > at).is_some() {}
                let length = old.next_if(|&(other, _)| other + 1 == at).map_or(0, |(_, length)| length);
                self.spare.push((at, length.saturating_add(1)));
                place = self.earlier(at);
            }
        }
        std::mem::swap(&mut self.matches, &mut self.spare);
    }

    fn append(&mut self, token: TokenId, text: &[u8]) {
        let here = self.tokens.len();
        self.tokens.push(token);
        // A sequence has far fewer than 2³² tokens.
        let mark = u32::try_from(here + 1).unwrap_or(u32::MAX);
        self.before.push(self.last.insert(token, mark).unwrap_or(0));
        let known = self.tail.len();
        self.tail.extend_from_slice(text);
        let tail = &self.tail;
        let ends_here = |breaker: &String| {
            let breaker = breaker.as_bytes();
            let from = (known + 1).saturating_sub(breaker.len());
            tail.get(from..).is_some_and(|rest| rest.windows(breaker.len()).any(|window| window == breaker))
        };
        self.breaks.push(self.dry.breakers.iter().any(ends_here));
        let longest = self.dry.breakers.iter().map(String::len).max().unwrap_or(1);
        self.tail.drain(..self.tail.len().saturating_sub(longest.saturating_sub(1)));
    }

    fn earlier(&self, place: usize) -> Option<usize> {
        self.before.get(place).and_then(|&mark| (mark as usize).checked_sub(1))
    }

    fn window_begin(&self) -> usize {
        self.dry.window.map_or(0, |window| self.tokens.len().saturating_sub(window as usize))
    }

    /// The places where the end stands before, by the Z function of the reversed text: linear.
    fn find_matches(&mut self) {
        self.matches.clear();
        let seen = &self.tokens[self.window_begin()..];
        let length = seen.len();
        let since_break = self.breaks.iter().rev().take(length).take_while(|&&breaks| !breaks).count();
        let at = |index: usize| seen[length - 1 - index];
        let mut z = vec![0usize; length];
        let (mut left, mut right) = (0, 0);
        for index in 1..length {
            let mut agreed = if index < right { z[index - left].min(right - index) } else { 0 };
            while index + agreed < length && at(agreed) == at(index + agreed) {
                agreed += 1;
            }
            if index + agreed > right {
                (left, right) = (index, index + agreed);
            }
            z[index] = agreed;
            let agreed = agreed.min(since_break);
            if agreed > 0 {
                let place = self.tokens.len() - 1 - index;
                self.matches.push((place, u32::try_from(agreed).unwrap_or(u32::MAX)));
            }
        }
    }

    /// Lowers the logits of tokens that would continue a repetition.
    pub(crate) fn penalise(&self, row: &mut [f32], longest: &mut HashMap<TokenId, u32>) {
        longest.clear();
        let begin = self.window_begin();
        for &(place, length) in &self.matches {
            // What has left the window agrees with nothing.
            let within = u32::try_from((place + 1).saturating_sub(begin)).unwrap_or(u32::MAX);
            let length = length.min(within);
            if length < self.dry.allowed_length || self.breaks.get(place + 1).copied().unwrap_or(true) {
                continue;
            }
            if let Some(&next) = self.tokens.get(place + 1) {
                let known = longest.entry(next).or_default();
                *known = length.max(*known);
            }
        }
        for (&token, &length) in longest.iter() {
            let Some(logit) = row.get_mut(token as usize) else { continue };
            let excess = (length - self.dry.allowed_length).min(MOST_EXCESS);
            let penalty = f64::from(self.dry.multiplier) * f64::from(self.dry.base).powi(excess as i32);
            if *logit > f32::NEG_INFINITY {
                // However large, it forbids nothing for good: of tokens that are all repetitions one can still be chosen.
                *logit = (f64::from(*logit) - penalty).max(f64::from(f32::MIN)) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Token `t` is written as one letter, and token 4 as a line's end.
    fn text(token: TokenId) -> &'static [u8] {
        [&b"a"[..], b"b", b"ccc", b"", b"\n"].get(token as usize).copied().unwrap_or_default()
    }

    /// The definition, place by place and length by length.
    fn by_definition(dry: &Dry, tokens: &[TokenId], row: &mut [f32]) {
        let seen = &tokens[tokens.len().saturating_sub(dry.window.map_or(usize::MAX, |w| w as usize))..];
        let mut longest = [0; 5];
        let breaks = |tokens: &[TokenId]| {
            // A breaker ends in the last of these tokens.
            let all: Vec<u8> = tokens.iter().flat_map(|&t| text(t)).copied().collect();
            let last = tokens.last().map_or(0, |&t| text(t).len());
            dry.breakers.iter().any(|breaker| (0..last).any(|cut| all[..all.len() - cut].ends_with(breaker.as_bytes())))
        };
        let offset = tokens.len() - seen.len();
        for length in 1..seen.len() {
            let suffix = &seen[seen.len() - length..];
            if (seen.len() - length..seen.len()).any(|i| breaks(&tokens[..offset + i + 1])) {
                break;
            }
            for end in length..seen.len() {
                if &seen[end - length..end] == suffix && !breaks(&tokens[..offset + end + 1]) {
                    let next = seen[end] as usize;
                    longest[next] = longest[next].max(length as u32);
                }
            }
        }
        for (token, &length) in longest.iter().enumerate() {
            if length >= dry.allowed_length {
                row[token] -= dry.multiplier * dry.base.powi((length - dry.allowed_length) as i32);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn places_kept_up_equal_the_definition(
            tokens in proptest::collection::vec(prop_oneof![6 => 0u32..3, 1 => 3u32..5], 1..60),
            cut in 0usize..60, window in proptest::option::of(1u32..40), allowed_length in 1u32..4,
            breakers in proptest::sample::select(vec![vec![], vec!["\n"], vec!["ac", "\n"], vec!["cb", "bab"]]),
        ) {
            let breakers = breakers.into_iter().map(String::from).collect();
            let dry = Dry { multiplier: 0.5, base: 1.25, allowed_length, window, breakers };
            let (prompt, reply) = tokens.split_at(cut.min(tokens.len()));
            let mut state = Repetitions::new(dry.clone(), prompt.iter().map(|&t| (t, text(t))));
            reply.iter().for_each(|&t| state.push(t, text(t)));
            let (mut got, mut expected) = (vec![1.0f32; 5], vec![1.0f32; 5]);
            state.penalise(&mut got, &mut HashMap::new());
            by_definition(&dry, &tokens, &mut expected);
            for (got, expected) in got.iter().zip(&expected) {
                prop_assert!((got - expected).abs() <= 1e-3 * expected.abs().max(1.0), "{got} {expected} {tokens:?}");
            }
        }
    }

    #[test]
    fn a_long_monotonous_prompt_takes_no_square_of_time() {
        let dry = Dry { breakers: Vec::new(), ..Dry::default() };
        let begin = std::time::Instant::now();
        let mut state = Repetitions::new(dry, (0..200_000).map(|_| (1, &b"b"[..])));
        for _ in 0..50 {
            state.push(1, b"b");
        }
        let mut row = vec![0.0; 5];
        state.penalise(&mut row, &mut HashMap::new());
        assert!(row[1] < -1e30 && row[1].is_finite() && row[0] == 0.0);
        // 4·10¹⁰ steps would take a minute.
        assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
    }
}
