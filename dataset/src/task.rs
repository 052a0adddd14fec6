//! Tasks that models are measured on: a small TOML file each, with data in JSON beside it.
//!
//! | kind | data |
//! |---|---|
//! | `multiple-choice` | lines of JSON, or one list: a question with choices and the right one |
//! | `captions`, `retrieval` | COCO's caption file (`images`, `annotations`), or the form that Flickr30k is shared in (`images` with `sentences`) |
//! | `vqa` | VQAv2's files of questions and annotations |
//!
//! ```text
//! task file ─► Settings ─┐
//! data ─► rows (`rows`) ─┴► items (`choices`, `captions`, `questions`), each checked
//! ```
//!
//! All names in a task file are relative to it. Everything is checked before anything is measured; only
//! what is in a picture shows when it is decoded.

mod captions;
mod choices;
mod error;
mod questions;
mod rows;
mod settings;

use bytes::Bytes;
use object_store::path::Path;

use crate::store::{self, Place};
pub use captions::Pictured;
pub use choices::Choice;
pub use error::TaskError;
pub use questions::Asked;
pub use settings::{Captions, MultipleChoice, Retrieval, Settings, Vqa};

/// Result of everything in this module.
pub type Result<T, E = TaskError> = std::result::Result<T, E>;

/// Largest file of a task, bytes.
const MOST_BYTES: u64 = 1 << 30;

/// A task that can be measured.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name; results are called after it.
    pub name: String,
    /// What its file says.
    pub settings: Settings,
    /// Its items, in the order of the data.
    pub items: Items,
    /// How many there are in all.
    pub count: usize,
    /// blake3 of the task's file and its data, in hex.
    pub digest: String,
    /// What messages call its data.
    pub data: String,
    pictures: Option<Place>,
}

/// What a task asks.
#[derive(Clone, Debug)]
pub enum Items {
    /// Which of several continuations.
    Choices(Vec<Choice>),
    /// Which caption, or which picture belongs to which caption.
    Pictures(Vec<Pictured>),
    /// An answer about a picture.
    Questions(Vec<Asked>),
}

impl Items {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Choices(items) => items.len(),
            Self::Pictures(items) => items.len(),
            Self::Questions(items) => items.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn truncate(&mut self, count: usize) {
        match self {
            Self::Choices(items) => items.truncate(count),
            Self::Pictures(items) => items.truncate(count),
            Self::Questions(items) => items.truncate(count),
        }
    }
}

impl Task {
    /// Reads the task file at a path or URL, and its data.
    ///
    /// # Errors
    /// When a file is missing or not what it should be, a row lacks something, or a picture on this machine
    /// is not there.
    pub async fn read(location: &str) -> Result<Self> {
        let text = read(location, None).await?;
        let shown = store::shown(location);
        let settings = Settings::parse(&text, &shown)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&text);
        let mut data = Vec::new();
        for name in settings.data() {
            let bytes = read(&beside(location, name), Some(&shown)).await?;
            hasher.update(&bytes);
            data.push((store::shown(&beside(location, name)), bytes));
        }
        let pictures = settings.images().map(|name| beside(location, name));
        let pictures = pictures.map(|folder| Place::open(&folder)).transpose()?;
        let items = items(&settings, &data)?;
        let data = data.swap_remove(0).0;
        if items.is_empty() {
            return Err(TaskError::Data {
                file: data,
                why: "it has no item".into(),
            });
        }
        let task = Self {
            name: settings.name(location),
            digest: hasher.finalize().to_hex().to_string(),
            count: items.len(),
            settings,
            items,
            data,
            pictures,
        };
        task.check_pictures()?;
        Ok(task)
    }

    /// Keeps so many items from the beginning.
    #[must_use]
    pub fn limited(mut self, limit: Option<u64>) -> Self {
        let most = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        self.items.truncate(most.unwrap_or(usize::MAX));
        self
    }

    /// Whether it asks for what a memory stage learns: captions, and to find pictures.
    #[must_use]
    pub fn is_of_memory(&self) -> bool {
        matches!(
            self.settings,
            Settings::Captions(_) | Settings::Retrieval(_)
        )
    }

    /// The file of a picture of item `number` (from 0).
    ///
    /// # Errors
    /// When it is not there.
    pub async fn picture(&self, number: usize, file: &str) -> Result<Bytes> {
        let Some(folder) = &self.pictures else {
            return Err(self.no_picture(number, file));
        };
        let path = self.picture_path(folder, number, file)?;
        let bytes = store::get_if_there(&*folder.store, &path).await?;
        bytes.ok_or_else(|| self.no_picture(number, file))
    }

    fn no_picture(&self, number: usize, file: &str) -> TaskError {
        let folder = self.pictures.as_ref().map(|folder| &folder.location);
        TaskError::NoPicture {
            file: self.data.clone(),
            at: format!("item {}", number + 1),
            picture: match folder {
                Some(folder) => format!("{folder}/{file}"),
                None => file.to_owned(),
            },
        }
    }

    fn picture_path(&self, folder: &Place, number: usize, file: &str) -> Result<Path> {
        folder.path(file).map_err(|_| TaskError::Row {
            file: self.data.clone(),
            at: format!("item {}", number + 1),
            why: format!("'{file}' is no name of a picture below images"),
        })
    }

    /// The files of all pictures, by item.
    fn picture_files(&self) -> Vec<&str> {
        match &self.items {
            Items::Choices(_) => Vec::new(),
            Items::Pictures(items) => items.iter().map(|item| item.file.as_str()).collect(),
            Items::Questions(items) => items.iter().map(|item| item.file.as_str()).collect(),
        }
    }

    /// Where pictures are on this machine, a look tells whether they are there.
    fn check_pictures(&self) -> Result<()> {
        let Some(folder) = &self.pictures else {
            return Ok(());
        };
        let local = store::local_path(&folder.location);
        for (number, file) in self.picture_files().into_iter().enumerate() {
            self.picture_path(folder, number, file)?;
            let path = local.as_ref().map(|local| local.join(file));
            if path.is_some_and(|path| !path.is_file()) {
                return Err(self.no_picture(number, file));
            }
        }
        Ok(())
    }
}

fn items(settings: &Settings, data: &[(String, Bytes)]) -> Result<Items> {
    let [(file, bytes), rest @ ..] = data else {
        return Ok(Items::Choices(Vec::new()));
    };
    Ok(match settings {
        Settings::MultipleChoice(settings) => Items::Choices(choices::read(settings, file, bytes)?),
        Settings::Captions(settings) => {
            Items::Pictures(captions::read(settings.split.as_deref(), file, bytes)?)
        }
        Settings::Retrieval(settings) => {
            Items::Pictures(captions::read(settings.split.as_deref(), file, bytes)?)
        }
        Settings::Vqa(settings) => Items::Questions(questions::read(settings, file, bytes, rest)?),
    })
}

/// A whole file; `named_by` is the task file, if it is another one.
async fn read(location: &str, named_by: Option<&str>) -> Result<Bytes> {
    let (store, path) = store::open(location)?;
    let missing = || TaskError::Missing {
        file: store::shown(location),
        named_by: named_by.map(str::to_owned),
    };
    let size = store::size(&*store, &path).await?.ok_or_else(missing)?;
    if size > MOST_BYTES {
        return Err(TaskError::Data {
            file: store::shown(location),
            why: format!("it has {size} bytes, more than {MOST_BYTES}"),
        });
    }
    store::get_if_there(&*store, &path)
        .await?
        .ok_or_else(missing)
}

/// A name in a file, as a location.
fn beside(file: &str, name: &str) -> String {
    if name.contains("://") || name.starts_with('/') {
        return name.to_owned();
    }
    match file.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests;
