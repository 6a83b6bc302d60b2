//! Pasts that are kept, by the key of what they hold.
//!
//! A hybrid model's state cannot be cut, so an entry is usable only as a whole: the cache finds the longest one that is a
//! prefix of a prompt. It also remembers the prompts of late, for the place where two of them part is where the next of
//! their siblings will part as well (the personas of one room).

use std::collections::{BTreeMap, HashMap, VecDeque};

use consort_core::{AdapterKey, AdapterSet, Parked};

use crate::past::{ChainKey, common_prefix};

/// Tokens of remembered prompts, eight bytes each.
const MAX_REMEMBERED_TOKENS: usize = 1 << 20;

struct Entry {
    parked: Parked,
    adapters: AdapterSet,
    tokens: usize,
    bytes: u64,
    /// Place in the order of use.
    stamp: u64,
}

/// The cache. Bounded in bytes and entries; the least recently used entry goes first.
pub(crate) struct PrefixCache {
    entries: HashMap<ChainKey, Entry>,
    /// Lengths that occur, with how often.
    lengths: BTreeMap<usize, usize>,
    order: BTreeMap<u64, ChainKey>,
    stamp: u64,
    bytes: u64,
    max_bytes: u64,
    max_entries: usize,
    evicted: u64,
    /// Prompts of late, as the first eight bytes of each key: a guess where to keep, never a proof of equality.
    remembered: VecDeque<Vec<u64>>,
    remembered_tokens: usize,
    max_remembered: usize,
}

impl PrefixCache {
    pub(crate) fn new(max_bytes: u64, max_entries: usize, max_remembered: usize) -> Self {
        Self {
            entries: HashMap::new(),
            lengths: BTreeMap::new(),
            order: BTreeMap::new(),
            stamp: 0,
            bytes: 0,
            max_bytes,
            max_entries: if max_bytes == 0 { 0 } else { max_entries },
            evicted: 0,
            remembered: VecDeque::new(),
            remembered_tokens: 0,
            max_remembered,
        }
    }

    /// Whether anything can be kept.
    pub(crate) fn is_enabled(&self) -> bool {
        self.max_entries > 0
    }

    /// The longest entry that is a prefix of a prompt with these keys and has at most `limit` tokens.
    pub(crate) fn find(&mut self, keys: &[ChainKey], limit: usize) -> Option<Parked> {
        let length = self.longest(keys, limit);
        let key = keys.get(length.checked_sub(1)?)?;
        self.stamp += 1;
        let entry = self.entries.get_mut(key)?;
        self.order.remove(&entry.stamp);
        entry.stamp = self.stamp;
        self.order.insert(self.stamp, *key);
        Some(entry.parked.clone())
    }

    /// How many tokens [`find`](Self::find) would give.
    pub(crate) fn longest(&self, keys: &[ChainKey], limit: usize) -> usize {
        let limit = limit.min(keys.len());
        let mut lengths = self.lengths.range(..=limit).rev().map(|(&length, _)| length);
        lengths.find(|&length| length > 0 && self.entries.contains_key(&keys[length - 1])).unwrap_or(0)
    }

    /// Whether this past is kept.
    pub(crate) fn contains(&self, key: &ChainKey) -> bool {
        self.entries.contains_key(key)
    }

    /// Keeps a past, at the cost of the least recently used ones.
    pub(crate) fn insert(&mut self, key: ChainKey, parked: Parked, adapters: AdapterSet) {
        // Even a past that shares all its memory takes a place.
        let bytes = parked.bytes().max(1);
        if !self.is_enabled() || bytes > self.max_bytes || self.contains(&key) {
            return;
        }
        while self.entries.len() >= self.max_entries || self.bytes + bytes > self.max_bytes {
            if !self.evict() {
                return;
            }
        }
        self.stamp += 1;
        let tokens = parked.tokens();
        *self.lengths.entry(tokens).or_default() += 1;
        self.order.insert(self.stamp, key);
        self.bytes += bytes;
        self.entries.insert(key, Entry { parked, adapters, tokens, bytes, stamp: self.stamp });
    }

    /// Gives the least recently used past up. `false` when there is none.
    pub(crate) fn evict(&mut self) -> bool {
        let Some((_, &key)) = self.order.first_key_value() else { return false };
        self.remove(&key);
        self.evicted += 1;
        true
    }

    /// Gives up every past that an adapter touched: no request can name that generation again.
    pub(crate) fn purge(&mut self, adapter: &AdapterKey) {
        let touched = |entry: &Entry| entry.adapters.bindings().iter().any(|binding| binding.key == *adapter);
        let keys: Vec<_> = self.entries.iter().filter(|(_, entry)| touched(entry)).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: &ChainKey) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.order.remove(&entry.stamp);
        self.bytes -= entry.bytes;
        if let Some(count) = self.lengths.get_mut(&entry.tokens) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&entry.tokens);
            }
        }
    }

    /// Where a prompt parts from the one of late that it shares most with.
    pub(crate) fn parting(&self, keys: &[ChainKey]) -> usize {
        let short: Vec<u64> = keys.iter().map(shortened).collect();
        self.remembered.iter().map(|other| common_prefix(&short, other)).max().unwrap_or(0)
    }

    /// Remembers a prompt for [`parting`](Self::parting).
    pub(crate) fn remember(&mut self, keys: &[ChainKey]) {
        if !self.is_enabled() || self.max_remembered == 0 || keys.len() > MAX_REMEMBERED_TOKENS {
            return;
        }
        self.remembered_tokens += keys.len();
        self.remembered.push_back(keys.iter().map(shortened).collect());
        while self.remembered.len() > self.max_remembered || self.remembered_tokens > MAX_REMEMBERED_TOKENS {
            let Some(oldest) = self.remembered.pop_front() else { break };
            self.remembered_tokens -= oldest.len();
        }
    }

    /// Entries, their bytes, and how many were evicted so far.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (self.entries.len() as u64, self.bytes, self.evicted)
    }
}

fn shortened(key: &ChainKey) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&key[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn keys(content: &[u8]) -> Vec<ChainKey> {
        let mut key = [0; 32];
        content
            .iter()
            .map(|&item| {
                key = blake3::hash(&[&key[..], &[item]].concat()).into();
                key
            })
            .collect()
    }

    fn keep(cache: &mut PrefixCache, content: &[u8], bytes: u64) {
        if let Some(key) = keys(content).last() {
            cache.insert(*key, Parked::new(Rc::new(()), content.len(), bytes), AdapterSet::none());
        }
    }

    #[test]
    fn the_longest_usable_entry_is_found() {
        let mut cache = PrefixCache::new(100, 10, 4);
        keep(&mut cache, b"ab", 1);
        keep(&mut cache, b"abcd", 1);
        keep(&mut cache, b"abx", 1);
        let found = |cache: &mut PrefixCache, content: &[u8], limit| {
            cache.find(&keys(content), limit).map(|parked| parked.tokens())
        };
        assert_eq!(found(&mut cache, b"abcde", 4), Some(4));
        assert_eq!(found(&mut cache, b"abcd", 3), Some(2));
        assert_eq!(found(&mut cache, b"abxd", 3), Some(3));
        assert_eq!(found(&mut cache, b"zb", 2), None);
        assert_eq!(found(&mut cache, b"", 0), None);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_bytes_are_bounded() {
        let mut cache = PrefixCache::new(10, 3, 4);
        keep(&mut cache, b"a", 4);
        keep(&mut cache, b"b", 4);
        assert!(cache.find(&keys(b"a"), 1).is_some());
        keep(&mut cache, b"c", 4);
        assert!(cache.find(&keys(b"b"), 1).is_none() && cache.find(&keys(b"a"), 1).is_some());
        keep(&mut cache, b"d", 11);
        assert_eq!(cache.counts(), (2, 8, 1));
        for content in [b"e", b"f", b"g", b"h"] {
            keep(&mut cache, content, 0);
        }
        assert!(cache.counts().0 == 3 && cache.counts().1 <= 10);
        while cache.evict() {}
        assert_eq!((cache.counts().0, cache.counts().1, cache.lengths.len(), cache.order.len()), (0, 0, 0, 0));
    }

    #[test]
    fn prompts_of_late_tell_where_siblings_part() {
        let mut cache = PrefixCache::new(10, 3, 2);
        cache.remember(&keys(b"scene, persona one"));
        assert_eq!(cache.parting(&keys(b"scene, persona two")), 15);
        cache.remember(&keys(b"x"));
        cache.remember(&keys(b"y"));
        assert_eq!(cache.parting(&keys(b"scene, persona two")), 0);
    }
}
