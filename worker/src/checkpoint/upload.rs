//! Writing a snapshot's parts and making its manifest.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use mks2_dataset::checkpoint::{computed, digest};
use mks2_dataset::store;

use super::parts::{self, PartPlan};
use super::snapshot::Snapshot;
use super::{CheckpointStore, Facts, Manifest, Part, Result, VERSION, manifest_path};

/// Parts that are encoded and written at the same time.
const CONCURRENT_PARTS: usize = 2;

/// A checkpoint whose parts are all stored and whose manifest waits to be created.
#[derive(Debug)]
pub struct Uploaded {
    /// The manifest.
    pub manifest: Manifest,
    /// The manifest's bytes, to be created at `path`.
    pub bytes: Bytes,
    /// Digest of these bytes, in hex.
    pub digest: String,
    /// Where the manifest belongs in the run directory.
    pub path: String,
    /// Bytes of the parts that were written now.
    pub written_bytes: u64,
    /// Bytes of the parts that were stored before.
    pub reused_bytes: u64,
    /// Keeps the parts from being swept. Drop it when the commit has succeeded or failed.
    pub lease: Lease,
}

/// Objects that an upload of this process needs. They are safe from
/// [`CheckpointStore::sweep`] while the lease lives.
#[derive(Debug)]
pub struct Lease {
    live: Live,
    paths: Vec<String>,
}

/// The objects in use by uploads of this process.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    uses: Arc<Mutex<Uses>>,
    /// Held while an object is judged and deleted, and while a new one is noted: an upload never
    /// finds an object that is about to go.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// One sweep at a time.
    sweep: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Uses {
    leases: HashMap<String, usize>,
    /// Everything that was leased since the sweep under way began: what is committed meanwhile
    /// is not in the manifests that the sweep has read.
    during_sweep: Option<HashSet<String>>,
}

impl CheckpointStore {
    /// Stores the parts of a snapshot that are not stored yet and makes the manifest. Nothing is
    /// committed by this: the checkpoint exists when its manifest is created.
    ///
    /// # Errors
    /// Trouble with the store. What was committed before stays as it is, so the caller may skip
    /// this checkpoint.
    pub async fn upload(
        &self,
        snapshot: impl Into<Arc<Snapshot>>,
        facts: Facts,
    ) -> Result<Uploaded> {
        let snapshot = snapshot.into();
        let mut lease = Lease {
            live: self.live.clone(),
            paths: Vec::new(),
        };
        let plans = parts::plan(&snapshot, self.part_bytes);
        let weights_digest = {
            let snapshot = Arc::clone(&snapshot);
            computed(move || snapshot.weights_digest()).await?
        };
        let writing = plans
            .into_iter()
            .map(|plan| self.write_part(Arc::clone(&snapshot), plan, facts.generation));
        let mut writing = futures::stream::iter(writing).buffered(CONCURRENT_PARTS);
        let (mut parts, mut written_bytes, mut reused_bytes) = (Vec::new(), 0, 0);
        while let Some((part, held, is_new)) = writing.try_next().await? {
            lease.absorb(held);
            *(if is_new {
                &mut written_bytes
            } else {
                &mut reused_bytes
            }) += part.bytes;
            parts.push(part);
        }
        drop(writing);
        let path = manifest_path(facts.step);
        let model_digest = snapshot.table().digest().to_owned();
        let facts = Facts {
            loss: facts.loss.filter(|loss| loss.is_finite()),
            ..facts
        };
        let manifest = Manifest {
            version: VERSION,
            facts,
            model_digest,
            weights_digest,
            parts,
        };
        let bytes = manifest.to_bytes()?;
        let digest = digest(&bytes);
        Ok(Uploaded {
            manifest,
            bytes,
            digest,
            path,
            written_bytes,
            reused_bytes,
            lease,
        })
    }

    /// Encodes a part and writes it, unless it is stored already; true if it was written.
    async fn write_part(
        &self,
        snapshot: Arc<Snapshot>,
        plan: PartPlan,
        generation: u64,
    ) -> Result<(Part, Lease, bool)> {
        let (part, file) = computed(move || parts::encode(&snapshot, &plan, generation)).await?;
        let lease = self.live.hold(part.path.clone()).await;
        let object = self.object(&part.path)?;
        let size = async { Ok(store::size(&*self.store, &object).await?) };
        if self.within(size).await? == Some(part.bytes) {
            return Ok((part, lease, false));
        }
        let put = async { Ok(store::put(&*self.store, &object, file).await?) };
        self.within(put).await?;
        Ok((part, lease, true))
    }
}

impl Live {
    /// Notes that an object is needed.
    async fn hold(&self, path: String) -> Lease {
        let _gate = self.gate.lock().await;
        let mut uses = self.uses();
        *uses.leases.entry(path.clone()).or_insert(0) += 1;
        if let Some(noted) = &mut uses.during_sweep {
            noted.insert(path.clone());
        }
        drop(uses);
        Lease {
            live: self.clone(),
            paths: vec![path],
        }
    }

    /// Begins a sweep: what is in use from now on is noted until the guard is dropped.
    pub(super) async fn begin_sweep(&self) -> SweepGuard {
        let turn = Arc::clone(&self.sweep).lock_owned().await;
        let mut uses = self.uses();
        uses.during_sweep = Some(uses.leases.keys().cloned().collect());
        drop(uses);
        SweepGuard {
            live: self.clone(),
            _turn: turn,
        }
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sweep under way.
pub(super) struct SweepGuard {
    live: Live,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl SweepGuard {
    /// Runs `deletion` unless an upload has needed the object since the sweep began; no upload
    /// can begin to need it meanwhile.
    pub(super) async fn unless_used<T>(
        &self,
        path: &str,
        deletion: impl Future<Output = Result<T>>,
    ) -> Result<Option<T>> {
        let _gate = self.live.gate.lock().await;
        let used = self
            .live
            .uses()
            .during_sweep
            .as_ref()
            .is_none_or(|used| used.contains(path));
        if used {
            Ok(None)
        } else {
            deletion.await.map(Some)
        }
    }
}

impl Drop for SweepGuard {
    fn drop(&mut self) {
        self.live.uses().during_sweep = None;
    }
}

impl Lease {
    fn absorb(&mut self, mut other: Self) {
        self.paths.append(&mut other.paths);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut uses = self.live.uses();
        for path in &self.paths {
            if let Some(count) = uses.leases.get_mut(path) {
                *count -= 1;
                if *count == 0 {
                    uses.leases.remove(path);
                }
            }
        }
    }
}
