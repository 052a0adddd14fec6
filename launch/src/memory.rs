//! `mks2 memory`: what a run has stored from pictures, for other runs with the same language model.
//!
//! | module | what |
//! |---|---|
//! | [`run`] | the memory stages of a run, and what they were made from |
//! | [`export`] | out of a run into a folder of its own |
//! | [`show`] | a memory's card, for people, programs and job files |
//! | [`list`] | what there is in a folder or in a run |
//! | [`diff`] | two memories side by side |
//!
//! The artefact itself is [`mks2_dataset::memory`].

mod diff;
mod export;
mod list;
mod run;
mod show;

use clap::{Args, Subcommand};
use mks2_dataset::memory::{Artefact, write};
use mks2_dataset::store::Created;
use mks2_proto::failure::Failure;
use serde::Serialize;

use crate::output::Output;
use crate::units::plural;

const EXPORT_HELP: &str = "\
A memory is written once and never replaced. Exported again, it has the same id, and what is damaged there \
is written again. With it come the bridge \
and the retrieval head that were trained beside it, so that pictures can be shown to it.

Examples:
  mks2 memory export runs/flowers --out s3://bucket/memories/flowers --license CC-BY-4.0
  mks2 memory export runs/emoji --stage memory --out memories/emoji --name 'emoji, 90 epochs'";

const SHOW_HELP: &str = "\
The parts must be there with their sizes; with --deep they are read and held against their digests.

Examples:
  mks2 memory show s3://bucket/memories/flowers
  mks2 memory show memories/flowers --deep --json | jq -r .id
  mks2 memory show memories/flowers --job
      The tables of a job file that attaches this memory.";

const LIST_HELP: &str = "\
Examples:
  mks2 memory list s3://bucket/memories
      The memories in the folders of this folder.
  mks2 memory list runs/emoji
      The memory stages of a run, and how far they are.";

const IMPORT_HELP: &str = "\
Every part is held against its digest on the way. The copy is there as a whole or not at all, has the same \
id, and replaces nothing. Where it was before, its damaged parts are written again.

Example:
  mks2 memory import s3://bucket/memories/flowers --into memories/flowers";

const DIFF_HELP: &str = "\
The distance is that of all weights of a block, relative to the first memory; the cosine is that of the \
angle between them.

Examples:
  mks2 memory diff memories/flowers s3://bucket/memories/flowers-2
  mks2 memory diff memories/a memories/b --json | jq '.weights[].cosine'";

/// What can be done with memories.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum MemoryCommand {
    /// List the memories in a folder, or the memory stages of a run
    #[command(after_long_help = LIST_HELP)]
    List(ListArgs),
    /// Show what a memory is, and check that all of it is there
    #[command(after_long_help = SHOW_HELP)]
    Show(ShowArgs),
    /// Write the memory of a finished stage into a folder of its own
    #[command(after_long_help = EXPORT_HELP)]
    Export(ExportArgs),
    /// Copy a memory to another folder or store, and verify it on the way
    #[command(after_long_help = IMPORT_HELP)]
    Import(ImportArgs),
    /// Compare two memories: cards, and weights block by block
    #[command(after_long_help = DIFF_HELP)]
    Diff(DiffArgs),
}

/// `mks2 memory list`
#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    /// A folder with memories, or a run directory: a path or any object store URL
    #[arg(value_name = "URL|RUN")]
    place: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `mks2 memory show`
#[derive(Clone, Debug, Args)]
pub(crate) struct ShowArgs {
    /// Path or URL of the memory's folder
    url: String,
    /// Read all parts and compare their digests
    #[arg(long)]
    deep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the tables of a job file that attaches this memory
    #[arg(long, conflicts_with = "json")]
    job: bool,
}

/// `mks2 memory export`
#[derive(Clone, Debug, Args)]
pub(crate) struct ExportArgs {
    /// The run directory: a path or any object store URL
    #[arg(value_name = "RUN")]
    run: String,
    /// The memory stage, if the run has several
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// The folder that the memory will be: a path or any object store URL
    #[arg(long, value_name = "URL")]
    out: String,
    /// What people call it [default: the name of the stage]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Under which licence others may use it: an SPDX name
    #[arg(long, alias = "licence", value_name = "LICENCE")]
    license: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `mks2 memory import`
#[derive(Clone, Debug, Args)]
pub(crate) struct ImportArgs {
    /// Path or URL of the memory's folder
    url: String,
    /// The folder that the copy will be: a path or any object store URL
    #[arg(long, value_name = "URL")]
    into: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `mks2 memory diff`
#[derive(Clone, Debug, Args)]
pub(crate) struct DiffArgs {
    /// Path or URL of one memory's folder
    a: String,
    /// Path or URL of the other one's
    b: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
///
/// # Errors
/// A run, stage or place that it cannot be (exit 2), storage (5), a memory that cannot be used (8).
pub(crate) async fn run(command: MemoryCommand, output: &Output) -> Result<(), Failure> {
    match command {
        MemoryCommand::List(args) => list::run(&args, output).await,
        MemoryCommand::Show(args) => show(&args, output).await,
        MemoryCommand::Export(args) => export::run(&args, output).await,
        MemoryCommand::Import(args) => import(&args, output).await,
        MemoryCommand::Diff(args) => diff::run(&args, output).await,
    }
}

async fn show(args: &ShowArgs, output: &Output) -> Result<(), Failure> {
    let artefact = Artefact::open(&args.url).await?;
    match args.deep {
        true => artefact.verify().await?,
        false => artefact.check_sizes().await?,
    }
    if args.job {
        output.result(&show::tables(&artefact, &args.url));
        return Ok(());
    }
    let shown = show::Shown::of(&artefact, args.deep);
    answer(args.json, &shown, || shown.render(), output)
}

async fn import(args: &ImportArgs, output: &Output) -> Result<(), Failure> {
    let from = Artefact::open(&args.url).await?;
    let written = write::copy(&from, &args.into).await?;
    tell(&written, args.json, output).await
}

/// Says what has been written, or was there before.
async fn tell(written: &write::Written, json: bool, output: &Output) -> Result<(), Failure> {
    let place = written.artefact.location();
    output.note(&match (written.created, written.mended) {
        (Created::New, _) => format!("the memory is in {place}"),
        (Created::Exists, 0) => format!("the same memory was in {place} already"),
        (Created::Exists, parts) => format!(
            "the same memory was in {place} already; missing or damaged, and written again: {}",
            plural(parts as u64, "part"),
        ),
    });
    written.artefact.check_sizes().await?;
    // What was there already has been read part by part.
    let shown = show::Shown::of(&written.artefact, true);
    answer(json, &shown, || shown.render(), output)
}

/// A result for programs or for people.
fn answer<T: Serialize>(
    json: bool,
    result: &T,
    text: impl FnOnce() -> String,
    output: &Output,
) -> Result<(), Failure> {
    if !json && !output.is_json() {
        output.result(&text());
        return Ok(());
    }
    let json = serde_json::to_string_pretty(result)
        .map_err(|error| Failure::internal("the answer has no JSON", error.to_string()))?;
    output.result(&json);
    Ok(())
}
