//! Pretrained models as Hugging Face ships them: a folder with `config.json`, safetensors in one or
//! many files, and a tokenizer, on any object store.
//!
//! ```text
//! config.json                    what the model is: [`config`]
//! model.safetensors              its tensors, or
//! model.safetensors.index.json   which file has which of them, beside the files: [`tensors`]
//! tokenizer.json                 the tokenizer of a language model: [`tokens`]
//! chat_template.jinja            how it writes dialogues: [`chat`]
//! ```
//!
//! [`base`] holds what a job says of its models against all of that.
//!
//! Only what is looked for is read: the configuration, the index, the header of each file, and then
//! tensor after tensor. Everything has a limit before it is read or believed. Files in pickle, which
//! can run any code, are not opened.

pub mod adapter;
pub mod base;
pub mod chat;
pub mod config;
mod error;
pub mod extras;
mod kept;
pub mod mks2;
pub mod tensors;
pub mod tokens;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt;

use crate::store::{self, Place};
pub use error::PretrainedError;
use kept::Kept;

/// Result of everything in this module.
pub type Result<T, E = PretrainedError> = std::result::Result<T, E>;

/// Largest file of text, bytes: vocabularies of a quarter of a million tokens have 30 million.
const MOST_TEXT: u64 = 64 << 20;
/// Bytes that are asked for at a time.
const PIECE: usize = 32 << 20;

/// The folder of a model.
#[derive(Clone, Debug)]
pub struct Folder {
    place: Place,
    /// Where it is on this machine.
    local: Option<PathBuf>,
    /// What is on this machine of it, where it is not.
    kept: Arc<Kept>,
}

impl Folder {
    /// The folder at a path or URL. Nothing is read yet.
    ///
    /// # Errors
    /// When the location is of no known kind.
    pub fn open(location: &str) -> Result<Self> {
        Ok(Self {
            place: Place::open(location)?,
            local: store::local_path(location),
            kept: Arc::new(Kept::of(location)),
        })
    }

    /// What messages call it.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.place.location
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
        let path = self.place.path(name)?;
        Ok(store::get_if_there(&*self.place.store, &path).await?)
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
        let path = self.place.path(name)?;
        Ok(store::size(&*self.place.store, &path).await?)
    }

    /// Where a file is on this machine. A remote one is fetched as a whole and kept, if anything is.
    async fn on_this_machine(&self, name: &str) -> Result<Option<PathBuf>> {
        match &self.local {
            Some(folder) => Ok(Some(folder.join(name))),
            None => self.kept.file(self, name).await,
        }
    }

    /// Fills `into` with what a file has from `start` on, of which no more will be read.
    async fn fill(&self, name: &str, start: u64, into: &mut [u8]) -> Result<()> {
        match &self.local {
            Some(folder) => self.fill_from(&folder.join(name), name, start, into),
            None => self.fill_by_pieces(name, start, into).await,
        }
    }

    /// The same for a file that is read as a whole, sooner or later.
    async fn fill_keeping(&self, name: &str, start: u64, into: &mut [u8]) -> Result<()> {
        match self.on_this_machine(name).await? {
            Some(file) => self.fill_from(&file, name, start, into),
            None => self.fill_by_pieces(name, start, into).await,
        }
    }

    /// A store is asked for pieces, since it has so and so long for one answer.
    async fn fill_by_pieces(&self, name: &str, start: u64, into: &mut [u8]) -> Result<()> {
        for (number, piece) in into.chunks_mut(PIECE).enumerate() {
            let first = start + (number * PIECE) as u64;
            let range = first..first + piece.len() as u64;
            piece.copy_from_slice(&self.piece(name, range).await?);
        }
        Ok(())
    }

    /// Reads straight into its place; blocks.
    fn fill_from(&self, file: &FilePath, name: &str, start: u64, into: &mut [u8]) -> Result<()> {
        let file = File::open(file);
        let read = file.and_then(|file| file.read_exact_at(into, start));
        read.map_err(|error| self.unread(name, error))
    }

    fn unread(&self, name: &str, error: std::io::Error) -> PretrainedError {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return self.refuse(name, "it ends before the last of its tensors");
        }
        let source = Box::new(error);
        let error = object_store::Error::Generic {
            store: "LocalFileSystem",
            source,
        };
        crate::error::Error::store("read", &self.name_of(name), &error).into()
    }

    async fn piece(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let path = self.place.path(name)?;
        let wanted = range.end - range.start;
        let read = self.place.store.get_range(&path, range).await;
        let bytes = read.map_err(|error| {
            crate::error::Error::store("read", &store::name(&*self.place.store, &path), &error)
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
        self.place.name_of(file)
    }

    fn other_kind(&self, found: &str, wanted: &'static str) -> PretrainedError {
        PretrainedError::OtherKind {
            file: self.name_of(config::FILE_NAME),
            found: format!("a {found}"),
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
    async fn a_file_of_several_pieces_comes_as_a_whole_from_any_store() {
        let local = tempfile::tempdir().expect("a folder");
        let size = PIECE + 9;
        let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        std::fs::write(local.path().join("large"), &bytes).expect("written");
        let local = Folder::open(local.path().to_str().expect("UTF-8")).expect("a folder");
        let remote = Folder::open("memory:///several-pieces").expect("a store");
        let path = remote.place.path("large").expect("a path");
        let put = store::put(&*remote.place.store, &path, bytes.clone().into()).await;
        put.expect("written");
        for folder in [local, remote] {
            for range in [2..size, 0..PIECE, 7..PIECE + 8] {
                let mut read = vec![0; range.len()];
                let filled = folder.fill("large", range.start as u64, &mut read).await;
                filled.expect("read");
                assert!(read == bytes[range.clone()], "{range:?}");
            }
            let behind = folder.fill("large", 3, &mut vec![0; size]).await;
            let why = behind.expect_err("too short").to_string();
            assert!(why.contains("large"), "{why}");
        }
    }
}
