//! Where received bytes go. A slot is a peer, in the order of the schedule.

use super::EachBlock;
use crate::exact::kernels;

/// Takes the payload of several messages at once, each from its beginning to its end.
pub(super) trait Sink {
    /// The message of `slot` will have `total` bytes.
    fn begin(&mut self, _slot: usize, _total: usize) {}

    /// How many bytes of `slot` can be taken now, `at` of them having been taken before.
    fn room(&self, slot: usize, at: usize) -> usize;

    /// Takes a beginning of `bytes`, of at most [`Sink::room`] bytes; tells how many it took.
    fn put(&mut self, slot: usize, at: usize, bytes: &[u8]) -> usize;
}

/// Each message into memory of its own, of known length.
pub(super) struct CopySink<'a> {
    pub(super) parts: Vec<&'a mut [u8]>,
}

impl Sink for CopySink<'_> {
    fn room(&self, slot: usize, at: usize) -> usize {
        self.parts[slot].len() - at
    }

    fn put(&mut self, slot: usize, at: usize, bytes: &[u8]) -> usize {
        self.parts[slot][at..at + bytes.len()].copy_from_slice(bytes);
        bytes.len()
    }
}

/// Each message into a vector; the receiver has checked its length.
pub(super) struct GrowSink {
    pub(super) parts: Vec<Vec<u8>>,
}

impl Sink for GrowSink {
    fn begin(&mut self, slot: usize, total: usize) {
        self.parts[slot].reserve_exact(total);
    }

    fn room(&self, _slot: usize, _at: usize) -> usize {
        usize::MAX
    }

    fn put(&mut self, slot: usize, _at: usize, bytes: &[u8]) -> usize {
        self.parts[slot].extend_from_slice(bytes);
        bytes.len()
    }
}

/// Elements of the window of a [`SumSink`].
pub(super) const WINDOW: usize = 1 << 15;
/// Elements that are summed at a time, so that they stay in the first cache.
const BLOCK: usize = 1 << 10;

/// All messages added to this rank's own numbers. The first slot may be at most a window ahead of
/// the last one, whose sums are complete and go to `each` at once: no buffer of the shard's length
/// is needed.
pub(super) struct SumSink<'a, 'e> {
    own: &'a [i64],
    window: Vec<i64>,
    /// Bytes taken of each slot.
    taken: Vec<usize>,
    each: &'a mut EachBlock<'e>,
}

impl<'a, 'e> SumSink<'a, 'e> {
    pub(super) fn new(own: &'a [i64], slots: usize, each: &'a mut EachBlock<'e>) -> Self {
        Self {
            own,
            window: vec![0; WINDOW],
            taken: vec![0; slots],
            each,
        }
    }

    /// Adds a block that does not cross the window's end.
    fn add(&mut self, slot: usize, first: usize, bytes: &[u8]) {
        let (start, count) = (first % WINDOW, bytes.len() / 8);
        let sums = &mut self.window[start..start + count];
        if slot == 0 {
            kernels::sum_i64(sums, &self.own[first..first + count], bytes);
        } else {
            kernels::accumulate_i64(sums, bytes);
        }
        if slot + 1 == self.taken.len() {
            (self.each)(first, sums);
        }
    }
}

impl Sink for SumSink<'_, '_> {
    fn room(&self, slot: usize, at: usize) -> usize {
        let last = self.taken.last().copied().unwrap_or(0);
        let ready = if slot == 0 {
            size_of_val(self.own).min(last + 8 * WINDOW)
        } else {
            self.taken[slot - 1]
        };
        ready - at
    }

    fn put(&mut self, slot: usize, at: usize, bytes: &[u8]) -> usize {
        let (mut first, mut rest) = (at / 8, &bytes[..bytes.len() / 8 * 8]);
        let used = rest.len();
        while !rest.is_empty() {
            let count = BLOCK.min(WINDOW - first % WINDOW).min(rest.len() / 8);
            let (block, after) = rest.split_at(8 * count);
            self.add(slot, first, block);
            (first, rest) = (first + count, after);
        }
        self.taken[slot] = at + used;
        used
    }
}

/// All messages added in place, in the same fixed order as [`SumSink`].
pub(super) struct AddSink<'a> {
    pub(super) out: &'a mut [f32],
    /// Bytes taken of each slot.
    pub(super) taken: Vec<usize>,
}

impl Sink for AddSink<'_> {
    fn room(&self, slot: usize, at: usize) -> usize {
        let ready = if slot == 0 {
            size_of_val(self.out)
        } else {
            self.taken[slot - 1]
        };
        ready - at
    }

    fn put(&mut self, slot: usize, at: usize, bytes: &[u8]) -> usize {
        let (first, count) = (at / 4, bytes.len() / 4);
        kernels::accumulate_f32(&mut self.out[first..first + count], &bytes[..4 * count]);
        self.taken[slot] = at + 4 * count;
        4 * count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flat::le_bytes;

    #[test]
    fn sums_wait_for_the_slot_before() {
        let mut out = [0i64; 3];
        let bytes = |values: [i64; 3]| le_bytes(&values).to_vec();
        let (a, b) = (bytes([10, 20, 30]), bytes([100, 200, 300]));
        let mut each =
            |first: usize, sums: &[i64]| out[first..first + sums.len()].copy_from_slice(sums);
        let mut sink = SumSink::new(&[1, 2, 3], 2, &mut each);
        assert_eq!(sink.room(1, 0), 0);
        assert_eq!(sink.put(0, 0, &a[..19]), 16);
        assert_eq!(sink.room(1, 0), 16);
        assert_eq!(sink.put(1, 0, &b[..16]), 16);
        assert_eq!(sink.put(0, 16, &a[16..]), 8);
        assert_eq!(sink.put(1, 16, &b[16..]), 8);
        assert_eq!([sink.room(0, 24), sink.room(1, 24)], [0, 0]);
        assert_eq!(out, [111, 222, 333]);
    }

    #[test]
    fn the_first_slot_stays_within_the_window() {
        let own = vec![1i64; 3 * WINDOW];
        let bytes = vec![0u8; 8 * 3 * WINDOW];
        let mut total = 0;
        let mut each = |first: usize, sums: &[i64]| {
            assert_eq!(first, total);
            assert!(sums.iter().all(|&sum| sum == 1));
            total += sums.len();
        };
        let mut sink = SumSink::new(&own, 2, &mut each);
        let mut at = [0, 0];
        while at[1] < bytes.len() {
            for slot in 0..2 {
                let room = sink.room(slot, at[slot]).min(300_000 / (slot + 1));
                at[slot] += sink.put(slot, at[slot], &bytes[..room]);
                assert!(at[0] - at[1] <= 8 * WINDOW);
            }
        }
        assert_eq!(total, own.len());
    }
}
