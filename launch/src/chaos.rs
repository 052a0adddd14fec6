//! `mks2 chaos`: a real job with real processes that are killed, stopped, cut off and replaced, before
//! and behind it the same job undisturbed, and what the difference is.
//!
//! | module | what |
//! |---|---|
//! | [`schedule`] | what goes wrong and when, drawn from the seed: pure |
//! | [`outcome`], [`capacity`], [`score`] | what became of it, and what it cost: pure |
//! | [`story`] | what was seen of a run |
//! | [`setup`], [`cluster`], [`proxy`] | processes, and the bad network between them |
//! | [`disturbed`], [`quiet`] | the two runs |
//! | [`observe`] | reads what a run writes, as it is written |
//! | [`view`] | the result as text and JSON |

mod capacity;
mod chance;
mod cluster;
mod disturbed;
mod observe;
mod outcome;
mod ports;
mod proxy;
mod quiet;
mod schedule;
mod score;
mod setup;
mod spans;
mod story;
mod view;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mks2_proto::failure::Failure;

use crate::cli::JobArgs;
use crate::ledger;
use crate::output::Output;
use crate::train::signals::Signals;
use crate::units::clock;
use quiet::Quiet;
use schedule::Rhythm;
use setup::Setup;
use view::Report;

/// Name of the report in the folder of a chaos.
const REPORT: &str = "chaos.json";

const EXAMPLES: &str = "\
Examples:
  mks2 chaos examples/emoji/job.toml --kill-every 15s --coordinator-every 60s --for 10m --seed 1
      Ten minutes under fire between two parts of the quiet run, then the score.
  mks2 chaos job.toml --kill-every 5s --stop-every 0 --cut-every 0 --scale-every 0 --for 2m
      Kills alone.
  mks2 chaos job.toml --for 10m --seed 7 --json | jq '.score.goodput'

The same seed gives the same faults at the same times. When the time is over, the run goes on
undisturbed to its next checkpoint. A quiet run begins before, for half of the time, and goes on after
it to the same step. Both run directories, logs included, stay in the folder --out, with the report in
chaos.json.

Ends with 8 if a row was lost or used twice, if a bit differs from the quiet run, or if the ledger
does not hold.";

/// Options of `chaos`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ChaosArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Workers on this machine
    #[arg(long, default_value_t = 4, value_name = "N")]
    workers: u32,
    /// How often a worker is killed (kill -9) [0: never]
    #[arg(long, default_value = "15s", value_name = "TIME", value_parser = spans::parse)]
    kill_every: Duration,
    /// How often the coordinator is killed, to come back at the same or at another address
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = spans::parse)]
    coordinator_every: Duration,
    /// How often a worker is stopped for a while (SIGSTOP)
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = spans::parse)]
    stop_every: Duration,
    /// How often a worker is cut off from the coordinator, or its peers from it
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = spans::parse)]
    cut_every: Duration,
    /// How often a worker is let go, and another one joins
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = spans::parse)]
    scale_every: Duration,
    /// How long faults are made
    #[arg(long = "for", default_value = "10m", value_name = "TIME", value_parser = spans::parse)]
    length: Duration,
    /// What the faults are drawn from
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// A new folder for both runs [default: runs/chaos-NAME-SEED]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ChaosArgs {
    fn rhythm(&self) -> Rhythm {
        Rhythm {
            kill: self.kill_every,
            stop: self.stop_every,
            cut: self.cut_every,
            scale: self.scale_every,
            coordinator: self.coordinator_every,
            length: self.length,
        }
    }
}

/// Runs a job under chaos and quietly, and compares.
///
/// # Errors
/// Job (exit 3), corpora (4), a folder that is not empty (2), a run that fails or stands still (7),
/// and 8 where something was lost, used twice, or is different.
pub(crate) async fn run(args: &ChaosArgs, output: &Output) -> Result<(), Failure> {
    let setup = Setup::prepare(args).await?;
    let mut signals = Signals::listen()?;
    let rhythm = args.rhythm();
    let plan = schedule::schedule(args.seed, &rhythm);
    output.note(&format!(
        "{} workers, {} faults in {} from seed {}, in {}",
        setup.workers,
        plan.len(),
        clock(rhythm.length),
        args.seed,
        setup.out.display()
    ));
    let mut quiet = Quiet::new(&setup, setup.out.join("quiet"), output);
    output.note("the quiet run, its first part, to compare with and to measure");
    Box::pin(quiet.before(rhythm.length / 2, &mut signals)).await?;
    let folder = setup.out.join("chaos");
    let what = (plan.as_slice(), rhythm.length);
    let chaos = Box::pin(disturbed::run(&setup, &folder, what, &mut signals, output)).await?;
    let last = chaos.weights.last_key_value().map_or(0, |(step, _)| *step);
    let itinerary = quiet::itinerary(&chaos, setup.workers);
    output.note(&format!("the quiet run goes on, to step {last}"));
    let quiet = Box::pin(quiet.after(&itinerary, last, &mut signals)).await?;
    let violations = ledger::violations(&folder.display().to_string()).await?;
    let report = Report {
        command: std::env::args().collect(),
        seed: args.seed,
        workers: setup.workers,
        rhythm,
        plan,
        load_under_chaos: chaos.load,
        load_of_quiet_run: quiet.load,
        ledger_holds: violations.is_empty(),
        violations,
        score: score::score(&chaos, &quiet, &setup.course),
    };
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| Failure::internal("the score has no JSON", error.to_string()))?;
    let path = setup.out.join(REPORT);
    std::fs::write(&path, &json)
        .map_err(|error| Failure::io(format!("{} cannot be written", path.display()), error))?;
    match args.json || output.is_json() {
        true => output.result(&json),
        false => output.result(&view::text(&report)),
    }
    view::verdict(&report, &path)
}
