//! The one libtorch that fits, and what is wrong with others.
//!
//! The worker's build script and `cargo xtask setup` both include this file, so that neither takes
//! what the other refuses. Its tests are in `xtask/src/setup.rs`: a build script can have none.

use std::fs;
use std::path::{Path, PathBuf};

/// What `tch` is generated from; another version has other signatures.
pub(crate) const VERSION: &str = "2.11.0";

/// The file that names the version of a libtorch, in its folder.
pub(crate) const VERSION_FILE: &str = "build-version";

/// Makes Python tell the version of its torch, and on a second line the folder.
pub(crate) const ASK_PYTHON: &str =
    "import os, torch; print(torch.__version__); print(os.path.dirname(torch.__file__))";

/// Proves that the libtorch at `root`, with its libraries in `lib`, fits, and resolves the links in
/// `lib`.
pub(crate) fn of_folder(root: &Path, lib: &Path) -> Result<PathBuf, String> {
    let lib = with_libtorch(lib)?;
    let file = root.join(VERSION_FILE);
    match fs::read_to_string(&file) {
        Ok(found) => check(&found, root)?,
        // A system-wide libtorch has no such file; torch-sys takes it too.
        Err(_) if root.join("include/torch").is_dir() => {}
        Err(error) => return Err(format!("{} is unreadable ({error})", file.display())),
    }
    Ok(lib)
}

/// The folder of the libraries of a Python's torch, from its answer to [`ASK_PYTHON`].
pub(crate) fn of_python(answer: &str) -> Result<PathBuf, String> {
    let mut lines = answer.lines();
    let (Some(found), Some(root)) = (lines.next(), lines.next()) else {
        return Err("Python can not import torch".to_owned());
    };
    let root = Path::new(root);
    check(found, root)?;
    with_libtorch(&root.join("lib"))
}

/// One sentence on a Python whose torch is asked for and does not serve.
pub(crate) fn python_refused(wrong: &str) -> String {
    format!(
        "LIBTORCH_USE_PYTORCH is set, but {wrong}: activate an environment with torch {VERSION}, \
         or unset LIBTORCH_USE_PYTORCH and run `cargo xtask setup`"
    )
}

fn with_libtorch(lib: &Path) -> Result<PathBuf, String> {
    match fs::canonicalize(lib) {
        Ok(lib) if lib.join("libtorch_cpu.so").is_file() => Ok(lib),
        _ => Err(format!("libtorch {VERSION} is not at {}", lib.display())),
    }
}

/// What follows a plus names the build (`2.11.0+cpu`), not another version.
fn check(found: &str, root: &Path) -> Result<(), String> {
    let found = found.trim();
    if found.split('+').next() == Some(VERSION) {
        return Ok(());
    }
    let place = root.display();
    Err(format!("libtorch at {place} is {found}, not {VERSION}"))
}
