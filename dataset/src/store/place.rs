//! A folder in a store.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

use super::{name, open, shown, under};
use crate::error::Result;

/// A folder in a store, and what messages call it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// The folder in it.
    pub root: Path,
    /// As messages call it: without secrets.
    pub location: String,
}

impl Place {
    /// The folder at a path or URL. Nothing is read yet.
    ///
    /// # Errors
    /// When the location is of no known kind.
    pub fn open(location: &str) -> Result<Self> {
        let (store, root) = open(location)?;
        Ok(Self {
            store,
            root,
            location: shown(location),
        })
    }

    /// The path of one of its files.
    ///
    /// # Errors
    /// When the name leaves the folder.
    pub fn path(&self, file: &str) -> Result<Path> {
        under(&self.root, file)
    }

    /// What messages call one of its files.
    #[must_use]
    pub fn name_of(&self, file: &str) -> String {
        let path = self.path(file);
        path.map_or_else(|_| file.to_owned(), |path| name(&*self.store, &path))
    }
}
