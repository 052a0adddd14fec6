//! Writing a corpus: rows to row groups to shards, the quarantine beside them, the manifest last.
//!
//! Where a finished corpus is already, nothing is written: shards are made in memory, hashed and
//! compared, and the first difference ends the import. Only a shard that is missing there, or
//! has another size, is written again.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;

use super::sample::Bad;
use crate::error::{Error, Result};
use crate::manifest::{MANIFEST_FILE, Manifest, QUARANTINE_FILE, ShardEntry, shard_path};
use crate::row::Row;
use crate::shard::{self, ObjectSink};
use crate::store::{self, Created};

/// Where a corpus is written.
#[derive(Clone)]
pub(crate) struct Destination {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) root: Path,
    /// What messages call it.
    pub(crate) url: String,
    /// The folder, if it is on this machine.
    pub(crate) local: Option<std::path::PathBuf>,
}

/// Writes a corpus, row by row.
pub(crate) struct CorpusWriter {
    to: Destination,
    /// The finished corpus that is there already.
    existing: Option<Manifest>,
    manifest: Manifest,
    group: Vec<Row>,
    shard: Option<OpenShard>,
    quarantine: ObjectSink,
}

/// The shard being written.
struct OpenShard {
    parquet: ArrowWriter<Vec<u8>>,
    sink: ObjectSink,
    rows: u64,
    groups: u32,
}

impl CorpusWriter {
    /// A writer of an empty corpus. `layout` gives version, rows per group and groups per shard.
    pub(crate) async fn new(
        to: Destination,
        existing: Option<Manifest>,
        layout: Manifest,
    ) -> Result<Self> {
        if let Some(there) = &existing {
            let shape = |m: &Manifest| (m.row_group_rows, m.row_groups_per_shard);
            if shape(there) != shape(&layout) {
                return Err(other_corpus(
                    &to,
                    "its row groups or shards have another size",
                ));
            }
        }
        let quarantine = to.sink(QUARANTINE_FILE, existing.is_some(), None).await?;
        let (group, shard) = (Vec::new(), None);
        Ok(Self {
            to,
            existing,
            manifest: layout,
            group,
            shard,
            quarantine,
        })
    }

    /// Rows and bad samples so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.manifest.rows, self.manifest.quarantine.rows)
    }

    /// Appends a row.
    pub(crate) async fn push(&mut self, mut row: Row) -> Result<()> {
        row.index = self.manifest.rows;
        self.manifest.rows += 1;
        let columns = &mut self.manifest.columns;
        columns.image += u64::from(row.image.is_some());
        columns.caption += u64::from(row.caption.is_some());
        columns.question += u64::from(row.question.is_some());
        columns.answer += u64::from(row.answer.is_some());
        self.group.push(row);
        if self.group.len() == self.manifest.row_group_rows as usize {
            self.write_group().await?;
        }
        Ok(())
    }

    /// Notes a bad sample.
    pub(crate) async fn push_bad(&mut self, bad: &Bad) -> Result<()> {
        let quarantine = &mut self.manifest.quarantine;
        quarantine.rows += 1;
        *quarantine.reasons.entry(bad.reason.to_owned()).or_default() += 1;
        let mut line =
            serde_json::to_vec(bad).map_err(|error| Error::Internal(error.to_string()))?;
        line.push(b'\n');
        self.quarantine.write(&line).await
    }

    /// Ends the corpus; says whether it was there already, just the same.
    pub(crate) async fn finish(mut self) -> Result<(Manifest, bool)> {
        if !self.group.is_empty() {
            self.write_group().await?;
        }
        self.finish_shard().await?;
        self.manifest.quarantine.digest = self.quarantine.finish().await?.digest;
        if self.manifest.rows == 0 {
            return Err(nothing_imported(&self.to, &self.manifest));
        }
        self.manifest.check().map_err(Error::Internal)?;
        if let Some(there) = &self.existing {
            return match there == &self.manifest {
                true => Ok((self.manifest, true)),
                false => Err(other_corpus(&self.to, &difference(there, &self.manifest))),
            };
        }
        self.to.sweep(&self.manifest).await?;
        let identical = self.to.commit(&self.manifest).await?;
        Ok((self.manifest, identical))
    }

    async fn write_group(&mut self) -> Result<()> {
        let batch = shard::to_batch(&self.group).map_err(Error::Internal)?;
        let rows = self.group.len() as u64;
        self.group.clear();
        let mut open = match self.shard.take() {
            Some(open) => open,
            None => self.open_shard().await?,
        };
        open.parquet
            .write(&batch)
            .and_then(|()| open.parquet.flush())
            .map_err(encoding)?;
        let ready = std::mem::take(open.parquet.inner_mut());
        open.sink.write(&ready).await?;
        open.rows += rows;
        open.groups += 1;
        let full = open.groups == self.manifest.row_groups_per_shard;
        self.shard = Some(open);
        if full {
            self.finish_shard().await
        } else {
            Ok(())
        }
    }

    async fn open_shard(&self) -> Result<OpenShard> {
        let index = self.manifest.shards.len();
        let there = self
            .existing
            .as_ref()
            .and_then(|manifest| manifest.shards.get(index));
        if self.existing.is_some() && there.is_none() {
            return Err(other_corpus(
                &self.to,
                &format!("it has only {index} shards"),
            ));
        }
        let size = there.map(|entry| entry.bytes);
        let sink = self
            .to
            .sink(&shard_path(index), there.is_some(), size)
            .await?;
        let parquet = shard::writer(Vec::new()).map_err(encoding)?;
        Ok(OpenShard {
            parquet,
            sink,
            rows: 0,
            groups: 0,
        })
    }

    async fn finish_shard(&mut self) -> Result<()> {
        let Some(open) = self.shard.take() else {
            return Ok(());
        };
        let OpenShard {
            parquet,
            mut sink,
            rows,
            ..
        } = open;
        sink.write(&parquet.into_inner().map_err(encoding)?).await?;
        let index = self.manifest.shards.len();
        let there = self
            .existing
            .as_ref()
            .and_then(|manifest| manifest.shards.get(index));
        let entry = |bytes, digest| ShardEntry {
            path: shard_path(index),
            rows,
            bytes,
            digest,
        };
        let made = sink.so_far();
        let made = entry(made.bytes, made.digest);
        if there.is_some_and(|there| there != &made) {
            sink.abort().await;
            return Err(other_corpus(&self.to, &format!("{} differs", made.path)));
        }
        sink.finish().await?;
        self.manifest.shards.push(made);
        Ok(())
    }
}

impl Destination {
    /// A sink for an object; it only compares if a finished corpus has the object already, with
    /// the given size if one is known.
    async fn sink(&self, name: &str, finished: bool, size: Option<u64>) -> Result<ObjectSink> {
        let path = store::under(&self.root, name)?;
        if finished {
            let found = store::size(&*self.store, &path).await?;
            if found.is_some() && size.is_none_or(|size| found == Some(size)) {
                return Ok(ObjectSink::hash_only());
            }
        }
        Ok(ObjectSink::new(Arc::clone(&self.store), path))
    }

    /// Removes what an import that was killed has left: shards beyond the last, and halves of
    /// files that the local store had not yet given their names.
    async fn sweep(&self, manifest: &Manifest) -> Result<()> {
        let shards = store::under(&self.root, "shards")?;
        let failed = |error| Error::store("listed", &store::name(&*self.store, &shards), &error);
        let listed: Vec<_> = self
            .store
            .list(Some(&shards))
            .try_collect()
            .await
            .map_err(failed)?;
        for object in listed {
            let name = object.location.filename().unwrap_or_default();
            let ours = name.starts_with("part-") && name.ends_with(".parquet");
            let kept = manifest
                .shards
                .iter()
                .any(|shard| shard.path == format!("shards/{name}"));
            if ours && !kept {
                store::delete(&*self.store, &object.location).await?;
            }
        }
        if let Some(folder) = &self.local {
            remove_halves(folder);
            remove_halves(&folder.join("shards"));
        }
        Ok(())
    }

    /// Writes the manifest, which makes the corpus complete. Says whether another import made
    /// the same one meanwhile.
    async fn commit(&self, manifest: &Manifest) -> Result<bool> {
        let path = store::under(&self.root, MANIFEST_FILE)?;
        let text = Bytes::from(manifest.to_json());
        match store::put_create_only(&*self.store, &path, text.clone()).await? {
            Created::New => Ok(false),
            Created::Exists if store::get(&*self.store, &path).await? == text => Ok(true),
            Created::Exists => Err(other_corpus(self, "another import has just finished there")),
        }
    }
}

/// Removes files named `NAME#NUMBER`, as the local store calls what it is still writing.
fn remove_halves(folder: &std::path::Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let half = name
            .to_str()
            .and_then(|name| name.rsplit_once('#'))
            .is_some_and(|(name, number)| {
                let ours = name == QUARANTINE_FILE
                    || name == MANIFEST_FILE
                    || (name.starts_with("part-") && name.ends_with(".parquet"));
                ours && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            });
        if half {
            // What can not be removed does no harm: no reader looks at it.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn encoding(error: parquet::errors::ParquetError) -> Error {
    Error::Internal(format!("parquet cannot be written: {error}"))
}

fn other_corpus(to: &Destination, difference: &str) -> Error {
    Error::OtherCorpus {
        url: to.url.clone(),
        difference: difference.to_owned(),
    }
}

fn nothing_imported(to: &Destination, manifest: &Manifest) -> Error {
    let quarantine = &manifest.quarantine;
    let kinds: Vec<_> = quarantine
        .reasons
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let reason = match quarantine.rows {
        0 => "the sources hold no samples".to_owned(),
        1 => format!("the only sample is bad ({})", kinds.join(", ")),
        bad => format!("all {bad} samples are bad ({})", kinds.join(", ")),
    };
    let listed = (quarantine.rows > 0).then(|| format!("{}/{QUARANTINE_FILE}", to.url));
    Error::NothingImported {
        reason,
        quarantine: listed,
    }
}

fn difference(there: &Manifest, made: &Manifest) -> String {
    if there.rows != made.rows {
        return format!("it has {} rows, the sources give {}", there.rows, made.rows);
    }
    if there.quarantine != made.quarantine {
        return "other samples were left out".to_owned();
    }
    "its manifest differs".to_owned()
}
