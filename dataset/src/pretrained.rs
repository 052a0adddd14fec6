//! Pretrained models as Hugging Face ships them: a folder with `config.json`, safetensors in one or
//! many files, and a tokenizer, on any object store.
//!
//! ```text
//! config.json                    what the model is: [`config`]
//! model.safetensors              its tensors, or
//! model.safetensors.index.json   which file has which of them, beside the files: [`tensors`]
//! tokenizer.json                 the tokenizer of a language model: [`tokens`]
//! ```
//!
//! [`base`] holds what a job says of its models against all of that.
//!
//! Only what is looked for is read: the configuration, the index, the header of each file, and then
//! tensor after tensor. Everything has a limit before it is read or believed. Files in pickle, which
//! can run any code, are not opened.

pub mod base;
pub mod config;
mod error;
pub mod extras;
pub mod tensors;
pub mod tokens;

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::store;
pub use error::PretrainedError;

/// Result of everything in this module.
pub type Result<T, E = PretrainedError> = std::result::Result<T, E>;

/// Largest file of text, bytes: vocabularies of a quarter of a million tokens have 30 million.
const MOST_TEXT: u64 = 64 << 20;
/// Bytes that are asked for at a time.
const PIECE: u64 = 32 << 20;

/// The folder of a model.
#[derive(Clone, Debug)]
pub struct Folder {
    store: Arc<dyn ObjectStore>,
    root: Path,
    location: String,
}

impl Folder {
    /// The folder at a path or URL. Nothing is read yet.
    ///
    /// # Errors
    /// When the location is of no known kind.
    pub fn open(location: &str) -> Result<Self> {
        let (store, root) = store::open(location)?;
        Ok(Self {
            store,
            root,
            location: store::shown(location),
        })
    }

    /// What messages call it.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.location
    }

    /// A file of text, if it is there.
    ///
    /// # Errors
    /// When the store does, or the file is too large to be what its name says.
    pub async fn text(&self, name: &str) -> Result<Option<Bytes>> {
        let Some(bytes) = self.size(name).await? else {
            return Ok(None);
        };
        if bytes > MOST_TEXT {
            return Err(self.refuse(name, format!("it has {bytes} bytes, more than {MOST_TEXT}")));
        }
        let path = store::under(&self.root, name)?;
        Ok(store::get_if_there(&*self.store, &path).await?)
    }

    /// The model's configuration.
    ///
    /// # Errors
    /// When there is none.
    pub async fn config(&self) -> Result<Bytes> {
        let there = self.text(config::FILE_NAME).await?;
        there.ok_or_else(|| PretrainedError::Missing {
            file: self.name_of(config::FILE_NAME),
        })
    }

    async fn size(&self, name: &str) -> Result<Option<u64>> {
        let path = store::under(&self.root, name)?;
        Ok(store::size(&*self.store, &path).await?)
    }

    /// A range of a file, in pieces: a store has so and so long to answer one question.
    async fn range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        if range.end - range.start <= PIECE {
            return self.piece(name, range).await;
        }
        let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
        let mut at = range.start;
        while at < range.end {
            let end = (at + PIECE).min(range.end);
            bytes.extend_from_slice(&self.piece(name, at..end).await?);
            at = end;
        }
        Ok(bytes.freeze())
    }

    async fn piece(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let path = store::under(&self.root, name)?;
        let wanted = range.end - range.start;
        let read = self.store.get_range(&path, range).await;
        let bytes = read.map_err(|error| {
            crate::error::Error::store("read", &store::name(&*self.store, &path), &error)
        })?;
        if bytes.len() as u64 == wanted {
            return Ok(bytes);
        }
        let why = format!("{} bytes came of {wanted}", bytes.len());
        Err(self.refuse(name, why))
    }

    /// What messages call one of its files.
    #[must_use]
    pub fn name_of(&self, file: &str) -> String {
        let path = store::under(&self.root, file);
        path.map_or_else(|_| file.to_owned(), |path| store::name(&*self.store, &path))
    }

    fn other_kind(&self, found: &str, wanted: &'static str) -> PretrainedError {
        PretrainedError::OtherKind {
            file: self.name_of(config::FILE_NAME),
            found: found.to_owned(),
            wanted,
        }
    }

    fn refuse(&self, file: &str, why: impl Into<String>) -> PretrainedError {
        PretrainedError::Damaged {
            file: self.name_of(file),
            why: why.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_range_of_several_pieces_comes_as_a_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let size = PIECE as usize + 9;
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        std::fs::write(folder.path().join("large"), &bytes).expect("written");
        let folder = Folder::open(folder.path().to_str().expect("UTF-8")).expect("a folder");
        for range in [2..size, 0..PIECE as usize, 7..PIECE as usize + 8] {
            let wanted = range.start as u64..range.end as u64;
            let read = folder.range("large", wanted).await.expect("read");
            assert!(read == bytes[range.clone()], "{range:?}");
        }
        let behind = folder.range("large", 3..size as u64 + 1).await;
        assert!(behind.is_err(), "{behind:?}");
    }
}
