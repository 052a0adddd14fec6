//! Memories between runs: one run stores and exports, another one attaches and mixes.

use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::lab::{Ended, Lab, awaited, digests, ended, mks2, root, signal};
use crate::servers::Kind;

/// Stages behind the quick job's bootstrap: a memory of another shape of its own, beside theirs.
const STAGES: &str = r#"
[model.memories]
own = { width = 80, form = "gated" }

[[stage]]
name = "theirs"
kind = "attach"
from = ["bootstrap"]

[[stage]]
name = "own"
kind = "memory"
from = ["bootstrap"]
steps = 3
batch_size = 16
data = [{ corpus = "emoji" }]

[[stage]]
name = "experts"
kind = "experts"
from = ["bootstrap", "own", "theirs"]
steps = 4
batch_size = 16
data = [{ corpus = "colors-train" }]
experts = { memories = ["own", "theirs"], lora_rank = 4, answer_after_end = true }
"#;
/// Measures their memory, and the mixture.
const EVALUATION: &str = r#"
[[stage]]
name = "evaluate"
kind = "evaluate"
from = ["bootstrap", "theirs", "experts"]

[stage.evaluate]
memory = "theirs"
corpus = "emoji"
retrieval_text = "{caption}"
examples = 2
questions = "colors-test"
compare = { mks2 = "experts" }
"#;
/// Steps of the bootstrap, as of every job in the lab, and of the whole job.
const BOOTSTRAP: usize = 8;
const STEPS: usize = BOOTSTRAP + 3 + 4;

/// `mks2 memory ..`, with its answer in JSON.
fn memory(arguments: &[&str]) -> Ended {
    let mut command = mks2(&["memory"]);
    command.args(arguments).arg("--json");
    Ended::from(command.output().expect("mks2 runs"))
}

fn answer(arguments: &[&str]) -> Value {
    serde_json::from_str(&memory(arguments).done().out).expect("JSON")
}

/// Exports the memory of a run into a new folder of the lab, and gives the folder and the id.
fn exported(lab: &Lab, run: &str, to: &str, more: &[&str]) -> (String, String) {
    let folder = lab.path(to);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("removed");
    }
    let folder = folder.display().to_string();
    let run = lab.location(run);
    let written = answer(&[&["export", &run, "--out", &folder][..], more].concat());
    (folder, written["id"].as_str().expect("an id").to_owned())
}

/// `mks2 train` of a job that attaches the memory in a folder, without evaluation.
fn train(lab: &Lab, run: &str, workers: u32, theirs: &str, more: &[&str]) -> Command {
    train_job(lab, STAGES, run, workers, theirs, more)
}

fn train_job(
    lab: &Lab,
    stages: &str,
    run: &str,
    workers: u32,
    theirs: &str,
    more: &[&str],
) -> Command {
    let quick = std::fs::read_to_string(root().join("examples/emoji/quick.toml"));
    let quick = quick.expect("the quick job");
    let (before, _) = quick
        .split_once("[[stage]]\nname = \"memory\"")
        .expect("stages");
    let job = lab.path("attaching.toml");
    std::fs::write(&job, format!("{before}{stages}")).expect("written");
    let mut command = mks2(&["train"]);
    command.arg(job).arg("--run").arg(lab.path(run));
    command.args(["--workers", &workers.to_string()]);
    let mut settings = vec![
        format!("stage.theirs.attach.memory={theirs}"),
        format!("stage.bootstrap.steps={BOOTSTRAP}"),
        "stage.bootstrap.batch_size=16".to_owned(),
        "checkpoint.every_steps=3".to_owned(),
    ];
    for name in ["emoji", "colors-train", "colors-test"] {
        settings.push(format!("data.{name}.url={}", lab.path(name).display()));
    }
    settings.extend(more.iter().map(|setting| (*setting).to_owned()));
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn evaluation(lab: &Lab, run: &str) -> Value {
    let json = std::fs::read(lab.path(run).join("evaluation.json")).expect("an evaluation");
    serde_json::from_slice(&json).expect("JSON")
}

/// What a stage says of the picture of an example.
fn caption(lab: &Lab, run: &str, stage: &str, example: &Value) -> String {
    let url = example["picture"].as_str().expect("a data URL");
    let (_, data) = url.split_once(";base64,").expect("a data URL");
    let picture = lab.path("memory-example");
    std::fs::write(&picture, STANDARD.decode(data).expect("base64")).expect("written");
    let mut command = mks2(&["generate", "--stage", stage]);
    command.arg(lab.path(run)).arg("--image").arg(picture);
    let said = Ended::from(command.output().expect("mks2 runs"));
    said.done().out.trim().to_owned()
}

#[test]
fn a_memory_of_another_run_is_an_expert_with_the_same_bits_whoever_takes_part() {
    let lab = Lab::enter();
    lab.quiet();
    lab.evaluated().done();
    let (theirs, id) = exported(&lab, "quiet", "memory-a", &[]);
    // Another run of the same training stores the same memory.
    assert_eq!(exported(&lab, "evaluated", "memory-b", &[]).1, id);
    let shown = answer(&["show", &theirs, "--deep"]);
    let memory = &lab.report("quiet")["stages"][1];
    assert_eq!(
        (&shown["steps"], &shown["losses"]["loss"]),
        (&memory["steps"], &memory["loss"])
    );
    let base = &lab.report("quiet")["stages"][0];
    assert_eq!(shown["base"]["digest"], base["weights_digest"]);

    let stages = [STAGES, EVALUATION].concat();
    ended(train_job(&lab, &stages, "mixture", 1, &theirs, &[])).done();
    assert_eq!(lab.steps("mixture").len(), STEPS);
    lab.has_a_ledger_that_holds("mixture");
    // What was measured of it beside its own run is measured here.
    let (here, there) = (evaluation(&lab, "mixture"), evaluation(&lab, "evaluated"));
    for part in ["retrieval", "caption", "examples"] {
        assert_eq!(here[part], there[part], "{part}");
    }
    let example = &here["examples"][0];
    assert_eq!(
        caption(&lab, "mixture", "theirs", example),
        example["generated"]
    );

    // Stopped in the midst of the mixture, and continued by others, with a copy of the memory.
    let mut launcher = train(&lab, "mixture-2", 2, &theirs, &[])
        .spawn()
        .expect("mks2 starts");
    assert!(lab.reaches("mixture-2", STEPS - 3, &mut launcher));
    signal(launcher.id(), "INT");
    awaited(launcher).stopped(&[]);
    let (licensed, other) = exported(&lab, "quiet", "memory-c", &["--license", "CC0-1.0"]);
    assert_ne!(other, id);
    let refused = ended(train(&lab, "mixture-2", 1, &licensed, &[]));
    refused.refused(8, &["theirs", &id, &other]);
    let copy = lab.path("memory-d").display().to_string();
    assert_eq!(answer(&["import", &theirs, "--into", &copy])["id"], id);
    ended(train(&lab, "mixture-2", 1, &copy, &[])).done();
    let (report, quiet) = (lab.report("mixture-2"), lab.report("mixture"));
    assert_eq!(digests(&report), digests(&quiet));
    lab.has_a_ledger_that_holds("mixture-2");
}

#[test]
fn a_memory_is_refused_beside_another_language_model() {
    let lab = Lab::enter();
    lab.quiet();
    let (theirs, _) = exported(&lab, "quiet", "memory-e", &[]);
    // Another seed is seen before anything starts; one step less, by the digest of its weights.
    let seeded = ended(train(&lab, "strange", 1, &theirs, &["seed=2"]));
    seeded.refused(8, &["another language model", "seed 1, the job has 2"]);
    assert!(!lab.path("strange").exists(), "nothing was begun");
    let shorter = ["stage.bootstrap.steps=7"];
    let refused = ended(train(&lab, "strange", 2, &theirs, &shorter));
    let base = &lab.report("quiet")["stages"][0];
    let digest = base["weights_digest"].as_str().expect("a digest");
    refused.refused(8, &["another language model", digest, "'bootstrap'"]);
    assert_eq!(lab.steps("strange").len(), 7);
    // What was not trained cannot be exported, nor what is no memory.
    let (run, out) = (
        lab.location("strange"),
        lab.path("memory-f").display().to_string(),
    );
    let listed = answer(&["list", &run]);
    assert_eq!(
        (&listed[1]["stage"], &listed[1]["finished"]),
        (&"own".into(), &false.into())
    );
    memory(&["export", &run, "--out", &out]).refused(2, &["'own' is not finished"]);
    let stage = ["export", &run, "--out", &out, "--stage", "experts"];
    memory(&stage).refused(2, &["'experts' is no memory", "--stage: own"]);
    assert!(!lab.path("memory-f").exists());
}

#[test]
fn memories_go_from_store_to_store() {
    let Some(lab) = Lab::enter_with(Kind::S3) else {
        return;
    };
    lab.quiet();
    let (theirs, id) = exported(&lab, "quiet", "memory-g", &[]);
    let memory = |arguments: &[&str]| {
        let mut command = mks2(&["memory"]);
        command.args(arguments).arg("--json").envs(lab.variables());
        Ended::from(command.output().expect("mks2 runs"))
    };
    let answer = |arguments: &[&str]| -> Value {
        serde_json::from_str(&memory(arguments).done().out).expect("JSON")
    };
    let (folder, there) = ("memories", "memories/of quiet");
    let (folder, there) = (lab.server().url(folder), lab.server().url(there));
    assert_eq!(
        answer(&["export", &lab.location("quiet"), "--out", &there])["id"],
        id
    );
    let listed = answer(&["list", &folder]);
    assert_eq!(
        (&listed[0]["id"], &listed[0]["url"]),
        (&id.as_str().into(), &there.as_str().into())
    );
    assert_eq!(answer(&["diff", &theirs, &there])["same"], true);
    let back = lab.path("memory-h").display().to_string();
    if lab.path("memory-h").exists() {
        std::fs::remove_dir_all(&back).expect("removed");
    }
    assert_eq!(answer(&["import", &there, "--into", &back])["id"], id);
    let (other, _) = exported(&lab, "quiet", "memory-i", &["--name", "other"]);
    memory(&["import", &other, "--into", &there]).refused(2, &["already holds", &id]);
    assert_eq!(answer(&["show", &there, "--deep"])["id"], id);
}
