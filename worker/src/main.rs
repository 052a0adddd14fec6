//! `mks2-worker`: one process of the data plane. It is started by `mks2 train` or by a cluster's
//! launcher, and learns everything from its environment; see `mks2_proto::env`.

use std::io::{BufReader, Stdin, StdoutLock, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use mks2_proto::env::WorkerEnv;
use mks2_proto::failure::{self, Failure};
use mks2_proto::telemetry;
use mks2_worker::bench::cli;
use mks2_worker::evaluate::program;
use mks2_worker::run::End;
use mks2_worker::{app, export, generate, gpu_check};

/// Trains as one worker of a run.
///
/// Started without arguments by `mks2 train` or by a cluster's launcher: MKS2_COORDINATOR,
/// MKS2_TOKEN, MKS2_RUN_ID and MKS2_MEMBER_ID say which run to join.
#[derive(Parser)]
#[command(name = "mks2-worker", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Measures a part of the data plane in this process.
    #[command(hide = true)]
    Bench(cli::Arguments),
    /// Measures tasks, for `mks2 eval`.
    #[command(hide = true)]
    Eval,
    /// Answers prompts over standard input and output, for `mks2 generate`.
    #[command(hide = true)]
    Generate,
    /// Writes a model for other programs, for `mks2 export`.
    #[command(hide = true)]
    Export,
    /// Checks that this machine's GPU computes what the CPU does, and prints one table.
    GpuCheck(gpu_check::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Some(Command::Bench(arguments)) => bench(&arguments),
        Some(Command::Generate) => return converse(generate::run),
        Some(Command::Eval) => return converse(program::run),
        Some(Command::Export) => return converse(export::run),
        Some(Command::GpuCheck(arguments)) => check_gpu(&arguments),
        None => run(),
    };
    match outcome {
        Ok(End::Complete | End::LetGo) => ExitCode::SUCCESS,
        Ok(End::Stopped | End::Overtaken) => failure::ExitCode::Stopped.into(),
        Err(failure) => {
            // The last words are for a person, whatever the form of the logs. A closed stderr is
            // no reason to end differently.
            let _ = writeln!(std::io::stderr(), "{failure}");
            failure.exit.into()
        }
    }
}

fn run() -> Result<End, Failure> {
    set_up_tls()?;
    let log_format = telemetry::LogFormat::from_environment()?;
    let guard = telemetry::init(&telemetry::Options {
        service: "mks2-worker",
        log_format,
        ..Default::default()
    })?;
    let outcome = WorkerEnv::read().and_then(|env| app::work(&env));
    if let Err(failure) = &outcome {
        tracing::debug!(?failure, "the worker ends with a failure");
    }
    guard.shutdown(Duration::from_secs(3));
    outcome
}

/// Prints what was measured, and nothing else.
fn bench(arguments: &cli::Arguments) -> Result<End, Failure> {
    set_up_tls()?;
    cli::run(arguments, &mut std::io::stdout().lock())?;
    Ok(End::Complete)
}

/// Prints the table of checks.
fn check_gpu(arguments: &gpu_check::Arguments) -> Result<End, Failure> {
    set_up_tls()?;
    gpu_check::run(arguments, &mut std::io::stdout().lock())?;
    Ok(End::Complete)
}

/// Talks with whoever has started this. What goes wrong is told in the conversation.
fn converse(
    talk: impl FnOnce(BufReader<Stdin>, &mut StdoutLock<'static>) -> Result<(), Failure>,
) -> ExitCode {
    let input = BufReader::new(std::io::stdin());
    let ended = set_up_tls().and_then(|()| talk(input, &mut std::io::stdout().lock()));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.exit.into(),
    }
}

fn set_up_tls() -> Result<(), Failure> {
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    installed.map_err(|_| {
        Failure::internal(
            "TLS could not be set up",
            "another provider was installed before",
        )
    })
}
