//! Checkpoints from the trainer's side: copy at a step border, upload behind its back, commit
//! through the coordinator. Only rank 0 saves, since the trained state is replicated.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use mks2_proto::failure::Failure;
use mks2_proto::v1::CheckpointRef;
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::checkpoint::{CheckpointStore, Facts, Kind, Pool, Snapshot, Table};
use crate::flat::{Buffer, FlatLayout, FlatState};
use crate::session::Session;

/// Name of the exact reduction's exponents in a checkpoint.
pub const REDUCER: &str = "reducer";
/// Name of the tokenizer's file in a checkpoint.
pub const TOKENIZER: &str = "tokenizer.json";

/// The flat buffers and where they lie in a checkpoint.
pub const BUFFERS: [(Buffer, Kind); 3] = [
    (Buffer::Weights, Kind::Weights),
    (Buffer::ExpAvg, Kind::ExpAvg),
    (Buffer::ExpAvgSq, Kind::ExpAvgSq),
];

/// What one checkpoint holds.
pub struct Content<'a> {
    /// The trained state.
    pub state: &'a FlatState,
    /// Names and places of the trained parameters.
    pub table: Arc<Table>,
    /// The exact reduction's exponents.
    pub reducer: Vec<u8>,
    /// The tokenizer's file, where the stage has trained one.
    pub tokenizer: Option<Vec<u8>>,
    /// Everything else.
    pub facts: Facts,
}

/// Saves checkpoints, one at a time.
pub struct Saver {
    store: CheckpointStore,
    pool: Pool,
    session: Arc<Session>,
    runtime: Handle,
    pending: Option<JoinHandle<Result<(), Failure>>>,
}

impl Saver {
    /// A saver into the run directory of `store`.
    pub fn new(store: CheckpointStore, session: Arc<Session>, runtime: Handle) -> Self {
        Self {
            store,
            pool: Pool::default(),
            session,
            runtime,
            pending: None,
        }
    }

    /// Makes the memory of the first snapshot ready, so that it costs no more than later ones.
    pub fn warm(&self, table: &Table) {
        self.pool.warm(table);
    }

    /// The store that it saves into.
    pub fn store(&self) -> &CheckpointStore {
        &self.store
    }

    /// Copies `content` and uploads it in the background. An upload that is still under way is
    /// waited for, so that memory stays bounded.
    ///
    /// # Errors
    /// When the copy fails, or the last checkpoint of a stage could not be saved before.
    pub fn begin(&mut self, content: Content) -> Result<(), Failure> {
        self.settle()?;
        let began = Instant::now();
        let (snapshot, facts) = copied(&self.pool, content)?;
        let blocked = began.elapsed();
        let (store, session, runtime) = (
            self.store.clone(),
            Arc::clone(&self.session),
            self.runtime.clone(),
        );
        // Its requests belong to the trace of the run.
        let span = tracing::Span::current();
        let upload =
            move || span.in_scope(|| runtime.block_on(save(&store, &session, snapshot, facts)));
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(upload);
        self.pending =
            Some(thread.map_err(|e| Failure::io("a checkpoint's thread cannot be started", e))?);
        info!(
            blocked_ms = blocked.as_secs_f64() * 1e3,
            "checkpoint copied"
        );
        Ok(())
    }

    /// Waits for the upload under way. A failed one inside a stage is an alarm, not an end.
    ///
    /// # Errors
    /// When the last checkpoint of a stage failed: the stages after it could not start from it.
    pub fn settle(&mut self) -> Result<(), Failure> {
        match self.pending.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(Failure::internal(
                "a checkpoint was lost",
                "its thread panicked; see the log",
            )),
        }
    }
}

/// A copy of `content` in the pool's memory: all that a checkpoint stops the step loop for.
///
/// # Errors
/// When a buffer cannot be read from its device.
pub(crate) fn copied(pool: &Pool, content: Content) -> Result<(Snapshot, Facts), Failure> {
    let mut snapshot = pool.snapshot(content.table);
    for (buffer, kind) in BUFFERS {
        snapshot.copy(kind, &content.state.host(buffer)?)?;
    }
    snapshot.add_bytes(Kind::State, REDUCER, content.reducer);
    if let Some(tokenizer) = content.tokenizer {
        snapshot.add_bytes(Kind::Tokenizer, TOKENIZER, tokenizer);
    }
    Ok((snapshot, content.facts))
}

async fn save(
    store: &CheckpointStore,
    session: &Session,
    snapshot: Snapshot,
    facts: Facts,
) -> Result<(), Failure> {
    let (step, is_final) = (facts.step, facts.is_final);
    match upload_and_commit(store, session, snapshot, facts).await {
        Err(failure) if !is_final => {
            warn!(step = step as i64, error = %failure.what, why = %failure.why, "checkpoint skipped; training goes on");
            // The end of the run, if it is that, reaches the trainer by itself.
            let _ = session.checkpoint_skipped(step, &failure);
            Ok(())
        }
        other => other,
    }
}

async fn upload_and_commit(
    store: &CheckpointStore,
    session: &Session,
    snapshot: Snapshot,
    facts: Facts,
) -> Result<(), Failure> {
    let (step, stage, is_final) = (facts.step, facts.stage.clone(), facts.is_final);
    let uploaded = store.upload(snapshot, facts).await?;
    let reference = CheckpointRef {
        step,
        stage,
        r#final: is_final,
        manifest_path: uploaded.path.clone(),
        manifest_digest: uploaded.digest.clone(),
    };
    let released = session
        .commit_checkpoint(reference, uploaded.bytes.to_vec())
        .await?;
    info!(
        step = step as i64,
        weights_digest = %uploaded.manifest.weights_digest,
        written_bytes = uploaded.written_bytes as i64,
        reused_bytes = uploaded.reused_bytes as i64,
        seconds = uploaded.elapsed.as_secs_f64(),
        "checkpoint committed"
    );
    drop(uploaded);
    if is_final || !released.is_empty() {
        let paths: Vec<String> = released
            .into_iter()
            .map(|released| released.manifest_path)
            .collect();
        // What a failed sweep leaves behind, the next one takes along: no reason to stop.
        match store.sweep(&paths).await {
            Ok(swept) => info!(
                objects = swept.objects as i64,
                bytes = swept.bytes as i64,
                "old checkpoints removed"
            ),
            Err(error) => warn!(%error, "old checkpoints could not be removed yet"),
        }
    }
    Ok(())
}

/// The checkpoint's table of a flat layout.
///
/// # Errors
/// When a name appears twice.
pub fn table_of(layout: &FlatLayout) -> Result<Arc<Table>, Failure> {
    let slots = layout.spans().iter().map(|span| crate::checkpoint::Slot {
        name: span.name.clone(),
        shape: span.shape.iter().map(|&side| side as usize).collect(),
        offset: span.offset,
    });
    Ok(Arc::new(Table::new(slots)?))
}
