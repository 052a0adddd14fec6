//! The committed checkpoints, and deleting what the released ones leave behind. Which are released
//! is the coordinator's decision.

use std::collections::HashSet;

use futures::TryStreamExt;
use mks2_dataset::{error::Error, store};
use object_store::path::Path;

use super::{CheckpointError, CheckpointStore, Manifest, OBJECTS, Result, manifest_path};

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointEntry {
    /// Steps since the beginning of the run.
    pub step: u64,
    /// The stage.
    pub stage: String,
    /// The last checkpoint of its stage.
    pub is_final: bool,
    /// Path of the manifest in the run directory.
    pub path: String,
    /// Digest of the trained weights.
    pub weights_digest: String,
}

/// What a sweep has deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Manifests.
    pub manifests: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes of these objects.
    pub bytes: u64,
}

impl CheckpointStore {
    /// All committed checkpoints, in ascending order of steps. A folder without a manifest is a
    /// checkpoint that was never committed, and is left out.
    ///
    /// # Errors
    /// [`CheckpointError::Manifest`] or [`CheckpointError::Version`] if one can not be read, or
    /// trouble with the store.
    pub async fn list(&self) -> Result<Vec<CheckpointEntry>> {
        let manifests = self.manifests().await?;
        Ok(manifests
            .into_iter()
            .map(|(path, manifest)| entry(path, manifest))
            .collect())
    }

    /// Deletes the manifests of released checkpoints, then every object that no remaining
    /// manifest and no upload of this process needs: those of released checkpoints, and what
    /// interrupted uploads have left. Killed at any point, the next sweep ends the work.
    ///
    /// Only the process that uploads may sweep, in the generation in which it does. What later
    /// generations write is left alone: this process may not know yet that it takes part no more.
    ///
    /// # Errors
    /// Trouble with the store. If any remaining manifest can not be read, no object is deleted.
    pub async fn sweep(&self, released: &[String], generation: u64) -> Result<Swept> {
        self.within(self.sweep_now(released, generation)).await
    }

    async fn sweep_now(&self, released: &[String], generation: u64) -> Result<Swept> {
        let guard = self.live.begin_sweep().await;
        let mut swept = Swept::default();
        for path in released {
            // A run that was taken back may have saved the same step again since.
            let is_later = match self.manifest(path, None).await {
                Ok(manifest) => manifest.facts.generation > generation,
                Err(_) => false,
            };
            if !is_later {
                let object = store::under(&self.root, path)?;
                store::delete(&*self.store, &object).await?;
                swept.manifests += 1;
            }
        }
        let kept = self.manifests().await?;
        let needed: HashSet<&str> = kept
            .iter()
            .flat_map(|(_, manifest)| &manifest.parts)
            .map(|part| part.path.as_str())
            .collect();
        for (object, bytes) in self.paths(OBJECTS).await? {
            let Some(name) = object.filename() else {
                continue;
            };
            let path = format!("{OBJECTS}/{name}");
            let is_later = generation_of(name).is_none_or(|other| other > generation);
            if is_later || needed.contains(path.as_str()) {
                continue;
            }
            let deletion = async { Ok(store::delete(&*self.store, &object).await?) };
            if guard.unless_used(&path, deletion).await?.is_some() {
                swept.objects += 1;
                swept.bytes += bytes;
            }
        }
        Ok(swept)
    }

    /// All committed manifests with their paths, in ascending order of steps.
    async fn manifests(&self) -> Result<Vec<(String, Manifest)>> {
        let mut manifests = Vec::new();
        for (path, _) in self.paths("checkpoints").await? {
            let Some(step) = step_of(&path) else { continue };
            let path = manifest_path(step);
            match self.manifest(&path, None).await {
                Ok(manifest) => manifests.push((path, manifest)),
                // Let go between the listing and now.
                Err(CheckpointError::NoManifest { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        manifests.sort_by_key(|(_, manifest)| manifest.facts.step);
        Ok(manifests)
    }

    /// Paths and sizes of all objects in a folder of the run directory.
    pub(super) async fn paths(&self, folder: &str) -> Result<Vec<(Path, u64)>> {
        let prefix = self.root.clone().join(folder);
        let listing = self
            .store
            .list(Some(&prefix))
            .map_ok(|meta| (meta.location, meta.size));
        match listing.try_collect().await {
            Ok(paths) => Ok(paths),
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(Error::store("listed", prefix.as_ref(), &error).into()),
        }
    }
}

/// The generation that has written an object; `None` for any other file.
fn generation_of(name: &str) -> Option<u64> {
    name.split_once('-')?.0.parse().ok()
}

/// The step of a manifest's path; `None` for any other path.
fn step_of(path: &Path) -> Option<u64> {
    let text = path.as_ref();
    let folder = text.strip_suffix("/manifest.json")?;
    folder
        .rsplit('/')
        .next()?
        .strip_prefix("step-")?
        .parse()
        .ok()
}

fn entry(path: String, manifest: Manifest) -> CheckpointEntry {
    let Manifest {
        facts,
        weights_digest,
        ..
    } = manifest;
    let (step, stage, is_final) = (facts.step, facts.stage, facts.is_final);
    CheckpointEntry {
        step,
        stage,
        is_final,
        path,
        weights_digest,
    }
}
