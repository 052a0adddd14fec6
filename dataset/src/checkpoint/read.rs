//! Reading manifests and parts: nothing is given away before its digest was checked.

use std::collections::BTreeMap;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;
use safetensors::{Dtype, SafeTensors};

use super::manifest::{Kind, Manifest, Part, digest};
use super::{CheckpointError, Result};
use crate::store;

/// Largest manifest that is read, bytes.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct LoadedTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Little-endian values.
    pub data: Bytes,
}

/// Reads and checks the manifest at `path` of a run directory. `expected_digest` is what the journal
/// says of its bytes, if known.
///
/// # Errors
/// [`CheckpointError::NoManifest`], [`CheckpointError::Manifest`], [`CheckpointError::Version`], or
/// trouble with the store.
pub async fn read_manifest(
    store: &dyn ObjectStore,
    root: &Path,
    path: &str,
    expected_digest: Option<&str>,
) -> Result<Manifest> {
    let object = store::under(root, path)?;
    let missing = || CheckpointError::NoManifest {
        path: path.to_owned(),
    };
    let size = store::size(store, &object).await?.ok_or_else(missing)?;
    if size > MAX_MANIFEST_BYTES {
        return Err(CheckpointError::manifest(
            path,
            format!("it has {size} bytes"),
        ));
    }
    let bytes = store::get_if_there(store, &object)
        .await?
        .ok_or_else(missing)?;
    let manifest = Manifest::parse(path, &bytes)?;
    let found = digest(&bytes);
    match expected_digest {
        Some(expected) if expected != found => Err(CheckpointError::manifest(
            path,
            format!("its digest is {found}, committed was {expected}"),
        )),
        _ => Ok(manifest),
    }
}

/// Reads a part and takes its tensors apart.
///
/// # Errors
/// [`CheckpointError::MissingPart`], [`CheckpointError::DamagedPart`], or trouble with the store.
pub async fn read_part(
    store: &dyn ObjectStore,
    root: &Path,
    part: Part,
) -> Result<BTreeMap<(Kind, String), LoadedTensor>> {
    let path = store::under(root, &part.path)?;
    let missing = || CheckpointError::MissingPart {
        part: part.name.clone(),
        object: part.path.clone(),
    };
    let file = store::get_if_there(store, &path)
        .await?
        .ok_or_else(missing)?;
    computed(move || check_part(&part, &file)).await
}

/// Runs work that takes a while on a thread where it holds up nobody.
///
/// # Errors
/// Those of the work; [`CheckpointError::Internal`] if it panics.
pub async fn computed<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| CheckpointError::Internal(format!("a background task ended: {error}")))?
}

/// Checks a part's bytes and takes its tensors apart.
fn check_part(part: &Part, file: &Bytes) -> Result<BTreeMap<(Kind, String), LoadedTensor>> {
    let damaged = |place: String| CheckpointError::DamagedPart {
        part: part.name.clone(),
        object: part.path.clone(),
        place,
    };
    if digest(file) != part.digest {
        return Err(damaged(damage(part, file)));
    }
    let views = SafeTensors::deserialize(file).map_err(|error| damaged(error.to_string()))?;
    let mut tensors = BTreeMap::new();
    for entry in &part.tensors {
        let view = views
            .tensor(&entry.kind.in_file(&entry.name))
            .map_err(|error| damaged(error.to_string()))?;
        if view.shape() != entry.shape || format!("{:?}", view.dtype()) != entry.dtype {
            return Err(damaged(format!(
                "tensor '{}': shape or type differ",
                entry.name
            )));
        }
        let tensor = LoadedTensor {
            dtype: view.dtype(),
            shape: entry.shape.clone(),
            data: file.slice_ref(view.data()),
        };
        tensors.insert((entry.kind, entry.name.clone()), tensor);
    }
    Ok(tensors)
}

/// Where a file differs from what was written, in words.
fn damage(part: &Part, file: &Bytes) -> String {
    if file.len() as u64 != part.bytes {
        return format!("its length: {} bytes instead of {}", file.len(), part.bytes);
    }
    let intact = |begin: u64, bytes: u64, expected: &str| {
        let range = begin as usize..begin.saturating_add(bytes) as usize;
        file.get(range).is_some_and(|data| digest(data) == expected)
    };
    let mut bad = part
        .tensors
        .iter()
        .filter(|entry| !intact(entry.offset, entry.bytes, &entry.digest))
        .map(|entry| {
            let end = entry.offset.saturating_add(entry.bytes);
            format!("tensor '{}', bytes {} to {end}", entry.name, entry.offset)
        });
    match (bad.next(), bad.count()) {
        (None, _) => "its header".to_owned(),
        (Some(first), 0) => first,
        (Some(first), more) => format!("{first}, and {more} more tensors"),
    }
}
