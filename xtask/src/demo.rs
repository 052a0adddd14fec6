//! `cargo xtask demo`: what a user would do with a corpus and a job file of his own.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::fault::{Fault, Outcome};
use crate::ui::{self, Stages};
use crate::{places, setup, shell};

mod memory;
mod report;

pub(crate) use report::{Figures, percent};

/// Folder of the imported sample corpus, the sources of each corpus in it.
const CORPORA: [(&str, &str); 3] = [
    ("emoji", "emoji-{00000..00003}.tar"),
    ("colors-train", "color-questions-train.jsonl"),
    ("colors-test", "color-questions-test.jsonl"),
];

/// What the demo trains, and where.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Job file.
    #[arg(long, default_value = "examples/emoji/job.toml")]
    job: PathBuf,
    /// Run directory; a run that was interrupted there goes on.
    #[arg(long, default_value = "runs/demo")]
    run: PathBuf,
    /// Worker processes.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Removes the run directory first.
    #[arg(long)]
    fresh: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let mut stages = Stages::default();
    stages.run("set-up", setup::run)?;
    stages.run("release build", build)?;
    stages.run("import", import)?;
    let run = places::root().join(&arguments.run);
    if arguments.fresh && run.exists() {
        fs::remove_dir_all(&run).map_err(|error| Fault::file("remove", &run, &error))?;
    }
    let peak = stages.run("training", || {
        train(&arguments.job, &run, arguments.workers, &[])
    })?;
    stages.table();
    ui::say(format_args!(
        "\nlargest memory of all processes of the training: {:.2} GiB",
        peak as f64 / f64::from(1 << 30)
    ));
    let pages = run.join("report.html");
    if pages.is_file() {
        ui::say(format_args!("\nopen {} in a browser", pages.display()));
    }
    Ok(())
}

/// The three binaries, optimized.
pub(crate) fn build() -> Outcome {
    shell::run(&mut shell::cargo(&[
        "build",
        "--release",
        "--workspace",
        "--bins",
    ]))
}

/// Imports the sample corpus and its questions into `data/`.
pub(crate) fn import() -> Outcome {
    for (name, source) in CORPORA {
        let mut command = shell::program(places::binary("release", "mks2"));
        command.args(["data", "import", &format!("examples/emoji/corpus/{source}")]);
        shell::run(command.args(["--out", &format!("data/{name}")]))?;
    }
    Ok(())
}

/// Trains a job and returns the largest memory of all its processes together, in bytes.
pub(crate) fn train(job: &Path, run: &Path, workers: u32, settings: &[String]) -> Outcome<u64> {
    let mut command = shell::program(places::binary("release", "mks2"));
    command.arg("train").arg(job).arg("--run").arg(run);
    command.args(["--workers", &workers.to_string()]);
    command.args(settings.iter().flat_map(|setting| ["--set", setting]));
    let meter = memory::Meter::start();
    shell::run(&mut command)?;
    Ok(meter.stop())
}

/// The report of a finished run.
pub(crate) fn read_report(run: &Path) -> Outcome<Value> {
    let path = run.join("report.json");
    let text = fs::read_to_string(&path).map_err(|error| Fault::file("read", &path, &error))?;
    serde_json::from_str(&text)
        .map_err(|error| Fault::new(format!("{} is not JSON: {error}", path.display())))
}
