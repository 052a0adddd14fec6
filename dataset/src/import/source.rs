//! Sources of an import: which files they are, and the samples of all of them in order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_store::ObjectStore;
use object_store::path::Path;

use super::braces;
use super::bytes::ByteReader;
use super::jsonl::{LineSamples, PictureFolder};
use super::sample::{Bad, Sample};
use super::tar::TarReader;
use super::webdataset::TarSamples;
use crate::error::{Error, Result};
use crate::picture::Limits;
use crate::store;

/// Formats that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// WebDataset.
    Tar,
    /// JSON lines.
    Lines,
}

/// One file to import.
#[derive(Clone)]
pub(crate) struct Source {
    /// As the user named it, without secrets.
    pub(crate) name: Arc<str>,
    /// Size, bytes.
    pub(crate) bytes: u64,
    format: Format,
    store: Arc<dyn ObjectStore>,
    path: Path,
    local: Option<std::path::PathBuf>,
}

/// A sample whose picture may still have to be read.
pub(crate) struct Pending {
    pub(crate) sample: Sample,
    pub(crate) picture: Option<(PictureFolder, String)>,
}

/// Expands the names, and finds out that every source exists and has a known format.
///
/// # Errors
/// [`Error::Pattern`], [`Error::Source`], [`Error::MissingSource`], or trouble with the store.
pub(crate) async fn resolve(patterns: &[String]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for pattern in patterns {
        let names = braces::expand(pattern).map_err(|reason| Error::Pattern {
            pattern: store::redact(pattern),
            reason,
        })?;
        for name in names {
            sources.push(find(&name).await?);
        }
    }
    Ok(sources)
}

async fn find(name: &str) -> Result<Source> {
    let shown = store::redact(&store::shown(name));
    let local = store::local_path(name);
    if local.as_ref().is_some_and(|path| path.is_dir()) {
        let reason = "it is a folder; name the files in it".to_owned();
        return Err(Error::Source {
            name: shown,
            reason,
        });
    }
    let (store, path) = store::open(name)?;
    let format = format_of(&path).map_err(|reason| Error::Source {
        name: shown.clone(),
        reason: reason.to_owned(),
    })?;
    let size = store::size(&*store, &path).await?;
    let bytes = size.ok_or_else(|| Error::MissingSource {
        name: shown.clone(),
    })?;
    Ok(Source {
        name: shown.into(),
        bytes,
        format,
        store,
        path,
        local,
    })
}

/// The format of a file, from its name.
fn format_of(path: &Path) -> Result<Format, &'static str> {
    let name = path.filename().unwrap_or_default().to_ascii_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if ends(&[".tar"]) {
        Ok(Format::Tar)
    } else if ends(&[".jsonl", ".ndjson"]) {
        Ok(Format::Lines)
    } else if ends(&[".tar.gz", ".tgz", ".tar.zst", ".jsonl.gz"]) {
        Err("it is compressed; unpack it first (pictures are compressed already)")
    } else {
        Err("its name does not end in .tar, .jsonl or .ndjson")
    }
}

/// Reads the samples of all sources in order.
pub(crate) struct Feed {
    sources: std::vec::IntoIter<Source>,
    index: usize,
    limits: Limits,
    current: Option<Reader>,
    unended: Unended,
}

/// Tars that stop without the two empty blocks that end an archive, told while they are read: they
/// may have been cut exactly between two files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unended(Arc<Mutex<Vec<String>>>);

impl Unended {
    fn note(&self, source: &str) {
        self.names().push(source.to_owned());
    }

    /// Their names, in the order of the sources.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.names())
    }

    fn names(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Reader {
    Tar(Box<TarSamples>),
    Lines(Box<LineSamples>, PictureFolder),
}

impl Feed {
    /// At the front of the first source.
    pub(crate) fn new(sources: Vec<Source>, limits: Limits) -> Self {
        Self {
            sources: sources.into_iter(),
            index: 0,
            limits,
            current: None,
            unended: Unended::default(),
        }
    }

    /// What it notes about tars without an end.
    pub(crate) fn unended(&self) -> Unended {
        self.unended.clone()
    }

    /// The next sample or what is wrong with it; `None` behind the last source.
    pub(crate) async fn next(&mut self) -> Result<Option<Result<Pending, Bad>>> {
        loop {
            let item = match &mut self.current {
                Some(reader) => reader.next().await?,
                None => None,
            };
            if item.is_some() {
                return Ok(item);
            }
            if let Some(source) = self.current.as_ref().and_then(Reader::unended) {
                self.unended.note(source);
            }
            let Some(source) = self.sources.next() else {
                self.current = None;
                return Ok(None);
            };
            self.current = Some(Reader::open(source, self.index, self.limits).await?);
            self.index += 1;
        }
    }
}

impl Reader {
    async fn open(source: Source, index: usize, limits: Limits) -> Result<Self> {
        let bytes = ByteReader::open(Arc::clone(&source.store), source.path.clone()).await?;
        Ok(match source.format {
            Format::Tar => Self::Tar(Box::new(TarSamples::new(
                TarReader::new(source.name, bytes),
                limits,
            ))),
            Format::Lines => {
                let folder = PictureFolder {
                    store: source.store,
                    folder: parent(&source.path),
                    local: source.local.and_then(|path| path.parent().map(Into::into)),
                };
                Self::Lines(
                    Box::new(LineSamples::new(source.name, index, bytes)),
                    folder,
                )
            }
        })
    }

    /// The name of a tar that was read to where it stops, without finding its end mark.
    fn unended(&self) -> Option<&str> {
        match self {
            Self::Tar(samples) => samples.unended(),
            Self::Lines(..) => None,
        }
    }

    async fn next(&mut self) -> Result<Option<Result<Pending, Bad>>> {
        Ok(match self {
            Self::Tar(samples) => {
                let item = samples.next().await?;
                item.map(|item| {
                    item.map(|sample| Pending {
                        sample,
                        picture: None,
                    })
                })
            }
            Self::Lines(samples, folder) => {
                let item = samples.next().await?;
                item.map(|item| {
                    item.map(|(sample, picture)| {
                        let picture = picture.map(|path| (folder.clone(), path));
                        Pending { sample, picture }
                    })
                })
            }
        })
    }
}

/// The folder of an object.
fn parent(path: &Path) -> Path {
    let folder = path.as_ref().rsplit_once('/').map(|(folder, _)| folder);
    folder
        .and_then(|folder| Path::parse(folder).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_follow_names() {
        let of = |name: &str| format_of(&Path::parse(name).unwrap());
        assert_eq!(of("a/b.tar"), Ok(Format::Tar));
        assert_eq!(of("a/B.JSONL"), Ok(Format::Lines));
        assert!(of("a.tar.gz").unwrap_err().contains("compressed"));
        assert!(of("a.parquet").is_err());
    }

    #[tokio::test]
    async fn every_source_must_exist_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a-0.tar"), b"").unwrap();
        let pattern = format!("{}/a-{{0..1}}.tar", folder.path().display());
        let error = resolve(&[pattern]).await.err().unwrap();
        assert!(matches!(&error, Error::MissingSource { name } if name.ends_with("a-1.tar")));
        let error = resolve(&[folder.path().display().to_string()])
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains("folder"), "{error}");
    }
}
