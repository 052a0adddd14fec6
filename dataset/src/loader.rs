//! The loader: microbatches of the plan, read and decoded ahead of time.
//!
//! ```text
//! plan ──► threads: rows of (step, lane) ──► row groups (cache, one read each) ──► decode, scale
//!                                                                                      │
//! trainer ◄── next(step, lane), any order of lanes ◄── ready microbatches (bounded) ◄──┘
//! ```
//!
//! 1. What `next(step, lane)` returns depends on the plan, the corpora and (step, lane) alone:
//!    neither on the lanes held, nor on threads, nor on what was asked for before.
//! 2. Memory is bounded: ready microbatches by number and bytes, row groups by bytes, decoded
//!    pictures by bytes (they are kept only where all of them fit).
//! 3. A read that fails is the answer for its own (step, lane) and says which corpus, shard and
//!    row group; asking again tries again. Nothing hangs: a wait ends after [`Settings::timeout`].
//! 4. Dropping the loader stops its threads, also in the middle of a read.
//!
//! Augmentation is not done here: it belongs to the (seed, step, row) of the training step.

mod cache;
mod error;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures::future::try_join_all;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use error::LoadError;

use crate::picture::Limits;
use crate::plan::{Plan, RowRef};
use crate::reader::Corpus;
use crate::row::Row;
use cache::{Group, Groups, Pictures};
use queue::Queue;

/// How far ahead the loader reads and how much it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Side of the decoded pictures, pixels; `None`: rows only, nothing is decoded.
    pub side: Option<u32>,
    /// What a picture may be.
    pub limits: Limits,
    /// Threads that read and decode.
    pub threads: usize,
    /// Steps that are made ready ahead.
    pub ahead_steps: usize,
    /// Bytes of ready microbatches beyond which nothing more is made ready.
    pub ahead_bytes: u64,
    /// Bytes of row groups that are kept. Where one window of groups of each lane does not fit,
    /// groups are read several times.
    pub group_bytes: u64,
    /// Bytes of decoded pictures that are kept, if those of all corpora fit.
    pub picture_bytes: u64,
    /// Longest wait for one microbatch.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            side: None,
            limits: Limits::default(),
            threads: 2,
            ahead_steps: 2,
            ahead_bytes: 256 << 20,
            group_bytes: 256 << 20,
            picture_bytes: 128 << 20,
            timeout: Duration::from_secs(300),
        }
    }
}

/// One sample of a microbatch.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Where it comes from: source, epoch, row.
    pub at: RowRef,
    /// The row without its encoded picture.
    pub row: Arc<Row>,
    /// The decoded picture, if the row has one and pictures are wanted: `side * side * 3` bytes,
    /// line by line, red, green, blue.
    pub pixels: Option<Arc<[u8]>>,
}

/// What a lane contributes to a step.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroBatch {
    /// The step within the stage.
    pub step: u64,
    /// The lane.
    pub lane: u32,
    /// The samples, in the plan's order.
    pub samples: Vec<Sample>,
}

/// Reads a plan's microbatches in the background.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    timeout: Duration,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    side: Option<u32>,
    groups: Groups,
    pictures: Pictures,
    queue: Queue,
    runtime: Handle,
    cancelled: CancellationToken,
}

impl Loader {
    /// Starts reading: `corpora` are the plan's sources, in order; `lanes` are those that this
    /// worker holds; `steps` are those to come, counted within the stage. Reads run on `runtime`,
    /// which must be one with threads of its own and outlive the loader.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] if corpora and plan do not belong together or a lane is not the
    /// plan's, [`LoadError::Threads`] if no thread can be started.
    pub fn new(
        corpora: Vec<Corpus>,
        plan: Plan,
        lanes: &[u32],
        steps: Range<u64>,
        settings: &Settings,
        runtime: Handle,
    ) -> Result<Self, LoadError> {
        check(&corpora, &plan, lanes)?;
        let rows = plan
            .shapes()
            .map(|shape| shape.rows)
            .fold(0_u64, u64::saturating_add);
        let side = settings.side;
        let shared = Arc::new(Shared {
            side,
            groups: Groups::new(corpora, settings.group_bytes),
            pictures: Pictures::new(rows, side, settings.picture_bytes, settings.limits),
            queue: Queue::new(
                lanes,
                steps,
                settings.ahead_steps.max(1),
                settings.ahead_bytes,
            ),
            plan,
            runtime,
            cancelled: CancellationToken::new(),
        });
        let mut loader = Self {
            shared,
            threads: Vec::new(),
            timeout: settings.timeout,
        };
        for number in 0..settings.threads.max(1) {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || shared.work())
                .map_err(LoadError::Threads)?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// Holds other lanes from now on, from the step on that was asked for last. What is ready of
    /// lanes that stay is kept.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] if a lane is not the plan's, or none is held.
    pub fn hold(&self, lanes: &[u32]) -> Result<(), LoadError> {
        check_lanes(&self.shared.plan, lanes)?;
        self.shared.queue.hold(lanes);
        Ok(())
    }

    /// The microbatch of a lane in a step; waits until it is ready. Lanes of a step may be asked
    /// for in any order. Asking for a step lets go of what is ready for earlier ones.
    ///
    /// # Errors
    /// What went wrong while it was read, or [`LoadError::Timeout`].
    pub fn next(&self, step: u64, lane: u32) -> Result<MicroBatch, LoadError> {
        self.shared.queue.wait_for((step, lane), self.timeout)
    }

    /// How long calls of [`Loader::next`] have waited so far, in sum.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.shared.queue.waited()
    }

    /// Row groups that were read from the store so far.
    #[must_use]
    pub fn groups_read(&self) -> u64 {
        self.shared.groups.reads()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.cancelled.cancel();
        self.shared.queue.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the loader has panicked");
            }
        }
    }
}

impl Shared {
    /// The life of a thread: one microbatch after the other until the loader is dropped.
    fn work(&self) {
        while let Some((step, lane)) = self.queue.take() {
            let produced = catch_unwind(AssertUnwindSafe(|| self.produce(step, lane)))
                .unwrap_or(Err(LoadError::Panicked { step, lane }));
            let bytes = produced.as_ref().map_or(0, MicroBatch::bytes);
            self.queue.put((step, lane), produced, bytes);
        }
    }

    fn produce(&self, step: u64, lane: u32) -> Result<MicroBatch, LoadError> {
        let rows: Vec<RowRef> = self.plan.rows(step, lane).collect();
        let groups = self.read_groups(&rows)?;
        let samples =
            rows.into_iter()
                .map(|at| {
                    let group = groups.get(&self.groups.key(at));
                    let (row, image) = group.and_then(|group| self.groups.row(group, at)).ok_or(
                        LoadError::NoRow {
                            source_index: at.source,
                            row: at.row,
                        },
                    )?;
                    let wanted = image.as_ref().zip(self.side);
                    let pixels = wanted
                        .map(|(image, side)| {
                            let decoded = self.pictures.get((at.source, at.row), image, side);
                            decoded.map_err(|problem| self.groups.bad_picture(at, row, problem))
                        })
                        .transpose()?;
                    Ok(Sample {
                        at,
                        row: Arc::clone(row),
                        pixels,
                    })
                })
                .collect::<Result<_, LoadError>>()?;
        Ok(MicroBatch {
            step,
            lane,
            samples,
        })
    }

    /// All row groups that the rows lie in, read at the same time.
    fn read_groups(&self, rows: &[RowRef]) -> Result<BTreeMap<cache::Key, Arc<Group>>, LoadError> {
        let keys: std::collections::BTreeSet<cache::Key> =
            rows.iter().map(|at| self.groups.key(*at)).collect();
        let reading = try_join_all(keys.into_iter().map(async |key| {
            let group = self.groups.get(key).await?;
            Ok((key, group))
        }));
        let read = self
            .runtime
            .block_on(self.cancelled.run_until_cancelled(reading));
        Ok(read.ok_or(LoadError::Stopped)??.into_iter().collect())
    }
}

impl MicroBatch {
    /// About how much memory it keeps.
    fn bytes(&self) -> u64 {
        let pixels = |sample: &Sample| sample.pixels.as_ref().map_or(0, |pixels| pixels.len());
        self.samples
            .iter()
            .map(|sample| pixels(sample) as u64 + 512)
            .sum()
    }
}

fn check(corpora: &[Corpus], plan: &Plan, lanes: &[u32]) -> Result<(), LoadError> {
    let mismatch = |reason: String| Err(LoadError::Mismatch { reason });
    if corpora.len() != plan.shapes().len() {
        let (found, planned) = (corpora.len(), plan.shapes().len());
        return mismatch(format!(
            "{found} corpora were given, the plan has {planned}"
        ));
    }
    for (index, (corpus, shape)) in corpora.iter().zip(plan.shapes()).enumerate() {
        let manifest = corpus.manifest();
        if (manifest.rows, manifest.row_group_rows) != (shape.rows, shape.group_rows) {
            return mismatch(format!(
                "corpus number {index} has {} rows in groups of {}, the plan has {} in groups of {}",
                manifest.rows, manifest.row_group_rows, shape.rows, shape.group_rows
            ));
        }
    }
    check_lanes(plan, lanes)
}

fn check_lanes(plan: &Plan, lanes: &[u32]) -> Result<(), LoadError> {
    let reason = match lanes.iter().find(|lane| **lane >= plan.lanes()) {
        Some(lane) => format!("there is no lane {lane}, the plan has {}", plan.lanes()),
        None if lanes.is_empty() => "no lane is held".to_owned(),
        None => return Ok(()),
    };
    Err(LoadError::Mismatch { reason })
}
