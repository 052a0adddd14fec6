//! What the loader keeps: row groups, and decoded pictures where all of them fit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::LoadError;
use crate::error::Error;
use crate::picture::{self, Limits, PictureError};
use crate::plan::RowRef;
use crate::reader::Corpus;
use crate::row::Row;

/// (source, row group).
pub(super) type Key = (u16, u64);

/// Memory of a row beside its texts and picture, about.
const ROW_OVERHEAD_BYTES: u64 = 256;

/// The rows of a row group, pictures apart.
#[derive(Debug)]
pub(super) struct Group {
    rows: Vec<(Arc<Row>, Option<Bytes>)>,
    bytes: u64,
}

/// Row groups of all corpora, the least recently used ones let go beyond a number of bytes.
#[derive(Debug)]
pub(super) struct Groups {
    corpora: Vec<Corpus>,
    max_bytes: u64,
    kept: Mutex<Kept>,
    reads: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<Key, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    /// Empty while the group is read: who else needs it waits for the same read.
    cell: Arc<OnceCell<Arc<Group>>>,
    used_at: u64,
}

impl Groups {
    pub(super) fn new(corpora: Vec<Corpus>, max_bytes: u64) -> Self {
        Self {
            corpora,
            max_bytes,
            kept: Mutex::default(),
            reads: AtomicU64::new(0),
        }
    }

    /// The row group that a row lies in.
    pub(super) fn key(&self, at: RowRef) -> Key {
        let corpus = self.corpora.get(usize::from(at.source));
        let group_rows = corpus.map_or(1, |corpus| corpus.manifest().row_group_rows.max(1));
        (at.source, at.row / u64::from(group_rows))
    }

    /// A row of a group, and its encoded picture.
    pub(super) fn row<'a>(
        &self,
        group: &'a Group,
        at: RowRef,
    ) -> Option<&'a (Arc<Row>, Option<Bytes>)> {
        let first = group.rows.first()?.0.index;
        group
            .rows
            .get(usize::try_from(at.row.checked_sub(first)?).ok()?)
    }

    /// A row group, from memory or from the store. Several callers share one read.
    pub(super) async fn get(&self, key: Key) -> Result<Arc<Group>, LoadError> {
        let cell = self.kept().touch(key);
        let group = cell
            .get_or_try_init(|| self.read(key))
            .await
            .map(Arc::clone);
        match &group {
            Ok(_) => self.kept().shrink(self.max_bytes, key),
            Err(_) => self.kept().drop_empty(key),
        }
        group
    }

    /// Groups that were read from the store so far.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// The error for a row whose picture can not be decoded.
    pub(super) fn bad_picture(&self, at: RowRef, row: &Row, problem: PictureError) -> LoadError {
        let (url, shard) = self.place(self.key(at));
        LoadError::Picture {
            url,
            shard,
            cause: Box::new(Error::Picture {
                row: at.row,
                key: row.key.clone(),
                problem,
            }),
        }
    }

    async fn read(&self, key: Key) -> Result<Arc<Group>, LoadError> {
        let (source, group) = key;
        let missing = LoadError::NoRow {
            source_index: source,
            row: 0,
        };
        let corpus = self.corpora.get(usize::from(source)).ok_or(missing)?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        match corpus.read_group(group).await {
            Ok(rows) => Ok(Arc::new(Group::new(rows))),
            Err(cause) => {
                let (url, shard) = self.place(key);
                Err(LoadError::Group {
                    url,
                    shard,
                    group,
                    cause: Box::new(cause),
                })
            }
        }
    }

    /// Names of the corpus and of the shard's file, for messages.
    fn place(&self, (source, group): Key) -> (String, String) {
        let Some(corpus) = self.corpora.get(usize::from(source)) else {
            return Default::default();
        };
        let manifest = corpus.manifest();
        let first = group.saturating_mul(u64::from(manifest.row_group_rows));
        let shard = manifest
            .address(first)
            .and_then(|at| manifest.shards.get(at.shard));
        (
            corpus.url().to_owned(),
            shard.map_or_else(String::new, |entry| entry.path.clone()),
        )
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn touch(&mut self, key: Key) -> Arc<OnceCell<Arc<Group>>> {
        self.clock += 1;
        let used_at = self.clock;
        let entry = self.entries.entry(key).or_insert_with(|| Entry {
            cell: Arc::default(),
            used_at,
        });
        entry.used_at = used_at;
        Arc::clone(&entry.cell)
    }

    /// Lets the least recently used groups go until the rest fits; `newest` always stays.
    fn shrink(&mut self, max_bytes: u64, newest: Key) {
        // One look at all cells: another thread fills one at any moment, without this lock, and
        // what it adds is its own call's business.
        let mut full: Vec<(u64, Key, u64)> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| Some((entry.used_at, *key, entry.cell.get()?.bytes)))
            .collect();
        full.sort_unstable();
        let mut total: u64 = full.iter().map(|(.., bytes)| bytes).sum();
        for (_, oldest, bytes) in full {
            if total <= max_bytes {
                return;
            }
            if oldest != newest {
                self.entries.remove(&oldest);
                total -= bytes;
            }
        }
    }

    /// Forgets a group whose read has failed.
    fn drop_empty(&mut self, key: Key) {
        if self
            .entries
            .get(&key)
            .is_some_and(|entry| entry.cell.get().is_none())
        {
            self.entries.remove(&key);
        }
    }
}

impl Group {
    fn new(rows: Vec<Row>) -> Self {
        let mut bytes = 0;
        let rows = rows
            .into_iter()
            .map(|mut row| {
                let image = row.image.take();
                bytes += image.as_ref().map_or(0, Bytes::len) as u64 + text_bytes(&row);
                (Arc::new(row), image)
            })
            .collect();
        Self { rows, bytes }
    }
}

fn text_bytes(row: &Row) -> u64 {
    let texts = [&row.caption, &row.question, &row.answer];
    let texts: usize = texts.into_iter().flatten().map(String::len).sum();
    let metadata = row.metadata.len() * 64;
    (texts + metadata + row.key.len()) as u64 + ROW_OVERHEAD_BYTES
}

/// Pixels by (source, row).
type Pixels = HashMap<(u16, u64), Arc<[u8]>>;

/// Decoded pictures.
#[derive(Debug)]
pub(super) struct Pictures {
    /// `None` where not all pictures fit: then most would be let go before their next epoch.
    kept: Option<Mutex<Pixels>>,
    limits: Limits,
}

impl Pictures {
    /// Keeps decoded pictures if `rows` of them take at most `max_bytes`.
    pub(super) fn new(rows: u64, side: Option<u32>, max_bytes: u64, limits: Limits) -> Self {
        let side = u64::from(side.unwrap_or(0));
        let all = side
            .saturating_mul(side)
            .saturating_mul(3)
            .saturating_mul(rows);
        Self {
            kept: (all <= max_bytes).then(Mutex::default),
            limits,
        }
    }

    /// The pixels of (source, row): `side * side * 3` bytes.
    pub(super) fn get(
        &self,
        key: (u16, u64),
        encoded: &[u8],
        side: u32,
    ) -> Result<Arc<[u8]>, PictureError> {
        if let Some(pixels) = self.kept().and_then(|kept| kept.get(&key).cloned()) {
            return Ok(pixels);
        }
        let square = picture::square(encoded, &self.limits, side)?;
        let pixels: Arc<[u8]> = square.pixels.into();
        if let Some(mut kept) = self.kept() {
            kept.insert(key, Arc::clone(&pixels));
        }
        Ok(pixels)
    }

    fn kept(&self) -> Option<MutexGuard<'_, Pixels>> {
        let kept = self.kept.as_ref()?;
        Some(kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
