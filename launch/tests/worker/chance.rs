//! Chance that can be had again: the seed is printed, and `MKS2_TEST_SEED` gives it back.

use std::hash::{BuildHasher, RandomState};

/// Numbers by splitmix64.
pub(crate) struct Chance(u64);

impl Chance {
    #[expect(
        clippy::print_stdout,
        reason = "a failed test shows what had been drawn"
    )]
    pub(crate) fn new() -> Self {
        let given = std::env::var("MKS2_TEST_SEED").ok();
        let seed = given.and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one("seed"));
        println!("MKS2_TEST_SEED={seed}");
        Self(seed)
    }

    /// From 0 to `end`, without it.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let end = end.max(1) as u64;
        usize::try_from((mixed ^ (mixed >> 31)) % end).expect("below a usize")
    }
}
