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
use std::fs::{File, TryLockError};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mks2_proto::env;
use object_store::path::Path as StorePath;
use object_store::{GetOptions, ObjectStoreExt};
use tokio::sync::OnceCell;
use tracing::{info, warn};

use super::{Folder, PIECE, Result};
use crate::error::Error;
use crate::store;

/// How long one that another process fetches may stand still.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(100);

/// Where files are kept, and those that were looked for.
#[derive(Debug, Default)]
pub(super) struct Kept {
    folder: Option<PathBuf>,
    files: Mutex<BTreeMap<String, Arc<OnceCell<Option<PathBuf>>>>>,
}

impl Kept {
    /// As the environment says: `MKS2_MODEL_CACHE`, or a folder in the user's cache; nothing is kept
    /// where that is empty, or where the user has no home. What is in this process' memory is near enough.
    pub(super) fn of(location: &str) -> Self {
        if location.starts_with("memory:") {
            return Self::default();
        }
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

/// A file as its store has it now.
struct Original {
    path: StorePath,
    /// What it is kept as.
    key: String,
    bytes: u64,
    /// The store's digest of it.
    tag: String,
}

impl Original {
    /// None where the store has no digest for it.
    async fn of(folder: &Folder, name: &str) -> Result<Option<Self>> {
        let path = folder.place.path(name)?;
        let head = folder.place.store.head(&path).await;
        let object = folder.name_of(name);
        let head = head.map_err(|error| Error::store("read", &object, &error))?;
        Ok(head.e_tag.map(|tag| {
            let about = format!("{object}\n{}\n{tag}", head.size);
            Self {
                path,
                key: blake3::hash(about.as_bytes()).to_hex().to_string(),
                bytes: head.size,
                tag,
            }
        }))
    }

    /// A piece of the very file, not of one that has come to its place meanwhile.
    async fn piece(&self, folder: &Folder, range: Range<u64>) -> Result<Bytes> {
        let options = GetOptions {
            if_match: Some(self.tag.clone()),
            range: Some(range.into()),
            ..GetOptions::default()
        };
        let store = &folder.place.store;
        let read = async { store.get_opts(&self.path, options).await?.bytes().await };
        let name = store::name(&**store, &self.path);
        Ok(read
            .await
            .map_err(|error| Error::store("read", &name, &error))?)
    }
}

async fn keep(of: &Folder, name: &str, folder: &Path) -> Result<Option<PathBuf>> {
    let Some(original) = Original::of(of, name).await? else {
        return Ok(None);
    };
    let whole = folder.join(&original.key);
    let part = whole.with_extension("part");
    let unkept = |error: &dyn std::fmt::Display| {
        let file = of.name_of(name);
        warn!(file, folder = %folder.display(), %error, "a file of weights cannot be kept");
        Ok(None)
    };
    let (place, bytes) = (
        (folder.to_owned(), part.clone(), whole.clone()),
        original.bytes,
    );
    let begun = tokio::task::spawn_blocking(move || begin(place, bytes)).await;
    let mut file = match begun.map_err(std::io::Error::other).flatten() {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(Some(whole)),
        Err(error) => return unkept(&error),
    };
    let shown = of.name_of(name);
    info!(file = shown, bytes = bytes as i64, "fetching weights");
    let mut at = 0;
    while at < bytes {
        let end = (at + PIECE as u64).min(bytes);
        let piece = original.piece(of, at..end).await?;
        if let Err(error) = file.write_all(&piece) {
            // What is there would only be in the way of others.
            let _ = std::fs::remove_file(&part);
            return unkept(&error);
        }
        at = end;
    }
    let named = file
        .sync_all()
        .and_then(|()| std::fs::rename(&part, &whole));
    if let Err(error) = named {
        let _ = std::fs::remove_file(&part);
        return unkept(&error);
    }
    Ok(Some(whole))
}

/// Waits for whoever fetches the file, as long as it grows, and gives the one to fill where it is not there
/// then. The lock ends with it.
fn begin(
    (folder, part, whole): (PathBuf, PathBuf, PathBuf),
    bytes: u64,
) -> std::io::Result<Option<File>> {
    std::fs::create_dir_all(folder)?;
    let size = |path: &Path| std::fs::metadata(path).map(|about| about.len());
    // One of another size was damaged, and is fetched again.
    let is_whole = || size(&whole).is_ok_and(|size| size == bytes);
    let (mut grown, mut since) = (0, Instant::now());
    loop {
        if is_whole() {
            return Ok(None);
        }
        let file = File::options().create(true).append(true).open(&part)?;
        if let Err(error) = file.try_lock() {
            if let TryLockError::Error(error) = error {
                return Err(error);
            }
            let now = size(&part).unwrap_or_default();
            if now != grown {
                (grown, since) = (now, Instant::now());
            }
            if since.elapsed() > PATIENCE {
                let why = "another process fetches it, and does not move";
                return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why));
            }
            std::thread::sleep(PAUSE);
            continue;
        }
        // Who held the lock before may have renamed or removed it.
        let own = file.metadata()?.ino();
        if std::fs::metadata(&part).is_ok_and(|there| there.ino() == own) {
            if is_whole() {
                std::fs::remove_file(&part)?;
                return Ok(None);
            }
            file.set_len(0)?;
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn put(folder: &Folder, bytes: &[u8]) {
        let path = folder.place.path("weights").expect("a path");
        let put = store::put(&*folder.place.store, &path, bytes.to_vec().into()).await;
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
        let original = Original::of(&folder, "weights").await.expect("read");
        let original = original.expect("a digest");
        assert_eq!(original.bytes, 5);
        std::fs::write(
            cache.path().join(&original.key).with_extension("part"),
            b"wh",
        )
        .expect("written");
        let kept = Kept::at(Some(cache.path().to_owned()));
        let found = kept
            .file(&folder, "weights")
            .await
            .expect("read")
            .expect("kept");
        assert_eq!(std::fs::read(found).expect("there"), b"whole");
    }

    #[tokio::test]
    async fn one_of_another_size_is_fetched_again() {
        let cache = tempfile::tempdir().expect("a folder");
        let folder = Folder::open("memory:///cut").expect("a store");
        put(&folder, b"whole").await;
        let kept = || Kept::at(Some(cache.path().to_owned()));
        for _ in 0..2 {
            let found = kept().file(&folder, "weights").await;
            let found = found.expect("read").expect("kept");
            assert_eq!(std::fs::read(&found).expect("there"), b"whole");
            std::fs::write(found, b"who").expect("written");
        }
    }

    #[tokio::test]
    async fn a_file_that_changes_meanwhile_is_no_mixture() {
        let folder = Folder::open("memory:///changing").expect("a store");
        put(&folder, b"first").await;
        let original = Original::of(&folder, "weights").await.expect("read");
        let original = original.expect("a digest");
        assert_eq!(
            &original.piece(&folder, 0..2).await.expect("read")[..],
            b"fi"
        );
        put(&folder, b"other").await;
        assert!(original.piece(&folder, 2..5).await.is_err());
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
