//! P8: a worker dies at any moment, the others finish the same step, and no bit differs.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use crate::chance::Chance;
use crate::lab::{Ended, Lab, TOTAL, awaited, ended, signal, workers_of};

/// A run in which workers die on order: `ACT@PHASE@STEP@MEMBER`, separated by commas.
fn train_with(lab: &Lab, run: &str, workers: usize, mishaps: &str) -> Ended {
    let mut command = lab.train(run, workers, &[]);
    command.env("MKS2_TEST_MISHAP", mishaps);
    // Where somebody is left the dead are done without; that others come is tested in joining.rs.
    if mishaps.split(',').count() < workers {
        command.args(["--restarts", "0"]);
    }
    ended(command)
}

/// The run is done, every loss was told, and the outcome is that of the quiet run.
#[track_caller]
fn survives(lab: &Lab, run: &str, workers: usize, mishaps: &str) {
    let ended = train_with(lab, run, workers, mishaps);
    ended.done();
    lab.equals_quiet(run);
    let losses = mishaps.split(',').count();
    for mishap in mishaps.split(',') {
        let member = mishap.rsplit('@').next().expect("a member");
        let told = format!("{member} was lost");
        assert!(ended.err.contains(&told), "{told}: {}", ended.err);
    }
    assert_eq!(lab.report(run)["failures"], losses as u64);
    lab.has_a_ledger_that_holds(run);
}

/// One run after the other.
#[track_caller]
fn all_survive(name: &str, workers: usize, runs: &[&str]) {
    let lab = Lab::enter();
    for (number, mishaps) in (1..).zip(runs) {
        survives(&lab, &format!("{name}-{number}"), workers, mishaps);
    }
}

// Steps 1 to 8 are the bootstrap's, 9 to 16 the memory's, the others those of mixtures. The copies are
// compared and a checkpoint is saved after every third step, and after a stage's last one. Computing is
// entered once for the inputs, and then twice for each lane: before its forward and its backward pass.

#[test]
fn four_workers_die_in_every_phase_of_a_step() {
    let runs = [
        "kill@loading@3@worker-3,kill@computing@10@worker-0,kill@voting@18@worker-2",
        "kill@gathering@4@worker-0,kill@reducing@12@worker-1,kill@updating@20@worker-3",
        "kill@computing#3@2@worker-1,kill@loading@11@worker-2,kill@reducing@21@worker-0",
        "kill@voting@5@worker-2,kill@computing#5@13@worker-3,kill@gathering@23@worker-1",
        "kill@reducing@6@worker-3,kill@updating@14@worker-0,kill@loading@22@worker-1",
        "kill@updating@7@worker-1,kill@gathering@11@worker-3,kill@computing#4@25@worker-0",
    ];
    all_survive("four", 4, &runs);
}

#[test]
fn three_workers_die_while_they_compare_save_and_regroup() {
    let runs = [
        "kill@checkpointing@4@worker-0,kill@checkpointing@9@worker-1",
        "kill@auditing@4@worker-1,kill@auditing#2@12@worker-0,kill@checkpointing@20@worker-2",
        "kill@reducing@6@worker-2,kill@regrouping@6@worker-0",
        "kill@voting@15@worker-0,kill@regrouping#2@15@worker-1",
    ];
    all_survive("three", 3, &runs);
}

#[test]
fn panics_and_processes_that_stand_still() {
    let runs = [
        "panic@computing@11@worker-0,stop@reducing@19@worker-1",
        "stop@computing#2@4@worker-1,panic@voting@19@worker-2",
        "stop@voting@12@worker-0,panic@reducing@6@worker-2",
        "stop@updating@21@worker-2,panic@gathering@3@worker-1",
    ];
    all_survive("stood", 3, &runs);
}

#[test]
fn of_two_workers_one_dies_and_then_the_other() {
    let runs = [
        "kill@computing#3@3@worker-0,kill@voting@13@worker-1",
        "kill@updating@5@worker-0,kill@reducing@20@worker-1",
        "kill@checkpointing@12@worker-0,kill@computing#2@22@worker-1",
    ];
    all_survive("two", 2, &runs);
}

#[test]
fn a_worker_that_stalls_is_named_and_given_up() {
    let lab = Lab::enter();
    let mut command = lab.train("stalled", 3, &[]);
    command.args(["--stall-limit", "3"]);
    command.env("MKS2_TEST_MISHAP", "stall@loading@12@worker-1");
    let ended = ended(command);
    lab_outcome(&lab, &ended, "stalled");
    let named = "the others wait for worker-1 (rank 1 on";
    for words in [named, "loading samples after step 11", "waited 3 s for it"] {
        assert!(ended.err.contains(words), "{words}: {}", ended.err);
    }
}

#[track_caller]
fn lab_outcome(lab: &Lab, ended: &Ended, run: &str) {
    ended.done();
    lab.equals_quiet(run);
}

#[test]
fn the_one_that_measures_dies_before_it_tells() {
    survives(&Lab::enter(), "told-late", 3, "kill@updating@20@worker-0");
}

#[test]
fn a_death_in_an_evaluation_changes_no_number() {
    let lab = Lab::enter();
    lab.evaluated().done();
    let mut command = lab.train_and_evaluate("measured-again", 3);
    let step = TOTAL + 1;
    command.env(
        "MKS2_TEST_MISHAP",
        format!("kill@evaluating@{step}@worker-0"),
    );
    let ended = ended(command);
    assert!(
        ended.done().err.contains("worker-0 was lost"),
        "{}",
        ended.err
    );
    assert_eq!(
        lab.report("measured-again")["evaluation"],
        lab.report("evaluated")["evaluation"]
    );
}

#[test]
fn a_checkpoint_that_cannot_be_saved_is_told_and_skipped() {
    let lab = Lab::enter();
    let run = lab.path("skipping");
    std::fs::create_dir_all(&run).expect("made");
    let objects = run.join("objects");
    std::fs::write(&objects, "a file in the way").expect("written");
    // Steps enough to clear the way before the stage's end, whose checkpoint must not be skipped.
    let mut command = lab.train("skipping", 1, &["stage.bootstrap.steps=80"]);
    let mut launcher = command.spawn().expect("mks2 starts");
    let mut told = BufReader::new(launcher.stderr.take().expect("piped")).lines();
    let skipped = "warning: the checkpoint at step 3 was skipped";
    assert!(told.any(|line| line.is_ok_and(|line| line.contains(skipped))));
    std::fs::remove_file(&objects).expect("removed");
    let rest: Vec<_> = told.map_while(Result::ok).collect();
    assert!(launcher.wait().expect("ended").success(), "{rest:?}");
    assert!(!lab.manifests("skipping").is_empty());
}

#[test]
fn deaths_of_single_workers_at_random_moments() {
    let lab = Lab::enter();
    let mut chance = Chance::new();
    lab.quiet();
    let mut launcher = lab.train("decimated", 4, &[]).spawn().expect("mks2 starts");
    let mut killed = 0;
    for round in 1..=3 {
        let at = round * TOTAL / 4 + chance.below(4);
        let more = Duration::from_millis(chance.below(120) as u64);
        if !lab.reaches("decimated", at, &mut launcher) {
            break;
        }
        std::thread::sleep(more);
        let workers = workers_of(launcher.id());
        let unlucky = chance.below(workers.len().max(1));
        println!(
            "{} workers, number {unlucky} killed {more:?} after step {at}",
            workers.len()
        );
        if workers.len() > 1 {
            signal(workers[unlucky], "KILL");
            killed += 1;
        }
    }
    awaited(launcher).done();
    lab.equals_quiet("decimated");
    assert!(killed > 0, "it was done before anybody could be killed");
    // One that is killed in its very last moments is no loss.
    let failures = lab.report("decimated")["failures"]
        .as_u64()
        .expect("a number");
    assert!(failures <= killed, "{failures} of {killed}");
}
