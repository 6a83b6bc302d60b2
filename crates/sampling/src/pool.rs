//! Who may still be chosen, after each filter.

use std::cmp::Ordering;

use consort_core::{TokenId, Xtc};

use crate::random::{Purpose, uniform};
use crate::row::{self, BLOCK, Candidate, LANES, best_first, exp};

/// Buckets of the histogram that finds a filter's border.
const BUCKETS: usize = 2048;
/// Buckets a nat: what lies 32 nats out is never within a filter's mass.
const BUCKETS_PER_NAT: f32 = 64.0;
/// Where a nucleus is looked for first: it is small as a rule.
const USUAL_NUCLEUS: usize = 256;

/// Buffers of the filters.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    list: Vec<Candidate>,
    spare: Vec<Candidate>,
    histogram: Vec<f64>,
}

/// Who may still be chosen: all of a row that have at least a certain logit, or those on a list, in ascending order of ids.
pub(crate) struct Pool<'a> {
    row: &'a [f32],
    buffers: &'a mut Buffers,
    /// The highest logit among them.
    top: f32,
    /// While there is no list: the lowest.
    floor: f32,
    listed: bool,
}

/// By how far a token is from where a filter begins: the nearer first; of equal ones the better.
fn nearest_first(key: impl Fn(f32) -> f32) -> impl Fn(&Candidate, &Candidate) -> Ordering {
    move |a, b| key(a.1).partial_cmp(&key(b.1)).unwrap_or(Ordering::Equal).then(best_first(a, b))
}

impl<'a> Pool<'a> {
    /// All of a row, whose highest logit is `top`.
    pub(crate) fn new(row: &'a [f32], top: f32, buffers: &'a mut Buffers) -> Self {
        Self { row, buffers, top, floor: f32::MIN, listed: false }
    }

    /// Keeps who satisfies `keep`, on a list.
    fn retain(&mut self, keep: impl Fn(&Candidate) -> bool) {
        if self.listed {
            self.buffers.list.retain(keep);
        } else {
            let list = &mut self.buffers.list;
            list.clear();
            row::at_least(self.row, self.floor, |candidate| {
                if keep(&candidate) {
                    list.push(candidate);
                }
            });
            self.listed = true;
        }
    }

    fn find_top(&mut self) {
        if self.listed {
            self.top = self.buffers.list.iter().map(|candidate| candidate.1).fold(f32::NEG_INFINITY, f32::max);
        }
    }

    /// Σ eᵈ and Σ d·eᵈ with d = logit − top.
    fn moments(&self) -> (f64, f64) {
        if !self.listed {
            return row::moments(self.row, self.top, self.floor);
        }
        let (mut mass, mut moment) = (0.0, 0.0);
        for &(_, logit) in &self.buffers.list {
            let distance = logit - self.top;
            let weight = f64::from(exp(distance));
            mass += weight;
            moment += weight * f64::from(distance);
        }
        (mass, moment)
    }

    fn mass(&self) -> f64 {
        if self.listed { self.moments().0 } else { row::mass(self.row, self.top, self.floor) }
    }

    pub(crate) fn top_n_sigma(&mut self, sigmas: f32) {
        let (_, deviation) = row::spread(self.row, self.top);
        self.raise_floor((f64::from(self.top) - f64::from(sigmas) * deviation) as f32);
    }

    fn raise_floor(&mut self, floor: f32) {
        if self.listed {
            self.buffers.list.retain(|candidate| candidate.1 >= floor);
        } else {
            self.floor = self.floor.max(floor);
        }
    }

    pub(crate) fn top_k(&mut self, k: usize) {
        if k == 0 || k >= self.row.len() {
            return;
        }
        let floor = self.floor;
        row::best(self.row, k, &mut self.buffers.list);
        self.buffers.list.retain(|candidate| candidate.1 >= floor);
        if k <= BLOCK {
            self.buffers.list.sort_unstable_by_key(|candidate| candidate.0);
            self.listed = true;
        } else if let Some(worst) = self.buffers.list.iter().copied().max_by(best_first) {
            // Cheaper than to sort them by their ids.
            self.retain(|candidate| best_first(candidate, &worst) != Ordering::Greater);
        }
    }

    pub(crate) fn typical(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let (mass, moment) = self.moments();
        // With q the probability: −ln q = ln Σ − d, and the entropy is its mean.
        let expected = (-moment / mass) as f32;
        let top = self.top;
        let distance = move |logit: f32| (top - logit - expected).abs();
        if let Some(worst) = self.farthest_needed(f64::from(p) * mass, distance) {
            let order = nearest_first(distance);
            self.retain(|candidate| order(candidate, &worst) != Ordering::Greater);
        }
        self.find_top();
    }

    pub(crate) fn top_p(&mut self, p: f32) {
        if p >= 1.0 {
            return;
        }
        let target = f64::from(p) * self.mass();
        let top = self.top;
        if !self.listed {
            let Buffers { spare, .. } = &mut *self.buffers;
            row::best(self.row, USUAL_NUCLEUS, spare);
            spare.sort_unstable_by(best_first);
            let floor = self.floor;
            let mut mass = 0.0;
            let worst = spare.iter().take_while(|candidate| candidate.1 >= floor).find(|candidate| {
                mass += f64::from(exp(candidate.1 - top));
                mass >= target
            });
            if let Some(&worst) = worst {
                self.raise_floor(worst.1);
                self.retain(|candidate| best_first(candidate, &worst) != Ordering::Greater);
                return;
            }
        }
        if let Some(worst) = self.farthest_needed(target, move |logit| top - logit) {
            // A long list costs more than what it would save.
            let after = self.row.get(worst.0 as usize + 1..).unwrap_or_default();
            if self.listed || row::holds(after, worst.1) {
                self.retain(|candidate| best_first(candidate, &worst) != Ordering::Greater);
            } else {
                self.raise_floor(worst.1);
            }
        }
    }

    pub(crate) fn min_p(&mut self, share: f32) {
        if share > 0.0 {
            self.raise_floor(self.top + share.ln());
        }
    }

    /// The coin decides first; then every likely token goes but the least likely of them.
    pub(crate) fn xtc(&mut self, xtc: Xtc, seed: u64, index: u64) {
        if uniform(seed, index, Purpose::Coin) >= f64::from(xtc.probability) {
            return;
        }
        let (mass, top, threshold) = (self.mass(), self.top, f64::from(xtc.threshold));
        let likely = move |logit: f32| f64::from(exp(logit - top)) / mass >= threshold;
        let mut count = 0usize;
        let mut least: Option<Candidate> = None;
        let mut look = |candidate: Candidate| {
            if likely(candidate.1) {
                count += 1;
                if least.is_none_or(|least| best_first(&candidate, &least) == Ordering::Greater) {
                    least = Some(candidate);
                }
            }
        };
        if self.listed {
            self.buffers.list.iter().copied().for_each(&mut look);
        } else {
            // A little lower, for rounding; the definition decides.
            let floor = top + (threshold * mass).ln() as f32 - 0.01;
            row::at_least(self.row, self.floor.max(floor), &mut look);
        }
        if let Some(least) = least.filter(|_| count >= 2) {
            self.retain(|candidate| !likely(candidate.1) || candidate.0 == least.0);
            self.find_top();
        }
    }

    /// The temperature that follows the entropy of who is left.
    pub(crate) fn dynamic_temperature(&self, low: f32, high: f32, exponent: f32) -> f32 {
        let count = if self.listed { self.buffers.list.len() } else { row::count(self.row, self.floor) };
        if count < 2 {
            return low;
        }
        let (mass, moment) = self.moments();
        let entropy = (mass.ln() - moment / mass).max(0.0) / (count as f64).ln();
        low + (high - low) * entropy.min(1.0).powf(f64::from(exponent)) as f32
    }

    /// The last one of the smallest set, nearest first by `key ≥ 0`, whose mass reaches `target`.
    ///
    /// Nothing is sorted: a histogram of the mass finds the bucket in which the border lies, and in that the border is found
    /// as a median is, by halving.
    fn farthest_needed(&mut self, target: f64, key: impl Fn(f32) -> f32 + Copy) -> Option<Candidate> {
        let mut histogram = std::mem::take(&mut self.buffers.histogram);
        histogram.clear();
        histogram.resize(BUCKETS, 0.0);
        let top = self.top;
        if self.listed {
            for &(_, logit) in &self.buffers.list {
                if let Some(mass) = histogram.get_mut(bucket_of(key(logit)) as usize) {
                    *mass += f64::from(exp(logit - top));
                }
            }
        } else {
            row::weigh(self.row, self.floor, top, |logit| bucket_of(key(logit)), &mut histogram);
        }
        let (mut before, mut border) = (0.0, BUCKETS as u32 - 1);
        for (bucket, mass) in histogram.iter().enumerate() {
            if before + mass >= target {
                border = bucket as u32;
                break;
            }
            before += mass;
        }
        let mut members = std::mem::take(&mut self.buffers.spare);
        members.clear();
        let mut take = |candidate: Candidate| {
            if bucket_of(key(candidate.1)) == border {
                members.push(candidate);
            }
        };
        if self.listed {
            self.buffers.list.iter().copied().for_each(&mut take);
        } else {
            row::members(self.row, self.floor, |logit| bucket_of(key(logit)) == border, &mut take);
        }
        let order = nearest_first(key);
        let (mut low, mut high) = (0, members.len());
        while high - low > 1 {
            let middle = (high - low) / 2;
            let Some(rest) = members.get_mut(low..high) else { break };
            rest.select_nth_unstable_by(middle, &order);
            let mass: f64 = rest.iter().take(middle).map(|candidate| f64::from(exp(candidate.1 - top))).sum();
            if before + mass >= target {
                high = low + middle;
            } else {
                before += mass;
                low += middle;
            }
        }
        // With no member the mass was not reached, by rounding: everybody stays.
        let farthest = members.get(low).copied();
        self.buffers.spare = members;
        self.buffers.histogram = histogram;
        farthest
    }

    /// The best one that is left.
    pub(crate) fn best(&self) -> TokenId {
        if self.listed {
            self.buffers.list.iter().min_by(|a, b| best_first(a, b)).map_or(0, |candidate| candidate.0)
        } else {
            row::place_of(self.row, self.top)
        }
    }

    /// Draws one of them with probabilities ∝ e^(logit / temperature); `share` in [0, 1).
    ///
    /// The sums of a block of ids are taken lane by lane in ascending order, whether the ids come from the row or from a list,
    /// so that those who cannot be chosen change no bit of them.
    pub(crate) fn draw(&mut self, temperature: f32, share: f64) -> TokenId {
        let (top, scale) = (self.top, temperature.recip());
        let weight = |logit: f32| exp((logit - top) * scale);
        // The sums of the blocks, and of what the block's ids begin with.
        let mut sums = std::mem::take(&mut self.buffers.histogram);
        sums.clear();
        sums.resize(self.row.len().div_ceil(BLOCK), 0.0);
        if self.listed {
            for same in self.buffers.list.chunk_by(|a, b| a.0 as usize / BLOCK == b.0 as usize / BLOCK) {
                let mut lanes = [0.0f32; LANES];
                for &(token, logit) in same {
                    lanes[token as usize % LANES] += weight(logit);
                }
                if let Some(sum) = same.first().and_then(|first| sums.get_mut(first.0 as usize / BLOCK)) {
                    *sum = f64::from(lanes.iter().sum::<f32>());
                }
            }
        } else {
            row::block_sums(self.row, self.floor, top, scale, &mut sums);
        }
        let mut left = share * sums.iter().sum::<f64>();
        // Rounding may leave a little at the end; then it is the last one that can be chosen at all.
        let mut chosen = 0;
        for (block, &sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
            chosen = block;
            if left < sum {
                break;
            }
            left -= sum;
        }
        self.buffers.histogram = sums;
        let mut choice = None;
        let mut walk = |(token, logit): Candidate| {
            let weight = weight(logit);
            if weight > 0.0 && left >= 0.0 {
                choice = Some(token);
                left -= f64::from(weight);
            }
        };
        let (start, end) = (chosen * BLOCK, ((chosen + 1) * BLOCK).min(self.row.len()));
        if self.listed {
            let inside = |candidate: &&Candidate| (start..end).contains(&(candidate.0 as usize));
            self.buffers.list.iter().filter(inside).copied().for_each(&mut walk);
        } else {
            let block = self.row.get(start..end).unwrap_or_default();
            row::at_least(block, self.floor, |(offset, logit)| walk((start as TokenId + offset, logit)));
        }
        choice.unwrap_or_else(|| self.best())
    }
}

/// The bucket of a distance. −∞, which no pool has, is in the last one.
#[inline(always)]
fn bucket_of(key: f32) -> u32 {
    // The mantissa of a number to which 2²³ was added is the nearest integer: no checked conversion in a loop over all.
    const SHIFT: f32 = 8_388_608.0;
    let last = (BUCKETS - 1) as f32;
    let place = key * BUCKETS_PER_NAT;
    let place = if place < last { place } else { last };
    (place + SHIFT).to_bits() & 0x007f_ffff
}
