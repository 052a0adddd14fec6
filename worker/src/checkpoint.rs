//! Checkpoints: what was trained, at one step, as immutable objects below the run directory.
//!
//! ```text
//! <run>/objects/<generation>-<blake3>                  parts: safetensors, named by their content
//! <run>/checkpoints/step-00000100/manifest.json        what belongs together; created last
//! ```
//!
//! The trainer copies its buffers into a [`Snapshot`] at a step border and goes on; in the
//! background [`CheckpointStore::upload`] writes the parts that are not stored yet and makes the
//! manifest. The coordinator's creating it, create-only, is the commit. So:
//!
//! 1. A manifest that exists refers only to objects that exist: parts first, manifest last; when
//!    a checkpoint is let go, manifest first, parts after.
//! 2. Nothing is used before its digest was checked; nothing of another model, corpus, base or
//!    seed is used at all. A refusal names what differs.
//! 3. What did not change is not written again: equal content has an equal name.
//!    A generation has one writer, and no generation uses a part that another one has written, nor
//!    deletes what a later one has: one that stood still while others took over its work finds
//!    nothing to delete that they need.
//! 4. A kill between any two operations leaves the last committed checkpoint as it was.
//!
//! | module | what |
//! |---|---|
//! | `table` | names, shapes and places of the trained parameters; weights digest |
//! | `snapshot` | copies of the buffers, from a pool of memory |
//! | `parts` | a snapshot cut into safetensors files |
//! | `upload` | writing parts; the objects that are in use |
//! | `load` | reading, checking, refusing |
//! | `retention` | the committed checkpoints, and sweeping what only released ones used |
//!
//! The manifest, the reading of a part and what can go wrong are in [`mks2_dataset::checkpoint`], where
//! programs without a tensor library find them too.

mod load;
mod parts;
mod retention;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;
mod upload;

use std::sync::Arc;
use std::time::Duration;

use mks2_dataset::store;
use object_store::ObjectStore;
use object_store::path::Path;

pub use load::{Checkpoint, Expected};
pub use mks2_dataset::checkpoint::{
    CheckpointError, Facts, Group, Kind, LoadedTensor, Manifest, Part, TensorEntry, VERSION,
};
pub use retention::{CheckpointEntry, Swept};
pub use snapshot::{Pool, Snapshot};
pub use table::{Slot, Table};
pub use upload::{Lease, Uploaded};

/// Result of everything in this module.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// Bytes above which a part is split at the next tensor. Two of them are in memory at a time.
const PART_BYTES: usize = 64 << 20;

/// How long an upload waits for the store's answer to one request.
const PATIENCE: Duration = Duration::from_secs(120);

/// The checkpoints of one run directory. Clones share the list of objects in use, so a process
/// opens its run directory once.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    live: upload::Live,
    part_bytes: usize,
    patience: Duration,
}

impl CheckpointStore {
    /// The checkpoints below the run directory at a path or URL.
    ///
    /// # Errors
    /// When the location is of no known kind.
    pub fn open(run_url: &str) -> Result<Self> {
        let (store, root) = store::open(run_url)?;
        Ok(Self::new(store, root))
    }

    /// The checkpoints below `root` of `store`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, root: Path) -> Self {
        Self {
            store,
            root,
            live: upload::Live::default(),
            part_bytes: PART_BYTES,
            patience: PATIENCE,
        }
    }

    /// Gives an upload or a sweep up when the store does not answer for so long, instead of for
    /// two minutes.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Waits for an answer of the store, as long as there is patience.
    async fn within<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answered) => answered,
            Err(_) => Err(CheckpointError::Silent {
                seconds: self.patience.as_secs_f64(),
            }),
        }
    }

    /// Splits parts above `bytes` at the next tensor, instead of above 64 MiB.
    #[must_use]
    pub fn with_part_bytes(mut self, bytes: usize) -> Self {
        self.part_bytes = bytes;
        self
    }

    fn object(&self, path: &str) -> Result<Path> {
        Ok(store::under(&self.root, path)?)
    }
}

/// Where a generation writes a part.
fn part_path(generation: u64, digest: &str) -> String {
    format!("{OBJECTS}/{generation:08}-{digest}")
}

/// Where parts lie in the run directory.
const OBJECTS: &str = "objects";

/// Where the manifest of a step lies in the run directory. `step` counts over all stages.
#[must_use]
pub fn manifest_path(step: u64) -> String {
    format!("checkpoints/step-{step:08}/manifest.json")
}
