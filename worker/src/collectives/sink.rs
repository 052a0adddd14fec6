//! Where received bytes go. A slot is a peer, in the order of the schedule.

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

/// All messages added to this rank's own numbers, slot after slot: a message is taken only as far
/// as the one before it has come, so that every sum has the same order.
pub(super) struct SumSink<'a> {
    pub(super) own: &'a [i64],
    pub(super) out: &'a mut [i64],
    /// Bytes taken of each slot.
    pub(super) taken: Vec<usize>,
}

impl Sink for SumSink<'_> {
    fn room(&self, slot: usize, at: usize) -> usize {
        let ready = if slot == 0 { size_of_val(self.own) } else { self.taken[slot - 1] };
        ready - at
    }

    fn put(&mut self, slot: usize, at: usize, bytes: &[u8]) -> usize {
        let (first, count) = (at / 8, bytes.len() / 8);
        let out = &mut self.out[first..first + count];
        if slot == 0 {
            kernels::sum_i64(out, &self.own[first..first + count], &bytes[..8 * count]);
        } else {
            kernels::accumulate_i64(out, &bytes[..8 * count]);
        }
        self.taken[slot] = at + 8 * count;
        8 * count
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
        let ready = if slot == 0 { size_of_val(self.out) } else { self.taken[slot - 1] };
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
        let (own, mut out) = ([1i64, 2, 3], [0i64; 3]);
        let bytes = |values: [i64; 3]| le_bytes(&values).to_vec();
        let (a, b) = (bytes([10, 20, 30]), bytes([100, 200, 300]));
        let mut sink = SumSink { own: &own, out: &mut out, taken: vec![0; 2] };
        assert_eq!(sink.room(1, 0), 0);
        assert_eq!(sink.put(0, 0, &a[..19]), 16);
        assert_eq!(sink.room(1, 0), 16);
        assert_eq!(sink.put(1, 0, &b[..16]), 16);
        assert_eq!(sink.put(0, 16, &a[16..]), 8);
        assert_eq!(sink.put(1, 16, &b[16..]), 8);
        assert_eq!([sink.room(0, 24), sink.room(1, 24)], [0, 0]);
        assert_eq!(out, [111, 222, 333]);
    }
}
