//! Reading a checkpoint: every digest is checked before anything is used.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use mks2_dataset::checkpoint;

use super::table::names_digest;
use super::{CheckpointError, CheckpointStore, Kind, LoadedTensor, Manifest, Part, Result, Table};

/// Parts that are read at the same time.
const CONCURRENT_PARTS: usize = 4;

/// What a checkpoint must have been made from. What is `None` is not checked.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The trained parameters.
    pub model: Option<Arc<Table>>,
    /// The job's seed.
    pub seed: Option<u64>,
    /// Digests of the corpora's manifests, by name.
    pub corpora: Option<BTreeMap<String, String>>,
    /// Digests of the weights that the stage starts from, by stage.
    pub bases: Option<BTreeMap<String, String>>,
}

/// A checkpoint that was checked and is in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// The manifest.
    pub manifest: Manifest,
    tensors: BTreeMap<(Kind, String), LoadedTensor>,
}

impl CheckpointStore {
    /// Reads and checks a manifest. `digest` is what the journal says of its bytes, if known.
    ///
    /// # Errors
    /// [`CheckpointError::NoManifest`], [`CheckpointError::Manifest`],
    /// [`CheckpointError::Version`], or trouble with the store.
    pub async fn manifest(&self, path: &str, expected_digest: Option<&str>) -> Result<Manifest> {
        checkpoint::read_manifest(&*self.store, &self.root, path, expected_digest).await
    }

    /// Reads the parts of the given kinds, after the manifest has been found to fit `expected`.
    ///
    /// # Errors
    /// A refusal that names what is damaged, missing or different, or trouble with the store.
    pub async fn load(
        &self,
        path: &str,
        expected_digest: Option<&str>,
        expected: &Expected,
        kinds: &[Kind],
    ) -> Result<Checkpoint> {
        let manifest = self.manifest(path, expected_digest).await?;
        expected.check(path, &manifest)?;
        let wanted = manifest
            .parts
            .iter()
            .filter(|part| part.tensors.iter().any(|entry| kinds.contains(&entry.kind)))
            .cloned();
        let reading = wanted.map(|part| self.read_part(part)).collect::<Vec<_>>();
        let mut reading = futures::stream::iter(reading).buffered(CONCURRENT_PARTS);
        let mut tensors = BTreeMap::new();
        while let Some(part) = reading.try_next().await? {
            tensors.extend(
                part.into_iter()
                    .filter(|((kind, _), _)| kinds.contains(kind)),
            );
        }
        drop(reading);
        let checkpoint = Checkpoint { manifest, tensors };
        if kinds.contains(&Kind::Weights) {
            checkpoint.check_weights(path)?;
        }
        Ok(checkpoint)
    }

    async fn read_part(&self, part: Part) -> Result<BTreeMap<(Kind, String), LoadedTensor>> {
        checkpoint::read_part(&*self.store, &self.root, part).await
    }
}

impl Expected {
    /// Refuses a manifest that belongs to another run.
    fn check(&self, path: &str, manifest: &Manifest) -> Result<()> {
        let weights: Vec<(&str, &[usize])> = manifest.weights().collect();
        if names_digest(weights.iter().copied()) != manifest.model_digest {
            let reason = "its parameters do not have the digest that it names";
            return Err(CheckpointError::manifest(path, reason));
        }
        if let Some(table) = &self.model
            && table.digest() != manifest.model_digest
        {
            let difference = table.difference(weights).unwrap_or_default();
            return Err(CheckpointError::OtherModel { difference });
        }
        let facts = &manifest.facts;
        if let Some(expected) = self.seed.filter(|seed| *seed != facts.seed) {
            return Err(CheckpointError::OtherSeed {
                expected,
                found: facts.seed,
            });
        }
        if let Some(difference) = difference("corpus", self.corpora.as_ref(), &facts.corpora) {
            return Err(CheckpointError::OtherCorpus { difference });
        }
        if let Some(difference) = difference("stage", self.bases.as_ref(), &facts.bases) {
            return Err(CheckpointError::OtherBase { difference });
        }
        Ok(())
    }
}

impl Checkpoint {
    /// Copies all tensors of a kind into their places in a flat buffer; the rest of the buffer
    /// stays as it is.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] if a parameter is missing or has another shape,
    /// [`CheckpointError::Internal`] if the buffer is too short.
    pub fn fill(&self, kind: Kind, table: &Table, flat: &mut [f32]) -> Result<()> {
        table.check_buffer(flat.len())?;
        self.check_model(kind, table)?;
        for slot in table.slots() {
            if let Some(tensor) = self.tensor(kind, &slot.name) {
                let values = tensor.data.chunks_exact(4);
                for (place, bytes) in flat[slot.range()].iter_mut().zip(values) {
                    *place = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
        }
        Ok(())
    }

    /// Whether the tensors of a kind are those of the table.
    ///
    /// # Errors
    /// [`CheckpointError::OtherModel`] if one is missing, has another shape, or is none of it.
    pub fn check_model(&self, kind: Kind, table: &Table) -> Result<()> {
        let found = self
            .tensors(kind)
            .map(|(name, tensor)| (name, &tensor.shape[..]));
        match table.difference(found) {
            Some(difference) => Err(CheckpointError::OtherModel { difference }),
            None => Ok(()),
        }
    }

    /// All tensors of a kind, in ascending order of names.
    pub fn tensors(&self, kind: Kind) -> impl Iterator<Item = (&str, &LoadedTensor)> {
        let first = (kind, String::new());
        let rest = self
            .tensors
            .range(first..)
            .take_while(move |((of, _), _)| *of == kind);
        rest.map(|((_, name), tensor)| (name.as_str(), tensor))
    }

    /// One tensor.
    #[must_use]
    pub fn tensor(&self, kind: Kind, name: &str) -> Option<&LoadedTensor> {
        self.tensors.get(&(kind, name.to_owned()))
    }

    /// Checks the digest of the weights over all parts.
    fn check_weights(&self, path: &str) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        for (_, tensor) in self.tensors(Kind::Weights) {
            hasher.update(&tensor.data);
        }
        let (found, named) = (hasher.finalize().to_hex(), &self.manifest.weights_digest);
        if found.as_str() != named {
            let reason = format!("its weights have digest {found}, it names {named}");
            return Err(CheckpointError::manifest(path, reason));
        }
        Ok(())
    }
}

/// The first name at which two tables of digests differ, in words.
fn difference(
    what: &str,
    expected: Option<&BTreeMap<String, String>>,
    found: &BTreeMap<String, String>,
) -> Option<String> {
    let expected = expected?;
    let names = expected
        .keys()
        .chain(found.keys().filter(|name| !expected.contains_key(*name)));
    names
        .into_iter()
        .find_map(|name| match (expected.get(name), found.get(name)) {
            (Some(ours), Some(theirs)) if ours == theirs => None,
            (Some(ours), Some(theirs)) => Some(format!(
                "{what} '{name}' has digest {ours}, the checkpoint's had {theirs}"
            )),
            (Some(_), None) => Some(format!("the checkpoint knows no {what} '{name}'")),
            _ => Some(format!(
                "the checkpoint has {what} '{name}', the job has not"
            )),
        })
}
