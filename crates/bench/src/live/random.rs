//! A generator of random numbers that will give the same ones in every version.

/// SplitMix64 (Steele, Lea, Flood 2014). A workload is a function of its seed for ever, so this is no library's generator,
/// whose stream may change.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A stream that shares nothing with that of another seed, name or index.
    pub(crate) fn stream(seed: u64, name: &str, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes()).update(name.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self(u64::from_le_bytes(first))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        // The bias of a remainder is one in 2^50 for what is drawn here.
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or(0)
    }

    /// A number from 0 up to 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn pick<'t>(&mut self, from: &'t [&'t str]) -> &'t str {
        let index = self.below(from.len());
        from.get(index).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        // First outputs of SplitMix64 for the seed 1234567, as its authors' C code gives them.
        let mut random = Random(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn streams_differ_by_seed_name_and_index() {
        let first = |seed, name, index| Random::stream(seed, name, index).next();
        let all = [first(1, "a", 0), first(2, "a", 0), first(1, "b", 0), first(1, "a", 1)];
        assert!(all.iter().enumerate().all(|(at, one)| !all[..at].contains(one)));
        assert!((0..1000).all(|_| Random(3).unit() < 1.0));
    }
}
