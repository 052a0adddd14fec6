//! Chance that can be had again: numbers from a seed.

use std::time::Duration;

use mks2_proto::splitmix;

/// A stream of numbers.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// The stream of a seed for one purpose: what else is drawn from the seed changes nothing here.
    pub(super) fn new(seed: u64, purpose: &str) -> Self {
        let hash = blake3::hash(format!("mks2 chaos {seed} {purpose}").as_bytes());
        let first = hash.as_bytes().first_chunk();
        Self(first.map_or(seed, |bytes| u64::from_le_bytes(*bytes)))
    }

    pub(super) fn next(&mut self) -> u64 {
        splitmix::next(&mut self.0)
    }

    /// One of some; they are not empty.
    pub(super) fn one_of<T: Copy>(&mut self, some: &[T], otherwise: T) -> T {
        let at = self.next() % some.len().max(1) as u64;
        let at = usize::try_from(at).unwrap_or_default();
        some.get(at).copied().unwrap_or(otherwise)
    }

    /// From 0 to below 1.
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn between(&mut self, from: Duration, to: Duration) -> Duration {
        from + to.saturating_sub(from).mul_f64(self.share())
    }
}
