//! Chance that a seed decides. Everything has a stream of its own, named by what it is for, so that
//! taking one fault away leaves the luck of the others as it was.

use std::time::Duration;

use mks2_proto::splitmix::{self, mix};

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64, purpose: &str) -> Self {
        let mut chance = Self(fold(seed ^ 0x6d6b_7332, purpose.as_bytes()));
        chance.next();
        chance
    }

    pub(super) fn next(&mut self) -> u64 {
        splitmix::next(&mut self.0)
    }

    /// A number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or_default()
    }

    pub(super) fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    /// A time from the first up to the second, in milliseconds.
    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        let micros = 1000 * from + self.below(1000 * (to - from) + 1);
        Duration::from_micros(micros)
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// A digest of what came before and of bytes: quick, and the same on every machine.
pub(super) fn fold(before: u64, bytes: &[u8]) -> u64 {
    let mut digest = mix(before ^ bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        digest = fold_number(digest, u64::from_le_bytes(word));
    }
    digest
}

/// The same with a number.
pub(super) fn fold_number(before: u64, number: u64) -> u64 {
    (before.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95)
}
