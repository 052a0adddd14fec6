//! Names, shapes and places of the trained parameters.

use std::ops::Range;

use super::{CheckpointError, Result};
use crate::flat::FlatLayout;

/// One parameter and where it lies in a flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Global name.
    pub name: String,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// First element in each flat buffer.
    pub offset: usize,
}

impl Slot {
    /// Elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its place in a flat buffer.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.elements()
    }
}

/// All trained parameters, in ascending order of their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    slots: Vec<Slot>,
    digest: String,
}

impl Table {
    /// The table of `slots`, given in any order.
    ///
    /// # Errors
    /// [`CheckpointError::Internal`] if a name appears twice.
    pub fn new(slots: impl IntoIterator<Item = Slot>) -> Result<Self> {
        let mut slots: Vec<Slot> = slots.into_iter().collect();
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = slots.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(CheckpointError::Internal(format!(
                "'{}' appears twice",
                pair[0].name
            )));
        }
        let digest = names_digest(
            slots
                .iter()
                .map(|slot| (slot.name.as_str(), &slot.shape[..])),
        );
        Ok(Self { slots, digest })
    }

    /// The parameters.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Digest of names and shapes: the same for every layout of the same model.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Elements that a flat buffer must have at least.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.slots
            .iter()
            .map(|slot| slot.range().end)
            .max()
            .unwrap_or(0)
    }

    /// blake3, in hex, over the parameters' values in name order, as fp32 little endian; padding
    /// between parameters does not count.
    ///
    /// # Errors
    /// [`CheckpointError::Internal`] if the buffer is too short.
    pub fn weights_digest(&self, flat: &[f32]) -> Result<String> {
        self.check_buffer(flat.len())?;
        let mut hasher = blake3::Hasher::new();
        for slot in &self.slots {
            for chunk in flat[slot.range()].chunks(16 << 10) {
                hasher.update(&le_bytes(chunk));
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Refuses a buffer that is too short for the table.
    pub(super) fn check_buffer(&self, found: usize) -> Result<()> {
        let needed = self.elements();
        if found < needed {
            let text = format!("the buffer has {found} values, the parameters need {needed}");
            return Err(CheckpointError::Internal(text));
        }
        Ok(())
    }

    /// The first parameter, by name, in which `found` differs from this table, in words.
    pub(super) fn difference<'a>(
        &self,
        found: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Option<String> {
        let mut found: Vec<(&str, &[usize])> = found.into_iter().collect();
        found.sort_unstable();
        let mut found = found.into_iter().peekable();
        for slot in &self.slots {
            match found.next_if(|(name, _)| *name <= slot.name.as_str()) {
                Some((name, _)) if name != slot.name => {
                    return Some(format!("it has '{name}', which the job's model has not"));
                }
                Some((name, shape)) if shape != slot.shape => {
                    let expected = &slot.shape;
                    return Some(format!("'{name}' is {shape:?}, the job's is {expected:?}"));
                }
                Some(_) => {}
                None => return Some(format!("it lacks '{}' {:?}", slot.name, slot.shape)),
            }
        }
        found
            .next()
            .map(|(name, _)| format!("it has '{name}', which the job's model has not"))
    }
}

impl TryFrom<&FlatLayout> for Table {
    type Error = CheckpointError;

    fn try_from(layout: &FlatLayout) -> Result<Self> {
        Self::new(layout.spans().iter().map(|span| {
            Slot {
                name: span.name.clone(),
                shape: span
                    .shape
                    .iter()
                    .map(|side| usize::try_from(*side).unwrap_or(0))
                    .collect(),
                offset: span.offset,
            }
        }))
    }
}

/// Digest of names and shapes in the order given.
pub(super) fn names_digest<'a>(entries: impl Iterator<Item = (&'a str, &'a [usize])>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, shape) in entries {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&(shape.len() as u64).to_le_bytes());
        shape.iter().for_each(|side| {
            hasher.update(&(*side as u64).to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}

/// Values as little-endian bytes.
pub(super) fn le_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * 4];
    for (place, value) in bytes.chunks_exact_mut(4).zip(values) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}
