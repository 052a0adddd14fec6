//! One coordinator per local run directory.
//!
//! The journal fences a second coordinator anyway, wherever it runs; the lock refuses it earlier and
//! says which process is at work. The file stays behind when the run has ended.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use mks2_proto::failure::Failure;

/// Holds `<run>/lock`; the operating system lets it go when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl RunLock {
    /// Takes the lock of a run directory, which exists.
    ///
    /// # Errors
    /// Another process holds it (exit 6), or the folder cannot be written (5).
    pub fn take(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| unwritable(folder, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken(folder, &mut file)),
            Err(TryLockError::Error(error)) => return Err(unwritable(folder, error)),
        }
        note_owner(&mut file).map_err(|error| unwritable(folder, error))?;
        Ok(Self { file })
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // To close it is not enough: a child that another thread starts at this moment holds all files of this
        // process until it is a program of its own.
        let _already_let_go = self.file.unlock();
    }
}

/// The process that holds the lock, for the message of the next one.
fn note_owner(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn taken(folder: &Path, file: &mut File) -> Failure {
    let mut owner = String::new();
    let owner = match file.read_to_string(&mut owner) {
        Ok(_) if !owner.trim().is_empty() => format!("process {}", owner.trim()),
        _ => "another process".into(),
    };
    Failure::environment(
        format!("the run directory {} is in use", folder.display()),
        format!("{owner} trains in it"),
        "wait for it, stop it with Ctrl-C, or choose another --run",
    )
}

fn unwritable(folder: &Path, error: std::io::Error) -> Failure {
    Failure::io(
        format!("the run directory {} cannot be written", folder.display()),
        error,
    )
}

/// Makes a local run directory.
///
/// # Errors
/// No permission, no space, a file in the way (exit 5).
pub fn make_folder(folder: &Path) -> Result<PathBuf, Failure> {
    let made = std::fs::create_dir_all(folder).and_then(|()| folder.canonicalize());
    made.map_err(|error| {
        Failure::io(
            format!("the run directory {} cannot be made", folder.display()),
            error,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_coordinator_is_refused_with_the_first_ones_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = RunLock::take(folder.path()).expect("free");
        let refused = RunLock::take(folder.path()).expect_err("taken");
        assert!(
            refused.why.contains(&std::process::id().to_string()),
            "{refused}"
        );
        assert_eq!(refused.exit.code(), 6);
        drop(first);
        RunLock::take(folder.path()).expect("free again");
        assert!(folder.path().join("lock").exists(), "the file stays");
    }

    #[test]
    fn it_is_let_go_while_a_child_that_is_being_started_still_has_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = RunLock::take(folder.path()).expect("free");
        let of_the_child = first.file.try_clone().expect("the same file");
        drop(first);
        RunLock::take(folder.path()).expect("free again");
        drop(of_the_child);
    }

    #[test]
    fn a_file_in_the_way_is_a_storage_failure() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        assert_eq!(
            make_folder(&file.join("run"))
                .expect_err("no folder")
                .exit
                .code(),
            5
        );
    }
}
