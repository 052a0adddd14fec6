//! `mks2 chaos`: a real job with real processes that are killed, stopped, cut off and replaced, by
//! turns with the same job undisturbed, and what the difference is.
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

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mks2_proto::failure::Failure;

use crate::cli::JobArgs;
use crate::ledger;
use crate::output::Output;
use crate::train::signals::Signals;
use crate::units::clock;
use disturbed::Disturbed;
use quiet::Quiet;
use schedule::Rhythm;
use setup::Setup;
use view::Report;

/// About so long is the run under fire before the quiet one goes on: the speed of a machine drifts
/// within minutes.
const SECTION: Duration = Duration::from_secs(60);
/// Name of the report in the folder of a chaos.
const REPORT: &str = "chaos.json";

const EXAMPLES: &str = "\
Examples:
  mks2 chaos examples/emoji/job.toml --kill-every 15s --coordinator-every 60s --for 10m --seed 1
      Ten minutes under fire by turns with the quiet run, then the score.
  mks2 chaos job.toml --kill-every 5s --stop-every 0 --cut-every 0 --scale-every 0 --for 2m
      Kills alone.
  mks2 chaos job.toml --for 10m --seed 7 --json | jq '.score.goodput'

The same seed gives the same faults at the same times. A quiet run of the same job begins before. Every
minute the run under fire goes on undisturbed to its next checkpoint and stops there, the quiet run goes
on to the same step, and then the other goes on: so both have the same steps at nearly the same time,
also on machines whose speed changes. Both run directories, logs included, stay in the folder --out,
with the report in chaos.json.

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

/// How many sections the time under fire is cut into.
fn sections(length: Duration) -> u32 {
    let sections = (length.as_secs_f64() / SECTION.as_secs_f64()).round();
    (sections as u32).max(1)
}

/// The sections' parts of a time.
fn parts(length: Duration, sections: u32) -> impl Iterator<Item = Range<Duration>> {
    let border = move |number: u32| match number == sections {
        true => length,
        false => length / sections * number,
    };
    (0..sections).map(move |number| border(number)..border(number + 1))
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
    let folder = setup.out.join("chaos");
    let mut quiet = Quiet::new(&setup, setup.out.join("quiet"), output);
    let mut chaos = Disturbed::new(&setup, folder.clone(), &plan, output);
    let sections = sections(rhythm.length);
    output.note("the quiet run, its first part, to compare with and to measure");
    let length = rhythm.length / sections / 2;
    Box::pin(quiet.before(length, &mut signals)).await?;
    for times in parts(rhythm.length, sections) {
        output.note(&format!(
            "the run under fire, {} to {}",
            clock(times.start),
            clock(times.end)
        ));
        let seen = Box::pin(chaos.section(times, &mut signals)).await?;
        let last = seen.weights.last_key_value().map_or(0, |(step, _)| *step);
        let itinerary = quiet::itinerary(seen, setup.workers);
        output.note(&format!("the quiet run goes on, to step {last}"));
        Box::pin(quiet.follow(&itinerary, last, &mut signals)).await?;
        if chaos.is_done() {
            break;
        }
    }
    let (chaos, quiet) = (chaos.finish()?, quiet.finish()?);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_about_a_minute_are_the_whole_time_without_gaps() {
        for (seconds, wanted) in [(5, 1), (60, 1), (89, 1), (91, 2), (200, 3), (600, 10)] {
            let length = Duration::from_secs(seconds);
            let count = sections(length);
            assert_eq!(count, wanted, "{seconds} s");
            let parts: Vec<_> = parts(length, count).collect();
            assert_eq!(parts.len(), count as usize);
            assert_eq!(parts[0].start, Duration::ZERO);
            assert_eq!(parts.last().map(|part| part.end), Some(length));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(parts.iter().all(|part| part.start < part.end));
        }
    }
}
