//! Object stores by URL: local folders, S3, Google Cloud Storage, Azure and memory.
//!
//! Everything durable (corpora, journal, checkpoints) goes through here. A plain path is a local
//! folder, created by the first write. Credentials and endpoints come from the environment
//! (`AWS_*`, `GOOGLE_*`, `AZURE_*`), retries are those of `object_store`, and no text that leaves
//! this module shows a secret.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutPayload, RetryConfig,
};
use url::Url;

use crate::error::{Error, Result};

#[cfg(test)]
pub(crate) mod injected;
mod place;
mod words;

pub use place::Place;
pub(crate) use words::bucket_of;
pub use words::{diagnose, redact, shown};

/// Longest time that one request is retried.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether a create-only write made the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object was not there and is now.
    New,
    /// An object was there already and stays as it was. After a lost answer this may be our own.
    Exists,
}

/// Opens the store of a path or URL, and the path of the place inside it. Nothing is read or
/// written yet.
///
/// `memory://name/...` is one store for the whole process, for tests.
///
/// # Errors
/// [`Error::Location`] if the text is no URL of a known kind or the settings in the environment
/// do not suffice.
pub fn open(location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    if !location.contains("://") {
        return open_folder(std::path::Path::new(location), location);
    }
    let url = Url::parse(location).map_err(|error| refuse(location, error))?;
    if url.scheme() == "memory" {
        let path = format!("{}{}", url.host_str().unwrap_or_default(), url.path());
        let path = Path::from_url_path(path).map_err(|error| refuse(location, error))?;
        return Ok((memory(), path));
    }
    if url.scheme() == "file" {
        let folder = url
            .to_file_path()
            .map_err(|()| refuse(location, "it names no local path"))?;
        return open_folder(&folder, location);
    }
    let (scheme, path) = ObjectStoreScheme::parse(&url).map_err(|error| refuse(location, error))?;
    let store = build(&scheme, &url).map_err(|error| refuse(location, error))?;
    Ok((store, path))
}

/// The local path of a location, if it is on the local file system.
#[must_use]
pub fn local_path(location: &str) -> Option<std::path::PathBuf> {
    if location.contains("://") {
        let url = Url::parse(location)
            .ok()
            .filter(|url| url.scheme() == "file")?;
        return url
            .to_file_path()
            .ok()
            .and_then(|path| without_dots(&path).ok());
    }
    without_dots(std::path::Path::new(location)).ok()
}

/// The path of an object below a root.
///
/// # Errors
/// [`Error::Location`] if `relative` is empty, absolute or has a `..` in it.
pub fn under(root: &Path, relative: &str) -> Result<Path> {
    let safe = !relative.is_empty()
        && !relative.contains('\\')
        && relative
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
    if !safe {
        return Err(refuse(relative, "the path leaves its root"));
    }
    // Names are taken as they are: `#` and `%` belong to them, here and on every store.
    let whole = if root.is_root() {
        relative.to_owned()
    } else {
        format!("{root}/{relative}")
    };
    Path::parse(whole).map_err(|error| refuse(relative, error))
}

/// What messages call an object: a path on this machine, else its URL.
#[must_use]
pub fn name(store: &dyn ObjectStore, path: &Path) -> String {
    let kind = store.to_string();
    if kind.starts_with("LocalFileSystem") {
        format!("/{path}")
    } else {
        let bucket = words::bucket_url(&kind).unwrap_or(kind);
        format!("{bucket}/{path}")
    }
}

/// Reads a whole object.
///
/// # Errors
/// [`Error::Store`]; see [`Error::is_missing`].
pub async fn get(store: &dyn ObjectStore, path: &Path) -> Result<Bytes> {
    let read = async { store.get(path).await?.bytes().await };
    read.await
        .map_err(|error| Error::store("read", &name(store, path), &error))
}

/// Reads a whole object, or `None` if it does not exist.
///
/// # Errors
/// [`Error::Store`] for everything but a missing object.
pub async fn get_if_there(store: &dyn ObjectStore, path: &Path) -> Result<Option<Bytes>> {
    let read = async { store.get(path).await?.bytes().await };
    let error = match read.await {
        Ok(bytes) => return Ok(Some(bytes)),
        // The usual answer: without a look for words about it.
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => Error::store("read", &name(store, path), &error),
    };
    match error.is_missing() {
        true => Ok(None),
        false => Err(error),
    }
}

/// The size of an object in bytes, or `None` if it does not exist.
///
/// # Errors
/// [`Error::Store`] for everything but a missing object.
pub async fn size(store: &dyn ObjectStore, path: &Path) -> Result<Option<u64>> {
    match store.head(path).await {
        Ok(meta) => Ok(Some(meta.size)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(Error::store("read", &name(store, path), &error)),
    }
}

/// Writes a whole object, atomically; replaces what was there.
///
/// # Errors
/// [`Error::Store`].
pub async fn put(store: &dyn ObjectStore, path: &Path, bytes: Bytes) -> Result<()> {
    let put = store.put(path, PutPayload::from_bytes(bytes)).await;
    put.map(drop)
        .map_err(|error| Error::store("written", &name(store, path), &error))
}

/// Writes a whole object, atomically, only if none is there: of several writers one wins.
///
/// # Errors
/// [`Error::Store`]; an object that exists is an answer, not an error.
pub async fn put_create_only(
    store: &dyn ObjectStore,
    path: &Path,
    bytes: Bytes,
) -> Result<Created> {
    let payload = PutPayload::from_bytes(bytes);
    match store.put_opts(path, payload, PutMode::Create.into()).await {
        Ok(_) => Ok(Created::New),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::Exists),
        Err(error) => Err(Error::store("written", &name(store, path), &error)),
    }
}

/// Deletes an object; one that is not there counts as deleted.
///
/// # Errors
/// [`Error::Store`].
pub async fn delete(store: &dyn ObjectStore, path: &Path) -> Result<()> {
    match store.delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(Error::store("deleted", &name(store, path), &error)),
    }
}

/// The process-wide store behind `memory://`.
fn memory() -> Arc<dyn ObjectStore> {
    static MEMORY: OnceLock<Arc<InMemory>> = OnceLock::new();
    MEMORY.get_or_init(|| Arc::new(InMemory::new())).clone()
}

/// An absolute path without `.` and `..`, which stores do not know. As in a shell, `..` behind a
/// link leads to the parent of where the link leads.
fn without_dots(path: &std::path::Path) -> std::io::Result<std::path::PathBuf> {
    let mut clean = std::path::PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                clean = clean.canonicalize().unwrap_or(clean);
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    Ok(clean)
}

fn open_folder(folder: &std::path::Path, shown: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    if folder.as_os_str().is_empty() {
        return Err(refuse(shown, "the path is empty"));
    }
    let absolute = without_dots(folder).map_err(|error| refuse(shown, error))?;
    let path = Path::from_absolute_path(absolute).map_err(|error| refuse(shown, error))?;
    Ok((Arc::new(LocalFileSystem::new().with_fsync(true)), path))
}

fn build(
    scheme: &ObjectStoreScheme,
    url: &Url,
) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    let retry = RetryConfig {
        retry_timeout: RETRY_TIMEOUT,
        ..RetryConfig::default()
    };
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::from_env()
                .with_url(url.as_str())
                .with_retry(retry);
            Arc::new(
                if plain_http("AWS_ENDPOINT") {
                    builder.with_allow_http(true)
                } else {
                    builder
                }
                .build()?,
            )
        }
        ObjectStoreScheme::GoogleCloudStorage => Arc::new(
            GoogleCloudStorageBuilder::from_env()
                .with_url(url.as_str())
                .with_retry(retry)
                .build()?,
        ),
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::from_env()
                .with_url(url.as_str())
                .with_retry(retry);
            Arc::new(
                if plain_http("AZURE_") {
                    builder.with_allow_http(true)
                } else {
                    builder
                }
                .build()?,
            )
        }
        other => {
            return Err(object_store::Error::NotImplemented {
                operation: format!("{other:?}"),
                implementer: "mks2".into(),
            });
        }
    })
}

/// Whether the environment names an endpoint without TLS: then that is what the user wants.
fn plain_http(prefix: &str) -> bool {
    std::env::vars_os().any(|(name, value)| {
        let name = name.to_string_lossy();
        name.starts_with(prefix)
            && name.contains("ENDPOINT")
            && value.to_string_lossy().starts_with("http://")
    })
}

fn refuse(location: &str, reason: impl std::fmt::Display) -> Error {
    Error::Location {
        location: redact(&shown(location)),
        reason: redact(&reason.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_plain_path_is_a_folder_that_the_first_write_creates() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("a b/c#d/e%f");
        let (store, root) = open(place.to_str().unwrap()).unwrap();
        assert!(!place.exists());
        let object = under(&root, "x/y.txt").unwrap();
        put(&*store, &object, Bytes::from_static(b"hello"))
            .await
            .unwrap();
        assert_eq!(std::fs::read(place.join("x/y.txt")).unwrap(), b"hello");
        assert_eq!(get(&*store, &object).await.unwrap(), "hello");
        assert_eq!(size(&*store, &object).await.unwrap(), Some(5));
    }

    #[test]
    fn dots_in_paths_are_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(home.join("a/b")).unwrap();
        assert_eq!(
            without_dots(&home.join("a/./b/../../x/../c")).unwrap(),
            home.join("c")
        );
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(home.join("a/b"), home.join("link")).unwrap();
            assert_eq!(
                without_dots(&home.join("link/../c")).unwrap(),
                home.join("a/c")
            );
        }
        let relative = open("../x").unwrap().1;
        assert!(!relative.as_ref().contains(".."), "{relative}");
    }

    #[tokio::test]
    async fn create_only_has_one_winner_on_disk_and_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        for place in [folder.path().to_str().unwrap(), "memory://create-only/x"] {
            let (store, root) = open(place).unwrap();
            let object = under(&root, "journal/1").unwrap();
            let race = (0..16).map(|i| {
                let (store, object) = (store.clone(), object.clone());
                async move {
                    put_create_only(&*store, &object, Bytes::from(vec![i]))
                        .await
                        .unwrap()
                }
            });
            let won = futures::future::join_all(race).await;
            assert_eq!(
                won.iter()
                    .filter(|&&created| created == Created::New)
                    .count(),
                1
            );
        }
    }

    #[tokio::test]
    async fn missing_objects_are_told_from_failures() {
        let (store, root) = open("memory://missing").unwrap();
        let object = under(&root, "nothing").unwrap();
        assert!(get(&*store, &object).await.unwrap_err().is_missing());
        assert_eq!(get_if_there(&*store, &object).await.unwrap(), None);
        assert_eq!(size(&*store, &object).await.unwrap(), None);
        delete(&*store, &object).await.unwrap();
    }

    #[tokio::test]
    async fn a_path_below_a_file_is_a_storage_error_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let place = file.path().join("corpus");
        let (store, root) = open(place.to_str().unwrap()).unwrap();
        let object = under(&root, "x").unwrap();
        let error = put(&*store, &object, Bytes::new()).await.unwrap_err();
        assert!(
            matches!(
                &error,
                Error::Store {
                    trouble: crate::error::Trouble::NotAFolder,
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn paths_cannot_leave_their_root() {
        let root = Path::from("a/b");
        assert_eq!(under(&root, "c/d.txt").unwrap().as_ref(), "a/b/c/d.txt");
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "./a",
            "a\\..\\b",
        ] {
            assert!(under(&root, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_schemes_and_empty_paths_are_refused() {
        assert!(open("ftp://host/x").is_err());
        assert!(open("").is_err());
        assert!(open("s3://").is_err());
    }
}
