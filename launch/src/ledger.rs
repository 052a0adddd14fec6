//! `mks2 ledger`: proves from what a run has left that every row was used as planned, and tells
//! which rows a step used and which steps used a row. Only reads, and takes no lock: the run may be
//! at work meanwhile.
//!
//! | module | what |
//! |---|---|
//! | [`read`] | the run directory: journal, metrics, manifests, parts |
//! | [`corpora`] | the corpora of a run, and the plans of its stages |
//! | [`usage`] | how often rows were used: pure |
//! | [`verify`], [`step`], [`row`] | the three questions |
//!
//! What is held against what is decided in [`mks2_coordinator::ledger`].

mod corpora;
mod read;
mod row;
mod step;
mod usage;
mod verify;

use clap::{Args, Subcommand};
use mks2_coordinator::ledger::Violation;
use mks2_proto::failure::Failure;
use serde::Serialize;

use crate::output::Output;
use crate::units::plural;

const VERIFY_EXAMPLES: &str = "\
Examples:
  mks2 ledger verify runs/emoji
      Journal, metrics and checkpoints against the plan.
  mks2 ledger verify s3://bucket/runs/emoji --deep
      Also reads every part of every checkpoint and compares its digest.

Ends with 8 if something is not as it must be, and says what to do about each.";

const STEP_EXAMPLE: &str =
    "Example:\n  mks2 ledger step runs/emoji 120 --json | jq '.rows[].digest'";

const ROW_EXAMPLES: &str = "\
Examples:
  mks2 ledger row runs/emoji 1f462
      A row by its key, in whichever of the run's corpora.
  mks2 ledger row runs/emoji $(mks2 ledger step runs/emoji 120 --json | jq -r '.rows[0].digest')
      A row by its digest: reads the corpora until it is found.";

/// What can be asked of the ledger.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Prove that every row was used as planned and every step committed once
    #[command(after_long_help = VERIFY_EXAMPLES)]
    Verify(VerifyArgs),
    /// Show the rows of a step, who computed them, and the first checkpoint with it
    #[command(after_long_help = STEP_EXAMPLE)]
    Step(StepArgs),
    /// Show the steps that used a row, and the checkpoints that contain it
    #[command(after_long_help = ROW_EXAMPLES)]
    Row(RowArgs),
}

/// Which run, and how to answer.
#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// The run directory: a path or any object store URL
    #[arg(value_name = "RUN")]
    run: String,
    /// Where a corpus of the run lies now, if it was moved; can be given many times
    #[arg(long = "corpus", value_name = "NAME=URL", value_parser = moved)]
    corpora: Vec<(String, String)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `mks2 ledger verify`
#[derive(Clone, Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Read every part of every checkpoint and compare its digest
    #[arg(long)]
    deep: bool,
}

/// `mks2 ledger step`
#[derive(Clone, Debug, Args)]
pub(crate) struct StepArgs {
    #[command(flatten)]
    run: RunArgs,
    /// The step, counted from 1 over all stages as in metrics.jsonl
    #[arg(value_name = "N")]
    step: u64,
}

/// `mks2 ledger row`
#[derive(Clone, Debug, Args)]
pub(crate) struct RowArgs {
    #[command(flatten)]
    run: RunArgs,
    /// The row's key, or its digest as `mks2 ledger step` shows it
    #[arg(value_name = "DIGEST_OR_KEY")]
    row: String,
}

fn moved(text: &str) -> Result<(String, String), String> {
    let (name, url) = text
        .split_once('=')
        .ok_or("it must be NAME=URL, for example emoji=data/emoji")?;
    Ok((name.to_owned(), url.to_owned()))
}

/// Answers one of the questions.
///
/// # Errors
/// No run (exit 2), corpora (4), storage (5), and 8 where something is not as it must be.
pub(crate) async fn run(command: LedgerCommand, output: &Output) -> Result<(), Failure> {
    match command {
        LedgerCommand::Verify(args) => Box::pin(verify::run(&args, output)).await,
        LedgerCommand::Step(args) => Box::pin(step::run(&args, output)).await,
        LedgerCommand::Row(args) => Box::pin(row::run(&args, output)).await,
    }
}

/// What is wrong with a run, its parts read and compared too; nothing: its ledger holds.
///
/// # Errors
/// No run (exit 2), storage (5).
pub(crate) async fn violations(run: &str) -> Result<Vec<Violation>, Failure> {
    Box::pin(verify::violations(run)).await
}

/// An answer, as JSON or as text.
fn show<T: Serialize>(
    answer: &T,
    text: impl FnOnce(&T) -> String,
    json: bool,
    output: &Output,
) -> Result<(), Failure> {
    if json || output.is_json() {
        let json = serde_json::to_string_pretty(answer)
            .map_err(|error| Failure::internal("the answer has no JSON", error.to_string()))?;
        output.result(&json);
    } else {
        output.result(&text(answer));
    }
    Ok(())
}

/// The failure of books that do not hold.
fn refusal(location: &str, violations: &[Violation], cure: String) -> Result<(), Failure> {
    let Some(first) = violations.first() else {
        return Ok(());
    };
    Err(Failure::checkpoint(
        format!("the ledger of {location} does not hold"),
        format!(
            "{}; the first: {}: {}",
            plural(violations.len() as u64, "violation"),
            first.place,
            first.what
        ),
        cure,
    ))
}
