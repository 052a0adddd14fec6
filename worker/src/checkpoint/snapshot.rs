//! Copies of the training state, so that training goes on while they are written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{CheckpointError, Kind, Result, Table};

/// Buffers that wait for the next snapshot: weights and both moments.
const MAX_FREE: usize = 3;

/// Memory of earlier snapshots. Fresh pages cost several times the copy itself, so a snapshot
/// gives its memory back when it is dropped.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    free: Arc<Mutex<Vec<Vec<f32>>>>,
}

impl Pool {
    /// An empty snapshot for the parameters of `table`.
    #[must_use]
    pub fn snapshot(&self, table: Arc<Table>) -> Snapshot {
        Snapshot {
            table,
            pool: self.clone(),
            buffers: Vec::new(),
            extras: Vec::new(),
            blocked: Duration::ZERO,
        }
    }

    /// Makes room for a snapshot of `table` ahead of time, so that the first one is as quick as
    /// the later ones. Call it when a stage begins.
    pub fn warm(&self, table: &Table) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let elements = table.elements();
        free.retain(|buffer| buffer.capacity() >= elements);
        while free.len() < MAX_FREE {
            // Written, not just reserved: the pages must be there.
            let mut buffer = Vec::with_capacity(elements);
            buffer.resize(elements, 0.0);
            free.push(buffer);
        }
    }

    fn take(&self) -> Vec<f32> {
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    fn give(&self, buffer: Vec<f32>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < MAX_FREE {
            free.push(buffer);
        }
    }
}

/// The training state at one step border. It owns everything that it holds.
#[derive(Debug)]
pub struct Snapshot {
    table: Arc<Table>,
    pool: Pool,
    buffers: Vec<(Kind, Vec<f32>)>,
    extras: Vec<Extra>,
    blocked: Duration,
}

/// Named bytes beside the flat buffers: reduction exponents, the tokenizer.
#[derive(Debug)]
pub(super) struct Extra {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl Snapshot {
    /// Copies a flat buffer: weights or one of the moments.
    ///
    /// # Errors
    /// [`CheckpointError::Internal`] if it is shorter than the table needs, or was copied before.
    pub fn copy(&mut self, kind: Kind, flat: &[f32]) -> Result<()> {
        let begin = Instant::now();
        self.table.check_buffer(flat.len())?;
        if self.buffers.iter().any(|(copied, _)| *copied == kind) {
            let text = format!("{} was copied before", kind.as_str());
            return Err(CheckpointError::Internal(text));
        }
        let mut buffer = self.pool.take();
        buffer.clear();
        buffer.extend_from_slice(&flat[..self.table.elements()]);
        self.buffers.push((kind, buffer));
        self.blocked += begin.elapsed();
        Ok(())
    }

    /// Adds bytes under a name: a tokenizer's file, or any state.
    pub fn add_bytes(&mut self, kind: Kind, name: &str, bytes: Vec<u8>) {
        self.extras.push(Extra {
            kind,
            name: name.to_owned(),
            bytes,
        });
    }

    /// How long the caller was kept from training by the copies.
    #[must_use]
    pub fn blocked(&self) -> Duration {
        self.blocked
    }

    /// Digest of the copied weights; see [`Table::weights_digest`].
    ///
    /// # Errors
    /// [`CheckpointError::Internal`] if the weights were not copied.
    pub fn weights_digest(&self) -> Result<String> {
        let weights = self.buffers.iter().find(|(kind, _)| *kind == Kind::Weights);
        let (_, flat) = weights
            .ok_or_else(|| CheckpointError::Internal("the snapshot has no weights".into()))?;
        self.table.weights_digest(flat)
    }

    /// The parameters of the snapshot.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    pub(super) fn buffers(&self) -> &[(Kind, Vec<f32>)] {
        &self.buffers
    }

    pub(super) fn extras(&self) -> &[Extra] {
        &self.extras
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        for (_, buffer) in self.buffers.drain(..) {
            self.pool.give(buffer);
        }
    }
}
