//! `cargo xtask bench`: our worker and its peers, one after the other, again and again.
//!
//! Both sides print one line of JSON. A ratio is taken within each round, where both
//! met the same mood of the machine, and the median of the rounds is reported. Which number stands
//! where is said in [`plans`].

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::fault::{Fault, Outcome};
use crate::ui::{self, Stages};
use crate::{demo, parity, places, setup, shell};

mod control;
mod generate;
mod model;
mod page;
mod plans;

use plans::{Against, Plan, Side};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// Sums over two workers, against Gloo in PyTorch.
    Collectives,
    /// A training step of both stages, against eager PyTorch.
    Step,
    /// The same in the shapes of a small Llama, fp32 and bf16, with the memory that it takes.
    Model,
    /// The loss of a long text, against all logits at once.
    Loss,
    /// The optimizer, against tch's own.
    Adamw,
    /// Everything of a step that is not compute, and the loader.
    Overhead,
    /// How long a checkpoint stops the step loop.
    Checkpoint,
    /// What the comparison of the workers' copies costs in each step.
    Audit,
    /// Tokens that a model generates, against transformers.
    Generate,
    /// Thousands of members, against torchft's lighthouse.
    Control,
}

/// What to measure and how often.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Subjects; all when none is named.
    #[arg(value_enum)]
    subjects: Vec<Subject>,
    /// Rounds of each pair.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Job whose shapes are measured.
    #[arg(long, default_value = "examples/emoji/job.toml")]
    job: PathBuf,
    /// Leaves docs/benchmarks.md as it is.
    #[arg(long)]
    no_write: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let mut stages = Stages::default();
    let subjects = match arguments.subjects.as_slice() {
        [] => Subject::value_variants(),
        named => named,
    };
    stages.run("set-up", setup::run)?;
    stages.run("release build", build)?;
    if subjects.iter().any(|subject| {
        matches!(
            subject,
            Subject::Overhead | Subject::Checkpoint | Subject::Audit | Subject::Model
        )
    }) {
        stages.run("import", demo::import)?;
    }
    for subject in subjects {
        for plan in plans::of(*subject, &arguments.job)? {
            let lines = stages.run(plan.title, || measure(&plan, arguments.rounds))?;
            let table = page::table(&lines);
            ui::say(format_args!("\n{table}"));
            // At once: what was measured stays when a later subject fails.
            if !arguments.no_write {
                page::write(plan.title, &table, arguments.rounds)?;
            }
        }
    }
    stages.table();
    Ok(())
}

/// A measured line: medians in seconds or bytes, and the median of the ratios of each round.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    name: &'static str,
    is_bytes: bool,
    ours: f64,
    against: f64,
    against_name: &'static str,
    ratio: f64,
    wanted: f64,
}

fn measure(plan: &Plan, rounds: u32) -> Outcome<Vec<Line>> {
    let mut pairs = Vec::new();
    for round in 0..rounds.max(1) {
        // Who goes first changes from round to round.
        let (ours, peer) = if round % 2 == 0 {
            let ours = ours(plan)?;
            (ours, peer(plan)?)
        } else {
            let peer = peer(plan)?;
            (ours(plan)?, peer)
        };
        pairs.push((ours, peer));
    }
    plan.rows.iter().map(|row| line(row, &pairs)).collect()
}

/// The programs and the crowd of members, optimized: all in one, since a package apart would compile
/// its dependencies once more.
fn build() -> Outcome {
    let words = ["build", "--release", "--workspace", "--bins", "--examples"];
    shell::run(&mut shell::cargo(&words))
}

fn ours(plan: &Plan) -> Outcome<Value> {
    read_json(&plan.ours)
}

fn peer(plan: &Plan) -> Outcome<Value> {
    plan.peer.as_ref().map_or(Ok(Value::Null), read_json)
}

fn read_json(side: &Side) -> Outcome<Value> {
    match side {
        Side::Worker(arguments) => {
            let mut command = shell::program(places::binary("release", "mks2-worker"));
            last_json(command.arg("bench").args(arguments))
        }
        Side::Python(arguments) => {
            last_json(shell::program(parity::interpreter()?).args(arguments))
        }
        Side::Crowd(arguments) => {
            let program = places::binary("release", "examples/crowd");
            last_json(shell::program(program).args(arguments))
        }
    }
}

/// The last line of output that is JSON.
fn last_json(command: &mut Command) -> Outcome<Value> {
    let text = shell::read(command)?;
    let json = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok());
    json.ok_or_else(|| {
        Fault::new(format!(
            "{} printed no JSON",
            command.get_program().to_string_lossy()
        ))
    })
}

fn line(row: &plans::Row, pairs: &[(Value, Value)]) -> Outcome<Line> {
    let number = |value: &Value, place: &str| {
        let missing = || Fault::new(format!("{}: there is no number at {place}", row.name));
        let number = value.pointer(place).and_then(Value::as_f64);
        let per_second = if place.ends_with("_ms") { 1e3 } else { 1.0 };
        Ok(number.ok_or_else(missing)? / per_second)
    };
    let mut ours = Vec::new();
    let mut against = Vec::new();
    for (own, peer) in pairs {
        ours.push(number(own, row.ours)?);
        against.push(match row.against {
            Against::Peer { place, .. } => number(peer, place)?,
            Against::Own { place, .. } => number(own, place)?,
        });
    }
    let ratios = against
        .iter()
        .zip(&ours)
        .map(|(against, ours)| against / ours)
        .collect();
    Ok(Line {
        name: row.name,
        is_bytes: row.ours.ends_with("_bytes"),
        against_name: row.against.name(),
        ratio: median(ratios),
        ours: median(ours),
        against: median(against),
        wanted: row.wanted,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// A file of the checkout as text.
fn read(path: &std::path::Path) -> Outcome<String> {
    let path = places::root().join(path);
    fs::read_to_string(&path).map_err(|error| Fault::file("read", &path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_and_not_of_the_medians() {
        let row = plans::Row {
            name: "sum",
            ours: "/t",
            against: Against::Peer {
                name: "Gloo",
                place: "/t",
            },
            wanted: 1.3,
        };
        let pair = |ours: f64, peer: f64| (json!({ "t": ours }), json!({ "t": peer }));
        let line = line(&row, &[pair(1.0, 2.0), pair(10.0, 10.0), pair(2.0, 6.0)]);
        let line = line.expect("all numbers are there");
        assert!((line.ratio - 2.0).abs() < 1e-12);
        assert!((line.ours - 2.0).abs() < 1e-12);
    }

    #[test]
    fn milliseconds_become_seconds_by_their_name() {
        let own = Against::Own {
            name: "a step",
            place: "/step_seconds",
        };
        let row = plans::Row {
            name: "pause",
            ours: "/pause_ms",
            against: own,
            wanted: 20.0,
        };
        let own = json!({ "pause_ms": 4.0, "step_seconds": 0.2 });
        let line = line(&row, &[(own, Value::Null)]).expect("all numbers are there");
        assert!((line.ours - 0.004).abs() < 1e-12);
        assert!((line.ratio - 50.0).abs() < 1e-9);
    }

    #[test]
    fn the_median_of_an_even_number_of_values_lies_between_two() {
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
    }
}
