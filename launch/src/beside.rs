//! A folder that is there as a whole or not at all: it is written beside its place, and gets its name when everything
//! is in it and on the disk.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mks2_proto::failure::Failure;
use tempfile::TempDir;

/// Where a folder is to appear: nothing is there so far, or an empty folder.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    parent: PathBuf,
}

/// A folder under way. What is not finished goes away with it.
#[derive(Debug)]
pub(crate) struct Beside {
    place: Place,
    folder: TempDir,
}

impl Place {
    /// # Errors
    /// Something is there already, or no folder can be (exit 2).
    pub(crate) fn free(named: &Path) -> Result<Self, Failure> {
        let absolute = std::path::absolute(named).unwrap_or_else(|_| named.to_owned());
        // What a link points to is what is replaced.
        let path = absolute.canonicalize().unwrap_or(absolute);
        let why = match fs::read_dir(&path) {
            Ok(mut entries) => entries.next().map(|_| "the folder is not empty"),
            Err(_) if path.symlink_metadata().is_ok() => {
                Some("something is there that is no folder, or cannot be read")
            }
            Err(_) => None,
        };
        let refused = |why: &str| {
            Failure::usage(
                format!("{} cannot be written to", path.display()),
                why,
                "name a new folder, or remove that one",
            )
        };
        match (why, path.parent()) {
            (Some(why), _) => Err(refused(why)),
            // The program that fills it is told its name as a text.
            (None, _) if path.to_str().is_none() => Err(refused("its name is not UTF-8")),
            (None, None) => Err(refused("it is the root of all folders")),
            (None, Some(parent)) => Ok(Self {
                parent: parent.to_owned(),
                path,
            }),
        }
    }

    /// Makes an empty folder beside it.
    ///
    /// # Errors
    /// When that cannot be written (exit 5).
    pub(crate) fn begin(self) -> Result<Beside, Failure> {
        let made = fs::create_dir_all(&self.parent).and_then(|()| {
            tempfile::Builder::new()
                .prefix(".mks2-")
                .permissions(Permissions::from_mode(0o777))
                .tempdir_in(&self.parent)
        });
        match made {
            Ok(folder) => Ok(Beside {
                place: self,
                folder,
            }),
            Err(error) => Err(unwritten(&self.path, error)),
        }
    }
}

impl Beside {
    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the folder its name, which is returned.
    ///
    /// # Errors
    /// When that cannot be written (exit 5), or something else has come to its place meanwhile.
    pub(crate) fn finish(self) -> Result<PathBuf, Failure> {
        let Self { place, folder } = self;
        let files = fs::read_dir(folder.path()).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let named = files.and_then(|files| {
            for file in files {
                synced(&file.path())?;
            }
            synced(folder.path())?;
            fs::rename(folder.path(), &place.path)
        });
        named.map_err(|error| unwritten(&place.path, error))?;
        // It has another name now: there is nothing left to remove.
        let _ = folder.keep();
        // It is there, whether or not the disk knows that already.
        let _ = synced(&place.parent);
        Ok(place.path)
    }
}

fn synced(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

fn unwritten(path: &Path, error: std::io::Error) -> Failure {
    Failure::io(format!("{} cannot be written", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn it_is_there_as_a_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let place = home.path().join("a/results");
        let beside = Place::free(&place).unwrap().begin().unwrap();
        fs::write(beside.path().join("one"), "1").unwrap();
        assert!(!place.exists());
        drop(beside);
        assert_eq!(count(&home.path().join("a")), 0, "nothing is left");
        let beside = Place::free(&place).unwrap().begin().unwrap();
        fs::write(beside.path().join("one"), "1").unwrap();
        assert_eq!(beside.finish().unwrap(), place.canonicalize().unwrap());
        assert_eq!(fs::read_to_string(place.join("one")).unwrap(), "1");
        assert_eq!(count(&home.path().join("a")), 1, "nothing else is left");
    }

    #[test]
    fn what_is_there_stays() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        for place in [home.path(), file.as_path(), Path::new("/")] {
            assert_eq!(Place::free(place).unwrap_err().exit.code(), 2, "{place:?}");
        }
        let below = Place::free(&file.join("below")).unwrap();
        assert_eq!(below.begin().unwrap_err().exit.code(), 5);
        // An empty folder is replaced, also where a link points to it.
        let (empty, link) = (home.path().join("empty"), home.path().join("link"));
        fs::create_dir(&empty).unwrap();
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        let beside = Place::free(&link).unwrap().begin().unwrap();
        // Something comes to its place meanwhile.
        fs::write(empty.join("other"), "").unwrap();
        assert_eq!(beside.finish().unwrap_err().exit.code(), 5);
        assert_eq!(count(&empty), 1);
    }
}
