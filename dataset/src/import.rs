//! Importing a corpus: sources in order, samples checked on all cores, rows in order, parquet
//! shards, a quarantine, and the manifest last.
//!
//! ```text
//! sources ─► samples ─► picture read ─► checked (blocking pool, many at once) ─► keys ─► shards
//!                                         │ bad                                  │ known
//!                                         └────────────► quarantine.jsonl ◄──────┘
//! ```
//! The same sources and settings give the same bytes, whatever was interrupted before: an import
//! that was killed is simply started again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use serde::Serialize;

mod braces;
mod bytes;
mod jsonl;
pub mod sample;
mod source;
mod tar;
mod webdataset;
mod writer;

use sample::{Bad, Place};
use source::{Feed, Pending, Source};
use writer::{CorpusWriter, Destination};

use crate::error::{Error, Result};
use crate::manifest::{
    DEFAULT_ROW_GROUP_ROWS, DEFAULT_ROW_GROUPS_PER_SHARD, MANIFEST_FILE, Manifest, VERSION,
};
use crate::picture::Limits;
use crate::reader::read_manifest;
use crate::row::Row;
use crate::store;

/// Most bytes of pictures in a row group: what parquet's 32-bit offsets can address.
const MAX_GROUP_BYTES: u64 = i32::MAX as u64;

/// What to import, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Paths or URLs of WebDataset tars and JSON lines, with braces; rows keep their order.
    pub sources: Vec<String>,
    /// Path or URL of the corpus.
    pub out: String,
    /// Replace a finished corpus of other content.
    pub overwrite: bool,
    /// Rows of a row group.
    pub row_group_rows: u32,
    /// Row groups of a shard.
    pub row_groups_per_shard: u32,
    /// What a picture may be.
    pub limits: Limits,
}

impl Options {
    /// The usual settings.
    #[must_use]
    pub fn new(sources: Vec<String>, out: impl Into<String>) -> Self {
        Self {
            sources,
            out: out.into(),
            overwrite: false,
            row_group_rows: DEFAULT_ROW_GROUP_ROWS,
            row_groups_per_shard: DEFAULT_ROW_GROUPS_PER_SHARD,
            limits: Limits::default(),
        }
    }

    fn check(&self) -> Result<()> {
        if self.sources.is_empty() {
            return Err(Error::Setting("no source is given".into()));
        }
        if self.row_group_rows == 0 || self.row_groups_per_shard == 0 {
            return Err(Error::Setting(
                "rows of a group and groups of a shard begin at 1".into(),
            ));
        }
        let largest = u64::from(self.row_group_rows).saturating_mul(self.limits.max_bytes);
        if largest > MAX_GROUP_BYTES {
            return Err(Error::Setting(format!(
                "{} rows of up to {} bytes do not fit into a row group of 2 GiB",
                self.row_group_rows, self.limits.max_bytes
            )));
        }
        Ok(())
    }
}

/// How far an import is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The source that the last sample came from.
    pub source: Arc<str>,
    /// Bytes of all sources up to the last sample.
    pub bytes: u64,
    /// Bytes of all sources.
    pub bytes_total: u64,
    /// Rows so far.
    pub rows: u64,
    /// Bad samples so far.
    pub quarantined: u64,
}

/// What an import has done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Where the corpus is.
    pub out: String,
    /// Rows of the corpus.
    pub rows: u64,
    /// Samples that were left out.
    pub quarantined: u64,
    /// How many for each kind of reason.
    pub reasons: BTreeMap<String, u64>,
    /// Shards of the corpus.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Time that the import took.
    pub seconds: f64,
    /// The same corpus was there already; nothing was written.
    pub identical: bool,
    /// Digest of the manifest, which identifies the corpus.
    pub digest: String,
    /// Tars without an end mark: whole to the reader, but perhaps cut between two files.
    pub without_end: Vec<String>,
}

/// Imports a corpus. `watch` is called after each sample.
///
/// # Errors
/// Sources that are missing or of an unknown format (before anything is written), no good sample
/// at all, another finished corpus in the place, or trouble with a store. Bad samples are no
/// error: they are counted and listed in `quarantine.jsonl`.
pub async fn import(
    options: &Options,
    watch: &(dyn Fn(&Progress) + Send + Sync),
) -> Result<Summary> {
    // Boxed: the state of all readers and writers together is large.
    Box::pin(run(options, watch)).await
}

async fn run(options: &Options, watch: &(dyn Fn(&Progress) + Send + Sync)) -> Result<Summary> {
    let begun = Instant::now();
    options.check()?;
    let sources = source::resolve(&options.sources).await?;
    let (store, root) = store::open(&options.out)?;
    let to = Destination {
        store,
        root,
        url: store::redact(&store::shown(&options.out)),
        local: store::local_path(&options.out),
    };
    let existing = existing(&to, options.overwrite).await?;
    let layout = Manifest {
        version: VERSION,
        row_group_rows: options.row_group_rows,
        row_groups_per_shard: options.row_groups_per_shard,
        ..Manifest::default()
    };
    let mut writer = CorpusWriter::new(to.clone(), existing, layout).await?;
    let mut meter = Meter::new(&sources);
    let feed = Feed::new(sources, options.limits);
    let unended = feed.unended();
    let checked = checked_samples(feed, options.limits);
    let mut checked = std::pin::pin!(checked);
    let mut keys = HashSet::new();
    while let Some((place, item)) = checked.try_next().await? {
        match item.and_then(|row| unique(row, &place, &mut keys)) {
            Ok(row) => writer.push(row).await?,
            Err(bad) => writer.push_bad(&bad).await?,
        }
        watch(meter.at(&place, writer.counts()));
    }
    let (manifest, identical) = Box::pin(writer.finish()).await?;
    let mut summary = summary(to.url, &manifest, identical, begun);
    summary.without_end = unended.take();
    Ok(summary)
}

/// The finished corpus at the destination. With `overwrite` its manifest is removed first, so
/// that at no time a manifest stands beside shards that are not its own.
async fn existing(to: &Destination, overwrite: bool) -> Result<Option<Manifest>> {
    if overwrite {
        let path = store::under(&to.root, MANIFEST_FILE)?;
        store::delete(&*to.store, &path).await?;
        return Ok(None);
    }
    read_manifest(&*to.store, &to.root, &to.url).await
}

/// The samples of all sources, checked on the blocking pool, in their order.
fn checked_samples(
    feed: Feed,
    limits: Limits,
) -> impl Stream<Item = Result<(Place, Result<Row, Bad>)>> {
    let samples = stream::try_unfold(feed, |mut feed| async move {
        Ok::<_, Error>(feed.next().await?.map(|item| (item, feed)))
    });
    let at_once = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    samples
        .map(move |item| async move {
            match item? {
                Ok(pending) => check(pending, limits).await,
                Err(bad) => Ok((bad.place.clone(), Err(bad))),
            }
        })
        .buffered(at_once)
}

/// Reads the picture of a sample if it is elsewhere, and checks everything.
async fn check(pending: Pending, limits: Limits) -> Result<(Place, Result<Row, Bad>)> {
    let place = pending.sample.place.clone();
    let sample = match pending.picture {
        None => pending.sample,
        Some((folder, path)) => match folder.load(pending.sample, &path, limits.max_bytes).await? {
            Ok(sample) => sample,
            Err(bad) => return Ok((place, Err(bad))),
        },
    };
    if sample.picture.is_none() {
        // Nothing to decode: not worth another thread.
        return Ok((place, sample.into_row(&limits)));
    }
    let checking = tokio::task::spawn_blocking(move || sample.into_row(&limits));
    let row = checking
        .await
        .map_err(|error| Error::Internal(error.to_string()))?;
    Ok((place, row))
}

/// Takes a row whose key no earlier row has.
fn unique(row: Row, place: &Place, keys: &mut HashSet<u128>) -> Result<Row, Bad> {
    if keys.insert(sample::short_hash(&row.key)) {
        return Ok(row);
    }
    let detail = "an earlier row has the same key";
    Err(Bad::new(place.clone(), sample::reason::DUPLICATE_KEY, detail).of(&row.key))
}

fn summary(out: String, manifest: &Manifest, identical: bool, begun: Instant) -> Summary {
    Summary {
        out,
        rows: manifest.rows,
        quarantined: manifest.quarantine.rows,
        reasons: manifest.quarantine.reasons.clone(),
        shards: manifest.shards.len() as u64,
        bytes: manifest.shards.iter().map(|shard| shard.bytes).sum(),
        seconds: begun.elapsed().as_secs_f64(),
        identical,
        digest: manifest.digest(),
        without_end: Vec::new(),
    }
}

/// Turns places of samples into progress over all sources.
struct Meter {
    sources: std::vec::IntoIter<(Arc<str>, u64)>,
    /// Size of the current source, and of all before it.
    current: u64,
    before: u64,
    progress: Progress,
}

impl Meter {
    fn new(sources: &[Source]) -> Self {
        let sizes: Vec<_> = sources
            .iter()
            .map(|source| (Arc::clone(&source.name), source.bytes))
            .collect();
        let bytes_total = sizes.iter().map(|(_, bytes)| bytes).sum();
        let progress = Progress {
            bytes_total,
            ..Progress::default()
        };
        Self {
            sources: sizes.into_iter(),
            current: 0,
            before: 0,
            progress,
        }
    }

    fn at(&mut self, place: &Place, (rows, quarantined): (u64, u64)) -> &Progress {
        while self.progress.source != place.source
            && let Some((name, bytes)) = self.sources.next()
        {
            self.before += self.current;
            self.current = bytes;
            self.progress.source = name;
        }
        self.progress.bytes = self.before + place.offset.min(self.current);
        self.progress.rows = rows;
        self.progress.quarantined = quarantined;
        &self.progress
    }
}
