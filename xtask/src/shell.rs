//! Running other programs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use crate::fault::{Fault, Outcome};
use crate::places;
use crate::ui;

/// A program started in the root of the checkout.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(places::root());
    command
}

/// Cargo itself, the one that runs this command.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What `cargo run` has set for this process is not meant for the next cargo.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// Runs a command with the terminal as its output; any end but success is a fault.
pub(crate) fn run(command: &mut Command) -> Outcome {
    ui::say(format_args!("    $ {}", text(command)));
    let status = command
        .status()
        .map_err(|error| not_started(command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(Fault::new(format!(
        "`{}` ended with {status}",
        text(command)
    )))
}

/// Runs a command and returns all that it printed, whatever its end.
pub(crate) fn output(command: &mut Command) -> Outcome<Output> {
    command
        .output()
        .map_err(|error| not_started(command, &error))
}

/// Runs a command that must succeed and returns its standard output.
pub(crate) fn read(command: &mut Command) -> Outcome<String> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(12).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(Fault::new(format!(
        "`{}` ended with {}:\n{}",
        text(command),
        output.status,
        last.join("\n")
    )))
}

/// Runs a command, prints each line of its standard output and hands it to `see`. True: success.
pub(crate) fn watch(command: &mut Command, mut see: impl FnMut(&str)) -> Outcome<bool> {
    ui::say(format_args!("    $ {}", text(command)));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| not_started(command, &error))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(|error| not_started(command, &error))?;
            let line = String::from_utf8_lossy(&line);
            ui::say(&line);
            see(&line);
        }
    }
    let status = child.wait().map_err(|error| not_started(command, &error))?;
    Ok(status.success())
}

/// The command as one would type it, with paths relative to the checkout.
fn text(command: &Command) -> String {
    let root = format!("{}/", places::root().display());
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| word.to_string_lossy().replace(&root, ""));
    words.collect::<Vec<_>>().join(" ")
}

fn not_started(command: &Command, error: &std::io::Error) -> Fault {
    let name = command.get_program().to_string_lossy();
    Fault::environment(format!(
        "{name} cannot be run ({error}): install it or put it into PATH"
    ))
}
