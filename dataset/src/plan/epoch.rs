//! The order of one source's rows in one epoch.
//!
//! ```text
//! row groups   0 1 2 3 4 5'             5' is the corpus' last one and may be short
//! permuted     3 0 5' 4 1 2             by a keyed bijection of (seed, stage, source, epoch)
//! places       |----|----|--|----|----|----|       one row after the other
//! stretches    |--------|--------|--------|        one per lane
//! windows       ^^^^ ^^^ ^^ ^^^^^ ^^^ ^^^^         rows change places inside a window only
//! ```
//!
//! A window covers whole groups, cut off only at the stretch's two ends. So a lane is done with
//! a group before it needs one of the next window.

use std::ops::Range;

use super::permutation::Permutation;
use super::{CorpusShape, WINDOW_GROUPS, mul_div};

/// The permuted row groups of an epoch and where each begins.
#[derive(Clone, Debug)]
pub(crate) struct EpochOrder {
    shape: CorpusShape,
    key: blake3::Hash,
    groups: Permutation,
    /// Position of the corpus' last, possibly short, group.
    short_at: u64,
    /// Rows that the short group lacks.
    missing: u64,
}

/// Rows of one stretch that change places among themselves.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Places that the window covers.
    pub(crate) places: Range<u64>,
    order: Permutation,
}

impl EpochOrder {
    /// The order of `epoch` for the source that `source_key` stands for.
    pub(crate) fn new(shape: CorpusShape, source_key: &blake3::Hash, epoch: u64) -> Self {
        let key = blake3::keyed_hash(source_key.as_bytes(), &epoch.to_le_bytes());
        let count = shape.groups();
        let groups = Permutation::new(count, &blake3::keyed_hash(key.as_bytes(), b"groups"));
        let short_at = groups.invert(count - 1);
        let missing = count * u64::from(shape.group_rows) - shape.rows;
        Self {
            shape,
            key,
            groups,
            short_at,
            missing,
        }
    }

    /// The row at `place`, before the shuffle inside windows.
    pub(crate) fn row(&self, place: u64) -> u64 {
        let (position, offset) = self.locate(place);
        self.groups.apply(position) * u64::from(self.shape.group_rows) + offset
    }

    /// The place of `row`, before the shuffle inside windows.
    pub(crate) fn place_of(&self, row: u64) -> u64 {
        let group_rows = u64::from(self.shape.group_rows);
        self.start(self.groups.invert(row / group_rows)) + row % group_rows
    }

    /// The window of the stretch `stretch` (its number and its places) that `place` lies in.
    pub(crate) fn window(&self, number: u32, stretch: &Range<u64>, place: u64) -> Window {
        let first = self.locate(stretch.start).0;
        let groups = self.locate(stretch.end - 1).0 - first + 1;
        let windows = groups.div_ceil(WINDOW_GROUPS);
        let window = mul_div(self.locate(place).0 - first + 1, windows, groups, 1);
        let begin = self.start(first + mul_div(window, groups, windows, 0));
        let end = self.start(first + mul_div(window + 1, groups, windows, 0));
        let places = begin.max(stretch.start)..end.min(stretch.end);
        let mut name = [0; 12];
        name[..4].copy_from_slice(&number.to_le_bytes());
        name[4..].copy_from_slice(&window.to_le_bytes());
        let key = blake3::keyed_hash(self.key.as_bytes(), &name);
        let order = Permutation::new(places.end - places.start, &key);
        Window { places, order }
    }

    /// The place at which the group at `position` begins; the end of all for the position after
    /// the last.
    fn start(&self, position: u64) -> u64 {
        let full = position * u64::from(self.shape.group_rows);
        if position > self.short_at {
            full - self.missing
        } else {
            full
        }
    }

    /// The position of the group that `place` lies in, and the row inside the group.
    fn locate(&self, place: u64) -> (u64, u64) {
        let group_rows = u64::from(self.shape.group_rows);
        let padded = if place < self.start(self.short_at + 1) {
            place
        } else {
            place + self.missing
        };
        (padded / group_rows, padded % group_rows)
    }
}

impl Window {
    /// The place whose row is used at `place`.
    pub(crate) fn shuffled(&self, place: u64) -> u64 {
        self.places.start + self.order.apply(place - self.places.start)
    }

    /// The place at which the row of `place` is used.
    pub(crate) fn unshuffled(&self, place: u64) -> u64 {
        self.places.start + self.order.invert(place - self.places.start)
    }
}
