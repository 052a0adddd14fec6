//! Chance that can be had again: the seed is printed, and `MKS2_TEST_SEED` gives it back.

use std::hash::{BuildHasher, RandomState};

use mks2_proto::splitmix;

/// A stream of numbers.
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
        let end = end.max(1) as u64;
        usize::try_from(splitmix::next(&mut self.0) % end).expect("below a usize")
    }
}
