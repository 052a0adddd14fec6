//! `cargo xtask fuzz`: libFuzzer on what reads files from strangers.

use std::fs;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::fault::{Fault, Outcome};
use crate::ui::{self, Stages};
use crate::{places, shell};

/// What libFuzzer needs of the compiler: a counter at each edge. All of it is in stable Rust.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";
/// The same triple as the host's: else build scripts would be instrumented, too.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What can be fuzzed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Files of weights.
    Safetensors,
    /// config.json of published models.
    Config,
    /// Pictures.
    Picture,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Config => "config",
            Self::Picture => "picture",
        }
    }

    /// Files of this kind, to begin with.
    fn is_seed(self, name: &str) -> bool {
        match self {
            Self::Safetensors => name.ends_with(".safetensors"),
            Self::Config => name == "config.json",
            Self::Picture => [".png", ".jpg", ".webp"]
                .iter()
                .any(|end| name.ends_with(end)),
        }
    }

    /// Longest input, bytes.
    fn longest(self) -> u64 {
        match self {
            Self::Safetensors => 16 << 10,
            Self::Config => 8 << 10,
            Self::Picture => 64 << 10,
        }
    }
}

/// What to fuzz and for how long.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Subjects; all when none is named.
    #[arg(value_enum)]
    subjects: Vec<Subject>,
    /// Seconds for each.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let mut stages = Stages::default();
    let subjects = match arguments.subjects.as_slice() {
        [] => Subject::value_variants(),
        named => named,
    };
    stages.run("build", build)?;
    for subject in subjects {
        stages.run(subject.name(), || fuzz(*subject, arguments.seconds))?;
    }
    stages.table();
    Ok(())
}

fn folder() -> PathBuf {
    places::root().join("target/fuzz")
}

fn build() -> Outcome {
    let manifest = places::root().join("fuzz/Cargo.toml");
    let mut command = shell::cargo(&["build", "--release", "--target", TARGET]);
    command.arg("--manifest-path").arg(manifest);
    command.arg("--target-dir").arg(folder());
    shell::run(command.env("RUSTFLAGS", COVERAGE))
}

/// Inputs that found something new stay, for the next time.
fn fuzz(subject: Subject, seconds: u64) -> Outcome {
    let name = subject.name();
    let corpus = folder().join("corpus").join(name);
    fs::create_dir_all(&corpus).map_err(|error| Fault::file("make", &corpus, &error))?;
    for seed in seeds(subject)? {
        let copy = corpus.join(seed.replace('/', "-"));
        let seed = places::root().join(seed);
        fs::copy(&seed, &copy).map_err(|error| Fault::file("copy", &seed, &error))?;
    }
    let found = folder().join(format!("found-{name}-"));
    let mut command = shell::program(folder().join(TARGET).join("release").join(name));
    command.arg(&corpus);
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={}", subject.longest()));
    command.arg(format!("-artifact_prefix={}", found.display()));
    command.args(["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    shell::run(&mut command).map_err(|_| {
        ui::say(format_args!("the input is in {}*", found.display()));
        Fault::new(format!("{name}: an input was found that it cannot take"))
    })
}

/// Files of the repository, as git knows them.
fn seeds(subject: Subject) -> Outcome<Vec<String>> {
    let listed = shell::read(shell::program("git").args(["ls-files"]))?;
    let of_subject = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        subject.is_seed(name)
    };
    let files = listed.lines().filter(of_subject).map(str::to_owned);
    Ok(files.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_something_to_begin_with() {
        for subject in Subject::value_variants() {
            let seeds = seeds(*subject).expect("listed");
            assert!(seeds.len() > 2, "{subject:?}: {seeds:?}");
        }
    }
}
