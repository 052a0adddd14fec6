//! The folder of results: `results.json` and the samples of each task.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use mks2_proto::failure::Failure;
use serde_json::Value;

use crate::beside::{Beside, Place};

/// What the samples of a task are called before the task is.
const UNNAMED: &str = "samples";

/// A folder under way. What is not finished goes away with it.
#[derive(Debug)]
pub(super) struct Folder {
    beside: Beside,
    samples: Option<BufWriter<File>>,
}

impl Folder {
    /// Begins to write what will lie at `place`.
    ///
    /// # Errors
    /// Something is there already (exit 2), or nothing can be written there (5).
    pub(super) fn begin(place: &Path) -> Result<Self, Failure> {
        Ok(Self {
            beside: Place::free(place)?.begin()?,
            samples: None,
        })
    }

    /// One more sample of the task under way.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn sample(&mut self, sample: &Value) -> Result<(), Failure> {
        let path = self.beside.path().join(UNNAMED);
        let file = match &mut self.samples {
            Some(file) => file,
            none => {
                let file = File::create(&path).map_err(|error| unwritable(&path, error))?;
                none.insert(BufWriter::new(file))
            }
        };
        writeln!(file, "{sample}").map_err(|error| unwritable(&path, error))
    }

    /// The task under way is done; it is called so.
    ///
    /// # Errors
    /// When its samples cannot be written.
    pub(super) fn task(&mut self, name: &str) -> Result<(), Failure> {
        let path = self.beside.path().join(format!("samples_{name}.jsonl"));
        let Some(file) = self.samples.take() else {
            return Ok(());
        };
        let written = file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error);
        written
            .and_then(|_| std::fs::rename(self.beside.path().join(UNNAMED), &path))
            .map_err(|error| unwritable(&path, error))
    }

    /// Everything is there: the folder gets its name.
    ///
    /// # Errors
    /// When it cannot be written, or something else has come to its place meanwhile.
    pub(super) fn finish(self, results: &Value) -> Result<(), Failure> {
        let path = self.beside.path().join("results.json");
        let written = std::fs::write(&path, format!("{results:#}\n"));
        written.map_err(|error| unwritable(&path, error))?;
        self.beside.finish().map(drop)
    }
}

fn unwritable(path: &Path, error: std::io::Error) -> Failure {
    Failure::io(format!("{} cannot be written", path.display()), error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().display().to_string())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn samples_lie_beside_the_results() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("a/results");
        let mut folder = Folder::begin(&place).unwrap();
        folder.sample(&json!({"doc_id": 0})).unwrap();
        folder.sample(&json!({"doc_id": 1})).unwrap();
        folder.task("colors").unwrap();
        folder.task("no-samples").unwrap();
        folder.finish(&json!({"results": {}})).unwrap();
        assert_eq!(names(&place), ["results.json", "samples_colors.jsonl"]);
        let samples = std::fs::read_to_string(place.join("samples_colors.jsonl")).unwrap();
        assert_eq!(samples, "{\"doc_id\":0}\n{\"doc_id\":1}\n");
        assert_eq!(Folder::begin(&place).unwrap_err().exit.code(), 2);
    }
}
