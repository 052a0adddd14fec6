//! Reading a run directory for its ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use mks2_coordinator::journal::{self, Origin, Place};
use mks2_coordinator::ledger::{
    Books, Found, Manifest, Violation, check_bases, check_manifest, check_part,
};
use mks2_coordinator::metrics;
use mks2_dataset::error::Error;
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, load};
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::train::located;

/// How often a run that may be at work is looked at before anything is held against it: its files
/// are not read at one instant.
const LOOKS: u32 = 3;
/// Time between two looks.
const BETWEEN: Duration = Duration::from_millis(300);
/// Objects that are asked for at a time.
const AT_ONCE: usize = 16;

/// A run directory.
#[derive(Debug)]
pub(super) struct RunDir {
    place: Place,
    named: String,
    /// As messages call it.
    pub(super) location: String,
}

/// What the directory says at one moment.
#[derive(Debug)]
pub(super) struct Look {
    /// The job.
    pub(super) job: Job,
    /// The run.
    pub(super) origin: Origin,
    /// Journal and metrics.
    pub(super) books: Books,
}

/// What was found of the checkpoints that count.
#[derive(Clone, Debug, Default)]
pub(super) struct Checkpoints {
    /// Manifests that are the committed ones.
    pub(super) manifests: Vec<Manifest>,
    /// Different parts that they name.
    pub(super) parts: u64,
    /// Bytes of these.
    pub(super) bytes: u64,
    /// What is wrong.
    pub(super) violations: Vec<Violation>,
}

impl RunDir {
    /// The run directory at a path or URL. Nothing is read yet.
    ///
    /// # Errors
    /// A text that is no location.
    pub(super) fn open(named: &str) -> Result<Self, Failure> {
        let (store, root) = store::open(named)?;
        Ok(Self {
            place: Place { store, root },
            named: named.to_owned(),
            location: store::shown(named),
        })
    }

    fn no_run(&self, why: &str) -> Failure {
        Failure::usage(
            format!("there is no run at {}", self.location),
            why,
            "give the directory that was given to `mks2 train --run`",
        )
    }

    async fn object(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        let path = self.place.root.clone().join(name);
        let read = store::get_if_there(&*self.place.store, &path).await;
        let bytes = read.map_err(|error| located(error.into(), &self.named))?;
        Ok(bytes.map(|bytes| bytes.to_vec()))
    }

    /// Reads journal and metrics.
    ///
    /// # Errors
    /// No run (exit 2), storage (5), a job that this program cannot read (3).
    pub(super) async fn look(&self) -> Result<Look, Failure> {
        if store::local_path(&self.named).is_some_and(|folder| !folder.is_dir()) {
            return Err(self.no_run("there is no such directory"));
        }
        let raw = journal::read_raw(&self.place).await;
        let raw = raw.map_err(|error| located(error.into(), &self.named))?;
        if raw.records.is_empty() {
            return Err(self.no_run("its journal is missing or empty"));
        }
        let toml = self.object("config.resolved.toml").await?;
        let toml = toml.ok_or_else(|| self.no_run("there is no config.resolved.toml in it"))?;
        let job = load::parse(&String::from_utf8_lossy(&toml))?;
        let metrics = self.object(metrics::FILE_NAME).await?.unwrap_or_default();
        let books = Books::read(&job, &raw, &metrics)?;
        let origin = match (&books.timeline.history.origin, books.violations.first()) {
            (Some(origin), _) => origin.clone(),
            (None, Some(first)) => return Err(self.unreadable(first)),
            (None, None) => return Err(self.no_run("a coordinator opened it and created none")),
        };
        Ok(Look { job, origin, books })
    }

    /// The record that creates the run is among those that are lost.
    fn unreadable(&self, first: &Violation) -> Failure {
        Failure::checkpoint(
            format!("the ledger of {} does not hold", self.location),
            format!("{}: {}", first.place, first.what),
            first.cure.clone(),
        )
    }

    /// The same of a run whose books hold.
    ///
    /// # Errors
    /// As [`RunDir::look`], and books that do not hold (8).
    pub(super) async fn proved(&self) -> Result<Look, Failure> {
        let look = settled(
            async || self.look().await,
            |look| look.books.violations.is_empty() || is_at_rest(look),
        );
        let look = look.await?;
        let cure = format!("see all of it with `mks2 ledger verify {}`", self.location);
        super::refusal(&self.location, &look.books.violations, cure)?;
        Ok(look)
    }

    /// Reads the manifests of the checkpoints that count and looks for their parts. `deep`: reads
    /// them.
    ///
    /// # Errors
    /// Storage (5).
    pub(super) async fn checkpoints(
        &self,
        look: &Look,
        deep: bool,
    ) -> Result<Checkpoints, Failure> {
        let mut found = Checkpoints::default();
        for checkpoint in look.books.timeline.kept() {
            let bytes = match store::under(&self.place.root, &checkpoint.manifest_path) {
                Ok(path) => store::get_if_there(&*self.place.store, &path).await?,
                // The journal names a place outside of the run: nothing counts as being there.
                Err(_) => None,
            };
            let manifest = check_manifest(
                checkpoint,
                bytes.as_deref(),
                &look.origin,
                &look.books.course,
                &mut found.violations,
            );
            found.manifests.extend(manifest);
        }
        check_bases(&found.manifests, &mut found.violations);
        let parts = self.parts(&found.manifests, deep).await?;
        for manifest in &found.manifests {
            for part in &manifest.parts {
                let there = parts.get(part.path.as_str());
                let wrong = check_part(manifest.step, part, there.and_then(Option::as_ref));
                found.violations.extend(wrong);
            }
        }
        found.parts = parts.len() as u64;
        found.bytes = parts.values().flatten().map(|part| part.bytes).sum();
        Ok(found)
    }

    /// What there is of every part, by path: checkpoints share what did not change.
    async fn parts<'a>(
        &self,
        manifests: &'a [Manifest],
        deep: bool,
    ) -> Result<BTreeMap<&'a str, Option<Found>>, Failure> {
        let named = manifests.iter().flat_map(|manifest| &manifest.parts);
        let parts: BTreeSet<&str> = named.map(|part| part.path.as_str()).collect();
        let asked = parts.into_iter().map(|name| async move {
            let path = store::under(&self.place.root, name)?;
            let found = match deep {
                true => self.hashed(&path).await?,
                false => self.sized(&path).await?,
            };
            Ok::<_, Failure>((name, found))
        });
        stream::iter(asked).buffered(AT_ONCE).try_collect().await
    }

    async fn sized(&self, path: &Path) -> Result<Option<Found>, Failure> {
        let size = store::size(&*self.place.store, path).await?;
        Ok(size.map(|bytes| Found {
            bytes,
            digest: None,
        }))
    }

    async fn hashed(&self, path: &Path) -> Result<Option<Found>, Failure> {
        let store = &*self.place.store;
        let failed = |error| Error::store("read", &store::name(store, path), &error);
        let object = match store.get(path).await {
            Ok(object) => object,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error).into()),
        };
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        let mut pieces = object.into_stream();
        while let Some(piece) = pieces.try_next().await.map_err(failed)? {
            hasher.update(&piece);
            bytes += piece.len() as u64;
        }
        let digest = Some(hasher.finalize().to_hex().to_string());
        Ok(Some(Found { bytes, digest }))
    }
}

/// Whether the journal says that nobody is at work.
pub(super) fn is_at_rest(look: &Look) -> bool {
    look.books.timeline.history.ending.is_some()
}

/// Looks until there is nothing to wait for, a few times at most.
///
/// # Errors
/// Those of a look.
pub(super) async fn settled<T>(
    look: impl AsyncFn() -> Result<T, Failure>,
    is_settled: impl Fn(&T) -> bool,
) -> Result<T, Failure> {
    let mut found = look().await?;
    for _ in 1..LOOKS {
        if is_settled(&found) {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
        found = look().await?;
    }
    Ok(found)
}
