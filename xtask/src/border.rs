//! Proves the borders of the workspace from Cargo's own view of it.

use std::collections::BTreeMap;
use std::fs;

use crate::fault::{Fault, Outcome};
use crate::{places, shell, ui};

/// The packages that must build without libtorch, with everything below them.
const WITHOUT_LIBTORCH: [&str; 5] = [
    "mks2-proto",
    "mks2-dataset",
    "mks2-coordinator",
    "mks2",
    "xtask",
];
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];
/// Two versions of one of these in a binary mean two worlds that do not know each other.
const ONE_VERSION: [&str; 7] = [
    "arrow-array",
    "object_store",
    "opentelemetry",
    "parquet",
    "prost",
    "rustls",
    "tonic",
];

/// Fails when libtorch is reachable from anywhere but the worker, or a shared crate is doubled.
pub(crate) fn prove() -> Outcome {
    for package in WITHOUT_LIBTORCH {
        let tree = shell::read(&mut tree_of(package))?;
        if let Some(found) = names(&tree).find(|name| LIBTORCH.contains(name)) {
            return Err(Fault::new(format!(
                "{package} depends on {found}: only mks2-worker may link libtorch; see `cargo tree \
                 --package {package} --invert {found}`"
            )));
        }
    }
    let worker = shell::read(&mut tree_of("mks2-worker"))?;
    if !LIBTORCH
        .iter()
        .all(|name| names(&worker).any(|found| found == *name))
    {
        return Err(Fault::new(
            "mks2-worker does not depend on tch: the border check sees nothing",
        ));
    }
    ui::say(format_args!(
        "libtorch is reachable from mks2-worker only, not from {}",
        WITHOUT_LIBTORCH.join(", ")
    ));
    one_version_each()
}

fn tree_of(package: &str) -> std::process::Command {
    shell::cargo(&[
        "tree",
        "--package",
        package,
        "--edges",
        "normal,build",
        "--prefix",
        "none",
    ])
}

/// The first word of each line of `cargo tree --prefix none`.
fn names(tree: &str) -> impl Iterator<Item = &str> {
    tree.lines()
        .filter_map(|line| line.split_whitespace().next())
}

fn one_version_each() -> Outcome {
    let path = places::root().join("Cargo.lock");
    let lock = fs::read_to_string(&path).map_err(|error| Fault::file("read", &path, &error))?;
    let versions = versions(&lock);
    for name in ONE_VERSION {
        let found = versions.get(name).map(Vec::as_slice).unwrap_or_default();
        if found.len() != 1 {
            return Err(Fault::new(format!(
                "{name} is in Cargo.lock {} times ({}): one version is wanted; see `cargo tree \
                 --duplicates`",
                found.len(),
                found.join(", ")
            )));
        }
    }
    ui::say(format_args!(
        "one version each of {}",
        ONE_VERSION.join(", ")
    ));
    Ok(())
}

/// Versions by package name.
fn versions(lock: &str) -> BTreeMap<&str, Vec<&str>> {
    let value =
        |line: &'_ str| -> Option<(usize, usize)> { Some((line.find('"')? + 1, line.rfind('"')?)) };
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        let Some((start, end)) = value(line).filter(|(start, end)| start <= end) else {
            continue;
        };
        if line.starts_with("name = ") {
            name = &line[start..end];
        } else if line.starts_with("version = ") && !name.is_empty() {
            versions.entry(name).or_default().push(&line[start..end]);
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n\
                    [[package]]\nname = \"a\"\nversion = \"2.0.0\"\n";
        assert_eq!(versions(lock)["a"], ["1.0.0", "2.0.0"]);
    }

    #[test]
    fn a_tree_is_read_by_its_first_words() {
        let tree = "mks2 v0.1.0 (/src)\ntch v0.24.0\ntokio v1.0.0 (*)";
        assert!(names(tree).any(|name| name == "tch"));
    }
}
