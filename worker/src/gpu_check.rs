//! `mks2-worker gpu-check`: whether this machine's GPU computes what the CPU does.
//!
//! ```text
//! agreement   one step of each kind of stage on both devices: loss, every gradient, the exact sum
//! training    a short run on the GPU: its loss beside the CPU's, and the same bits a second time
//! ranks       NCCL with one rank and with two ranks, each a process of its own
//! ```
//!
//! It ends with one table. A check that cannot be done is a row of it too: a GPU machine is lent
//! for minutes, and all of its answers are wanted at once.

mod agreement;
mod ranks;
mod table;
mod training;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::job::StageKind;
use tch::Device;

use crate::device;
use crate::dispatch::check_libtorch;
use crate::rehearsal::Rehearsal;
use table::{Check, Limit};

/// Stages that are checked.
const STAGES: [StageKind; 3] = [StageKind::Bootstrap, StageKind::Memory, StageKind::Experts];

/// What to check, and with what.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true)]
pub struct Arguments {
    /// Job file whose stages are computed; its corpora must be imported.
    #[arg(long, required = true)]
    job: Option<PathBuf>,
    /// Device to check: cuda:N, or cpu to see that the checks themselves work.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Steps of the training run of each stage.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..))]
    steps: u64,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// One rank of the NCCL check, started by the check itself.
    #[command(hide = true)]
    Rank(ranks::Rank),
}

/// Checks the device and prints the table to `out`.
///
/// # Errors
/// When the job or the device cannot be used, a check failed, or `out` is closed.
pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    if let Some(Part::Rank(rank)) = &arguments.part {
        return ranks::run(rank, out);
    }
    let Some(path) = &arguments.job else {
        return Err(Failure::usage(
            "no job file was given",
            "the checks compute its stages",
            "give one with --job",
        ));
    };
    check_libtorch()?;
    let device = device::choose(&arguments.device, 0)?;
    let rehearsal = Rehearsal::open(path)?;
    device::prepare(rehearsal.job().threads);
    device::repeat_bits(device)?;
    let mut checks = Vec::new();
    for kind in STAGES {
        checks.extend(agreement::stage(&rehearsal, kind, device));
    }
    checks.push(agreement::exact_sum(device));
    for kind in STAGES {
        checks.extend(training::stage(&rehearsal, kind, device, arguments.steps));
    }
    for world in [1, 2] {
        checks.extend(nccl(device, world));
    }
    conclude(&checks, device, out)
}

/// The checks of NCCL, which needs a GPU.
fn nccl(device: Device, world: usize) -> Vec<Check> {
    match device {
        Device::Cuda(number) => ranks::check(number, world),
        _ => vec![Check::not_done(
            ranks::title(world),
            "NCCL needs a GPU, and the device is the CPU",
        )],
    }
}

fn conclude(checks: &[Check], device: Device, out: &mut dyn Write) -> Result<(), Failure> {
    table::write(checks, out).map_err(|e| Failure::io("the table cannot be written", e))?;
    let failed = checks.iter().filter(|check| check.has_failed()).count();
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::new(
        ExitCode::Internal,
        format!("{failed} of {} checks of {device:?} failed", checks.len()),
        "the table above says which",
        "report it with the table, the GPU's name and the driver's version",
    ))
}

/// A row for what could not even be computed.
fn undone(what: String, failure: &Failure) -> Check {
    Check::failed(what, format!("{}: {}", failure.what, failure.why))
}

/// A row that compares a number with its limit.
fn measured(what: String, found: f64, limit: Limit) -> Check {
    Check::measured(what, found, limit, String::new())
}
