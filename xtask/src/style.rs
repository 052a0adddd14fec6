//! Rules of the source text that no other tool checks.

use std::fs;
use std::path::Path;

use crate::fault::{Fault, Outcome};
use crate::{places, shell, ui};

/// Lines of a Rust file, its tests included.
const LONGEST_FILE: usize = 500;
const GENERATED: &str = "proto/src/gen/";

/// Checks every Rust file that git knows or would add.
pub(crate) fn check() -> Outcome {
    let listed = shell::read(shell::program("git").args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ]))?;
    let files: Vec<&str> = listed
        .lines()
        .filter(|file| !file.starts_with(GENERATED))
        .collect();
    let complaints: Vec<String> = files
        .iter()
        .flat_map(|file| complaints_of(file, &places::root().join(file)))
        .collect();
    if complaints.is_empty() {
        ui::say(format_args!("{} Rust files keep the rules", files.len()));
        return Ok(());
    }
    Err(Fault::new(format!(
        "rules of CONTRIBUTING.md are broken:\n  {}",
        complaints.join("\n  ")
    )))
}

fn complaints_of(name: &str, path: &Path) -> Vec<String> {
    // A file that was just deleted or moved is not there to be checked.
    let Ok(text) = fs::read_to_string(path) else {
        return Vec::new();
    };
    let mut complaints = Vec::new();
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        complaints.push(format!(
            "{name}: {lines} lines, {LONGEST_FILE} are the limit"
        ));
    }
    if name.ends_with("/mod.rs") {
        complaints.push(format!(
            "{name}: modules are NAME.rs beside NAME/, not mod.rs"
        ));
    }
    let explained = text.starts_with("//!") || text.starts_with("#!");
    if !explained && !name.ends_with("/tests.rs") {
        complaints.push(format!(
            "{name}: begins without a `//!` line that says what it is for"
        ));
    }
    let unfinished = [
        concat!("to", "do!("),
        concat!("un", "implemented!("),
        concat!("(being ", "written)"),
    ];
    for (number, line) in text.lines().enumerate() {
        if unfinished.iter().any(|mark| line.contains(mark)) {
            complaints.push(format!("{name}:{}: unfinished", number + 1));
        }
    }
    complaints
}
