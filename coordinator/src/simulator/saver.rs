//! Checkpoints from a worker's side: follows `worker/src/saver.rs` and `checkpoint`. Upload the
//! part, ask the coordinator to count it, delete what it let go.
//!
//! A part's name has its writer in it, so that nobody deletes what another one uses.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use mks2_dataset::store;
use mks2_proto::{
    failure::Failure,
    v1::{CheckpointRef, CheckpointSkipped, report::Kind},
};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{executor::sleep, office::ROOT, session::Session, store::View};
use crate::service::convert::manifest_path;

/// As often as an object store's client tries.
const ATTEMPTS: u32 = 6;
const RETRY: Duration = Duration::from_millis(150);

/// What a checkpoint holds.
#[derive(Clone)]
pub(super) struct Content {
    pub(super) step: u64,
    pub(super) stage: String,
    pub(super) is_final: bool,
    pub(super) uncompared: bool,
    pub(super) weights: u64,
}

/// What the coordinator writes to make it count.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) step: u64,
    pub(super) weights: u64,
    pub(super) part: String,
    /// Differs from writer to writer, as the seconds do that a real one has spent.
    by: u64,
}

/// Saves checkpoints, one at a time.
pub(super) struct Saver {
    session: Rc<Session>,
    store: Arc<View>,
    pending: RefCell<Option<oneshot::Receiver<Result<(), Failure>>>>,
}

impl Saver {
    pub(super) fn new(session: &Rc<Session>) -> Self {
        Self {
            session: Rc::clone(session),
            store: Arc::new(session.world.cloud.view(session.node)),
            pending: RefCell::default(),
        }
    }

    pub(super) async fn begin(&self, content: Content) -> Result<(), Failure> {
        self.settle().await?;
        let (session, store) = (Rc::clone(&self.session), Arc::clone(&self.store));
        let (done, pending) = oneshot::channel();
        *self.pending.borrow_mut() = Some(pending);
        self.session
            .world
            .executor
            .spawn(self.session.node, async move {
                let _gone = done.send(save(&session, &store, content).await);
            });
        Ok(())
    }

    /// A failed upload inside a stage is an alarm, not an end.
    pub(super) async fn settle(&self) -> Result<(), Failure> {
        let pending = self.pending.borrow_mut().take();
        match pending {
            Some(pending) => pending.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }

    /// The weights of a checkpoint that counts.
    pub(super) async fn read(&self, from: &CheckpointRef) -> Result<u64, Failure> {
        let manifest = self.get(&from.manifest_path).await?;
        let manifest: Manifest = serde_json::from_slice(&manifest)
            .map_err(|error| Failure::checkpoint("a manifest is damaged", error.to_string(), ""))?;
        let part = self.get(&manifest.part).await?;
        let mut weights = [0; 8];
        weights.copy_from_slice(&part[..8]);
        Ok(u64::from_le_bytes(weights))
    }

    async fn get(&self, path: &str) -> Result<Bytes, Failure> {
        let path = under(path)?;
        let read = tried(|| store::get_if_there(&*self.store, &path)).await?;
        read.ok_or_else(|| {
            let checks = &self.session.world.checks;
            checks.borrow_mut().missed(&self.session.who, &path);
            Failure::checkpoint("a checkpoint is gone", "", "")
        })
    }
}

fn under(path: &str) -> Result<Path, Failure> {
    Ok(store::under(&Path::from(ROOT), path)?)
}

/// Tries again while the store fails.
async fn tried<T, F>(mut request: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = mks2_dataset::error::Result<T>>,
{
    let mut attempt = 1;
    loop {
        match request().await {
            Ok(done) => return Ok(done),
            Err(error) if attempt == ATTEMPTS => return Err(error.into()),
            Err(_) => attempt += 1,
        }
        sleep(RETRY).await;
    }
}

async fn save(session: &Session, store: &View, content: Content) -> Result<(), Failure> {
    match upload_and_commit(session, store, &content).await {
        Err(failure) if !content.is_final => {
            let _over = session.report(Kind::CheckpointSkipped(CheckpointSkipped {
                step: content.step,
                failure: Some((&failure).into()),
            }));
            Ok(())
        }
        other => other,
    }
}

async fn upload_and_commit(
    session: &Session,
    store: &View,
    content: &Content,
) -> Result<(), Failure> {
    let by = session.who.incarnation.0;
    let part = format!("objects/{:016x}-{by}", content.weights);
    let bytes = Bytes::copy_from_slice(&content.weights.to_le_bytes());
    if !planted!(CommitBeforeUpload) {
        let path = under(&part)?;
        tried(|| store::put(store, &path, bytes.clone())).await?;
    }
    let manifest = Manifest {
        step: content.step,
        weights: content.weights,
        part: part.clone(),
        by,
    };
    let manifest = serde_json::to_vec(&manifest)
        .map_err(|error| Failure::internal("no manifest", error.to_string()))?;
    let reference = CheckpointRef {
        step: content.step,
        stage: content.stage.clone(),
        r#final: content.is_final,
        manifest_path: manifest_path(content.step),
        manifest_digest: blake3::hash(&manifest).to_hex().to_string(),
        uncompared: content.uncompared,
    };
    let released = session.commit_checkpoint(reference, manifest).await?;
    session
        .world
        .checks
        .borrow_mut()
        .acknowledged(&session.who, content.step);
    if planted!(CommitBeforeUpload) {
        let path = under(&part)?;
        tried(|| store::put(store, &path, bytes.clone())).await?;
    }
    for old in released {
        // What a failed sweep leaves behind, the next one takes along.
        let _later = sweep(store, &old).await;
    }
    Ok(())
}

/// Deletes a checkpoint that was let go: the manifest first.
async fn sweep(store: &View, old: &CheckpointRef) -> Result<(), Failure> {
    let path = under(&old.manifest_path)?;
    let Some(manifest) = tried(|| store::get_if_there(store, &path)).await? else {
        return Ok(());
    };
    tried(|| store::delete(store, &path)).await?;
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(&manifest) {
        let part = under(&manifest.part)?;
        tried(|| store::delete(store, &part)).await?;
    }
    Ok(())
}
