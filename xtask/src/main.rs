//! The verbs of this repository. `cargo xtask help` lists them; each one sets up what it needs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod border;
mod demo;
mod fault;
mod fuzz;
mod gpu_package;
mod parity;
mod places;
mod python;
mod results;
mod servers;
mod setup;
mod shell;
mod style;
mod test;
mod ui;

use fault::Outcome;

/// Set-up, checks, demo and measurements of mks2.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Fetches libtorch 2.11.0 into the per-user cache and links it to this checkout.
    Setup,
    /// Runs every check and every test.
    Test {
        /// Only formatting, borders, style and the unit tests.
        #[arg(long)]
        quick: bool,
    },
    /// Imports the sample corpus, trains all stages with two workers, evaluates, reports.
    Demo(demo::Arguments),
    /// Measures against PyTorch and Gloo side by side and writes docs/benchmarks.md.
    Bench(bench::Arguments),
    /// Runs the sample job with several seeds and writes docs/results.md.
    Results(results::Arguments),
    /// Makes the reference fixtures again with the independent PyTorch implementation.
    Fixtures,
    /// Makes the fixtures in a temporary folder and compares them with the committed ones.
    Parity,
    /// Gives what reads files from strangers one odd input after the other, with libFuzzer.
    Fuzz(fuzz::Arguments),
    /// Makes dist/mks2-gpu, a folder that checks mks2 on a GPU machine without Rust or network.
    GpuPackage,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            ui::error(&fault);
            ExitCode::from(fault.exit)
        }
    }
}

fn run(verb: Verb) -> Outcome {
    match verb {
        Verb::Setup => setup::run(),
        Verb::Test { quick } => test::run(quick),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Results(arguments) => results::run(&arguments),
        Verb::Fixtures => parity::make_fixtures(),
        Verb::Parity => parity::compare(),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::GpuPackage => gpu_package::run(),
    }
}
