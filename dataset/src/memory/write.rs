//! Making the folder of a memory: parts first, the card last and create-only. Until then there is no
//! memory, whatever becomes of the writer; parts that it has left are named by their content, and the next
//! try writes the same ones.

use std::collections::BTreeMap;

use bytes::Bytes;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::card::{self, Card, Entry, Group, Part};
use super::{Artefact, MemoryError, Result, Tensor, card_in};
use crate::store::{self, Created, Place};

/// Bytes above which a part ends at the next tensor. One of each group is in memory.
const PART_BYTES: usize = 64 << 20;

/// What became of an artefact.
#[derive(Clone, Debug)]
pub struct Written {
    /// The memory as it lies there.
    pub artefact: Artefact,
    /// Whether it is new. If not, the same one was there already.
    pub created: Created,
    /// Parts of the one that was there which were missing or damaged, and are whole again.
    pub mended: usize,
}

/// Writes a memory into a folder.
#[derive(Debug)]
pub struct Writer {
    place: Place,
    /// The memory that lies there already: then nothing is written but what is damaged of it.
    existing: Option<Artefact>,
    mended: usize,
    open: BTreeMap<Group, Vec<Tensor>>,
    parts: Vec<Part>,
    part_bytes: usize,
}

impl Writer {
    /// A writer into the folder at a path or URL. Nothing is written yet.
    ///
    /// # Errors
    /// When the location is of no known kind, has a damaged card, or the store fails.
    pub async fn open(location: &str) -> Result<Self> {
        let place = Place::open(location)?;
        Ok(Self {
            existing: existing(&place).await?,
            mended: 0,
            place,
            open: BTreeMap::new(),
            parts: Vec::new(),
            part_bytes: PART_BYTES,
        })
    }

    /// Ends parts above `bytes`, instead of above 64 MiB.
    #[must_use]
    pub fn with_part_bytes(mut self, bytes: usize) -> Self {
        self.part_bytes = bytes;
        self
    }

    /// Adds a tensor. Those of a group come in ascending order of their names.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn add(&mut self, group: Group, tensor: Tensor) -> Result<()> {
        let open = self.open.entry(group).or_default();
        let bytes: usize = open.iter().map(|tensor| tensor.data.len()).sum();
        let is_full = !open.is_empty() && bytes + tensor.data.len() > self.part_bytes;
        open.push(tensor);
        if is_full {
            let full = open.drain(..open.len() - 1).collect();
            self.write(group, full).await?;
        }
        Ok(())
    }

    /// Writes what is left and creates the card that `describe` makes of the parts.
    ///
    /// # Errors
    /// [`MemoryError::Occupied`] if another memory is there, or trouble with the store.
    pub async fn finish(mut self, describe: impl FnOnce(Vec<Part>) -> Card) -> Result<Written> {
        for (group, open) in std::mem::take(&mut self.open) {
            self.write(group, open).await?;
        }
        // Parts of a group stay in their order.
        self.parts.sort_by_key(|part| part.group);
        let bytes = describe(std::mem::take(&mut self.parts)).to_bytes()?;
        let mut written = create(self.place, self.existing, bytes).await?;
        written.mended = self.mended;
        Ok(written)
    }

    async fn write(&mut self, group: Group, tensors: Vec<Tensor>) -> Result<()> {
        let entries = tensors.iter().map(|tensor| Entry {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
        });
        let entries = entries.collect();
        let internal = |error: &dyn std::fmt::Display| {
            MemoryError::Internal(format!("a part cannot be written: {error}"))
        };
        let made = tokio::task::spawn_blocking(move || encoded(&tensors));
        let (file, digest) = made
            .await
            .map_err(|error| internal(&error))?
            .map_err(|error| internal(&error))?;
        let part = Part {
            group,
            path: card::path_of(&digest),
            digest,
            bytes: file.len() as u64,
            tensors: entries,
        };
        let is_wanted = match &self.existing {
            None => true,
            // Of another memory nothing is touched.
            Some(there) => there.card.parts.contains(&part) && !is_whole(there, &part).await?,
        };
        if is_wanted {
            put(&self.place, &part, file).await?;
            self.mended += usize::from(self.existing.is_some());
        }
        self.parts.push(part);
        Ok(())
    }
}

/// The memory in a folder, if there is one.
async fn existing(place: &Place) -> Result<Option<Artefact>> {
    let card = card_in(place).await?;
    card.map(|bytes| Artefact::of(place.clone(), bytes))
        .transpose()
}

/// Whether a part is there with its digest.
async fn is_whole(artefact: &Artefact, part: &Part) -> Result<bool> {
    match artefact.file(part).await {
        Ok(_) => Ok(true),
        Err(MemoryError::Part { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The file of some tensors, and its digest.
fn encoded(tensors: &[Tensor]) -> Result<(Bytes, String), safetensors::SafeTensorError> {
    let views = tensors
        .iter()
        .map(|tensor| {
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), &tensor.data)?;
            Ok((tensor.name.as_str(), view))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let file = safetensors::serialize(views, None)?;
    let digest = blake3::hash(&file).to_hex().to_string();
    Ok((file.into(), digest))
}

async fn put(place: &Place, part: &Part, file: Bytes) -> Result<()> {
    let path = store::under(&place.root, &part.path)?;
    // What has this name has this content: to write it again changes nothing.
    Ok(store::put(&*place.store, &path, file).await?)
}

/// Creates the card, the last of all objects.
async fn create(place: Place, existing: Option<Artefact>, bytes: Bytes) -> Result<Written> {
    let path = store::under(&place.root, card::FILE_NAME)?;
    let created = match existing {
        Some(_) => Created::Exists,
        None => store::put_create_only(&*place.store, &path, bytes.clone()).await?,
    };
    if created == Created::Exists {
        let other = match existing {
            Some(there) => there,
            None => Artefact::of(place.clone(), store::get(&*place.store, &path).await?)?,
        };
        if other.bytes != bytes {
            return Err(MemoryError::Occupied {
                location: other.location().to_owned(),
                name: other.card.name.clone(),
                id: other.id,
            });
        }
    }
    Ok(Written {
        artefact: Artefact::of(place, bytes)?,
        created,
        mended: 0,
    })
}

/// Copies a memory into another folder, every part held against its digest on the way. Where it is there
/// already, what is damaged of it is put again.
///
/// # Errors
/// [`MemoryError::Part`] if the memory is damaged: then there is none in the other folder either.
/// [`MemoryError::Occupied`] if another memory is there, or trouble with a store.
pub async fn copy(from: &Artefact, to: &str) -> Result<Written> {
    let place = Place::open(to)?;
    let existing = existing(&place).await?;
    let mut mended = 0;
    let is_other = |there: &Artefact| there.bytes != from.bytes;
    if !existing.as_ref().is_some_and(is_other) {
        for part in &from.card.parts {
            if let Some(there) = &existing {
                if is_whole(there, part).await? {
                    continue;
                }
                mended += 1;
            }
            let file = from.file(part).await?;
            super::taken_apart(part, &file).map_err(|why| from.refuse(part, why))?;
            put(&place, part, file).await?;
        }
    }
    let mut written = create(place, existing, from.bytes.clone()).await?;
    written.mended = mended;
    Ok(written)
}
