//! Steps of a model of 110 million parameters in the shapes of a small Llama.

use std::fs;

use toml::Table;

use super::generate;
use super::plans::{Against, Plan, row, step};
use crate::fault::{Fault, Outcome};
use crate::{parity, places, shell};

/// The job, but for its precision.
const JOB: &str = include_str!("model.toml");
/// Writes the visual encoder beside the language model of the generation's measurement.
const PEER: &str = "xtask/peers/generate.py";

/// Both stages, in both precisions.
pub(super) fn plans() -> Outcome<Vec<Plan>> {
    generate::model()?;
    let vision = places::root().join("target/bench/vision-11m");
    if !vision.is_dir() {
        let mut make = shell::program(parity::interpreter()?);
        shell::run(make.args([PEER, "make-vision"]).arg(&vision))?;
    }
    let titles = [
        ("fp32", "memory", "Llama of 110 M parameters, stage 1, fp32"),
        (
            "fp32",
            "experts",
            "Llama of 110 M parameters, stage 2, fp32",
        ),
        ("bf16", "memory", "Llama of 110 M parameters, stage 1, bf16"),
        (
            "bf16",
            "experts",
            "Llama of 110 M parameters, stage 2, bf16",
        ),
    ];
    titles
        .map(|(precision, kind, title)| plan(precision, kind, title))
        .into_iter()
        .collect()
}

fn plan(precision: &str, kind: &'static str, title: &'static str) -> Outcome<Plan> {
    let job = places::root().join(format!("target/bench/model-{precision}.toml"));
    let text = format!("precision = \"{precision}\"\n{JOB}");
    fs::write(&job, &text).map_err(|error| Fault::file("write", &job, &error))?;
    let table: Table = text
        .parse()
        .map_err(|error| Fault::new(format!("{} cannot be read: {error}", job.display())))?;
    let eager = |place| Against::Peer {
        name: "PyTorch",
        place,
    };
    let [seconds, bytes] = match kind {
        "memory" => ["/memory/step_seconds", "/memory/peak_bytes"],
        _ => ["/experts/step_seconds", "/experts/peak_bytes"],
    };
    let rows = vec![
        row("a step", seconds, eager(seconds), 1.15),
        row("peak memory of the process", bytes, eager(bytes), 1.0 / 0.9),
    ];
    step(title, kind, &table, &job, rows)
}
