//! A toy's past: a chain of hashes whose beginning forks share.

use std::rc::Rc;

use consort_core::{AdapterBinding, AdapterKey, AdapterSet, ErrorKind, Result, SequenceMemory};

use super::held::{Counter, Held};
use super::{Weights, error};
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
    adapters: AdapterSet,
    /// Of each binding, in order; none where it is parked.
    weights: Vec<Rc<Weights>>,
    reserved: Vec<Held>,
    state: Held,
}

impl Past {
    pub(super) fn new(adapters: AdapterSet, weights: Vec<Rc<Weights>>, state: Held) -> Self {
        Self { tip: None, tokens: 0, adapters, weights, reserved: Vec::new(), state }
    }

    /// The same past, to go on with these adapters.
    pub(super) fn share(&self, adapters: AdapterSet, weights: Vec<Rc<Weights>>, state: Held) -> Self {
        Self { tip: self.tip.clone(), tokens: self.tokens, ..Self::new(adapters, weights, state) }
    }

    pub(super) fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    pub(super) fn weights(&self) -> &[Rc<Weights>] {
        &self.weights
    }

    /// What the adapters that are active at the next token make of it.
    fn voice(&self) -> u64 {
        let active = self.adapters.bindings().iter().zip(&self.weights);
        let active = active.filter(|(binding, _)| binding.is_active_at(self.tokens));
        active.fold(0, |voice, (binding, weights)| voice ^ mix(weights.hash ^ mix(u64::from(binding.scale.to_bits()))))
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    fn hash(&self) -> u64 {
        self.tip.as_ref().map_or(0x5EED, |node| node.hash)
    }

    /// Appends one token and gives the state after it.
    pub(super) fn push(&mut self, content: u64, place: u64, kv: &Counter) -> u64 {
        let hash = mix(self.hash() ^ mix(content ^ place) ^ mix(self.voice().wrapping_add(1)));
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

    /// The adapters' keys and the hashes, as words.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut words = vec![self.adapters.bindings().len() as u64];
        for AdapterBinding { key, scale, active_from } in self.adapters.bindings() {
            words.extend([key.generation, u64::from(scale.to_bits()), *active_from as u64, key.id.len() as u64]);
            words.extend(key.id.bytes().map(u64::from));
        }
        let mut hashes = Vec::new();
        let mut next = self.tip.as_ref();
        while let Some(node) = next {
            hashes.push(node.hash);
            next = node.before.as_ref();
        }
        words.extend(hashes.iter().rev());
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    pub(super) fn from_bytes(bytes: &[u8], kv: &Counter, state: Held) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut bindings = Vec::new();
        for _ in 0..words.next()? {
            let (generation, scale) = (words.next()?, f32::from_bits(words.next()? as u32));
            let (active_from, length) = (words.next()? as usize, words.next()? as usize);
            let id: Vec<u8> = words.by_ref().take(length).map(|byte| byte as u8).collect();
            let key = AdapterKey { id: String::from_utf8(id).ok()?.into(), generation };
            bindings.push(AdapterBinding { key, scale, active_from });
        }
        let mut past = Self::new(AdapterSet::new(bindings).ok()?, Vec::new(), state);
        for hash in words {
            past.append(hash, kv);
        }
        Some(past)
    }
}
