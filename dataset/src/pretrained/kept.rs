//! Files of weights from other machines, kept on this one: the workers of a machine, and runs that are
//! resumed, fetch a model once.
//!
//! ```text
//! FOLDER/<key>       a whole file; key: blake3 of its address, its size and the store's digest of it (ETag)
//! FOLDER/<key>.part  one that is being fetched, by the process that holds its lock
//! ```
//!
//! Nothing is ever changed in place, and nothing is removed here: whoever needs the room deletes files. A
//! file whose store has no digest for it is not kept, and neither is one for which there is no room.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mks2_proto::env;
use object_store::ObjectStoreExt;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use super::{Folder, PIECE, Result};
use crate::store;

/// Where files are kept, and those that were looked for.
#[derive(Debug, Default)]
pub(super) struct Kept {
    folder: Option<PathBuf>,
    files: Mutex<BTreeMap<String, Arc<OnceCell<Option<PathBuf>>>>>,
}

impl Kept {
    /// As the environment says: `MKS2_MODEL_CACHE`, or a folder in the user's cache; nothing is kept
    /// where that is empty, or where the user has no home.
    pub(super) fn of_user() -> Self {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let is_absolute = |path: &PathBuf| path.is_absolute();
        let usual = || {
            let caches = variable("XDG_CACHE_HOME").filter(is_absolute);
            let caches = caches.or_else(|| Some(variable("HOME")?.join(".cache")));
            Some(caches.filter(is_absolute)?.join("mks2/models"))
        };
        Self::at(variable(env::MODEL_CACHE).or_else(usual))
    }

    /// In this folder.
    pub(super) fn at(folder: Option<PathBuf>) -> Self {
        Self {
            folder: folder.filter(|folder| !folder.as_os_str().is_empty()),
            files: Mutex::default(),
        }
    }

    /// The copy of a file of `of` on this machine, fetched where it is not there; none where it is not
    /// kept. Whatever is in the way of keeping it is no error.
    pub(super) async fn file(&self, of: &Folder, name: &str) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.folder else {
            return Ok(None);
        };
        let cell = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(files.entry(name.to_owned()).or_default())
        };
        let found = cell.get_or_try_init(|| keep(of, name, folder)).await?;
        Ok(found.clone())
    }
}

/// What a file is kept as, and its bytes.
async fn key(of: &Folder, name: &str) -> Result<Option<(String, u64)>> {
    let path = store::under(&of.root, name)?;
    let head = of.store.head(&path).await;
    let object = of.name_of(name);
    let head = head.map_err(|error| crate::error::Error::store("read", &object, &error))?;
    Ok(head.e_tag.map(|tag| {
        let about = format!("{object}\n{}\n{tag}", head.size);
        (
            blake3::hash(about.as_bytes()).to_hex().to_string(),
            head.size,
        )
    }))
}

async fn keep(of: &Folder, name: &str, folder: &Path) -> Result<Option<PathBuf>> {
    let Some((key, size)) = key(of, name).await? else {
        return Ok(None);
    };
    let whole = folder.join(&key);
    let part = whole.with_extension("part");
    let begun = {
        let (folder, part, whole) = (folder.to_owned(), part.clone(), whole.clone());
        let begin = move || begin(&folder, &part, &whole);
        tokio::task::spawn_blocking(begin).await
    };
    let unkept = |error: &dyn std::fmt::Display| {
        let file = of.name_of(name);
        warn!(file, folder = %folder.display(), %error, "a file of weights cannot be kept");
    };
    let mut file = match begun {
        Ok(Ok(Some(file))) => file,
        Ok(Ok(None)) => return Ok(Some(whole)),
        Ok(Err(error)) => {
            unkept(&error);
            return Ok(None);
        }
        Err(error) => {
            unkept(&error);
            return Ok(None);
        }
    };
    info!(
        file = of.name_of(name),
        bytes = size as i64,
        "fetching weights"
    );
    let mut at = 0;
    while at < size {
        let end = (at + PIECE as u64).min(size);
        let piece = of.piece(name, at..end).await?;
        if let Err(error) = file.write_all(&piece) {
            unkept(&error);
            // What is there would only be in the way of others.
            let _ = std::fs::remove_file(&part);
            return Ok(None);
        }
        at = end;
    }
    match file
        .sync_all()
        .and_then(|()| std::fs::rename(&part, &whole))
    {
        Ok(()) => Ok(Some(whole)),
        Err(error) => {
            unkept(&error);
            Ok(None)
        }
    }
}

/// Waits for whoever fetches the file, and gives the one to fill where it is not there then. The lock
/// ends with it.
fn begin(folder: &Path, part: &Path, whole: &Path) -> std::io::Result<Option<File>> {
    std::fs::create_dir_all(folder)?;
    loop {
        if whole.is_file() {
            return Ok(None);
        }
        let file = File::options().create(true).append(true).open(part)?;
        file.lock()?;
        // Who held the lock may have renamed or removed it.
        use std::os::unix::fs::MetadataExt;
        let is_same = std::fs::metadata(part)
            .is_ok_and(|there| file.metadata().is_ok_and(|own| own.ino() == there.ino()));
        if is_same {
            file.set_len(0)?;
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(folder: &Folder, bytes: &[u8]) {
        let path = store::under(&folder.root, "weights").expect("a path");
        let put = store::put(&*folder.store, &path, bytes.to_vec().into()).await;
        put.expect("written");
    }

    #[tokio::test]
    async fn a_file_is_fetched_once_until_it_changes() {
        let cache = tempfile::tempdir().expect("a folder");
        let folder = Folder::open("memory:///kept").expect("a store");
        put(&folder, b"first").await;
        let kept = || Kept::at(Some(cache.path().join("models")));
        let first = kept()
            .file(&folder, "weights")
            .await
            .expect("read")
            .expect("kept");
        assert_eq!(std::fs::read(&first).expect("there"), b"first");
        // Who looks again finds it, whoever fetched it.
        std::fs::write(&first, b"seen!").expect("written");
        let again = kept()
            .file(&folder, "weights")
            .await
            .expect("read")
            .expect("kept");
        assert_eq!(std::fs::read(&again).expect("there"), b"seen!");
        put(&folder, b"other").await;
        let other = kept()
            .file(&folder, "weights")
            .await
            .expect("read")
            .expect("kept");
        assert_ne!(other, first);
        assert_eq!(std::fs::read(&other).expect("there"), b"other");
        let left = std::fs::read_dir(cache.path().join("models")).expect("there");
        assert_eq!(left.count(), 2, "nothing half-done stays");
    }

    #[tokio::test]
    async fn what_someone_left_half_done_is_begun_again() {
        let cache = tempfile::tempdir().expect("a folder");
        let folder = Folder::open("memory:///half").expect("a store");
        put(&folder, b"whole").await;
        let (key, size) = key(&folder, "weights").await.expect("read").expect("a key");
        assert_eq!(size, 5);
        std::fs::write(cache.path().join(&key).with_extension("part"), b"wh").expect("written");
        let kept = Kept::at(Some(cache.path().to_owned()));
        let found = kept
            .file(&folder, "weights")
            .await
            .expect("read")
            .expect("kept");
        assert_eq!(std::fs::read(found).expect("there"), b"whole");
    }

    #[tokio::test]
    async fn where_nothing_can_be_kept_nothing_is() {
        let cache = tempfile::NamedTempFile::new().expect("a file");
        let folder = Folder::open("memory:///unkept").expect("a store");
        put(&folder, b"whole").await;
        for kept in [
            Kept::at(None),
            Kept::at(Some("".into())),
            Kept::at(Some(cache.path().join("below"))),
        ] {
            assert_eq!(kept.file(&folder, "weights").await.expect("no error"), None);
        }
    }
}
