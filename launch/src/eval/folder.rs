//! The folder of results. It is written beside its place, and gets its name when everything is in it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mks2_proto::failure::Failure;
use serde_json::Value;
use tempfile::TempDir;

/// What the samples of a task are called before the task is.
const UNNAMED: &str = "samples";

/// A folder under way. What is not finished goes away with it.
#[derive(Debug)]
pub(super) struct Folder {
    place: PathBuf,
    beside: TempDir,
    samples: Option<BufWriter<File>>,
}

impl Folder {
    /// Begins to write what will lie at `place`.
    ///
    /// # Errors
    /// Something is there already (exit 2), or nothing can be written there (5).
    pub(super) fn begin(place: &Path) -> Result<Self, Failure> {
        let shown = place.display();
        let is_free = match std::fs::read_dir(place) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => !place.exists(),
        };
        if !is_free {
            return Err(Failure::usage(
                format!("results cannot be written to {shown}"),
                "something is there already",
                "name a new folder, or remove that one",
            ));
        }
        let absolute = std::path::absolute(place);
        let absolute = absolute.map_err(|error| unwritable(place, error))?;
        let parent = absolute.parent().unwrap_or(&absolute);
        std::fs::create_dir_all(parent).map_err(|error| unwritable(parent, error))?;
        let beside = tempfile::Builder::new()
            .prefix(".mks2-eval-")
            .tempdir_in(parent)
            .map_err(|error| unwritable(parent, error))?;
        Ok(Self {
            place: absolute,
            beside,
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
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(self.beside.path().join(UNNAMED), &path))
            .map_err(|error| unwritable(&path, error))
    }

    /// Everything is there: the folder gets its name.
    ///
    /// # Errors
    /// When it cannot be written, or something else has come to its place meanwhile.
    pub(super) fn finish(self, results: &Value) -> Result<(), Failure> {
        let path = self.beside.path().join("results.json");
        let written = File::create(&path).and_then(|mut file| {
            writeln!(file, "{results:#}")?;
            file.sync_all()
        });
        written.map_err(|error| unwritable(&path, error))?;
        // A temporary folder is its owner's alone.
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.beside.path(), readable)
            .and_then(|()| std::fs::rename(self.beside.path(), &self.place))
            .map_err(|error| unwritable(&self.place, error))?;
        // It has another name now: there is nothing left to remove.
        let _ = self.beside.keep();
        Ok(())
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
    fn results_are_there_as_a_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("a/results");
        let mut folder = Folder::begin(&place).unwrap();
        folder.sample(&json!({"doc_id": 0})).unwrap();
        folder.task("colors").unwrap();
        folder.task("no-samples").unwrap();
        assert!(!place.exists());
        drop(folder);
        assert!(names(&home.path().join("a")).is_empty(), "nothing is left");
        let mut folder = Folder::begin(&place).unwrap();
        folder.sample(&json!({"doc_id": 0})).unwrap();
        folder.sample(&json!({"doc_id": 1})).unwrap();
        folder.task("colors").unwrap();
        folder.finish(&json!({"results": {}})).unwrap();
        assert_eq!(names(&place), ["results.json", "samples_colors.jsonl"]);
        let samples = std::fs::read_to_string(place.join("samples_colors.jsonl")).unwrap();
        assert_eq!(samples, "{\"doc_id\":0}\n{\"doc_id\":1}\n");
        assert_eq!(Folder::begin(&place).unwrap_err().exit.code(), 2);
        let file = place.join("results.json/below");
        assert_eq!(Folder::begin(&file).unwrap_err().exit.code(), 5);
    }
}
