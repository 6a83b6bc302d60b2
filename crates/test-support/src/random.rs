//! A generator that is seeded once and for all.

/// A small generator (Marsaglia, "Xorshift RNGs", 2003; the shifts 13, 7 and 17), so that the cases are the same on every
/// machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Default for Random {
    fn default() -> Self {
        Self::seeded(0x5EED)
    }
}

impl Random {
    /// Another row of cases. A seed of 0, from which nothing would come, counts as 1.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is above 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }
}
