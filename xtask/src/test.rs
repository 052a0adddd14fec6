//! `cargo xtask test`: all checks and tests, in the order in which they fail fastest.

use std::path::PathBuf;

use crate::fault::{Fault, Outcome};
use crate::ui::{self, Stages};
use crate::{border, places, servers, setup, shell, style};

/// Runs everything; `quick` leaves out clippy and the tests that start processes.
pub(crate) fn run(quick: bool) -> Outcome {
    let mut stages = Stages::default();
    stages.run("set-up", setup::run)?;
    stages.run("formatting", || {
        shell::run(&mut shell::cargo(&["fmt", "--all", "--check"]))
    })?;
    stages.run("style", style::check)?;
    stages.run("borders", border::prove)?;
    dependencies(&mut stages)?;
    if quick {
        let units = ["--workspace", "--lib", "--bins"];
        stages.run("unit tests", || test(&units, &[]))?;
    } else {
        stages.run("clippy", clippy)?;
        stages.run("build", build)?;
        let variables = stages.run("servers of object stores", servers::variables)?;
        stages.run("tests", || test(&["--workspace"], &variables))?;
    }
    stages.table();
    Ok(())
}

/// Builds all tests, and with them the three programs that some of them start. Building the
/// programs apart would compile many dependencies once more, with fewer features.
fn build() -> Outcome {
    shell::run(&mut shell::cargo(&["test", "--workspace", "--no-run"]))?;
    for name in ["mks2", "mks2-coordinator", "mks2-worker"] {
        let program = places::binary("debug", name);
        if !program.is_file() {
            let path = program.display();
            return Err(Fault::new(format!(
                "{path} was not built: its package has no tests/"
            )));
        }
    }
    Ok(())
}

fn clippy() -> Outcome {
    let words = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ];
    shell::run(&mut shell::cargo(&words))
}

fn dependencies(stages: &mut Stages) -> Outcome {
    const NAME: &str = "licences and sources of dependencies";
    let installed = shell::output(&mut shell::cargo(&["deny", "--version"]))?
        .status
        .success();
    if installed {
        let words = ["deny", "check", "bans", "licenses", "sources"];
        return stages.run(NAME, || shell::run(&mut shell::cargo(&words)));
    }
    stages.skip(
        NAME,
        "cargo-deny is not installed (`cargo install --locked cargo-deny`)",
    );
    Ok(())
}

/// Runs `cargo test` to its end and closes with one line over all test binaries.
fn test(selection: &[&str], variables: &[(&str, PathBuf)]) -> Outcome {
    let mut totals = Totals::default();
    let mut command = shell::cargo(&["test", "--no-fail-fast"]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let passed = shell::watch(command.args(selection), |line| totals.read(line))?;
    ui::say(format_args!("\n{}", totals.closing_line()));
    if passed {
        return Ok(());
    }
    Err(Fault::new(match totals.failed.as_slice() {
        [] => "the tests could not be run to their end".to_owned(),
        names => format!("{} tests failed: {}", names.len(), names.join(", ")),
    }))
}

/// What the test binaries said in sum.
#[derive(Debug, Default)]
struct Totals {
    binaries: usize,
    passed: usize,
    ignored: usize,
    failed: Vec<String>,
}

impl Totals {
    /// Reads the closing line of a test binary, or that of a failed test.
    fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |word: &str| {
                let clause = counts
                    .split([';', '.'])
                    .find(|clause| clause.ends_with(word));
                clause.and_then(|clause| clause.split_whitespace().next()?.parse::<usize>().ok())
            };
            self.binaries += 1;
            self.passed += count(" passed").unwrap_or(0);
            self.ignored += count(" ignored").unwrap_or(0);
        } else if let Some(name) = failed_test(line) {
            self.failed.push(name.to_owned());
        }
    }

    fn closing_line(&self) -> String {
        format!(
            "{} tests passed, {} failed, {} ignored, in {} test binaries",
            self.passed,
            self.failed.len(),
            self.ignored,
            self.binaries
        )
    }
}

/// The name in `test some::name ... FAILED`.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_sums_over_test_binaries() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test a::works ... ok",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test b::breaks ... FAILED",
            "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            totals.read(line);
        }
        assert_eq!(
            totals.closing_line(),
            "16 tests passed, 1 failed, 1 ignored, in 2 test binaries"
        );
        assert_eq!(totals.failed, ["b::breaks"]);
    }
}
