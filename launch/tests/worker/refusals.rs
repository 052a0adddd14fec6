//! Input that cannot be right.

use crate::lab::{Lab, ended};

#[test]
fn cuda_is_refused_where_there_is_none() {
    let lab = Lab::enter();
    let mut train = lab.train("cuda", 1, &["device=cuda"]);
    // On a machine with GPUs nobody sees them.
    train.env("CUDA_VISIBLE_DEVICES", "");
    ended(train).refused(6, &["CUDA", "device=cpu"]);
    // What the advice says works in the same directory: nothing has been trained in it.
    ended(lab.train("cuda", 1, &["device=cpu"])).done();
}

#[test]
fn another_corpus_or_another_job_is_refused() {
    let lab = Lab::enter();
    lab.quiet();
    let test = lab.path("colors-test").display().to_string();
    let other_corpus = format!("data.colors-train.url={test}");
    let refused = ended(lab.train("quiet", 2, &[&other_corpus]));
    refused.refused(8, &["the corpus 'colors-train' is another one"]);
    let refused = ended(lab.train("quiet", 2, &["stage.memory.steps=9"]));
    refused.refused(8, &["belongs to another job", "config.resolved.toml"]);
    let seed = ended(lab.train("quiet", 2, &["seed=2"]));
    seed.refused(8, &["belongs to another job", "seed is 1 there and 2 here"]);
}

#[test]
fn corpora_may_move_and_checkpoints_be_made_at_other_times() {
    let lab = Lab::enter();
    lab.quiet();
    let (here, there) = (lab.path("colors-test"), lab.path("moved"));
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([&here, &there])
        .status();
    assert!(copied.expect("cp runs").success());
    let moved = format!(
        "data.colors-train.url={}",
        lab.path("colors-train").display()
    );
    let url = format!("data.colors-test.url={}", there.display());
    let again = ended(lab.train("quiet", 1, &[&moved, &url, "checkpoint.every_steps=5"]));
    assert!(again.done().err.contains("done already"), "{}", again.err);
}
