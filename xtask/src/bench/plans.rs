//! What is run on either side, which numbers are compared, and what is wanted.

use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};
use toml::Table;

use super::{Subject, control, generate, model};
use crate::fault::{Fault, Outcome};
use crate::places;

/// A pair of programs and the rows that their numbers fill.
pub(super) struct Plan {
    pub(super) title: &'static str,
    pub(super) ours: Side,
    /// None where we compare with ourselves.
    pub(super) peer: Option<Side>,
    pub(super) rows: Vec<Row>,
}

/// A program that prints a line of JSON, by its arguments.
pub(super) enum Side {
    /// `mks2-worker bench`.
    Worker(Vec<String>),
    Python(Vec<String>),
    /// The crowd of the coordinator's examples.
    Crowd(Vec<String>),
}

/// A line of the table. The ratio is the other side's seconds over ours: more is better.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// JSON pointer into what our side printed: seconds, milliseconds when it ends in `_ms`, bytes
    /// when it ends in `_bytes`.
    pub(super) ours: &'static str,
    pub(super) against: Against,
    pub(super) wanted: f64,
}

/// What our seconds are compared with.
#[derive(Clone, Copy)]
pub(super) enum Against {
    Peer {
        name: &'static str,
        place: &'static str,
    },
    Own {
        name: &'static str,
        place: &'static str,
    },
}

impl Against {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Peer { name, .. } | Self::Own { name, .. } => name,
        }
    }
}

pub(super) fn row(name: &'static str, ours: &'static str, against: Against, wanted: f64) -> Row {
    Row {
        name,
        ours,
        against,
        wanted,
    }
}

pub(super) fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|word| (*word).to_owned()).collect()
}

/// The pairs of a subject, in the shapes of a job.
pub(super) fn of(subject: Subject, job: &Path) -> Outcome<Vec<Plan>> {
    let job_text = job.display().to_string();
    Ok(match subject {
        Subject::Collectives => {
            vec![
                collectives(LARGE, 20, large_rows())?,
                collectives(SMALL, 500, small_rows())?,
            ]
        }
        Subject::Step => steps(job)?,
        Subject::Model => model::plans()?,
        Subject::Loss => vec![loss()],
        Subject::Adamw => vec![Plan {
            title: "AdamW",
            ours: Side::Worker(words(&["adamw"])),
            peer: None,
            rows: vec![row(
                "AdamW on flat buffers",
                "/flat_ms",
                Against::Own {
                    name: "tch's loop",
                    place: "/tch_ms",
                },
                2.5,
            )],
        }],
        Subject::Control => control::plans(),
        Subject::Generate => generate::plans()?,
        Subject::Overhead => vec![overhead(&job_text)],
        Subject::Audit => {
            (["bootstrap", "memory", "experts"].map(|stage| audit(&job_text, stage))).into()
        }
        Subject::Checkpoint => vec![checkpoint(&job_text), save()?],
    })
}

/// Bytes of fp32, and the title of the table.
const LARGE: (u64, &str) = (64 << 20, "Sum of 64 MB over two workers");
const SMALL: (u64, &str) = (4 << 10, "Sum of 4 KB over two workers");
const GLOO: Against = Against::Peer {
    name: "Gloo",
    place: "/all_reduce_ms",
};

fn large_rows() -> Vec<Row> {
    vec![
        row("fast", "/fast_ms", GLOO, 1.3),
        row("exact", "/exact_ms", GLOO, 0.8),
    ]
}

fn small_rows() -> Vec<Row> {
    vec![
        row("fast", "/fast_ms", GLOO, 5.0),
        row("exact", "/exact_ms", GLOO, 5.0),
    ]
}

fn collectives(size: (u64, &'static str), repetitions: u32, rows: Vec<Row>) -> Outcome<Plan> {
    let (bytes, title) = (size.0.to_string(), size.1);
    let repetitions = repetitions.to_string();
    Ok(Plan {
        title,
        ours: Side::Worker(words(&[
            "collectives",
            "--bytes",
            &bytes,
            "--repetitions",
            &repetitions,
        ])),
        peer: Some(Side::Python(words(&[
            "xtask/peers/gloo_allreduce.py",
            "--world",
            "2",
            "--bytes",
            &bytes,
            "--repetitions",
            &repetitions,
            "--port",
            &free_port()?.to_string(),
        ]))),
        rows,
    })
}

/// A port that was free a moment ago.
fn free_port() -> Outcome<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let fault = |error| Fault::environment(format!("no port of the loopback is free: {error}"));
    Ok(listener.map_err(fault)?.port())
}

fn audit(job: &str, stage: &'static str) -> Plan {
    let step = Against::Own {
        name: "a step",
        place: "/step_seconds",
    };
    Plan {
        title: match stage {
            "bootstrap" => "Comparison of copies, bootstrap",
            "memory" => "Comparison of copies, stage 1",
            _ => "Comparison of copies, stage 2",
        },
        ours: Side::Worker(words(&["audit", "--job", job, "--stage", stage])),
        peer: None,
        rows: vec![row(
            "digest, for each step",
            "/per_step_seconds",
            step,
            1000.0,
        )],
    }
}

fn overhead(job: &str) -> Plan {
    let step = Against::Own {
        name: "a step",
        place: "/step_seconds",
    };
    Plan {
        title: "Beside the compute",
        ours: Side::Worker(words(&["overhead", "--job", job])),
        peer: None,
        rows: vec![
            row(
                "all but compute in a step",
                "/overhead_seconds",
                step,
                1.0 / 0.03,
            ),
            row("loading of a step's samples", "/load_seconds", step, 5.0),
        ],
    }
}

fn checkpoint(job: &str) -> Plan {
    let step = Against::Own {
        name: "a step",
        place: "/step_seconds",
    };
    Plan {
        title: "Checkpoint",
        ours: Side::Worker(words(&["checkpoint", "--job", job, "--stage", "experts"])),
        peer: None,
        rows: vec![
            row("pause of the step loop", "/stop_seconds", step, 100.0),
            row(
                "a step with a checkpoint",
                "/step_with_checkpoint_seconds",
                step,
                0.99,
            ),
        ],
    }
}

fn save() -> Outcome<Plan> {
    let default = |place| Against::Peer {
        name: "async_save",
        place,
    };
    let behind = Against::Peer {
        name: "async_save with asynchronous staging",
        place: "/behind/blocked_ms",
    };
    let folder = |name: &str| {
        let folder = places::root().join("target/bench").join(name);
        folder.display().to_string()
    };
    let pause = "pause of the step loop";
    Ok(Plan {
        title: "Checkpoint of 512 MiB",
        ours: Side::Worker(words(&["save", "--folder", &folder("ours")])),
        peer: Some(Side::Python(words(&[
            "xtask/peers/async_save.py",
            "--folder",
            &folder("peer"),
            "--port",
            &free_port()?.to_string(),
        ]))),
        rows: vec![
            row(pause, "/blocked_ms", default("/default/blocked_ms"), 20.0),
            row(pause, "/blocked_ms", behind, 1.0),
            row(
                "memory beside the state",
                "/extra_bytes",
                default("/default/extra_bytes"),
                1.0,
            ),
        ],
    })
}

/// One pair per training stage of the method, since their batches differ.
fn steps(job: &Path) -> Outcome<Vec<Plan>> {
    let text = super::read(job)?;
    let table: Table = text
        .parse()
        .map_err(|error| Fault::new(format!("{} cannot be read: {error}", job.display())))?;
    let eager = |place| Against::Peer {
        name: "PyTorch",
        place,
    };
    let memory = row(
        "a step of stage 1",
        "/memory/step_seconds",
        eager("/memory/step_seconds"),
        1.0,
    );
    let experts = row(
        "a step of stage 2",
        "/experts/step_seconds",
        eager("/experts/step_seconds"),
        1.0,
    );
    Ok(vec![
        step(
            "Training step, stage 1",
            "memory",
            &table,
            job,
            vec![memory],
        )?,
        step(
            "Training step, stage 2",
            "experts",
            &table,
            job,
            vec![experts],
        )?,
    ])
}

/// A step of a stage of this kind in our worker and in eager PyTorch.
pub(super) fn step(
    title: &'static str,
    kind: &str,
    table: &Table,
    job: &Path,
    rows: Vec<Row>,
) -> Outcome<Plan> {
    let job_json = json!(table);
    let stage = stage_of(&job_json, kind, job)?;
    let number = |place: &str, default: u64| {
        job_json
            .pointer(place)
            .and_then(Value::as_u64)
            .unwrap_or(default)
            .to_string()
    };
    let config = json!({
        "model": job_json["model"],
        "vocab_size": job_json.pointer("/tokenizer/vocab_size").cloned().unwrap_or(json!(2048)),
        "experts": stage.get("experts").cloned().unwrap_or(json!({})),
    });
    let batch = stage["batch_size"].as_u64().unwrap_or(64).to_string();
    let tokens = number("/model/decoder/max_text_tokens", 32);
    let threads = number("/threads", 1);
    // The peer sees the batch in our microbatches, and captions as many of their samples.
    let lanes = number("/lanes", 8);
    let caption_share = stage.pointer("/memory/caption_share");
    let caption_share = caption_share.and_then(Value::as_f64).unwrap_or(1.0);
    let script = places::root().join("worker/tests/reference/bench_step.py");
    let peer = [
        &script.display().to_string(),
        &config.to_string(),
        "--stages",
        kind,
        "--batch",
        &batch,
        "--tokens",
        &tokens,
        "--threads",
        &threads,
        "--chunks",
        &lanes,
        "--caption-share",
        &caption_share.to_string(),
    ];
    let mut peer = words(&peer);
    if job_json["precision"] == "bf16" {
        peer.push("--bf16".to_owned());
    }
    let job = job.display().to_string();
    Ok(Plan {
        title,
        ours: Side::Worker(words(&["step", "--job", &job, "--stage", kind])),
        peer: Some(Side::Python(peer)),
        rows,
    })
}

/// The stage of this kind that is measured; of several mixtures the one with a memory, not its control
/// without.
fn stage_of<'a>(job: &'a Value, kind: &str, path: &Path) -> Outcome<&'a Value> {
    let is_wanted = |stage: &&Value| {
        stage["kind"] == kind
            && (kind != "experts" || stage.pointer("/experts/memories/0").is_some())
    };
    let stages = job["stage"].as_array().map(Vec::as_slice);
    let mut stages = stages.unwrap_or_default().iter();
    let missing = || {
        let path = path.display();
        Fault::new(format!("{path} has no stage of kind {kind} to measure"))
    };
    stages.find(is_wanted).ok_or_else(missing)
}

fn loss() -> Plan {
    let whole = |place| Against::Own {
        name: "all logits at once",
        place,
    };
    Plan {
        title: "Loss of 8,192 positions over 32,000 tokens",
        ours: Side::Worker(words(&["loss"])),
        peer: None,
        rows: vec![
            row(
                "by pieces",
                "/pieces_seconds",
                whole("/whole_seconds"),
                1.0 / 1.05,
            ),
            row("by pieces", "/pieces_bytes", whole("/whole_bytes"), 16.0),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_gets_the_shapes_of_the_job() {
        let table: Table = "threads = 2\n[model.decoder]\nmax_text_tokens = 24\n\
             [[stage]]\nkind = \"experts\"\n[[stage]]\nkind = \"experts\"\nbatch_size = 48\n\
             experts = { memories = [\"see\"], lora_rank = 8 }\n"
            .parse()
            .expect("valid");
        let line = row(
            "x",
            "/x",
            Against::Own {
                name: "y",
                place: "/y",
            },
            1.0,
        );
        let plan =
            step("t", "experts", &table, Path::new("job.toml"), vec![line]).expect("a stage");
        let Some(Side::Python(peer)) = plan.peer else {
            panic!("PyTorch was due")
        };
        assert!(peer[1].contains("\"lora_rank\":8"), "{peer:?}");
        assert_eq!(
            peer[4..10],
            ["--batch", "48", "--tokens", "24", "--threads", "2"][..]
        );
    }
}
