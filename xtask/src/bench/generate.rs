//! Generation, of a model of 110 million random parameters.

use std::path::PathBuf;

use super::plans::{Against, Plan, Side, row, words};
use crate::fault::Outcome;
use crate::{parity, places, shell};

const PEER: &str = "xtask/peers/generate.py";

/// The model's folder; it is made where it is not there.
pub(super) fn model() -> Outcome<PathBuf> {
    let folder = places::root().join("target/bench/llama-110m");
    if !folder.is_dir() {
        let tokenizer = places::root().join("worker/tests/fixtures/pretrained/base-decoder");
        let mut make = shell::program(parity::interpreter()?);
        shell::run(make.args([PEER, "make"]).arg(&folder).arg(tokenizer))?;
    }
    Ok(folder)
}

/// One answer alone, and eight side by side.
pub(super) fn plans() -> Outcome<Vec<Plan>> {
    let folder = model()?.display().to_string();
    let transformers = |place| Against::Peer {
        name: "transformers",
        place,
    };
    let token = ["/token_seconds", "/load_seconds"].map(transformers);
    let weights = Against::Own {
        name: "its weights",
        place: "/weights_bytes",
    };
    let plan = |title, batch| {
        let (ours, peer) = (
            ["generate", "--folder", &folder, "--batch", batch],
            [PEER, "run", &folder, "--batch", batch],
        );
        Plan {
            title,
            ours: Side::Worker(words(&ours)),
            peer: Some(Side::Python(words(&peer))),
            rows: vec![
                row("a token", "/token_seconds", token[0], 1.2),
                row("reading the model", "/load_seconds", token[1], 1.0),
                row("memory for it", "/load_bytes", weights, 1.0 / 1.15),
            ],
        }
    };
    Ok(vec![
        plan("Generation, one answer", "1"),
        plan("Generation, eight answers side by side", "8"),
    ])
}
