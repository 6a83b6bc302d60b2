//! Pasts that are kept, by the key of what they hold.
//!
//! A hybrid model's state cannot be cut, so an entry is usable only as a whole: the cache finds the longest one that is a
//! prefix of a prompt. It also remembers the prompts of late, for the place where two of them part is where the next of
//! their siblings will part as well (the personas of one room).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use consort_core::{AdapterKey, AdapterSet, Parked};

use crate::clock::Clock;
use crate::past::{ChainKey, common_prefix};
use crate::value::{Appraiser, Value};

/// Tokens of remembered prompts, eight bytes each.
const MAX_REMEMBERED_TOKENS: usize = 1 << 20;

struct Entry {
    parked: Parked,
    adapters: AdapterSet,
    tokens: usize,
    bytes: u64,
    place: Place,
}

/// An entry's place in the order of what is given up first: its value, and of equal values the longer unused.
type Place = (Value, u64);

/// What bounds the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) entries: usize,
    /// Prompts that are remembered.
    pub(crate) remembered: usize,
    /// After how long without use an entry is worth half.
    pub(crate) half_life: Duration,
}

/// The cache. Bounded in bytes and entries; the [least valuable](crate::value) entry goes first.
pub(crate) struct PrefixCache {
    clock: Clock,
    appraiser: Appraiser,
    entries: HashMap<ChainKey, Entry>,
    /// Lengths that occur, with how often.
    lengths: BTreeMap<usize, usize>,
    order: BTreeMap<Place, ChainKey>,
    /// Counts uses.
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
    pub(crate) fn new(limits: Limits, clock: Clock) -> Self {
        let Limits { bytes: max_bytes, entries: max_entries, remembered: max_remembered, half_life } = limits;
        Self {
            appraiser: Appraiser::new(clock.now(), half_life),
            clock,
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
        let now = self.clock.now();
        let entry = self.entries.get_mut(key)?;
        self.order.remove(&entry.place);
        self.stamp += 1;
        entry.place = (self.appraiser.value(entry.tokens, entry.bytes, now), self.stamp);
        self.order.insert(entry.place, *key);
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

    /// Keeps a past, at the cost of those that are worth less. One that is worth less than what it would cost is not kept.
    pub(crate) fn insert(&mut self, key: ChainKey, parked: Parked, adapters: AdapterSet) {
        // Even a past that shares all its memory takes a place.
        let bytes = parked.bytes().max(1);
        if !self.is_enabled() || bytes > self.max_bytes || self.contains(&key) {
            return;
        }
        let tokens = parked.tokens();
        self.stamp += 1;
        let place = (self.appraiser.value(tokens, bytes, self.clock.now()), self.stamp);
        // What it would cost, before any of it is given up.
        let (mut entries, mut freed) = (self.entries.len(), 0);
        for (other, key) in &self.order {
            if entries < self.max_entries && self.bytes - freed + bytes <= self.max_bytes {
                break;
            }
            if *other > place {
                return;
            }
            entries -= 1;
            freed += self.entries.get(key).map_or(0, |entry| entry.bytes);
        }
        while self.entries.len() > entries {
            if !self.evict() {
                return;
            }
        }
        *self.lengths.entry(tokens).or_default() += 1;
        self.order.insert(place, key);
        self.bytes += bytes;
        self.entries.insert(key, Entry { parked, adapters, tokens, bytes, place });
    }

    /// Gives the least valuable past up. `false` when there is none.
    pub(crate) fn evict(&mut self) -> bool {
        let Some((_, &key)) = self.order.first_key_value() else { return false };
        self.remove(&key);
        self.evicted += 1;
        true
    }

    /// Gives everything up, and forgets the prompts of late.
    pub(crate) fn clear(&mut self) {
        while self.evict() {}
        self.remembered.clear();
        self.remembered_tokens = 0;
    }

    /// Gives up every past that an adapter touched: no request can name that generation again.
    pub(crate) fn purge(&mut self, adapter: &AdapterKey) {
        let touched = |entry: &Entry| entry.adapters.bindings().iter().any(|binding| binding.key == *adapter);
        let keys: Vec<_> = self.entries.iter().filter(|(_, entry)| touched(entry)).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    fn remove(&mut self, key: &ChainKey) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.order.remove(&entry.place);
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
    #![allow(clippy::unwrap_used)]
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::VirtualClock;

    fn cache(bytes: u64, entries: usize, remembered: usize) -> (PrefixCache, VirtualClock) {
        let clock = VirtualClock::default();
        let limits = Limits { bytes, entries, remembered, half_life: Duration::from_secs(60) };
        (PrefixCache::new(limits, Clock::Virtual(clock.clone())), clock)
    }

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
        let (mut cache, _) = cache(100, 10, 4);
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
    fn of_equals_the_least_recently_used_goes_first_and_bytes_are_bounded() {
        let (mut cache, _) = cache(10, 3, 4);
        keep(&mut cache, b"a", 4);
        keep(&mut cache, b"b", 4);
        assert!(cache.find(&keys(b"a"), 1).is_some());
        keep(&mut cache, b"c", 4);
        assert!(cache.find(&keys(b"b"), 1).is_none() && cache.find(&keys(b"a"), 1).is_some());
        keep(&mut cache, b"d", 11);
        assert_eq!(cache.counts(), (2, 8, 1));
        // What shares all its memory is worth more than what does not.
        for content in [b"e", b"f", b"g", b"h"] {
            keep(&mut cache, content, 0);
        }
        assert!(cache.counts().0 == 3 && cache.counts().1 <= 10);
        while cache.evict() {}
        assert_eq!((cache.counts().0, cache.counts().1, cache.lengths.len(), cache.order.len()), (0, 0, 0, 0));
    }

    #[test]
    fn prompts_of_late_tell_where_siblings_part() {
        let (mut cache, _) = cache(10, 3, 2);
        cache.remember(&keys(b"scene, persona one"));
        assert_eq!(cache.parting(&keys(b"scene, persona two")), 15);
        cache.remember(&keys(b"x"));
        cache.remember(&keys(b"y"));
        assert_eq!(cache.parting(&keys(b"scene, persona two")), 0);
    }

    #[test]
    fn what_is_worth_less_than_its_cost_is_not_kept() {
        let (mut cache, clock) = cache(10, 10, 0);
        keep(&mut cache, b"a long prompt", 6);
        keep(&mut cache, b"short", 4);
        // Both would have to go, and the long one is worth more: neither is lost for it.
        keep(&mut cache, b"middle", 8);
        assert_eq!(cache.counts(), (2, 10, 0));
        // Two half-lives later the short one goes, and the long one stays.
        clock.advance(Duration::from_secs(120));
        keep(&mut cache, b"m", 3);
        assert!(
            !cache.contains(keys(b"short").last().unwrap()) && cache.contains(keys(b"a long prompt").last().unwrap())
        );
        cache.clear();
        assert_eq!(cache.counts(), (0, 0, 3));
    }

    /// The same by the formula itself, over a list.
    #[derive(Default)]
    struct Model {
        /// (content, bytes, last used at which half-life, stamp)
        entries: Vec<(Vec<u8>, u64, u32, u64)>,
        stamp: u64,
    }

    impl Model {
        fn value(entry: &(Vec<u8>, u64, u32, u64), now: u32) -> (f64, u64) {
            let age = f64::from(now - entry.2);
            (entry.0.len() as f64 / entry.1 as f64 * (-age).exp2(), entry.3)
        }

        fn least(&self, now: u32) -> Option<usize> {
            let order = |a: &(f64, u64), b: &(f64, u64)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            (0..self.entries.len())
                .min_by(|&a, &b| order(&Self::value(&self.entries[a], now), &Self::value(&self.entries[b], now)))
        }

        fn insert(&mut self, content: &[u8], bytes: u64, now: u32, max_bytes: u64, max_entries: usize) {
            if bytes > max_bytes || self.entries.iter().any(|entry| entry.0 == content) {
                return;
            }
            self.stamp += 1;
            let new = (content.to_vec(), bytes, now, self.stamp);
            let mut rest = Self { entries: self.entries.clone(), stamp: 0 };
            while rest.entries.len() >= max_entries
                || rest.entries.iter().map(|entry| entry.1).sum::<u64>() + bytes > max_bytes
            {
                let Some(least) = rest.least(now) else { return };
                let (one, other) = (Self::value(&rest.entries[least], now), Self::value(&new, now));
                if one.0 > other.0 {
                    return;
                }
                rest.entries.remove(least);
            }
            self.entries = rest.entries;
            self.entries.push(new);
        }

        fn find(&mut self, content: &[u8], now: u32) -> Option<usize> {
            let best =
                self.entries.iter_mut().filter(|entry| content.starts_with(&entry.0)).max_by_key(|e| e.0.len())?;
            self.stamp += 1;
            (best.2, best.3) = (now, self.stamp);
            Some(best.0.len())
        }
    }

    proptest! {
        /// Lengths and bytes are powers of two and times whole half-lives, so that both ways of computing are exact.
        #[test]
        fn the_cache_keeps_what_the_formula_keeps(
            steps in prop::collection::vec((0..3_u8, 0..4_u32, 0..4_u32, 0..3_u8, 0..3_u32), 1..60),
            max_bytes in 4..20_u64,
            max_entries in 1..6_usize,
        ) {
            let (mut cache, clock) = cache(max_bytes, max_entries, 0);
            let (mut model, mut now) = (Model::default(), 0);
            for (kind, length, bytes, content, later) in steps {
                let content = vec![content; 1 << length];
                match kind {
                    0 => {
                        keep(&mut cache, &content, 1 << bytes);
                        model.insert(&content, 1 << bytes, now, max_bytes, max_entries);
                    }
                    1 => {
                        let found = cache.find(&keys(&content), content.len()).map(|parked| parked.tokens());
                        prop_assert_eq!(found, model.find(&content, now));
                    }
                    _ => {
                        now += later;
                        clock.advance(Duration::from_secs(60) * later);
                    }
                }
                let bytes = model.entries.iter().map(|entry| entry.1).sum::<u64>();
                prop_assert_eq!((cache.counts().0, cache.counts().1), (model.entries.len() as u64, bytes));
                prop_assert!(model.entries.iter().all(|entry| cache.contains(keys(&entry.0).last().unwrap())));
                prop_assert!(bytes <= max_bytes && model.entries.len() <= max_entries);
                prop_assert_eq!(cache.order.len(), model.entries.len());
            }
        }
    }
}
