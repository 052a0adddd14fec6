//! Proving that a corpus is what its manifest says: digests, rows, keys, and every picture.

use std::collections::HashSet;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::import::sample::short_hash;
use crate::manifest::{Columns, QUARANTINE_FILE, ShardEntry};
use crate::picture::{self, Limits};
use crate::reader::Corpus;
use crate::row::Row;
use crate::store;

/// Problems that are described; more are only counted.
const MAX_PROBLEMS: usize = 100;

/// Pictures were checked against the limits of their import; these only keep memory bounded.
const LIMITS: Limits = Limits {
    max_bytes: i32::MAX as u64,
    max_pixels: 250_000_000,
    max_side: u32::MAX,
};

/// What a verification has found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verification {
    /// Where the corpus is.
    pub url: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Rows read.
    pub rows: u64,
    /// Pictures decoded.
    pub pictures: u64,
    /// Shards hashed.
    pub shards: u64,
    /// How many problems there are.
    pub problems_total: u64,
    /// The first of them.
    pub problems: Vec<Problem>,
    /// Time that it took.
    pub seconds: f64,
}

/// Something that is not as the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The row, counted over the corpus, if one can be named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<u64>,
    /// The key of the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        if let Some(key) = &self.key {
            write!(f, " ({key})")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Checks everything. `watch` is called after each row group with the rows read and all rows.
///
/// # Errors
/// Only what keeps it from looking at all: no corpus, a manifest that can not be used, trouble
/// with the store. What is wrong inside is in the answer.
pub async fn verify(url: &str, watch: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<Verification> {
    // Boxed: the state of all readers together is large.
    Box::pin(run(url, watch)).await
}

async fn run(url: &str, watch: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<Verification> {
    let begun = Instant::now();
    let corpus = Corpus::open(url).await?;
    let mut check = Check::new(&corpus);
    let mut first = 0;
    for shard in &corpus.manifest().shards {
        check.shard_file(shard).await?;
        check.shard_rows(shard, first, watch).await?;
        first += shard.rows;
    }
    check.totals();
    check.quarantine().await?;
    let mut found = check.found;
    found.seconds = begun.elapsed().as_secs_f64();
    Ok(found)
}

struct Check<'a> {
    corpus: &'a Corpus,
    found: Verification,
    columns: Columns,
    keys: HashSet<u128>,
}

impl<'a> Check<'a> {
    fn new(corpus: &'a Corpus) -> Self {
        let found = Verification {
            url: corpus.url().to_owned(),
            digest: corpus.manifest().digest(),
            ..Verification::default()
        };
        Self {
            corpus,
            found,
            columns: Columns::default(),
            keys: HashSet::new(),
        }
    }

    fn problem(&mut self, file: &str, row: Option<&Row>, what: impl Into<String>) {
        self.found.problems_total += 1;
        if self.found.problems.len() < MAX_PROBLEMS {
            self.found.problems.push(Problem {
                file: file.to_owned(),
                row: row.map(|row| row.index),
                key: row.map(|row| row.key.clone()),
                what: what.into(),
            });
        }
    }

    /// Size and digest of a shard.
    async fn shard_file(&mut self, shard: &ShardEntry) -> Result<()> {
        self.found.shards += 1;
        match self.hash(&shard.path).await? {
            None => self.problem(&shard.path, None, "it does not exist"),
            Some((bytes, _)) if bytes != shard.bytes => {
                let what = format!("it has {bytes} bytes and should have {}", shard.bytes);
                self.problem(&shard.path, None, what);
            }
            Some((_, digest)) if digest != shard.digest => {
                self.problem(&shard.path, None, "its bytes have another digest");
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Size and digest of a file of the corpus, or `None` if it does not exist.
    async fn hash(&self, name: &str) -> Result<Option<(u64, String)>> {
        let (store, root) = self.corpus.place();
        let path = store::under(root, name)?;
        let failed = |error| Error::store("read", &store::name(&*store, &path), &error);
        let object = match store.get(&path).await {
            Ok(object) => object,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut hasher = blake3::Hasher::new();
        let mut bytes = 0;
        let mut parts = object.into_stream();
        while let Some(part) = parts.try_next().await.map_err(failed)? {
            hasher.update(&part);
            bytes += part.len() as u64;
        }
        Ok(Some((bytes, hasher.finalize().to_hex().to_string())))
    }

    /// Every row of a shard whose first row has index `first`.
    async fn shard_rows(
        &mut self,
        shard: &ShardEntry,
        first: u64,
        watch: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<()> {
        let group_rows = u64::from(self.corpus.manifest().row_group_rows);
        let groups = first / group_rows..(first + shard.rows).div_ceil(group_rows);
        for group in groups {
            match self.corpus.read_group(group).await {
                Ok(rows) => self.rows(shard, rows).await?,
                Err(Error::Corrupt { detail, .. }) => {
                    let from = group * group_rows;
                    let to = from + self.corpus.manifest().rows_of_group(group) - 1;
                    let what = format!("rows {from} to {to} cannot be read: {detail}");
                    self.problem(&shard.path, None, what);
                }
                Err(error) if error.is_missing() => return Ok(()),
                Err(error) => return Err(error),
            }
            watch(self.found.rows, self.corpus.rows());
        }
        Ok(())
    }

    async fn rows(&mut self, shard: &ShardEntry, rows: Vec<Row>) -> Result<()> {
        let at_once = std::thread::available_parallelism().map_or(2, usize::from) * 2;
        let mut decoded = stream::iter(rows).map(decode).buffered(at_once);
        while let Some((row, problem)) = decoded.try_next().await? {
            self.found.rows += 1;
            self.found.pictures += u64::from(row.image.is_some());
            self.columns.image += u64::from(row.image.is_some());
            self.columns.caption += u64::from(row.caption.is_some());
            self.columns.question += u64::from(row.question.is_some());
            self.columns.answer += u64::from(row.answer.is_some());
            if let Some(problem) = problem {
                let what = format!("the picture cannot be decoded: {problem}");
                self.problem(&shard.path, Some(&row), what);
            }
            if row.caption.is_none() && (row.question.is_none() || row.answer.is_none()) {
                let what = "neither a caption nor a question with an answer";
                self.problem(&shard.path, Some(&row), what);
            }
            if !self.keys.insert(short_hash(&row.key)) {
                self.problem(&shard.path, Some(&row), "an earlier row has the same key");
            }
        }
        Ok(())
    }

    /// Counts of the manifest; only when every row could be read.
    fn totals(&mut self) {
        let manifest = self.corpus.manifest();
        if self.found.rows == manifest.rows && self.columns != manifest.columns {
            let what = format!(
                "it counts {:?} and the shards have {:?}",
                manifest.columns, self.columns
            );
            self.problem("manifest.json", None, what);
        }
    }

    async fn quarantine(&mut self) -> Result<()> {
        let expected = &self.corpus.manifest().quarantine.digest;
        // Corpora of other writers may have none.
        let problem = match self.hash(QUARANTINE_FILE).await? {
            _ if expected.is_empty() => None,
            None => Some("it does not exist"),
            Some((_, digest)) if &digest != expected => Some("its bytes have another digest"),
            Some(_) => None,
        };
        if let Some(what) = problem {
            self.problem(QUARANTINE_FILE, None, what);
        }
        Ok(())
    }
}

/// Decodes the picture of a row on the blocking pool; gives the row back with what is wrong.
async fn decode(row: Row) -> Result<(Row, Option<String>)> {
    let work = move || {
        let problem = row
            .image
            .as_ref()
            .and_then(|bytes| picture::verify(bytes, &LIMITS).err());
        (row, problem.map(|problem| problem.to_string()))
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Internal(error.to_string()))
}
