//! The plan: which rows a lane uses in a step, as a pure function of numbers.
//!
//! `(corpus shapes, weights, seed, stage, lanes, microbatch; step, lane) -> rows`. Nothing is
//! stored and nothing is remembered, so a run's position in its data is its step number.
//!
//! 1. **Every row exactly once per epoch.** A source's epoch is a sequence of all its rows: row
//!    groups permuted by a keyed bijection, then cut into one stretch per lane (lengths differ by
//!    at most one row). In epoch `e` lane `m` takes stretch `(m + e) mod M`, so over M epochs each
//!    lane walks once around all places, and lanes are never more than a row apart.
//! 2. **Rows that do not fill a last step:** nothing is dropped or padded. A lane that has come to
//!    the end of its stretch goes on with its stretch of the next epoch in the same microbatch. A
//!    lane whose stretch is empty (fewer rows than lanes) draws from the next epoch that has one.
//! 3. **The number of workers plays no part.** Lanes are fixed by the job; workers only hold them.
//! 4. **Seeking is arithmetic.** Step 10^9 of 10^10 rows costs the same microseconds as step 0.
//! 5. **Locality.** Rows are shuffled inside windows of [`WINDOW_GROUPS`] whole row groups, so a
//!    lane that keeps that many groups in memory reads each of its groups once in an epoch.
//! 6. **Mixtures.** Each source has its own epochs. A lane's slots are dealt to sources by a
//!    low-discrepancy pattern; lanes stand at neighbouring places of one pattern, so that each
//!    global batch holds each source's share too, to within a few rows.

mod epoch;
mod error;
mod mixture;
mod permutation;
#[cfg(test)]
mod tests;
mod uses;

use std::ops::Range;
use std::sync::Arc;

pub use error::PlanError;
pub use uses::Use;

use epoch::{EpochOrder, Window};
use mixture::Mixture;

/// Row groups among which rows are shuffled.
pub const WINDOW_GROUPS: u64 = 4;

/// Changes whenever the same numbers give other rows.
const VERSION: u32 = 1;

/// What the plan needs to know of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorpusShape {
    /// Rows in all.
    pub rows: u64,
    /// Rows of every row group but the corpus' last one.
    pub group_rows: u32,
}

impl CorpusShape {
    /// Row groups in all.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.rows.div_ceil(u64::from(self.group_rows))
    }
}

/// One sample of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowRef {
    /// Index among the plan's sources.
    pub source: u16,
    /// Pass over that source, from 0.
    pub epoch: u64,
    /// Global index of the row in that source.
    pub row: u64,
}

/// The order of all samples of one stage. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plan {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sources: Vec<Source>,
    mixture: Mixture,
    lanes: u32,
    microbatch: u32,
    digest: blake3::Hash,
}

#[derive(Debug)]
struct Source {
    shape: CorpusShape,
    key: blake3::Hash,
}

impl Plan {
    /// The plan of a stage.
    ///
    /// `sources` are corpora with their weights, relative to each other; `microbatch` is the
    /// number of samples that a lane contributes to a step.
    ///
    /// # Errors
    /// No sources, an empty corpus, a weight that is not positive and finite, no lanes, an empty
    /// microbatch.
    pub fn new(
        seed: u64,
        stage: &str,
        sources: &[(CorpusShape, f64)],
        lanes: u32,
        microbatch: u32,
    ) -> Result<Self, PlanError> {
        check(stage, sources, lanes, microbatch)?;
        let digest = digest(seed, stage, sources, lanes, microbatch);
        let stage_key = stage_key(seed, stage);
        let weights: Vec<f64> = sources.iter().map(|(_, weight)| *weight).collect();
        let sources = (0_u16..)
            .zip(sources)
            .map(|(index, (shape, _))| Source {
                shape: *shape,
                key: blake3::keyed_hash(stage_key.as_bytes(), &index.to_le_bytes()),
            })
            .collect();
        let mixture = Mixture::new(&weights);
        Ok(Self {
            inner: Arc::new(Inner {
                sources,
                mixture,
                lanes,
                microbatch,
                digest,
            }),
        })
    }

    /// The samples that `lane` contributes to `step`, in order: exactly [`Plan::microbatch`] of
    /// them. Steps count from 0 within the stage. A lane that the plan does not have yields none.
    #[must_use]
    pub fn rows(&self, step: u64, lane: u32) -> Rows {
        self.rows_over(step..step.saturating_add(1), lane)
    }

    /// The samples that `lane` contributes to some steps, step after step: the same as
    /// [`Plan::rows`] of each, several times faster.
    #[must_use]
    pub fn rows_over(&self, steps: Range<u64>, lane: u32) -> Rows {
        let slot = |step: u64| step.saturating_mul(u64::from(self.inner.microbatch));
        let last = if lane < self.inner.lanes {
            steps.end
        } else {
            steps.start
        };
        let cursors = vec![None; self.inner.sources.len()];
        Rows {
            plan: self.clone(),
            lane,
            slots: slot(steps.start)..slot(last.max(steps.start)),
            cursors,
        }
    }

    /// Lanes of the job.
    #[must_use]
    pub fn lanes(&self) -> u32 {
        self.inner.lanes
    }

    /// Samples of a lane in a step.
    #[must_use]
    pub fn microbatch(&self) -> u32 {
        self.inner.microbatch
    }

    /// Samples of a step over all lanes.
    #[must_use]
    pub fn batch(&self) -> u64 {
        u64::from(self.inner.lanes) * u64::from(self.inner.microbatch)
    }

    /// Shapes of the sources, in order.
    pub fn shapes(&self) -> impl ExactSizeIterator<Item = CorpusShape> + '_ {
        self.inner.sources.iter().map(|source| source.shape)
    }

    /// Passes over the data that the first `step` steps have made: samples drawn by all lanes
    /// over rows of all sources. With several sources this is the mean of their own passes,
    /// weighted by their rows.
    #[must_use]
    pub fn epoch(&self, step: u64) -> f64 {
        let rows: f64 = self.shapes().map(|shape| shape.rows as f64).sum();
        step as f64 * self.batch() as f64 / rows
    }

    /// Samples that all lanes have drawn from `source` in the first `step` steps.
    #[must_use]
    pub fn drawn(&self, source: u16, step: u64) -> u64 {
        if usize::from(source) >= self.inner.sources.len() {
            return 0;
        }
        let slots = step.saturating_mul(u64::from(self.inner.microbatch));
        (0..self.inner.lanes)
            .map(|lane| self.drawn_by(lane, source, slots))
            .sum()
    }

    /// Digest of everything that decides the rows: equal digests, equal rows.
    #[must_use]
    pub fn digest(&self) -> blake3::Hash {
        self.inner.digest
    }

    /// Samples that `lane` has drawn from `source` in its first `slots` slots.
    fn drawn_by(&self, lane: u32, source: u16, slots: u64) -> u64 {
        let begin = self.pattern_start(lane);
        let mixture = &self.inner.mixture;
        mixture.count(source, begin.saturating_add(slots)) - mixture.count(source, begin)
    }

    /// Place of the mixture's pattern at which `lane` starts. In a step, lanes cover neighbouring
    /// parts of the pattern, so that the global batch is one unbroken part of it.
    fn pattern_start(&self, lane: u32) -> u64 {
        u64::from(lane) * u64::from(self.inner.microbatch)
    }

    /// Where the `nth` sample that `lane` draws from a source stands.
    fn place(&self, rows: u64, lane: u32, nth: u64) -> Place {
        let lanes = u64::from(self.inner.lanes);
        let around = mul_div(u64::from(lane), rows, lanes, 0) + nth % rows;
        let (turns, place) = (nth / rows + around / rows, around % rows);
        let stretch = mul_div(place + 1, lanes, rows, 1);
        let epoch = (turns * lanes + stretch) - u64::from(lane);
        let begin = mul_div(stretch, rows, lanes, 0);
        let end = mul_div(stretch + 1, rows, lanes, 0);
        Place {
            epoch,
            stretch: stretch as u32,
            places: begin..end,
            place,
        }
    }
}

/// A place in the sequence of an epoch.
struct Place {
    epoch: u64,
    /// Number of the stretch, its places, and the place itself.
    stretch: u32,
    places: Range<u64>,
    place: u64,
}

/// Samples of one lane in one step. See [`Plan::rows`].
#[derive(Clone, Debug)]
pub struct Rows {
    plan: Plan,
    lane: u32,
    slots: Range<u64>,
    /// Per source: the epoch and window of the latest sample, since the next one is mostly there.
    cursors: Vec<Option<Cursor>>,
}

#[derive(Clone, Debug)]
struct Cursor {
    epoch: u64,
    order: EpochOrder,
    window: Window,
}

impl Iterator for Rows {
    type Item = RowRef;

    fn next(&mut self) -> Option<RowRef> {
        let slot = self.slots.next()?;
        let begin = self.plan.pattern_start(self.lane);
        let mixture = &self.plan.inner.mixture;
        let (source, before) = mixture.source(begin.saturating_add(slot));
        let nth = before - mixture.count(source, begin);
        let index = usize::from(source);
        let Source { shape, key } = &self.plan.inner.sources[index];
        let at = self.plan.place(shape.rows, self.lane, nth);
        let kept = self.cursors[index].take();
        let cursor = match kept {
            Some(cursor) if cursor.covers(&at) => cursor,
            _ => Cursor::new(*shape, key, &at),
        };
        let row = cursor.order.row(cursor.window.shuffled(at.place));
        self.cursors[index] = Some(cursor);
        Some(RowRef {
            source,
            epoch: at.epoch,
            row,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.slots.size_hint()
    }
}

impl ExactSizeIterator for Rows {
    fn len(&self) -> usize {
        (self.slots.end - self.slots.start) as usize
    }
}

impl Cursor {
    fn new(shape: CorpusShape, key: &blake3::Hash, at: &Place) -> Self {
        let order = EpochOrder::new(shape, key, at.epoch);
        let window = order.window(at.stretch, &at.places, at.place);
        Self {
            epoch: at.epoch,
            order,
            window,
        }
    }

    fn covers(&self, at: &Place) -> bool {
        self.epoch == at.epoch && self.window.places.contains(&at.place)
    }
}

/// `floor((a * b - less) / c)` without overflow; the result must fit.
fn mul_div(a: u64, b: u64, c: u64, less: u64) -> u64 {
    ((u128::from(a) * u128::from(b) - u128::from(less)) / u128::from(c)) as u64
}

fn check(
    stage: &str,
    sources: &[(CorpusShape, f64)],
    lanes: u32,
    microbatch: u32,
) -> Result<(), PlanError> {
    let stage = stage.to_owned();
    if lanes == 0 || microbatch == 0 {
        return Err(PlanError::NothingToDo {
            stage,
            lanes,
            microbatch,
        });
    }
    if sources.is_empty() {
        return Err(PlanError::NoSources { stage });
    }
    if sources.len() > usize::from(u16::MAX) {
        return Err(PlanError::TooManySources {
            stage,
            count: sources.len(),
        });
    }
    for (source_index, (shape, weight)) in sources.iter().enumerate() {
        if shape.rows == 0 {
            return Err(PlanError::EmptyCorpus {
                stage,
                source_index,
            });
        }
        if shape.group_rows == 0 {
            return Err(PlanError::EmptyGroups {
                stage,
                source_index,
            });
        }
        if !weight.is_finite() || *weight <= 0.0 {
            return Err(PlanError::Weight {
                stage,
                source_index,
                weight: *weight,
            });
        }
    }
    Ok(())
}

/// The key from which all permutations of a stage are derived.
fn stage_key(seed: u64, stage: &str) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("mks2 plan 1: order of a stage's samples");
    hasher.update(&seed.to_le_bytes());
    hasher.update(stage.as_bytes());
    hasher.finalize()
}

fn digest(
    seed: u64,
    stage: &str,
    sources: &[(CorpusShape, f64)],
    lanes: u32,
    microbatch: u32,
) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("mks2 plan: digest");
    hasher.update(&VERSION.to_le_bytes());
    hasher.update(stage_key(seed, stage).as_bytes());
    hasher.update(&WINDOW_GROUPS.to_le_bytes());
    hasher.update(&lanes.to_le_bytes());
    hasher.update(&microbatch.to_le_bytes());
    for (shape, weight) in sources {
        hasher.update(&shape.rows.to_le_bytes());
        hasher.update(&shape.group_rows.to_le_bytes());
        hasher.update(&weight.to_bits().to_le_bytes());
    }
    hasher.finalize()
}
