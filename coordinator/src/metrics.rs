//! `metrics.jsonl`: one line per committed step.
//!
//! In a local run directory lines are appended as they come. Other stores have no append: there
//! the lines are kept in memory and the whole object is put at checkpoints and at the end.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use mks2_dataset::store;
use mks2_proto::{failure::Failure, ids::Generation, v1::StepMetrics};
use object_store::{ObjectStore, path::Path};
use serde::{Deserialize, Serialize};

/// Name of the object in the run directory.
pub const FILE_NAME: &str = "metrics.jsonl";

/// A line, its fields in their order. What a stage does not measure is absent; numbers that JSON
/// cannot hold (infinite, not a number) are null.
#[derive(Clone, Debug, Serialize)]
struct Line<'a> {
    step: u64,
    epoch: f64,
    stage: &'a str,
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_caption: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_retrieval: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_language: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_contrastive: Option<f64>,
    grad_norm: f64,
    lr: f64,
    samples: u64,
    tokens: u64,
    step_seconds: f64,
    data_wait_seconds: f64,
    comm_wait_seconds: f64,
    workers: u32,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    goodput: Option<f64>,
}

/// The line of a step, with its line end. `goodput` is the useful part of the run's time so far.
///
/// # Errors
/// Never, in practice: all fields are numbers and text.
pub fn line(
    step: u64,
    generation: Generation,
    metrics: &StepMetrics,
    goodput: Option<f64>,
) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(&Line {
        step,
        epoch: metrics.epoch,
        stage: &metrics.stage,
        loss: metrics.loss,
        loss_caption: metrics.loss_caption,
        loss_retrieval: metrics.loss_retrieval,
        loss_language: metrics.loss_language,
        loss_contrastive: metrics.loss_contrastive,
        grad_norm: metrics.grad_norm,
        lr: metrics.lr,
        samples: metrics.samples,
        tokens: metrics.tokens,
        step_seconds: metrics.step_seconds,
        data_wait_seconds: metrics.data_wait_seconds,
        comm_wait_seconds: metrics.comm_wait_seconds,
        workers: metrics.workers,
        generation: generation.0,
        goodput,
    })?;
    text.push(b'\n');
    Ok(text)
}

/// Where the lines go.
#[derive(Debug)]
pub enum Sink {
    /// Appended to a file.
    File {
        /// The open file.
        file: File,
        /// Its path, for messages.
        path: PathBuf,
    },
    /// Collected, and put as a whole.
    Spool {
        /// The store.
        store: Arc<dyn ObjectStore>,
        /// The object.
        path: Path,
        /// All lines so far.
        lines: Vec<u8>,
        /// There are lines that the object does not have.
        dirty: bool,
    },
}

impl Sink {
    /// Opens the metrics of a run directory and cuts them back to a step: what came after it
    /// will be computed again. Tells the last step that is left, 0 for none.
    ///
    /// # Errors
    /// When the file or object cannot be read or written.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        root: &Path,
        local: Option<&FilePath>,
        last_step: u64,
    ) -> Result<(Self, u64), Failure> {
        match local {
            Some(folder) => open_file(&folder.join(FILE_NAME), last_step),
            None => {
                let path = root.clone().join(FILE_NAME);
                let there = store::get_if_there(&*store, &path)
                    .await?
                    .unwrap_or_default();
                let (lines, last) = up_to(&there, last_step);
                let dirty = lines.len() != there.len();
                let spool = Self::Spool {
                    store,
                    path,
                    lines,
                    dirty,
                };
                Ok((spool, last))
            }
        }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn push(&mut self, line: &[u8]) -> Result<(), Failure> {
        match self {
            Self::File { file, path } => file.write_all(line).map_err(|error| {
                Failure::io(format!("{} cannot be written", path.display()), error)
            }),
            Self::Spool { lines, dirty, .. } => {
                lines.extend_from_slice(line);
                *dirty = true;
                Ok(())
            }
        }
    }

    /// Cuts the lines back to a step: what came after it is void.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn cut(&mut self, last_step: u64) -> Result<(), Failure> {
        match self {
            Self::File { path, .. } => {
                *self = open_file(path, last_step)?.0;
            }
            Self::Spool { lines, dirty, .. } => {
                *lines = up_to(lines, last_step).0;
                *dirty = true;
            }
        }
        Ok(())
    }

    /// Makes the lines durable.
    ///
    /// # Errors
    /// When the store does not take them.
    pub async fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::File { file, path } => file.sync_data().map_err(|error| {
                Failure::io(format!("{} cannot be written", path.display()), error)
            }),
            Self::Spool {
                store,
                path,
                lines,
                dirty,
            } if *dirty => {
                store::put(&**store, path, Bytes::copy_from_slice(lines)).await?;
                *dirty = false;
                Ok(())
            }
            Self::Spool { .. } => Ok(()),
        }
    }
}

fn open_file(path: &FilePath, last_step: u64) -> Result<(Sink, u64), Failure> {
    let failed = |error| Failure::io(format!("{} cannot be written", path.display()), error);
    let there = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(failed)?,
    };
    let (kept, last) = up_to(&there, last_step);
    // Always another file: a coordinator that does not know yet that it was replaced goes on writing
    // into the old one. Its members tell the latest steps again.
    let fresh = path.with_extension("jsonl.new");
    fs::write(&fresh, &kept).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)?;
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(failed)?;
    let path = path.to_owned();
    Ok((Sink::File { file, path }, last))
}

/// The lines whose step is not after `last_step`, and the last step among them. The rest, and a
/// line that a crash left unfinished, go.
fn up_to(text: &[u8], last_step: u64) -> (Vec<u8>, u64) {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let (mut kept, mut last) = (Vec::new(), 0);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let step = serde_json::from_slice::<Step>(line).map(|line| line.step);
        if let Some(step) = step.ok().filter(|step| *step <= last_step)
            && line.ends_with(b"\n")
        {
            kept.extend_from_slice(line);
            last = last.max(step);
        }
    }
    (kept, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> StepMetrics {
        StepMetrics {
            stage: "memory".into(),
            epoch: 0.5,
            loss: 2.25,
            loss_caption: Some(1.5),
            grad_norm: 1.0,
            lr: 0.001,
            samples: 64,
            tokens: 640,
            step_seconds: 0.25,
            workers: 4,
            ..StepMetrics::default()
        }
    }

    #[test]
    fn a_line_has_the_names_of_the_interface_and_leaves_absent_ones_out() {
        let line = line(3, Generation(2), &metrics(), Some(0.875)).expect("a line");
        let text = String::from_utf8(line).expect("text");
        assert_eq!(
            text,
            "{\"step\":3,\"epoch\":0.5,\"stage\":\"memory\",\"loss\":2.25,\"loss_caption\":1.5,\
             \"grad_norm\":1.0,\"lr\":0.001,\"samples\":64,\"tokens\":640,\"step_seconds\":0.25,\
             \"data_wait_seconds\":0.0,\"comm_wait_seconds\":0.0,\"workers\":4,\"generation\":2,\"goodput\":0.875}\n"
        );
    }

    async fn sink(folder: Option<&FilePath>, store: &Arc<dyn ObjectStore>, step: u64) -> Sink {
        let opened = Sink::open(store.clone(), &Path::from("run"), folder, step).await;
        let (sink, last) = opened.expect("a sink");
        assert!(last <= step);
        sink
    }

    async fn write_three(folder: Option<&FilePath>, store: &Arc<dyn ObjectStore>) {
        let mut sink = sink(folder, store, 0).await;
        for step in 1..=3 {
            sink.push(&line(step, Generation(1), &metrics(), None).expect("a line"))
                .expect("space");
        }
        sink.flush().await.expect("space");
    }

    #[tokio::test]
    async fn a_file_is_cut_back_to_the_checkpoint_and_a_torn_line_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, _) = store::open("memory://metrics-file").expect("memory");
        write_three(Some(folder.path()), &store).await;
        let path = folder.path().join(FILE_NAME);
        let mut text = fs::read(&path).expect("lines");
        text.extend_from_slice(b"{\"step\":1");
        fs::write(&path, text).expect("space");
        let mut sink = sink(Some(folder.path()), &store, 2).await;
        sink.push(b"{\"step\":3}\n").expect("space");
        let text = fs::read_to_string(&path).expect("lines");
        assert_eq!(text.lines().count(), 3);
        assert!(text.ends_with("{\"step\":3}\n"));
        // Taken back while it is open.
        sink.cut(1).expect("space");
        sink.push(b"{\"step\":2}\n").expect("space");
        let text = fs::read_to_string(&path).expect("lines");
        assert_eq!(text.lines().count(), 2);
        assert!(text.ends_with("{\"step\":2}\n"));
    }

    #[tokio::test]
    async fn another_store_gets_the_whole_object_at_a_flush() {
        let (store, _) = store::open("memory://metrics-spool").expect("memory");
        write_three(None, &store).await;
        let mut sink = sink(None, &store, 2).await;
        sink.cut(1).expect("space");
        sink.flush().await.expect("space");
        let path = Path::from("run").join(FILE_NAME);
        let text = store::get(&*store, &path).await.expect("there");
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
