//! P12: a hang has a name within seconds, wherever it is, and is given up after the limit.

use std::process::{Child, Command};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Ended, Lab, TOTAL, awaited, mks2, signal, workers_of};

/// When a worker that hangs is given up. It is named after two seconds, and there has to be time to see
/// that on a busy machine.
const STALL_LIMIT: u64 = 8;

/// Starts a run in which a worker hangs by appointment.
fn hanging(mut command: Command, mishap: &str) -> Child {
    command.args(["--stall-limit", &STALL_LIMIT.to_string()]);
    command.env("MKS2_TEST_MISHAP", mishap);
    command.spawn().expect("mks2 starts")
}

/// What `mks2 status` says.
fn status(lab: &Lab, run: &str) -> Value {
    let path = lab.path(run).display().to_string();
    let told = Ended::from(
        mks2(&["status", &path, "--json"])
            .output()
            .expect("mks2 runs"),
    );
    serde_json::from_str(&told.out).unwrap_or_default()
}

/// Waits until a run has `step`. Then a worker of it stops to move, and the status names it before it is
/// given up.
#[track_caller]
fn is_named(lab: &Lab, run: &str, launcher: &mut Child, step: usize, member: &str, words: &[&str]) {
    assert!(lab.reaches(run, step, launcher), "it ended by itself");
    loop {
        let told = status(lab, run);
        let text = told.to_string();
        if words.iter().all(|word| text.contains(word)) {
            return;
        }
        let is_lost = text.contains(&format!("{member} was lost"));
        let is_over = launcher.try_wait().expect("waited").is_some();
        assert!(!is_lost && !is_over, "{words:?} are not in:\n{told:#}");
    }
}

#[track_caller]
fn goes_on(launcher: Child, member: &str) -> Ended {
    let ended = awaited(launcher);
    ended.done();
    let given_up = format!("{member} was lost");
    let waited = format!("waited {STALL_LIMIT} s for it");
    for words in [given_up, waited] {
        assert!(ended.err.contains(&words), "{words}: {}", ended.err);
    }
    ended
}

#[test]
fn a_loader_that_hangs_is_named_and_given_up() {
    let lab = Lab::enter();
    let mut launcher = hanging(
        lab.train("hung-loader", 3, &[]),
        "stall@loading@12@worker-1",
    );
    let words = [
        "worker-1 (rank 1 on ",
        "loading samples after step 11 of generation 1",
    ];
    is_named(&lab, "hung-loader", &mut launcher, 11, "worker-1", &words);
    goes_on(launcher, "worker-1");
    lab.equals_quiet("hung-loader");
}

#[test]
fn a_collective_that_hangs_is_named_and_given_up() {
    let lab = Lab::enter();
    let run = "hung-collective";
    let mut launcher = hanging(lab.train(run, 3, &[]), "stall@reducing@12@worker-2");
    let words = [
        "worker-2 (rank 2 on ",
        "reducing gradients in collective ",
        "after step 11",
    ];
    is_named(&lab, run, &mut launcher, 11, "worker-2", &words);
    goes_on(launcher, "worker-2");
    lab.equals_quiet(run);
}

/// Another one would need as long for a large checkpoint: it is named, and not given up.
#[test]
fn a_store_that_hangs_is_named() {
    let lab = Lab::enter();
    let run = "hung-store";
    let mut launcher = hanging(lab.train(run, 3, &[]), "stall@checkpointing@12@worker-0");
    let words = ["worker-0 (rank 0 on ", "writing a checkpoint after step 11"];
    is_named(&lab, run, &mut launcher, 11, "worker-0", &words);
    std::thread::sleep(Duration::from_secs(STALL_LIMIT + 1));
    let told = status(&lab, run).to_string();
    assert!(told.contains("writing a checkpoint"), "{told}");
    signal(workers_of(launcher.id())[0], "KILL");
    awaited(launcher).done();
    lab.equals_quiet(run);
}

#[test]
fn a_process_that_stands_still_is_named_as_lost() {
    let lab = Lab::enter();
    let run = "stood-still";
    let mut launcher = hanging(lab.train(run, 3, &[]), "stop@reducing@12@worker-1");
    let words = [
        "worker-1 was lost (rank 1 on ",
        "nothing was heard of it for ",
        "after step 11",
    ];
    is_named(&lab, run, &mut launcher, 11, "worker-1", &words);
    awaited(launcher).done();
    lab.equals_quiet(run);
}

/// While it computes, reads or waits: the same of an evaluation, whose numbers stay the same.
#[test]
fn a_hang_in_an_evaluation_is_named_and_given_up() {
    let lab = Lab::enter();
    lab.evaluated().done();
    let step = TOTAL + 1;
    for (run, phase, member, doing) in [
        (
            "hung-evaluation",
            "evaluating",
            "worker-1",
            "evaluating after step",
        ),
        (
            "hung-gathering",
            "gathering",
            "worker-2",
            "gathering features in collective",
        ),
        (
            "hung-reading",
            "loading",
            "worker-0",
            "loading samples after step",
        ),
    ] {
        let mishap = format!("stall@{phase}@{step}@{member}");
        let mut launcher = hanging(lab.train_and_evaluate(run, 3), &mishap);
        let named = format!("the others wait for {member} (rank ");
        is_named(&lab, run, &mut launcher, TOTAL, member, &[&named, doing]);
        let ended = goes_on(launcher, member);
        let report = lab.report(run);
        assert_eq!(
            report["evaluation"],
            lab.report("evaluated")["evaluation"],
            "{}",
            ended.err
        );
    }
}
