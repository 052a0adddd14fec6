//! What a report is made from.

use std::sync::Arc;

use futures::TryStreamExt;
use mks2_coordinator::books::Books;
use mks2_coordinator::journal::{Ending, Entry, History, Record};
use mks2_dataset::error::Error;
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, load};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Deserialize;
use serde_json::Value;

/// Everything that a report reads from a run directory.
pub(crate) struct Sources {
    store: Arc<dyn ObjectStore>,
    root: Path,
    run: String,
    /// The resolved job file.
    pub(super) job_toml: String,
    /// The job.
    pub(super) job: Job,
    /// `run.json`.
    pub(super) run_json: Value,
    /// Lines of `metrics.jsonl`.
    pub(super) metrics: Vec<Value>,
    /// Last checkpoints of finished stages, in the order of steps.
    pub(super) finished: Vec<FinishedStage>,
    /// `evaluation.json`.
    pub(super) evaluation: Option<Value>,
    /// What the journal tells.
    pub(super) past: Past,
}

/// What a report needs of the journal.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    /// How often something failed: workers that were lost, and runs that ended by a failure.
    pub(super) failures: u64,
    /// How often a term began after one that had worked, was not asked to stop, and left no word on
    /// its end: everything was killed, or the machine went down.
    pub(super) interruptions: u64,
    /// Seconds from the last checkpoint, or the start behind it, to the end of a finished run: what a
    /// last stage without steps took.
    pub(super) last_seconds: Option<f64>,
    /// How the last term that worked in the run ended; none while one works, or was killed.
    pub(super) ending: Option<Ending>,
    /// What the last failure was, and why.
    pub(super) failure: Option<(String, String)>,
    /// Where the time went.
    pub(super) books: Books,
}

impl Past {
    /// The sum of the records, in their order.
    fn of(records: &[Record]) -> Self {
        let (mut past, mut history) = (Self::default(), History::default());
        let (mut at_work, mut since_ms) = (false, 0);
        for record in records {
            history.fold(record);
            match &record.entry {
                Entry::TermTaken => past.interruptions += u64::from(std::mem::take(&mut at_work)),
                Entry::GenerationFormed { lost, .. } => {
                    past.failures += lost.len() as u64;
                    if !std::mem::replace(&mut at_work, true) {
                        since_ms = record.at_ms;
                    }
                }
                Entry::RunRewound { lost, .. } => past.failures += lost.len() as u64,
                Entry::CheckpointCommitted { .. } => since_ms = record.at_ms,
                Entry::RunFailed { what, why, .. } => {
                    at_work = false;
                    past.failures += 1;
                    past.failure = Some((what.clone(), why.clone()));
                }
                // Who asked for the end need not be told of it.
                Entry::StopRequested { .. } | Entry::RunStopped { .. } => at_work = false,
                Entry::RunFinished { .. } => {
                    at_work = false;
                    let took_ms = record.at_ms.saturating_sub(since_ms);
                    past.last_seconds = Some(took_ms as f64 / 1000.0);
                }
                _ => {}
            }
        }
        past.ending = history.ending;
        past.books = history.books;
        past
    }
}

/// What a report needs of a stage's last checkpoint manifest.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct FinishedStage {
    pub(super) step: u64,
    pub(super) stage: String,
    pub(super) stage_step: u64,
    #[serde(rename = "final")]
    pub(super) is_final: bool,
    #[serde(default)]
    pub(super) loss: Option<f64>,
    pub(super) seconds: f64,
    pub(super) weights_digest: String,
    /// `mks2 0.1.0, libtorch 2.11.0, cpu, x86_64`
    #[serde(default)]
    pub(super) made_with: String,
}

impl Sources {
    /// Reads the run directory at a path or URL.
    ///
    /// # Errors
    /// When it holds no run, or can not be read.
    pub(super) async fn read(run: &str) -> Result<Self, Failure> {
        let (store, root) = store::open(run)?;
        let place = Place {
            store: &*store,
            root: &root,
            run,
        };
        let job_toml = place
            .text("config.resolved.toml")
            .await?
            .ok_or_else(|| place.no_run())?;
        let job = load::parse(&job_toml)?;
        let run_json = place.json("run.json").await?.unwrap_or(Value::Null);
        let metrics = place.text("metrics.jsonl").await?.unwrap_or_default();
        let metrics = in_order(
            metrics
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok()),
        );
        let evaluation = place.json("evaluation.json").await?;
        let finished = place.finished().await?;
        let past = Past::of(&place.records().await?);
        let run = run.to_owned();
        Ok(Self {
            run,
            job_toml,
            job,
            run_json,
            metrics,
            finished,
            evaluation,
            past,
            store,
            root,
        })
    }

    /// Writes a file into the run directory and gives its location.
    ///
    /// # Errors
    /// When the store refuses.
    pub(super) async fn write(&self, name: &str, bytes: Vec<u8>) -> Result<String, Failure> {
        let put = self
            .store
            .put(&self.root.clone().join(name), bytes.into())
            .await;
        put.map_err(|e| unwritable(name, &e))?;
        Ok(format!("{}/{name}", self.run.trim_end_matches('/')))
    }
}

fn unwritable(name: &str, error: &object_store::Error) -> Failure {
    Failure::storage(
        format!("{name} cannot be written"),
        error.to_string(),
        "see that the run directory can be written and has space, then run `mks2 report` again",
    )
}

/// A run directory that is being read.
struct Place<'a> {
    store: &'a dyn ObjectStore,
    root: &'a Path,
    run: &'a str,
}

impl Place<'_> {
    fn no_run(&self) -> Failure {
        Failure::usage(
            format!("there is no run at {}", store::shown(self.run)),
            "there is no config.resolved.toml in it",
            "give the directory that was given to `mks2 train --run`",
        )
    }

    async fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        self.read(&self.root.clone().join(name)).await
    }

    async fn read(&self, path: &Path) -> Result<Option<String>, Failure> {
        let bytes = store::get_if_there(self.store, path).await?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    async fn json(&self, name: &str) -> Result<Option<Value>, Failure> {
        Ok(self
            .text(name)
            .await?
            .and_then(|text| serde_json::from_str(&text).ok()))
    }

    async fn texts_under(&self, folder: &str, ends: &str) -> Result<Vec<String>, Failure> {
        let under = self.root.clone().join(folder);
        let mut paths: Vec<Path> = self
            .store
            .list(Some(&under))
            .map_ok(|meta| meta.location)
            .try_filter(|path| std::future::ready(path.as_ref().ends_with(ends)))
            .try_collect()
            .await
            .map_err(|e| Error::store("listed", &store::name(self.store, &under), &e))?;
        paths.sort();
        let mut texts = Vec::new();
        for path in paths {
            texts.extend(self.read(&path).await?);
        }
        Ok(texts)
    }

    async fn finished(&self) -> Result<Vec<FinishedStage>, Failure> {
        let manifests = self.texts_under("checkpoints", "manifest.json").await?;
        let parsed = manifests
            .iter()
            .filter_map(|text| serde_json::from_str(text).ok());
        let mut finished: Vec<FinishedStage> = parsed
            .filter(|stage: &FinishedStage| stage.is_final)
            .collect();
        finished.sort_by_key(|stage| stage.step);
        Ok(finished)
    }

    /// Records of the journal; its snapshots only repeat them. What this program does not know is
    /// left out.
    async fn records(&self) -> Result<Vec<Record>, Failure> {
        let texts = self.texts_under("journal", ".json").await?;
        let parsed = texts
            .iter()
            .filter_map(|text| serde_json::from_str(text).ok());
        let mut records: Vec<Record> = parsed.collect();
        records.sort_by_key(|record| record.number);
        Ok(records)
    }
}

/// Lines in the order of steps: a step that was computed again voids what came after it.
fn in_order(lines: impl Iterator<Item = Value>) -> Vec<Value> {
    let step = |line: &Value| line["step"].as_u64();
    let mut kept: Vec<Value> = Vec::new();
    for line in lines.filter(|line| step(line).is_some()) {
        while kept.last().is_some_and(|last| step(last) >= step(&line)) {
            kept.pop();
        }
        kept.push(line);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_was_computed_again_counts_once() {
        let lines = [1, 2, 3, 2, 3, 4].map(|step| serde_json::json!({ "step": step }));
        let steps = |lines: Vec<Value>| {
            lines
                .iter()
                .filter_map(|line| line["step"].as_u64())
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(in_order(lines.into_iter())), [1, 2, 3, 4]);
        assert!(in_order([Value::Null].into_iter()).is_empty());
    }
}
