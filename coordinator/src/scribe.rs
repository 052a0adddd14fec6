//! The one task that writes the run directory: journal, manifests, metrics. It does one thing
//! after the other, while the driver goes on listening.

use bytes::Bytes;
use mks2_dataset::store::{self, Created};
use mks2_proto::failure::Failure;
use tokio::sync::mpsc;

use crate::{
    books::Books,
    journal::{Entry, Journal, JournalError, Place},
    metrics::Sink,
    rundir::delete_void,
    state::{Checkpoint, Ticket},
};

/// Something to write.
#[derive(Debug)]
pub(crate) enum Task {
    /// A decision, and the books as they were then.
    Record(Entry, Books),
    /// A checkpoint's manifest.
    Manifest(Ticket, Checkpoint, Bytes),
    /// A line of metrics.
    Line(Vec<u8>),
    /// Nothing: only look whether somebody else is in office.
    Look,
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
        self.journal.be_patient();
        while let Some(task) = tasks.recv().await {
            let written = self.write(task).await;
            let is_broken = matches!(written, Done::Broken(_));
            if done.send(written).await.is_err() {
                break;
            }
            if is_broken {
                // The metrics are a successor's by now.
                return;
            }
        }
        // They may be, here too: a run that has ended can be taken up before this process is gone.
        let office = self.journal.check_office().await;
        let is_replaced = matches!(office, Err(JournalError::Fenced { .. }));
        if !is_replaced || planted!(NoOfficeCheck) {
            self.flush().await;
        }
    }

    async fn write(&mut self, task: Task) -> Done {
        match task {
            Task::Record(entry, books) => self.record(entry, books).await,
            Task::Manifest(ticket, checkpoint, bytes) => {
                let result = self.manifest(&checkpoint, bytes).await;
                Done::Manifest(ticket, checkpoint, result)
            }
            Task::Line(line) => {
                let pushed = self.metrics.push(&line);
                self.tolerate(pushed);
                Done::Fine
            }
            Task::Look => match self.journal.check_office().await {
                Err(error @ JournalError::Fenced { .. }) => Done::Broken(error.into()),
                _ => Done::Fine,
            },
        }
    }

    async fn record(&mut self, entry: Entry, books: Books) -> Done {
        let is_border = matches!(
            entry,
            Entry::CheckpointCommitted { .. }
                | Entry::RunFinished { .. }
                | Entry::RunStopped { .. }
        );
        // The lines first: a step that a record counts must not lack its line after a crash between
        // the two, while lines beyond the latest record are cut off at the next start.
        if is_border {
            if !planted!(NoOfficeCheck)
                && let Err(error) = self.journal.check_office().await
            {
                return Done::Broken(error.into());
            }
            self.flush().await;
        }
        let void_after = match &entry {
            Entry::RunRewound { to_step, .. } => Some(*to_step),
            _ => None,
        };
        match self.journal.append_with(entry, books).await {
            Ok(number) => {
                tracing::debug!(number, "journal record written");
                match void_after {
                    Some(step) => self.cut(step).await,
                    None => Done::Fine,
                }
            }
            Err(_) if planted!(LostJournalIgnored) => Done::Fine,
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

    /// What came after a step is void: a successor would take its metrics for those of steps that it has
    /// to go on from, and other checkpoints of the same steps will come.
    async fn cut(&mut self, step: u64) -> Done {
        let cut = self.metrics.cut(step);
        self.tolerate(cut);
        if let Err(error) = self.journal.check_office().await {
            return Done::Broken(error.into());
        }
        self.flush().await;
        if let Err(failure) = delete_void(&self.place, &self.journal).await {
            // The next start ends it; until then a checkpoint of the same step is skipped.
            tracing::warn!(what = %failure.what, why = %failure.why, "void checkpoints are not deleted yet");
        }
        Done::Fine
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

#[cfg(test)]
mod tests {
    use mks2_proto::ids::Incarnation;
    use object_store::path::Path;

    use super::*;
    use crate::journal::replay;

    async fn office(place: &Place, writer: u64) -> Journal {
        let replayed = replay(place.clone()).await.expect("whole");
        let journal = replayed.take_term(Incarnation(writer)).await;
        journal.expect("the term")
    }

    /// In a store without append, the lines are put as a whole: one that was replaced would put its
    /// own over its successor's.
    #[tokio::test]
    async fn a_coordinator_that_was_replaced_leaves_the_metrics_alone() {
        let (store, _) = store::open("memory://scribe").expect("memory");
        let place = Place {
            store: store.clone(),
            root: Path::from("scribe"),
        };
        let journal = office(&place, 1).await;
        let metrics = Sink::open(store.clone(), &place.root, None, 0).await;
        let mut scribe = Scribe {
            place: place.clone(),
            journal,
            metrics: metrics.expect("a sink").0,
            metrics_failed: false,
        };
        let line = scribe.write(Task::Line(b"{\"step\":1}\n".to_vec())).await;
        assert!(matches!(line, Done::Fine));
        let stopped = || Task::Record(Entry::RunStopped { step: 1 }, Books::default());
        assert!(matches!(scribe.write(stopped()).await, Done::Fine));
        office(&place, 2).await;
        let line = scribe.write(Task::Line(b"{\"step\":2}\n".to_vec())).await;
        assert!(matches!(line, Done::Fine));
        assert!(matches!(scribe.write(stopped()).await, Done::Broken(_)));
        // Nor when it ends, having nothing more to write.
        let (tasks, incoming) = mpsc::channel(1);
        let (done, _outcomes) = mpsc::channel(1);
        drop(tasks);
        scribe.run(incoming, done).await;
        let path = place.root.clone().join(crate::metrics::FILE_NAME);
        let lines = store::get(&*store, &path).await.expect("there");
        assert_eq!(&lines[..], b"{\"step\":1}\n");
    }
}
