//! Where things are: the checkout and the per-user cache.

use std::env;
use std::path::{Path, PathBuf};

use crate::fault::{Fault, Outcome};

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    // This package lies directly below it.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// `${XDG_CACHE_HOME:-~/.cache}/mks2`, shared by all checkouts of this user.
pub(crate) fn cache() -> Outcome<PathBuf> {
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("mks2"))
        .ok_or_else(|| Fault::environment("HOME is not set: set it, or set XDG_CACHE_HOME"))
}

/// A binary of this workspace after a build.
pub(crate) fn binary(profile: &str, name: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root()
        .join(target.unwrap_or_else(|| "target".into()))
        .join(profile)
        .join(name)
}

/// Finds a program in PATH, as a shell would.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
