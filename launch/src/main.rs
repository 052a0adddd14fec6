//! `mks2`: the command line. Parse, set up logs, do the one thing asked for, say how it ended.
//!
//! | module | what |
//! |---|---|
//! | [`cli`], [`usage`] | commands, options and their help; what is wrong with a command line |
//! | [`train`] | a local run: coordinator inside, workers as children |
//! | [`plan`] | what a job would do, without doing it |
//! | [`status`] | `status` and `watch`, of a local or a remote run |
//! | [`data`] | corpora: import, inspect, verify |
//! | [`model`] | pretrained models: what they are, and whether they are whole |
//! | [`memory`] | memories: out of a run, from store to store, side by side |
//! | [`dialogue`] | dialogues as one text, by a model's chat template |
//! | [`engine`] | a model that can be asked, and the program that computes
//! | [`generate`] | asking it from the command line
//! | [`serve`] | the same over HTTP
//! | [`eval`] | measuring it on tasks |
//! | [`export`] | it as a folder for transformers, or its adapters for PEFT |
//! | [`ledger`] | proofs from what a run has left: rows, steps, checkpoints |
//! | [`chaos`] | a job whose processes are killed, and what that changes |
//! | [`summary`], [`report`] | the closing table; `report.json` and `report.html` |
//! | [`config`] | settings with their origins, the schema, the check |
//! | [`progress`] | bars on a terminal, plain lines elsewhere |
//! | [`output`] | the only place that writes to the terminal |

mod beside;
mod chaos;
mod cli;
mod config;
mod data;
mod dialogue;
mod engine;
mod eval;
mod export;
mod generate;
mod goodput;
mod ledger;
mod memory;
mod model;
mod output;
mod plan;
mod progress;
mod report;
mod serve;
mod status;
mod steer;
mod summary;
mod table;
mod train;
mod units;
mod usage;

use std::process::ExitCode;

use mks2_proto::failure::Failure;
use mks2_proto::telemetry;

use cli::{Cli, Command, Common};
use output::Output;

fn main() -> ExitCode {
    let (ended, output) = match usage::parse(std::env::args_os()) {
        Ok(cli) => {
            let output = Output::new(&cli.common);
            (run(cli, &output), output)
        }
        Err(usage::Refused::Help(help)) => {
            // Whoever closed the pipe has seen enough.
            let _ = help.print();
            return u8::try_from(help.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
        Err(usage::Refused::Wrong(failure, log_format)) => {
            (Err(*failure), Output::new(&Common::usual(log_format)))
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit.into()
        }
    }
}

fn run(cli: Cli, output: &Output) -> Result<(), Failure> {
    // Two rustls providers in one program panic at the first TLS use: choose one before any.
    // It fails only when one is installed already, which is just as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let telemetry = telemetry::init_with_writer(&cli.common.telemetry(), output.log_writer())?;
    let span = tracing::info_span!("mks2");
    telemetry::continue_from_environment(&span);
    let ended = span.in_scope(|| dispatch(cli.command, output));
    drop(span);
    telemetry.shutdown(telemetry::FLUSH_DEADLINE);
    ended
}

fn dispatch(command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Data(command) => on_runtime(data::run(command, output)),
        Command::Model(command) => on_runtime(model::run(command, output)),
        Command::Memory(command) => on_runtime(memory::run(command, output)),
        Command::Train(options) => on_runtime(train::run(&options, output)),
        Command::Plan(options) => on_runtime(plan::run(&options, output)),
        Command::Status(options) => on_runtime(status::run(&options, output)),
        Command::Watch(options) => on_runtime(status::watch(&options, output)),
        Command::Drain(options) => on_runtime(steer::drain(&options, output)),
        Command::Scale(options) => on_runtime(steer::scale(&options, output)),
        Command::Worker(options) => steer::join(&options),
        Command::Generate(options) => on_runtime(generate::run(&options, output)),
        Command::Eval(options) => on_runtime(eval::run(&options, output)),
        Command::Serve(options) => on_runtime(serve::run(&options, output)),
        Command::Export(command) => on_runtime(export::run(command, output)),
        Command::Chaos(options) => on_runtime(chaos::run(&options, output)),
        Command::Ledger(command) => on_runtime(ledger::run(command, output)),
        Command::Report(options) => on_runtime(summary::print(
            &options.run,
            options.json || output.is_json(),
            output,
        )),
        Command::Config(command) => config::run(command, output),
        Command::Completions { shell } => {
            output.raw(&cli::completions(shell));
            Ok(())
        }
    }
}

/// Runs to the end on the main thread, so that children that are started there live as long as
/// the program (see [`train`]).
fn on_runtime<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::internal("threads cannot be started", error.to_string()))?;
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    ended
}
