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
mod wheels;

/// What `tch` is made for.
pub(crate) const VERSION: &str = "2.11.0";

/// `cargo xtask setup`
pub(crate) fn run() -> Outcome {
    let place = ensure()?;
    ui::say(format_args!("libtorch {VERSION}: {}", place.display()));
    Ok(())
}

/// Makes sure that the worker can be built, and returns the folder of libtorch.
pub(crate) fn ensure() -> Outcome<PathBuf> {
    machine::compiler()?;
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return of_python();
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

fn of_user(place: PathBuf) -> Outcome<PathBuf> {
    let version = fs::read_to_string(place.join("build-version")).unwrap_or_default();
    let here = place.join("lib/libtorch_cpu.so").is_file();
    if here && version.trim().split('+').next() == Some(VERSION) {
        return Ok(place);
    }
    let found = match (here, version.trim()) {
        (false, _) => "holds no lib/libtorch_cpu.so".to_owned(),
        (true, "") => "has no build-version file".to_owned(),
        (true, version) => format!("is version {version}"),
    };
    Err(Fault::environment(format!(
        "LIBTORCH={} {found}, but {VERSION} is needed: point it at a libtorch {VERSION}, or unset \
         it and run `cargo xtask setup`",
        place.display()
    )))
}

fn of_python() -> Outcome<PathBuf> {
    let cure = format!(
        "activate an environment with torch {VERSION}, or unset LIBTORCH_USE_PYTORCH and run \
         `cargo xtask setup`"
    );
    let Some((version, place)) = python::torch()? else {
        return Err(Fault::environment(format!(
            "LIBTORCH_USE_PYTORCH is set, but Python cannot import torch: {cure}"
        )));
    };
    if version.split('+').next() == Some(VERSION) {
        return Ok(place);
    }
    Err(Fault::environment(format!(
        "Python's torch is {version}, not {VERSION}: {cure}"
    )))
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

    #[test]
    fn a_libtorch_of_the_user_must_be_there_and_of_the_right_version() {
        let fault = of_user("/nonexistent".into()).expect_err("nothing is there");
        assert_eq!(fault.exit, crate::fault::ENVIRONMENT);
        assert!(fault.to_string().contains("cargo xtask setup"));
    }
}
