//! `coordinator.json`: how to reach the coordinator of a live run from the machine it runs on.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mks2_proto::failure::Failure;
use serde::{Deserialize, Serialize};

/// Name of the file in the run directory.
pub const FILE_NAME: &str = "coordinator.json";

/// Address and token of a coordinator.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// `http://HOST:PORT`
    pub endpoint: String,
    /// The run's token; the file is readable by its owner alone.
    pub token: String,
    /// The run.
    pub run_id: String,
    /// The coordinator's process.
    pub pid: u32,
}

/// The published file, removed when this is dropped.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
}

impl std::fmt::Debug for Contact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contact")
            .field("endpoint", &self.endpoint)
            .field("run_id", &self.run_id)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl Contact {
    /// Writes the file, readable by its owner alone, in one step.
    ///
    /// # Errors
    /// The folder cannot be written (exit 5).
    pub fn publish(&self, folder: &Path) -> Result<Published, Failure> {
        let path = folder.join(FILE_NAME);
        let new = folder.join(".coordinator.json.new");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Failure::internal("the address has no text", error.to_string()))?;
        let write = || -> std::io::Result<()> {
            // What an earlier coordinator left may have other rights.
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&text)?;
            std::fs::rename(&new, &path)
        };
        write()
            .map_err(|error| Failure::io(format!("{} cannot be written", path.display()), error))?;
        Ok(Published { path })
    }

    /// The contact in a run directory; none: nobody has left one.
    #[must_use]
    pub fn read(folder: &Path) -> Option<Self> {
        let text = std::fs::read(folder.join(FILE_NAME)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // A file that stays behind names a dead process; readers find nobody there.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_contact_is_for_its_owner_alone_and_goes_with_the_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let contact = Contact {
            endpoint: "http://127.0.0.1:4000".into(),
            token: "long-enough".into(),
            run_id: "run-1".into(),
            pid: 1,
        };
        let published = contact.publish(folder.path()).expect("written");
        let path = folder.path().join(FILE_NAME);
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Contact::read(folder.path()), Some(contact));
        drop(published);
        assert_eq!(Contact::read(folder.path()), None);
    }
}
