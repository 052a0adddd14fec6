//! libtorch 2.11.0 for this checkout: the user's own, or three pinned wheels in the per-user cache.
//!
//! The cache entry appears by one rename, so it is complete or absent; a lock keeps two set-ups
//! from fetching the same thing, and what a killed one left behind is removed by the next.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::fault::{Fault, Outcome};
use crate::places;
use crate::python;
use crate::ui;

mod machine;
#[path = "../../worker/build/version.rs"]
mod version;
mod wheels;

use version::{VERSION, VERSION_FILE};

/// `cargo xtask setup`
pub(crate) fn run() -> Outcome {
    let place = ensure()?;
    ui::say(format_args!("libtorch {VERSION}: {}", place.display()));
    Ok(())
}

/// Makes sure that the worker can be built, and returns where libtorch is.
pub(crate) fn ensure() -> Outcome<PathBuf> {
    machine::compiler()?;
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return of_python(&python::answer(version::ASK_PYTHON)?);
    }
    if let Some(own) = env::var_os("LIBTORCH").map(PathBuf::from) {
        // Cargo sets the variable to the link for everything that it runs.
        if own != link() {
            return of_user(own);
        }
    }
    let cached = places::cache()?.join(format!("libtorch-{VERSION}"));
    if !wheels::is_complete(&cached) {
        fetch(&cached)?;
    }
    point_link_at(&cached)?;
    Ok(cached)
}

fn link() -> PathBuf {
    places::root().join(".libtorch")
}

fn of_user(root: PathBuf) -> Outcome<PathBuf> {
    match version::of_folder(&root, &root.join("lib")) {
        Ok(_) => Ok(root),
        Err(wrong) => Err(Fault::environment(format!(
            "LIBTORCH is set, but {wrong}: point it at a libtorch {VERSION}, or unset it and run \
             `cargo xtask setup`"
        ))),
    }
}

fn of_python(answer: &str) -> Outcome<PathBuf> {
    version::of_python(answer).map_err(|wrong| Fault::environment(version::python_refused(&wrong)))
}

fn fetch(cached: &Path) -> Outcome {
    machine::platform()?;
    let cache = cached.parent().unwrap_or(cached);
    fs::create_dir_all(cache).map_err(|error| Fault::file("make", cache, &error))?;
    // Held until it is dropped; the system lets it go when the process is killed.
    let _lock = lock(&beside(cached, "lock"))?;
    if wheels::is_complete(cached) {
        return Ok(());
    }
    let python = python::with_pip()?;
    machine::space(cache)?;
    let partial = beside(cached, "partial");
    clear(&partial)?;
    let downloads = beside(cached, "wheels");
    ui::say(format_args!(
        "fetching libtorch {VERSION} (519 MiB, once per user)"
    ));
    let files = wheels::download(&python, &downloads)?;
    ui::say("unpacking");
    wheels::unpack(&python, &files, &partial)?;
    clear(cached)?;
    fs::rename(&partial, cached).map_err(|error| Fault::file("make", cached, &error))?;
    clear(&downloads)
}

/// A neighbour of the cache entry; its name contains dots, so it has no extension to replace.
fn beside(cached: &Path, what: &str) -> PathBuf {
    let mut name = cached.as_os_str().to_owned();
    name.push(format!(".{what}"));
    name.into()
}

fn lock(path: &Path) -> Outcome<File> {
    let file = File::create(path).map_err(|error| Fault::file("make", path, &error))?;
    if file.try_lock().is_err() {
        ui::say("another set-up is under way: waiting for it");
        file.lock()
            .map_err(|error| Fault::file("lock", path, &error))?;
    }
    Ok(file)
}

fn clear(path: &Path) -> Outcome {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Fault::file("remove", path, &error))
        }
        _ => Ok(()),
    }
}

/// Makes `.libtorch` lead to the cache, by one rename.
fn point_link_at(cached: &Path) -> Outcome {
    let link = link();
    if fs::read_link(&link).is_ok_and(|now| now == cached) {
        return Ok(());
    }
    if link.is_dir() && !link.is_symlink() {
        return Err(Fault::environment(format!(
            "{} is a folder where a link belongs: move it away, or set LIBTORCH to it",
            link.display()
        )));
    }
    let new = link.with_extension(format!("new-{}", std::process::id()));
    symlink(cached, &new)
        .and_then(|()| fs::rename(&new, &link))
        .map_err(|error| Fault::file("make", &link, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_the_cache_entry_keep_its_whole_version() {
        let cached = Path::new("/cache/libtorch-2.11.0");
        assert_eq!(
            beside(cached, "lock"),
            Path::new("/cache/libtorch-2.11.0.lock")
        );
    }

    /// A folder that looks like a libtorch.
    fn libtorch(version: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("lib")).expect("made");
        fs::write(folder.path().join("lib/libtorch_cpu.so"), b"").expect("written");
        fs::write(folder.path().join(VERSION_FILE), version).expect("written");
        folder
    }

    #[track_caller]
    fn refused(outcome: Outcome<PathBuf>, words: &[&str]) {
        let fault = outcome.expect_err("it does not fit");
        assert_eq!(fault.exit, crate::fault::ENVIRONMENT);
        let sentence = fault.to_string();
        for word in words.iter().chain(&["cargo xtask setup"]) {
            assert!(sentence.contains(word), "'{word}' is not in: {sentence}");
        }
    }

    #[test]
    fn a_libtorch_of_the_user_must_be_there_and_of_the_right_version() {
        let missing = of_user("/nonexistent".into());
        refused(missing, &["LIBTORCH is set", "/nonexistent/lib", VERSION]);
        let older = libtorch("2.10.0+cpu\n");
        let place = older.path().display().to_string();
        let words = [place.as_str(), "is 2.10.0+cpu, not 2.11.0", "unset it"];
        refused(of_user(older.path().into()), &words);
        for right in ["2.11.0", "2.11.0+cu128\n"] {
            let right = libtorch(right);
            let taken = of_user(right.path().into()).expect("it fits");
            assert_eq!(taken, right.path());
        }
    }

    #[test]
    fn without_its_version_only_a_libtorch_with_headers_is_taken() {
        let unnamed = libtorch("");
        fs::remove_file(unnamed.path().join(VERSION_FILE)).expect("removed");
        refused(
            of_user(unnamed.path().into()),
            &[VERSION_FILE, "unreadable"],
        );
        fs::create_dir_all(unnamed.path().join("include/torch")).expect("made");
        of_user(unnamed.path().into()).expect("as Debian installs it");
    }

    #[test]
    fn the_torch_of_a_python_must_be_there_and_of_the_right_version() {
        let folder = libtorch("not looked at");
        let root = folder.path().display();
        refused(
            of_python(""),
            &["LIBTORCH_USE_PYTORCH is set", "can not import torch"],
        );
        let older = of_python(&format!("2.10.0+cpu\n{root}\n"));
        refused(
            older,
            &["is 2.10.0+cpu, not 2.11.0", "activate an environment"],
        );
        let empty = of_python("2.11.0+cpu\n/nonexistent\n");
        refused(empty, &["is not at /nonexistent/lib"]);
        let right = of_python(&format!("2.11.0+cpu\n{root}\n")).expect("it fits");
        assert!(right.ends_with("lib"), "{}", right.display());
    }
}
