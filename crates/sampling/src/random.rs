//! Randomness that is a function of what is asked.

/// What a number is for: the same seed and index give unrelated numbers for each.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// The draw of a token.
    Draw,
    /// XTC's coin.
    Coin,
}

/// A number in [0, 1): the finaliser of SplitMix64 (Steele et al. 2014) over the seed and the index, twice.
pub(crate) fn uniform(seed: u64, index: u64, purpose: Purpose) -> f64 {
    fn mix(mut x: u64) -> u64 {
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    let mut bits = mix(mix(seed) ^ mix(index.wrapping_mul(0xd129_42f8_5a3d_70f5)));
    if let Purpose::Coin = purpose {
        bits = mix(bits ^ 0x5851_f42d_4c95_7f2d);
    }
    // The 53 highest bits fill a double's mantissa exactly.
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_and_purposes_are_unrelated() {
        let mean = |purpose| (0..10_000).map(|index| uniform(3, index, purpose)).sum::<f64>() / 10_000.0;
        assert!((mean(Purpose::Draw) - 0.5).abs() < 0.02 && (mean(Purpose::Coin) - 0.5).abs() < 0.02);
        let product: f64 = (0..10_000)
            .map(|index| (uniform(3, index, Purpose::Draw) - 0.5) * (uniform(3, index, Purpose::Coin) - 0.5))
            .sum();
        assert!((product / 10_000.0).abs() < 0.005);
    }
}
