//! Checkpoints from the trainer's side: copy behind the next step's computation, upload, commit
//! through the coordinator. Only rank 0 saves, since the trained state is replicated.
//!
//! Training waits for no store inside a stage: a checkpoint that is due while the one before is still
//! under way after [`PATIENCE`] is skipped, and so is one that cannot be stored. Only the end of a
//! stage is waited for, and tried several times.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::telemetry::Instruments;
use mks2_proto::v1::CheckpointRef;
use tokio::runtime::Handle;
use tracing::{debug, info, warn};

use crate::checkpoint::{CheckpointStore, Facts, Kind, Pool, Snapshot, Table};
use crate::flat::{Buffer, FlatLayout, FlatState, Lent};
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

/// How long an upload may hold up the next one, from its beginning.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the end of a stage is tried to be stored; the pauses between double.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

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
    instruments: Instruments,
    pending: Option<Pending>,
}

/// A checkpoint under way.
struct Pending {
    step: u64,
    began: Instant,
    /// It has been given up, and has nothing more to do than to say so.
    is_given_up: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Pending {
    /// Whether it goes on when it has had its time.
    fn is_late(&self) -> bool {
        while !self.thread.is_finished() && !self.is_given_up.load(Ordering::Acquire) {
            if self.began.elapsed() >= PATIENCE {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }
}

impl Saver {
    /// A saver into the run directory of `store`.
    pub fn new(store: CheckpointStore, session: Arc<Session>, runtime: Handle) -> Self {
        Self {
            store,
            pool: Pool::default(),
            session,
            runtime,
            instruments: Instruments::new(),
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

    /// Copies `content` and uploads it in the background. Whoever changes the state next waits until
    /// it is copied. Inside a stage it is skipped if the upload before takes long, so that memory
    /// stays bounded; call [`Saver::settle`] before one that must not be.
    ///
    /// # Errors
    /// When the state cannot be read, or the last checkpoint of a stage could not be saved before.
    pub fn begin(&mut self, content: Content) -> Result<(), Failure> {
        let (step, is_final) = (content.facts.step, content.facts.is_final);
        let late = self.pending.as_ref().filter(|_| !is_final);
        if let Some(late) = late.filter(|pending| pending.is_late()) {
            skipped(&self.session, step, &still_busy(late));
            return Ok(());
        }
        self.settle()?;
        let (began, is_given_up) = (Instant::now(), Arc::default());
        let original = Original::of(content)?;
        let upload = Upload {
            store: self.store.clone(),
            session: Arc::clone(&self.session),
            instruments: self.instruments.clone(),
            began,
            is_given_up: Arc::clone(&is_given_up),
        };
        let (pool, runtime) = (self.pool.clone(), self.runtime.clone());
        // Its requests belong to the trace of the run.
        let span = tracing::Span::current();
        let work = move || {
            let _entered = span.entered();
            let (snapshot, facts) = original.copied(&pool)?;
            runtime.block_on(upload.save(snapshot, facts))
        };
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(work)
            .map_err(|e| Failure::io("a checkpoint's thread cannot be started", e))?;
        self.pending = Some(Pending {
            step,
            began,
            is_given_up,
            thread,
        });
        debug!(
            blocked_ms = began.elapsed().as_secs_f64() * 1e3,
            "checkpoint begun"
        );
        Ok(())
    }

    /// Waits for the upload under way. A failed one inside a stage is an alarm, not an end.
    ///
    /// # Errors
    /// When the last checkpoint of a stage failed: the stages after it could not start from it.
    pub fn settle(&mut self) -> Result<(), Failure> {
        match self.pending.take().map(|pending| pending.thread.join()) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(Failure::internal(
                "a checkpoint was lost",
                "its thread panicked; see the log",
            )),
        }
    }
}

/// What a checkpoint is copied from, in the trainer's own buffers.
pub(crate) struct Original {
    buffers: Vec<(Kind, Lent)>,
    table: Arc<Table>,
    reducer: Vec<u8>,
    tokenizer: Option<Vec<u8>>,
    facts: Facts,
}

impl Original {
    /// Borrows what `content` names; nothing is copied on a CPU.
    ///
    /// # Errors
    /// When a buffer cannot be read from its device.
    pub(crate) fn of(content: Content) -> Result<Self, Failure> {
        let lend = |(buffer, kind)| Ok::<_, Failure>((kind, content.state.lend(buffer)?));
        Ok(Self {
            buffers: BUFFERS.into_iter().map(lend).collect::<Result<_, _>>()?,
            table: content.table,
            reducer: content.reducer,
            tokenizer: content.tokenizer,
            facts: content.facts,
        })
    }

    /// A copy in the pool's memory. Each buffer is given back as soon as it is copied.
    ///
    /// # Errors
    /// When table and buffers do not fit.
    pub(crate) fn copied(self, pool: &Pool) -> Result<(Snapshot, Facts), Failure> {
        let mut snapshot = pool.snapshot(self.table);
        for (kind, buffer) in self.buffers {
            snapshot.copy(kind, &buffer)?;
        }
        snapshot.add_bytes(Kind::State, REDUCER, self.reducer);
        if let Some(tokenizer) = self.tokenizer {
            snapshot.add_bytes(Kind::Tokenizer, TOKENIZER, tokenizer);
        }
        Ok((snapshot, self.facts))
    }
}

/// An alarm: training goes on, and everybody is told. The end of the run, if it is that, reaches the
/// trainer by itself.
fn skipped(session: &Session, step: u64, failure: &Failure) {
    warn!(step = step as i64, error = %failure.what, why = %failure.why, "checkpoint skipped; training goes on");
    let _ = session.checkpoint_skipped(step, failure);
}

fn still_busy(pending: &Pending) -> Failure {
    let seconds = pending.began.elapsed().as_secs();
    Failure::storage(
        "the checkpoint is not stored",
        format!(
            "the one of step {} has been under way for {seconds} s",
            pending.step
        ),
        "let checkpoints be further apart (checkpoint.every_steps), or use a faster store",
    )
}

/// One checkpoint on its way into the store.
struct Upload {
    store: CheckpointStore,
    session: Arc<Session>,
    instruments: Instruments,
    /// When its copy was begun.
    began: Instant,
    is_given_up: Arc<AtomicBool>,
}

impl Upload {
    /// Stores it and lets it count; the end of a stage with more than one attempt.
    async fn save(&self, snapshot: Snapshot, facts: Facts) -> Result<(), Failure> {
        let (step, is_final, snapshot) = (facts.step, facts.is_final, Arc::new(snapshot));
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let Err(failure) = self.attempt(&snapshot, facts.clone()).await else {
                break;
            };
            if !is_final {
                // Whoever hears the alarm may save the next one.
                self.is_given_up.store(true, Ordering::Release);
                skipped(&self.session, step, &failure);
                break;
            }
            // Whatever else it is, it would not be another time.
            let may_pass = failure.exit == ExitCode::Storage && self.session.aborted().is_none();
            if !may_pass || attempt == ATTEMPTS {
                return Err(failure);
            }
            warn!(step = step as i64, attempt, why = %failure.why, "the end of a stage is not stored yet");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(())
    }

    async fn attempt(&self, snapshot: &Arc<Snapshot>, facts: Facts) -> Result<(), Failure> {
        let (step, stage, is_final) = (facts.step, facts.stage.clone(), facts.is_final);
        let (generation, uncompared) = (facts.generation, facts.uncompared);
        let uploaded = self.store.upload(Arc::clone(snapshot), facts).await?;
        let reference = CheckpointRef {
            step,
            stage: stage.clone(),
            r#final: is_final,
            manifest_path: uploaded.path.clone(),
            manifest_digest: uploaded.digest.clone(),
            uncompared,
        };
        let manifest = uploaded.bytes.to_vec();
        let released = self.session.commit_checkpoint(reference, manifest).await?;
        let seconds = self.began.elapsed().as_secs_f64();
        self.instruments.record_checkpoint(&stage, seconds);
        info!(
            step = step as i64,
            weights_digest = %uploaded.manifest.weights_digest,
            written_bytes = uploaded.written_bytes as i64,
            reused_bytes = uploaded.reused_bytes as i64,
            seconds,
            "checkpoint committed"
        );
        drop(uploaded);
        if is_final || !released.is_empty() {
            let released = released.into_iter().map(|one| one.manifest_path);
            self.sweep(&released.collect::<Vec<_>>(), generation).await;
        }
        Ok(())
    }

    /// What a failed sweep leaves behind, the next one takes along: no reason to stop.
    async fn sweep(&self, released: &[String], generation: u64) {
        match self.store.sweep(released, generation).await {
            Ok(swept) => info!(
                objects = swept.objects as i64,
                bytes = swept.bytes as i64,
                "old checkpoints removed"
            ),
            Err(error) => warn!(%error, "old checkpoints could not be removed yet"),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn one_that_was_given_up_holds_up_no_other_while_it_says_so() {
        let (over, is_over) = mpsc::sync_channel::<()>(1);
        let pending = Pending {
            step: 7,
            began: Instant::now(),
            is_given_up: Arc::default(),
            thread: std::thread::spawn(move || {
                let _dropped = is_over.recv();
                Ok(())
            }),
        };
        assert!(pending.is_late());
        pending.is_given_up.store(true, Ordering::Release);
        assert!(!pending.is_late());
        drop(over);
    }
}
