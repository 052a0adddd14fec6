//! What a frozen encoder makes of pictures, kept for later epochs by all workers of a run on a
//! machine together, in a file in shared memory that outlives each of them.
//!
//! ```text
//! slot of a picture   blake3 of the features (32 bytes) | features (fp32)
//! ```
//!
//! 1. A picture's slot has a fixed place. Whoever reads it checks the digest: a slot that was never
//!    written, that its writer did not finish or that memory has damaged holds nothing.
//! 2. Features come from weights that may be damaged. They are told to the others only once the
//!    members have compared their copies of these (`audit`), so that they are not worse than
//!    the weights themselves. A worker that is alone has nobody to compare with: then, as with
//!    all that it computes, nothing is promised. Until then they wait in its own memory, up to a limit.
//! 3. Every worker holds a shared lock on the file. The last one to leave removes it; where that one
//!    was killed, the next run on the machine does.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use blake3::Hash;
use mks2_dataset::plan::RowRef;
use tracing::{info, warn};

use crate::flat::{le_bytes, le_bytes_mut};

/// How the files' names begin.
const PREFIX: &str = "mks2-features-";
/// Bytes of features that wait to be told to the others; what is more is not kept.
const MOST_FRESH: usize = 256 << 20;
/// Memory that processes share, where the system has such a folder.
const SHARED_MEMORY: &str = "/dev/shm";

/// Which features are kept.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Stands for all that features depend on, and for the run.
    pub key: Hash,
    /// Numbers that a picture has.
    pub width: usize,
    /// Rows of each of the stage's sources.
    pub rows: Vec<u64>,
    /// Whether members compare their weights, and features wait for that.
    pub is_cautious: bool,
}

/// Features of pictures by source and row; see the module's header.
#[derive(Debug)]
pub struct KeptFeatures {
    file: File,
    path: PathBuf,
    /// Numbers of one picture.
    width: usize,
    /// The first slot of each source.
    sources: Vec<u64>,
    /// Whether features wait in `fresh` until [`compared`](Self::compared).
    is_cautious: bool,
    fresh: RefCell<BTreeMap<u64, Fresh>>,
    most_fresh: usize,
    is_full: Cell<bool>,
}

/// Features that the others do not have yet.
#[derive(Debug)]
struct Fresh {
    digest: Hash,
    values: Vec<f32>,
}

impl KeptFeatures {
    /// Those that all workers on this machine share who give the same key.
    ///
    /// # Errors
    /// When there is no shared memory to write to, or the file belongs to another user.
    pub fn open(keep: &Keep) -> Result<Self> {
        let shared = Path::new(SHARED_MEMORY);
        match shared.is_dir() {
            true => Self::open_in(shared, keep),
            false => Self::open_in(&std::env::temp_dir(), keep),
        }
    }

    fn open_in(folder: &Path, keep: &Keep) -> Result<Self> {
        let path = folder.join(format!("{PREFIX}{}", keep.key.to_hex()));
        remove_orphans(folder, &path);
        let file = loop {
            let file = open(&path)?;
            file.lock_shared()?;
            // The last holder may have removed it before this lock was there.
            if is_at(&file, &path) {
                break file;
            }
        };
        let mut behind = 0;
        let sources = keep.rows.iter().map(|rows| {
            let first = behind;
            behind += rows;
            first
        });
        Ok(Self {
            file,
            path,
            width: keep.width,
            sources: sources.collect(),
            is_cautious: keep.is_cautious,
            fresh: RefCell::default(),
            most_fresh: MOST_FRESH,
            is_full: Cell::new(false),
        })
    }

    /// The features of a picture, if they are there and sound.
    pub fn get(&self, picture: RowRef) -> Option<Vec<f32>> {
        let slot = self.slot(picture)?;
        if let Some(fresh) = self.fresh.borrow().get(&slot) {
            return is_sound(&fresh.digest, &fresh.values).then(|| fresh.values.clone());
        }
        let mut digest = [0; blake3::OUT_LEN];
        let mut values = vec![0.0; self.width];
        let at = self.place(slot);
        self.file.read_exact_at(&mut digest, at).ok()?;
        let behind = at + digest.len() as u64;
        self.file
            .read_exact_at(le_bytes_mut(&mut values), behind)
            .ok()?;
        is_sound(&Hash::from_bytes(digest), &values).then_some(values)
    }

    /// Keeps the features of a picture that has none, as far as there is space.
    pub fn put(&self, picture: RowRef, values: &[f32]) {
        let Some(slot) = self.slot(picture).filter(|_| !self.is_full.get()) else {
            return;
        };
        let waiting = self.fresh.borrow().len() * size_of::<f32>() * self.width;
        if waiting >= self.most_fresh {
            return;
        }
        let fresh = Fresh {
            digest: blake3::hash(le_bytes(values)),
            values: values.to_vec(),
        };
        match self.is_cautious {
            true => drop(self.fresh.borrow_mut().insert(slot, fresh)),
            false => self.tell(slot, &fresh),
        }
    }

    /// The copies of the weights were alike: the others get what this worker has made with them.
    pub fn compared(&self) {
        for (slot, fresh) in self.fresh.take() {
            self.tell(slot, &fresh);
        }
    }

    fn tell(&self, slot: u64, fresh: &Fresh) {
        if self.is_full.get() {
            return;
        }
        let at = self.place(slot);
        let behind = at + blake3::OUT_LEN as u64;
        let written = self
            .file
            .write_all_at(fresh.digest.as_bytes(), at)
            .and_then(|()| self.file.write_all_at(le_bytes(&fresh.values), behind));
        if let Err(error) = written {
            self.is_full.set(true);
            warn!(
                file = %self.path.display(),
                %error,
                "no more features of pictures are kept: those that are missing are computed again \
                 and again. Give the folder more space, or train with keep_features = false"
            );
        }
    }

    fn slot(&self, picture: RowRef) -> Option<u64> {
        let first = self.sources.get(usize::from(picture.source))?;
        Some(first + picture.row)
    }

    fn place(&self, slot: u64) -> u64 {
        slot * (blake3::OUT_LEN + size_of::<f32>() * self.width) as u64
    }
}

impl Drop for KeptFeatures {
    fn drop(&mut self) {
        let _ = self.file.unlock();
        remove_if_unused(&self.file, &self.path);
    }
}

fn is_sound(digest: &Hash, values: &[f32]) -> bool {
    blake3::hash(le_bytes(values)) == *digest
}

/// The file at `path`, made if it is not there, for nobody but this user.
fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let found = file.metadata()?;
    let mine = rustix::process::geteuid().as_raw();
    if found.uid() != mine || found.mode() & 0o077 != 0 {
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            format!("{} is not this user's alone", path.display()),
        ));
    }
    Ok(file)
}

/// Whether `path` still leads to this file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// Removes the file if nobody holds a lock on it.
fn remove_if_unused(file: &File, path: &Path) -> bool {
    match file.try_lock() {
        Ok(()) => is_at(file, path) && std::fs::remove_file(path).is_ok(),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => false,
    }
}

/// Removes what workers have left that were killed, but for the file that is `wanted`.
fn remove_orphans(folder: &Path, wanted: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_one = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !is_one || path == wanted {
            continue;
        }
        let is_gone = open(&path).is_ok_and(|file| remove_if_unused(&file, &path));
        if is_gone {
            info!(file = %path.display(), "features were left by a run that is over, and are removed");
        }
    }
}

#[cfg(test)]
mod tests;
