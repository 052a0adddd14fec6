//! The hidden `mks2-worker bench`: each measurement prints one line of JSON, for `cargo xtask bench`
//! to compare with a peer's.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use clap::{Args, Subcommand, ValueEnum};
use mks2_proto::failure::Failure;
use mks2_proto::job::StageKind;
use serde_json::Value;

use super::generate::{self, Generate};
use super::loss::{self, Loss};
use super::save::{self, Save};
use super::stage::{self, Measured};
use super::{CollectiveBench, adamw, adamw_bits, collectives};
use crate::device;
use crate::rehearsal::mesh;

/// Sums from this size on take long enough for a few of them to be a measurement.
const LARGE: usize = 1 << 20;

/// What to measure.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Sums over two processes of this machine, fast and exact; one line for each size.
    Collectives(Collectives),
    /// The optimizer's step beside that of tch.
    Adamw(Adamw),
    /// Digests of what the optimizer computes.
    AdamwBits(AdamwBits),
    /// A step of a stage, with fresh weights and the job's corpora.
    Step(Step),
    /// What a step of the memory stage spends beside its compute, and the loader alone.
    Overhead(Job),
    /// How long a checkpoint stops the step loop, and a step with and without one.
    Checkpoint(Step),
    /// The same with a large state, and the memory that it takes.
    Save(Save),
    /// What it costs to digest a worker's copy of the state, for a comparison with the others'.
    Audit(Step),
    /// What a token takes that a published model generates.
    Generate(Generate),
    /// The loss of a long text, by pieces and with all logits at once.
    Loss(Loss),
}

#[derive(Debug, Args)]
struct Collectives {
    /// Bytes of fp32.
    #[arg(long, default_values_t = [64 << 20, 4 << 10])]
    bytes: Vec<usize>,
    /// Measured sums of each mode; by default 20 of large sizes, 500 of small ones.
    #[arg(long)]
    repetitions: Option<usize>,
    /// Goes through sockets even within the machine.
    #[arg(long)]
    sockets: bool,
    /// Of the process that rank 0 starts.
    #[arg(long, requires = "addresses")]
    rank: Option<usize>,
    /// Where each rank listens.
    #[arg(long, value_delimiter = ',')]
    addresses: Vec<SocketAddr>,
}

#[derive(Debug, Args)]
struct Adamw {
    /// Millions of parameters.
    #[arg(long, default_value_t = 10)]
    millions: usize,
    /// Measured steps.
    #[arg(long, default_value_t = 20)]
    repetitions: usize,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

#[derive(Debug, Args)]
struct AdamwBits {
    /// Weights.
    #[arg(long, default_value_t = 100_003)]
    len: usize,
    /// Steps.
    #[arg(long, default_value_t = 5)]
    steps: u64,
}

#[derive(Debug, Args)]
struct Job {
    /// Job file.
    #[arg(long)]
    job: PathBuf,
}

#[derive(Debug, Args)]
struct Step {
    #[command(flatten)]
    job: Job,
    /// Kind of the stage.
    #[arg(long, value_enum)]
    stage: Kind,
}

impl Step {
    fn kind(&self) -> StageKind {
        self.stage.kind()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Bootstrap,
    Memory,
    Experts,
}

impl Kind {
    fn kind(self) -> StageKind {
        match self {
            Self::Bootstrap => StageKind::Bootstrap,
            Self::Memory => StageKind::Memory,
            Self::Experts => StageKind::Experts,
        }
    }
}

/// Measures and writes one line of JSON per measurement to `out`.
///
/// # Errors
/// When a job or its corpora cannot be read, a process cannot be started, or `out` is closed.
pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let found = match &arguments.subject {
        Subject::Collectives(settings) => return sums(settings, out),
        Subject::Adamw(settings) => {
            device::prepare(settings.threads);
            adamw(settings.millions, settings.repetitions)?
        }
        Subject::AdamwBits(settings) => adamw_bits(settings.len, settings.steps)?,
        Subject::Step(step) => stage::measure(&step.job.job, step.kind(), Measured::Step)?,
        Subject::Audit(step) => stage::measure(&step.job.job, step.kind(), Measured::Audit)?,
        Subject::Overhead(job) => stage::measure(&job.job, StageKind::Memory, Measured::Overhead)?,
        Subject::Checkpoint(step) => {
            stage::measure(&step.job.job, step.kind(), Measured::Checkpoint)?
        }
        Subject::Save(settings) => save::measure(settings)?,
        Subject::Generate(settings) => generate::measure(settings)?,
        Subject::Loss(settings) => loss::measure(settings)?,
    };
    write_line(out, &found)
}

fn write_line(out: &mut dyn Write, found: &Value) -> Result<(), Failure> {
    writeln!(out, "{found}").map_err(|e| Failure::io("the measurement cannot be written", e))
}

fn sums(settings: &Collectives, out: &mut dyn Write) -> Result<(), Failure> {
    device::prepare(1);
    for &bytes in &settings.bytes {
        let few = if bytes >= LARGE { 20 } else { 500 };
        let mut bench = CollectiveBench {
            rank: settings.rank.unwrap_or(0),
            addresses: settings.addresses.clone(),
            bytes,
            repetitions: settings.repetitions.unwrap_or(few),
            shared_memory: !settings.sockets,
        };
        if settings.rank.is_some() {
            collectives(&bench)?;
            continue;
        }
        bench.addresses = mesh::addresses(2)?;
        let mut peer = start_peer(&bench)?;
        let found = collectives(&bench);
        if found.is_err() {
            // It would wait for us until its deadline; that it has ended already is no trouble.
            let _ = peer.kill();
        }
        let _ = peer.wait();
        write_line(out, &found?)?;
    }
    Ok(())
}

/// Rank 1: this program once more.
fn start_peer(bench: &CollectiveBench) -> Result<Child, Failure> {
    let fault = |error| Failure::io("the second process of the measurement cannot start", error);
    let addresses: Vec<String> = bench.addresses.iter().map(ToString::to_string).collect();
    let mut command = Command::new(std::env::current_exe().map_err(fault)?);
    command.args(["bench", "collectives", "--rank", "1"]);
    command.args(["--addresses", &addresses.join(",")]);
    command.args(["--bytes", &bench.bytes.to_string()]);
    command.args(["--repetitions", &bench.repetitions.to_string()]);
    if !bench.shared_memory {
        command.arg("--sockets");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::augment_args(clap::Command::new("bench")).debug_assert();
    }
}
