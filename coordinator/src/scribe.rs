//! The one task that writes the run directory: journal, manifests, metrics. It does one thing
//! after the other, while the driver goes on listening.

use bytes::Bytes;
use mks2_dataset::store::{self, Created};
use mks2_proto::failure::Failure;
use tokio::sync::mpsc;

use crate::{
    journal::{Entry, Journal, Place},
    metrics::Sink,
    state::{Checkpoint, Ticket},
};

/// Something to write.
#[derive(Debug)]
pub(crate) enum Task {
    /// A decision.
    Record(Entry),
    /// A checkpoint's manifest.
    Manifest(Ticket, Checkpoint, Bytes),
    /// A line of metrics.
    Line(Vec<u8>),
}

/// It is written, or not.
#[derive(Debug)]
pub(crate) enum Done {
    /// Written, or given up without harm.
    Fine,
    /// The manifest is there, or the checkpoint is skipped.
    Manifest(Ticket, Checkpoint, Result<(), Failure>),
    /// The journal cannot be written: the coordinator must not decide anything any more.
    Broken(Failure),
}

/// What the task owns.
#[derive(Debug)]
pub(crate) struct Scribe {
    pub(crate) place: Place,
    pub(crate) journal: Journal,
    pub(crate) metrics: Sink,
    /// A failure of the metrics was reported; the next ones are not worth a line each.
    pub(crate) metrics_failed: bool,
}

impl Scribe {
    /// Writes until nobody sends any more, then makes the metrics durable.
    pub(crate) async fn run(mut self, mut tasks: mpsc::Receiver<Task>, done: mpsc::Sender<Done>) {
        while let Some(task) = tasks.recv().await {
            if done.send(self.write(task).await).await.is_err() {
                break;
            }
        }
        self.flush().await;
    }

    async fn write(&mut self, task: Task) -> Done {
        match task {
            Task::Record(entry) => self.record(entry).await,
            Task::Manifest(ticket, checkpoint, bytes) => {
                let result = self.manifest(&checkpoint, bytes).await;
                Done::Manifest(ticket, checkpoint, result)
            }
            Task::Line(line) => {
                let pushed = self.metrics.push(&line);
                self.tolerate(pushed);
                Done::Fine
            }
        }
    }

    async fn record(&mut self, entry: Entry) -> Done {
        let is_border = matches!(
            entry,
            Entry::CheckpointCommitted { .. }
                | Entry::RunFinished { .. }
                | Entry::RunStopped { .. }
        );
        match self.journal.append(entry).await {
            Ok(number) => {
                tracing::debug!(number, "journal record written");
                if is_border {
                    self.flush().await;
                }
                Done::Fine
            }
            Err(error) => Done::Broken(error.into()),
        }
    }

    async fn manifest(&self, checkpoint: &Checkpoint, bytes: Bytes) -> Result<(), Failure> {
        let path = store::under(&self.place.root, &checkpoint.manifest_path)?;
        match store::put_create_only(&*self.place.store, &path, bytes.clone()).await? {
            Created::New => Ok(()),
            Created::Exists if store::get(&*self.place.store, &path).await? == bytes => Ok(()),
            Created::Exists => Err(Failure::checkpoint(
                format!(
                    "the checkpoint at step {} is not committed",
                    checkpoint.step
                ),
                format!("{path} exists already and says something else"),
                "find out who else writes into this run directory, then resume the run",
            )),
        }
    }

    async fn flush(&mut self) {
        let flushed = self.metrics.flush().await;
        self.tolerate(flushed);
    }

    /// Metrics are worth a warning, not a run.
    fn tolerate(&mut self, result: Result<(), Failure>) {
        match result {
            Err(failure) if !self.metrics_failed => {
                self.metrics_failed = true;
                tracing::error!(what = %failure.what, why = %failure.why, "metrics are not written");
            }
            Err(_) => {}
            Ok(()) => self.metrics_failed = false,
        }
    }
}
