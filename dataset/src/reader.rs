//! Reading a corpus: open its manifest, read whole row groups.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use futures::{FutureExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};

use crate::error::{Error, Result};
use crate::manifest::{Address, MANIFEST_FILE, Manifest, ShardEntry};
use crate::row::Row;
use crate::{shard, store};

mod file;

use file::ShardFile;

/// Footers of shards that are kept; beyond that the memory is given back.
const MAX_FOOTERS: usize = 256;

/// A finished corpus. Cheap to clone; clones share the store and the footers read so far.
#[derive(Clone)]
pub struct Corpus {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    store: Arc<dyn ObjectStore>,
    root: Path,
    manifest: Manifest,
    footers: Mutex<HashMap<usize, ArrowReaderMetadata>>,
}

impl std::fmt::Debug for Corpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Corpus")
            .field("url", &self.inner.url)
            .field("rows", &self.inner.manifest.rows)
            .finish_non_exhaustive()
    }
}

impl Corpus {
    /// Opens the corpus at a path or URL.
    ///
    /// # Errors
    /// [`Error::MissingCorpus`], [`Error::EmptyCorpus`], [`Error::Manifest`], or trouble with
    /// the store.
    pub async fn open(url: &str) -> Result<Self> {
        let (store, root) = store::open(url)?;
        Self::open_in(store, root, &store::shown(url)).await
    }

    /// Opens the corpus below `root` of a store; `url` is what messages call it.
    ///
    /// # Errors
    /// As [`Corpus::open`].
    pub async fn open_in(store: Arc<dyn ObjectStore>, root: Path, url: &str) -> Result<Self> {
        let found = read_manifest(&*store, &root, url).await?;
        let manifest = found.ok_or_else(|| Error::MissingCorpus {
            url: url.to_owned(),
        })?;
        if manifest.rows == 0 {
            return Err(Error::EmptyCorpus {
                url: url.to_owned(),
            });
        }
        let footers = Mutex::new(HashMap::new());
        let inner = Inner {
            url: url.to_owned(),
            store,
            root,
            manifest,
            footers,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Where it is, as messages call it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// What it holds.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.inner.manifest
    }

    /// The store and the root that it is read from.
    #[must_use]
    pub fn place(&self) -> (Arc<dyn ObjectStore>, &Path) {
        (Arc::clone(&self.inner.store), &self.inner.root)
    }

    /// Rows of all shards.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.inner.manifest.rows
    }

    /// Row groups of all shards.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.inner.manifest.groups()
    }

    /// Reads one row group, counted over the whole corpus.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Corrupt`] if the shard does not hold what the manifest
    /// promises (a panic of the parquet decoder counts as that), or trouble with the store.
    pub async fn read_group(&self, group: u64) -> Result<Vec<Row>> {
        let manifest = self.manifest();
        let expected = manifest.rows_of_group(group);
        let (place, entry) = self.locate("row group", group, manifest.groups(), group)?;
        let first = group * u64::from(manifest.row_group_rows);
        let reading = self.read_batches(place, entry, None);
        let batches = isolated(entry, reading).await?;
        let damaged = |detail: String| corrupt(entry, detail);
        let mut rows = Vec::with_capacity(usize::try_from(expected).unwrap_or_default());
        for batch in &batches {
            rows.extend(shard::from_batch(batch, first + rows.len() as u64).map_err(damaged)?);
        }
        if rows.len() as u64 != expected {
            let found = rows.len();
            return Err(damaged(format!(
                "row group {} has {found} rows and should have {expected}",
                place.group
            )));
        }
        Ok(rows)
    }

    /// Reads the keys of one row group, and no other column.
    ///
    /// # Errors
    /// As [`Corpus::read_group`].
    pub async fn read_keys(&self, group: u64) -> Result<Vec<String>> {
        let groups = self.manifest().groups();
        let (place, entry) = self.locate("row group", group, groups, group)?;
        let batches = isolated(entry, self.read_batches(place, entry, Some("key"))).await?;
        let mut keys = Vec::new();
        for batch in &batches {
            keys.extend(shard::keys(batch).map_err(|detail| corrupt(entry, detail))?);
        }
        Ok(keys)
    }

    /// Reads one row. Reads its whole group: for inspection, not for training.
    ///
    /// # Errors
    /// As [`Corpus::read_group`].
    pub async fn read_row(&self, row: u64) -> Result<Row> {
        let group_rows = u64::from(self.manifest().row_group_rows);
        let group = row / group_rows;
        let (place, _) = self.locate("row", row, self.rows(), group)?;
        let mut rows = self.read_group(group).await?;
        let at = usize::try_from(row % group_rows).unwrap_or(usize::MAX);
        if at >= rows.len() {
            return Err(Error::Internal(format!("row {row} is not at {place:?}")));
        }
        Ok(rows.swap_remove(at))
    }

    /// The shard and place of a row group; an index beyond the end is an error about `what`.
    fn locate(
        &self,
        what: &'static str,
        index: u64,
        count: u64,
        group: u64,
    ) -> Result<(Address, &ShardEntry)> {
        let manifest = self.manifest();
        let first = group.saturating_mul(u64::from(manifest.row_group_rows));
        let beyond = || Error::OutOfRange {
            what,
            index,
            count,
            url: self.inner.url.clone(),
        };
        if index >= count {
            return Err(beyond());
        }
        let place = manifest.address(first).ok_or_else(beyond)?;
        Ok((place, manifest.shards.get(place.shard).ok_or_else(beyond)?))
    }

    /// A row group with all its columns, or with one.
    async fn read_batches(
        &self,
        place: Address,
        entry: &ShardEntry,
        column: Option<&str>,
    ) -> Result<Vec<RecordBatch>> {
        let group = place.group;
        let mut reader = self.reader(entry)?;
        let footer = self.footer(place.shard, entry, &mut reader).await?;
        if group >= footer.metadata().num_row_groups() {
            let found = footer.metadata().num_row_groups();
            return Err(corrupt(
                entry,
                format!("it has {found} row groups, not {}", group + 1),
            ));
        }
        let columns = match column {
            None => ProjectionMask::all(),
            Some(name) => ProjectionMask::columns(footer.parquet_schema(), [name]),
        };
        let stream = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, footer)
            .with_row_groups(vec![group])
            .with_projection(columns)
            .with_batch_size(self.manifest().row_group_rows as usize)
            .build()
            .map_err(|error| self.unreadable(entry, &error))?;
        stream
            .try_collect()
            .await
            .map_err(|error| self.unreadable(entry, &error))
    }

    fn reader(&self, entry: &ShardEntry) -> Result<ShardFile> {
        let path = store::under(&self.inner.root, &entry.path)?;
        Ok(ShardFile::new(
            Arc::clone(&self.inner.store),
            path,
            entry.bytes,
        ))
    }

    async fn footer(
        &self,
        index: usize,
        entry: &ShardEntry,
        reader: &mut ShardFile,
    ) -> Result<ArrowReaderMetadata> {
        let known = self.footers().get(&index).cloned();
        if let Some(footer) = known {
            return Ok(footer);
        }
        let footer = ArrowReaderMetadata::load_async(reader, Default::default())
            .await
            .map_err(|error| self.unreadable(entry, &error))?;
        let mut footers = self.footers();
        if footers.len() >= MAX_FOOTERS {
            footers.clear();
        }
        footers.insert(index, footer.clone());
        Ok(footer)
    }

    /// A parquet error: trouble with the store if one is inside, else a damaged file.
    fn unreadable(&self, entry: &ShardEntry, error: &parquet::errors::ParquetError) -> Error {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(current) = cause {
            if let Some(failed) = current.downcast_ref::<object_store::Error>() {
                return self.unreachable(entry, failed);
            }
            cause = current.source();
        }
        corrupt(entry, store::redact(&error.to_string()))
    }

    fn unreachable(&self, entry: &ShardEntry, error: &object_store::Error) -> Error {
        let url = &self.inner.url;
        let failed = Error::store(
            "read",
            &format!("{}/{}", url.trim_end_matches('/'), entry.path),
            error,
        );
        if failed.is_missing() {
            return Error::MissingShard {
                url: url.clone(),
                shard: entry.path.clone(),
            };
        }
        failed
    }

    fn footers(&self) -> std::sync::MutexGuard<'_, HashMap<usize, ArrowReaderMetadata>> {
        self.inner
            .footers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The manifest below a root, or `None` if there is none.
///
/// # Errors
/// [`Error::Manifest`], or trouble with the store.
pub async fn read_manifest(
    store: &dyn ObjectStore,
    root: &Path,
    url: &str,
) -> Result<Option<Manifest>> {
    let path = store::under(root, MANIFEST_FILE)?;
    let Some(bytes) = store::get_if_there(store, &path).await? else {
        return Ok(None);
    };
    let parsed = Manifest::parse(&bytes);
    parsed.map(Some).map_err(|reason| Error::Manifest {
        url: url.to_owned(),
        reason,
    })
}

/// A read whose panic is an error: the parquet decoder panics on some malformed files.
async fn isolated<T>(entry: &ShardEntry, reading: impl Future<Output = Result<T>>) -> Result<T> {
    std::panic::AssertUnwindSafe(reading)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(corrupt(entry, "the parquet decoder panicked".into())))
}

fn corrupt(entry: &ShardEntry, detail: String) -> Error {
    Error::Corrupt {
        file: entry.path.clone(),
        detail,
    }
}
