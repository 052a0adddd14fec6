//! A keyed bijection of `0..len`: a permutation that is never stored.
//!
//! A Feistel network over the smallest power of two that holds `len`, walked until it falls back
//! into the range (fewer than two rounds of the network on average). Both directions cost the
//! same few nanoseconds for three numbers or for 10^10.

use mks2_proto::splitmix;

/// Rounds of the network; even. Eight leave no bias that the tests can see, for any length.
const ROUNDS: usize = 8;

/// A pseudo-random permutation of `0..len`.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    len: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
    keys: [u64; 4],
}

impl Permutation {
    /// The permutation of `0..len` that `key` stands for.
    pub(crate) fn new(len: u64, key: &blake3::Hash) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let low_bits = bits / 2;
        let mut keys = [0; 4];
        for (word, bytes) in keys.iter_mut().zip(key.as_bytes().chunks_exact(8)) {
            *word = bytes
                .iter()
                .rev()
                .fold(0, |word, byte| (word << 8) | u64::from(*byte));
        }
        Self {
            len,
            low_bits,
            low_mask: ones(low_bits),
            high_mask: ones(bits - low_bits),
            keys,
        }
    }

    /// Where `x` goes. `x` must be below `len`.
    pub(crate) fn apply(&self, x: u64) -> u64 {
        self.walk(x, Self::forward)
    }

    /// What goes to `y`. `y` must be below `len`.
    pub(crate) fn invert(&self, y: u64) -> u64 {
        self.walk(y, Self::backward)
    }

    /// Follows the network's cycle from a number inside the range to the next one inside it.
    fn walk(&self, start: u64, step: impl Fn(&Self, u64) -> u64) -> u64 {
        debug_assert!(start < self.len, "{start} is not below {}", self.len);
        let mut x = step(self, start);
        while x >= self.len {
            x = step(self, x);
        }
        x
    }

    fn forward(&self, x: u64) -> u64 {
        let (mut low, mut high) = (x & self.low_mask, x >> self.low_bits);
        for round in (0..ROUNDS).step_by(2) {
            low ^= self.mix(high, round) & self.low_mask;
            high ^= self.mix(low, round + 1) & self.high_mask;
        }
        (high << self.low_bits) | low
    }

    fn backward(&self, y: u64) -> u64 {
        let (mut low, mut high) = (y & self.low_mask, y >> self.low_bits);
        for round in (0..ROUNDS).step_by(2).rev() {
            high ^= self.mix(low, round + 1) & self.high_mask;
            low ^= self.mix(high, round) & self.low_mask;
        }
        (high << self.low_bits) | low
    }

    /// The round function: one half, the round and the key, well stirred.
    fn mix(&self, half: u64, round: usize) -> u64 {
        let of_round = (round as u64 + 1).wrapping_mul(splitmix::GOLDEN);
        splitmix::mix((half ^ self.keys[round % 4]).wrapping_add(of_round))
    }
}

/// A mask of the lowest `bits` bits; at most 32 are ever asked for.
fn ones(bits: u32) -> u64 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    fn key(number: u64) -> blake3::Hash {
        blake3::hash(&number.to_le_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn is_a_bijection(len in 1_u64..600, number in any::<u64>()) {
            let permutation = Permutation::new(len, &key(number));
            let mut seen = vec![false; len as usize];
            for x in 0..len {
                let y = permutation.apply(x);
                prop_assert!(!std::mem::replace(&mut seen[y as usize], true));
                prop_assert_eq!(permutation.invert(y), x);
            }
        }

        #[test]
        fn inverts_at_any_size(len in 1_u64..=u64::MAX, x in any::<u64>(), number in any::<u64>()) {
            let permutation = Permutation::new(len, &key(number));
            let y = permutation.apply(x % len);
            prop_assert!(y < len);
            prop_assert_eq!(permutation.invert(y), x % len);
        }
    }

    #[test]
    fn no_place_is_preferred() {
        for len in [2_u64, 3, 5, 13, 100] {
            let keys = 4000;
            let mut counts = vec![0_f64; (len * len) as usize];
            for number in 0..keys {
                let permutation = Permutation::new(len, &key(number));
                (0..len).for_each(|x| counts[(x * len + permutation.apply(x)) as usize] += 1.0);
            }
            let expected = keys as f64 / len as f64;
            let chi2: f64 = counts
                .iter()
                .map(|c| (c - expected).powi(2) / expected)
                .sum();
            let freedom = ((len - 1) * (len - 1)) as f64;
            let limit = freedom + 5.0 * (2.0 * freedom).sqrt();
            assert!(
                chi2 < limit,
                "length {len}: chi-square {chi2:.1} above {limit:.1}"
            );
        }
    }

    #[test]
    fn all_orders_of_four_occur_about_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        for number in 0..24_000 {
            let permutation = Permutation::new(4, &key(number));
            let order: Vec<u64> = (0..4).map(|x| permutation.apply(x)).collect();
            *counts.entry(order).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(
            counts.values().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }
}
