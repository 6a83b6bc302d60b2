//! A toy's past: a chain of hashes whose beginning forks share.

use std::rc::Rc;

use consort_core::{ErrorKind, Result, SequenceMemory};

use super::held::{Counter, Held};
use super::{Voice, error};
use crate::fixture::mix;

/// What one token costs.
pub(super) const NODE_BYTES: u64 = 16;
/// What a sequence costs beside its tokens.
pub(super) const STATE_BYTES: u64 = 64;

struct Node {
    hash: u64,
    before: Option<Rc<Node>>,
    held: Held,
}

pub(super) struct Past {
    tip: Option<Rc<Node>>,
    tokens: usize,
    voice: Rc<Voice>,
    reserved: Vec<Held>,
    state: Held,
}

impl Past {
    pub(super) fn new(voice: Rc<Voice>, state: Held) -> Self {
        Self { tip: None, tokens: 0, voice, reserved: Vec::new(), state }
    }

    pub(super) fn share(&self, state: Held) -> Self {
        Self { tip: self.tip.clone(), tokens: self.tokens, voice: Rc::clone(&self.voice), reserved: Vec::new(), state }
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    fn hash(&self) -> u64 {
        self.tip.as_ref().map_or(0x5EED, |node| node.hash)
    }

    /// Appends one token and gives the state after it.
    pub(super) fn push(&mut self, content: u64, place: u64, kv: &Counter) -> u64 {
        let hash = mix(self.hash() ^ mix(content ^ place) ^ mix(self.voice.hash.wrapping_add(1)));
        self.append(hash, kv);
        hash
    }

    fn append(&mut self, hash: u64, kv: &Counter) {
        self.tip = Some(Rc::new(Node { hash, before: self.tip.take(), held: kv.hold(NODE_BYTES) }));
        self.tokens += 1;
    }

    pub(super) fn rollback(&mut self, tokens: usize) -> Result<()> {
        if tokens > self.tokens {
            return Err(error(ErrorKind::InvalidRequest, "the sequence has fewer tokens than are to be taken back"));
        }
        for _ in 0..tokens {
            self.tip = self.tip.take().and_then(|node| node.before.clone());
            self.tokens -= 1;
        }
        Ok(())
    }

    pub(super) fn reserved(&self) -> u64 {
        self.reserved.iter().map(Held::bytes).sum()
    }

    pub(super) fn reserve(&mut self, held: Held) {
        self.reserved.push(held);
    }

    /// Gives back what was reserved for `bytes` that are about to be held.
    pub(super) fn use_reserved(&mut self, mut bytes: u64) {
        while let Some(held) = self.reserved.last_mut() {
            let given = bytes.min(held.bytes());
            held.shrink(given);
            bytes -= given;
            if held.bytes() > 0 {
                break;
            }
            self.reserved.pop();
        }
    }

    pub(super) fn memory(&self) -> SequenceMemory {
        let mut memory = SequenceMemory { unique: self.state.bytes() + self.reserved(), shared: 0 };
        let mut shared = false;
        let mut next = self.tip.as_ref();
        while let Some(node) = next {
            shared |= Rc::strong_count(node) > 1;
            if shared {
                memory.shared += node.held.bytes();
            } else {
                memory.unique += node.held.bytes();
            }
            next = node.before.as_ref();
        }
        memory
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut hashes = Vec::new();
        let mut next = self.tip.as_ref();
        while let Some(node) = next {
            hashes.push(node.hash);
            next = node.before.as_ref();
        }
        hashes.push(self.voice.hash);
        hashes.iter().rev().flat_map(|hash| hash.to_le_bytes()).collect()
    }

    pub(super) fn from_bytes(bytes: &[u8], kv: &Counter, state: Held) -> Option<Self> {
        if !bytes.len().is_multiple_of(8) {
            return None;
        }
        let mut hashes = bytes.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let voice = Voice { hash: hashes.next()?, _weights: Vec::new() };
        let mut past = Self::new(Rc::new(voice), state);
        for hash in hashes {
            past.append(hash, kv);
        }
        Some(past)
    }
}
