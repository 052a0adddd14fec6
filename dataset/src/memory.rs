//! Visual memories as artefacts: what a `memory` stage has stored, in a folder of its own on any store,
//! for runs with the same language model to attach.
//!
//! ```text
//! memory.json                    the card: what the memory is, and its parts with their digests
//! parts/<blake3>.safetensors     its weights, named by their content
//! ```
//!
//! 1. The id of a memory is the blake3 of its card's bytes, and the card has the digest of every part: an
//!    id names one content, wherever it lies. Nothing in a card depends on where, when or by how many
//!    workers it was made, so a memory that is exported again has the same id.
//! 2. The card is created last and never replaced: a folder has a whole memory or none, and keeps it.
//! 3. Nothing is used before its digest was checked. A card is read within limits, and says nothing that
//!    its tensors could contradict.
//!
//! | module | what |
//! |---|---|
//! | [`card`] | the card's types and rules |
//! | [`write`](mod@write) | making an artefact, copying one |
//! | [`attach`] | a memory held against the job that attaches it |

pub mod attach;
pub mod card;
mod error;
#[cfg(test)]
mod tests;
pub mod write;

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use safetensors::{Dtype, SafeTensors};

use crate::store::{self, Place};
pub use card::{Card, Group, Part};
pub use error::MemoryError;

/// Result of everything in this module.
pub type Result<T, E = MemoryError> = std::result::Result<T, E>;

/// Largest card, bytes.
const MOST_CARD: u64 = 16 << 20;

/// A memory in its folder, of which the card was read.
#[derive(Clone, Debug)]
pub struct Artefact {
    place: Place,
    /// What it is.
    pub card: Card,
    /// blake3 of the card's bytes, in hex.
    pub id: String,
    bytes: Bytes,
}

/// A tensor of a memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the artefact.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its values, fp32 little endian.
    pub data: Bytes,
}

impl Tensor {
    /// Its numbers, row-major.
    pub fn numbers(&self) -> impl Iterator<Item = f32> + '_ {
        floats(&self.data)
    }
}

/// The card in a folder, if there is one.
async fn card_in(place: &Place) -> Result<Option<Bytes>> {
    let path = place.path(card::FILE_NAME)?;
    match store::size(&*place.store, &path).await? {
        None => Ok(None),
        Some(bytes) if bytes > MOST_CARD => Err(MemoryError::Card {
            file: place.name_of(card::FILE_NAME),
            why: format!("it has {bytes} bytes, more than {MOST_CARD}"),
        }),
        Some(_) => Ok(store::get_if_there(&*place.store, &path).await?),
    }
}

impl Artefact {
    /// The memory in the folder at a path or URL. Only its card is read.
    ///
    /// # Errors
    /// When there is none, its card is damaged or of another version, or the store fails.
    pub async fn open(location: &str) -> Result<Self> {
        let place = Place::open(location)?;
        match card_in(&place).await? {
            Some(bytes) => Self::of(place, bytes),
            None => Err(MemoryError::Missing {
                location: place.location,
            }),
        }
    }

    fn of(place: Place, bytes: Bytes) -> Result<Self> {
        let file = place.name_of(card::FILE_NAME);
        let card = Card::parse(&file, &bytes)?;
        Ok(Self {
            id: blake3::hash(&bytes).to_hex().to_string(),
            place,
            card,
            bytes,
        })
    }

    /// What messages call its folder.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.place.location
    }

    /// Looks whether every part is there with its size.
    ///
    /// # Errors
    /// [`MemoryError::Part`] for the first one that is not.
    pub async fn check_sizes(&self) -> Result<()> {
        for part in &self.card.parts {
            self.sized(part).await?;
        }
        Ok(())
    }

    /// Reads every part and compares it with its digest and with what the card says of its tensors.
    ///
    /// # Errors
    /// [`MemoryError::Part`] for the first one that is not as it should be.
    pub async fn verify(&self) -> Result<()> {
        for part in &self.card.parts {
            self.tensors(part).await?;
        }
        Ok(())
    }

    /// The tensors of a part, in the order of its card.
    ///
    /// # Errors
    /// [`MemoryError::Part`] if it is not there or not what the card says.
    pub async fn tensors(&self, part: &Part) -> Result<Vec<Tensor>> {
        let file = self.file(part).await?;
        taken_apart(part, &file).map_err(|why| self.refuse(part, why))
    }

    /// All tensors of a group, one after the other, part by part.
    pub fn tensors_of(&self, group: Group) -> impl futures::Stream<Item = Result<Tensor>> + '_ {
        let parts = self
            .card
            .parts
            .iter()
            .filter(move |part| part.group == group);
        let parts = futures::stream::iter(parts.map(Ok));
        parts
            .and_then(|part| self.tensors(part))
            .map_ok(|tensors| futures::stream::iter(tensors.into_iter().map(Ok)))
            .try_flatten()
    }

    /// The bytes of a part, held against its digest.
    async fn file(&self, part: &Part) -> Result<Bytes> {
        let path = self.sized(part).await?;
        let file = store::get(&*self.place.store, &path).await?;
        let hashed = file.clone();
        let hashing = tokio::task::spawn_blocking(move || blake3::hash(&hashed));
        let found = hashing
            .await
            .map_err(|error| self.refuse(part, error.to_string()))?;
        match found.to_hex().as_str() == part.digest {
            true => Ok(file),
            false => Err(self.refuse(part, format!("its digest is {found}, not {}", part.digest))),
        }
    }

    /// Where a part lies, if it has its size.
    async fn sized(&self, part: &Part) -> Result<Path> {
        let path = store::under(&self.place.root, &part.path)?;
        match store::size(&*self.place.store, &path).await? {
            None => Err(self.refuse(part, "it is not there")),
            Some(bytes) if bytes != part.bytes => {
                let why = format!("it has {bytes} bytes and should have {}", part.bytes);
                Err(self.refuse(part, why))
            }
            Some(_) => Ok(path),
        }
    }

    fn refuse(&self, part: &Part, why: impl Into<String>) -> MemoryError {
        MemoryError::Part {
            file: self.place.name_of(&part.path),
            why: why.into(),
        }
    }
}

/// The tensors of a safetensors file, where they are those of the card and no others.
fn taken_apart(part: &Part, file: &Bytes) -> Result<Vec<Tensor>, String> {
    let views = SafeTensors::deserialize(file).map_err(|error| error.to_string())?;
    if views.len() != part.tensors.len() {
        let (found, named) = (views.len(), part.tensors.len());
        return Err(format!("it has {found} tensors and should have {named}"));
    }
    let tensors = part.tensors.iter().map(|entry| {
        let name = &entry.name;
        let view = views.tensor(name).map_err(|error| error.to_string())?;
        if view.dtype() != Dtype::F32 || view.shape() != entry.shape {
            let (dtype, shape) = (view.dtype(), view.shape());
            let wanted = &entry.shape;
            return Err(format!(
                "tensor '{name}' is {shape:?} of {dtype:?} and should be {wanted:?} of F32"
            ));
        }
        let data = file.slice_ref(view.data());
        if let Some(at) = floats(&data).position(|number| !number.is_finite()) {
            return Err(format!(
                "number {at} of tensor '{name}' is infinite or no number"
            ));
        }
        Ok(Tensor {
            name: name.clone(),
            shape: entry.shape.clone(),
            data,
        })
    });
    tensors.collect()
}

/// The numbers of a tensor.
fn floats(data: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let words = data.chunks_exact(size_of::<f32>());
    words.map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

/// The memories in a folder: the one that it is itself, or those in the folders in it, by their names.
/// What cannot be read is told in its place.
///
/// # Errors
/// When the store fails.
pub async fn list(location: &str) -> Result<Vec<(String, Result<Artefact>)>> {
    let place = Place::open(location)?;
    if card_in(&place).await?.is_some() {
        return Ok(vec![(
            place.location.clone(),
            Artefact::open(location).await,
        )]);
    }
    let listed = place.store.list_with_delimiter(Some(&place.root)).await;
    let listed = listed.map_err(|error| {
        let name = store::name(&*place.store, &place.root);
        crate::error::Error::store("listed", &name, &error)
    })?;
    let mut folders = listed.common_prefixes;
    folders.sort();
    let mut found = Vec::new();
    for root in folders {
        let place = Place {
            store: Arc::clone(&place.store),
            location: store::name(&*place.store, &root),
            root,
        };
        let name = place.location.clone();
        match card_in(&place).await {
            Ok(Some(bytes)) => found.push((name, Artefact::of(place, bytes))),
            Ok(None) => {}
            Err(error @ MemoryError::Card { .. }) => found.push((name, Err(error))),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
