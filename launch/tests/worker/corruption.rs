//! Silent corruption: a bit is lost in one worker's memory, the copies are compared, and the outcome
//! is that of a run in which nothing was lost.

use std::fmt::Display;

use crate::gates::Gates;
use crate::lab::{Ended, Lab, TOTAL, awaited, ended};

/// A run in which a worker loses a bit behind a step, `PLACE@STEP@MEMBER`.
fn train_with(lab: &Lab, run: &str, workers: usize, flip: &str, more: &[&str]) -> Ended {
    let mut command = lab.train(run, workers, more);
    command.env("MKS2_TEST_MISHAP", ordered(flip));
    ended(command)
}

fn ordered(flip: &str) -> String {
    let (place, rest) = flip.split_once('@').expect("a place");
    format!("flip-{place}@updating@{rest}")
}

#[track_caller]
fn told(ended: &Ended, words: &[impl Display]) {
    for word in words {
        let word = word.to_string();
        assert!(
            ended.err.contains(&word),
            "'{word}' is not in:\n{}",
            ended.err
        );
    }
}

/// Steps to which the run was taken back.
fn taken_back(lab: &Lab, run: &str) -> Vec<u64> {
    let entries = lab.journal(run, "run-rewound");
    let steps = entries.iter().map(|entry| entry["to_step"].as_u64());
    steps.map(|step| step.expect("a step")).collect()
}

/// The odd one is named, the run goes back to `to_step`, and no bit of its outcome differs.
#[track_caller]
fn goes_back(run: &str, flip: &str, [found, alike, to_step]: [u64; 3]) {
    let lab = Lab::enter();
    let ended = train_with(&lab, run, 3, flip, &[]);
    ended.done();
    let member = flip.rsplit('@').next().expect("a member");
    let place = match to_step {
        0 => "its beginning".to_owned(),
        step => format!("its checkpoint at step {step}"),
    };
    let words = [
        format!("{member} was lost"),
        format!("most others after step {found}; all were alike after step {alike}"),
        format!("the run goes back to {place}"),
    ];
    told(&ended, &words);
    lab.equals_quiet(run);
    lab.has_a_ledger_that_holds(run);
    assert_eq!(taken_back(&lab, run), [to_step]);
    assert_eq!(lab.report(run)["failures"], 1);
}

// Steps 1 to 8 are the bootstrap's, 9 to 16 the memory's, 17 to 20 those of a mixture; checkpoints
// are due after the third and the sixth step of a stage, and at its end.

#[test]
fn a_bit_of_a_weight_is_found_before_the_next_checkpoint() {
    goes_back("bit-of-weight", "weights@4@worker-1", [6, 3, 3]);
}

#[test]
fn a_bit_of_a_moment_is_found() {
    goes_back("bit-of-moment", "exp-avg-sq@12@worker-2", [14, 11, 11]);
}

#[test]
fn a_bit_of_an_exponent_is_found_in_the_next_sum() {
    goes_back("bit-of-exponent", "exponents@9@worker-0", [9, 8, 8]);
}

#[test]
fn a_bit_of_a_weight_that_is_not_trained_is_found() {
    goes_back("bit-of-frozen", "frozen@18@worker-1", [19, 16, 16]);
}

#[test]
fn checkpoints_that_were_saved_since_all_were_alike_are_void() {
    let (lab, run) = (Lab::enter(), "bit-saved");
    let settings = ["audit.every_steps=4", "checkpoint.every_steps=1"];
    let ended = train_with(&lab, run, 3, "weights@5@worker-1", &settings);
    ended.done();
    let alike = "most others after step 8; all were alike after step 4";
    let back = "the run goes back to its checkpoint at step 4";
    told(&ended, &["worker-1 was lost", alike, back]);
    assert_eq!(taken_back(&lab, run), [4]);
    let rewound = lab.journal(run, "run-rewound");
    // Two are kept, beside the one to go back to.
    assert_eq!(rewound[0]["dropped"], serde_json::json!([6, 7]));
    lab.equals_quiet(run);
    lab.has_a_ledger_that_holds(run);
}

#[test]
fn the_odd_one_is_evicted_and_healed_from_a_peer() {
    let lab = Lab::enter();
    let run = "bit-evicted";
    let settings = ["audit.every_steps=1", "audit.on_corruption=evict"];
    let mut command = lab.train(run, 3, &settings);
    // The others take their time, so that the new process comes in at a border.
    let gates = Gates::new(&lab, run, "worker-0", 13..TOTAL as u64);
    gates.shut(&mut command, &ordered("weights@12@worker-1"));
    let launcher = command.spawn().expect("mks2 starts");
    gates.until("worker-1 is back", || {
        lab.journal(run, "generation-formed").len() == 3
    });
    gates.open_all();
    let ended = awaited(launcher);
    ended.done();
    let alike = "most others after step 12; all were alike after step 11";
    told(
        &ended,
        &["worker-1 was lost", alike, "worker-1 is started again"],
    );
    assert_eq!(taken_back(&lab, run), [] as [u64; 0]);
    let formed = lab.journal(run, "generation-formed");
    let count = |names: &serde_json::Value| names.as_array().map_or(0, Vec::len);
    let formed = formed.iter();
    let formed: Vec<_> = formed
        .map(|entry| (count(&entry["members"]), count(&entry["joined"])))
        .collect();
    assert_eq!(formed, [(3, 0), (2, 0), (3, 1)]);
    // It was found before anything was computed from it.
    lab.equals_quiet(run);
    lab.has_a_ledger_that_holds(run);
}

#[test]
fn of_two_nobody_can_say_who_is_right_and_both_go_back() {
    let lab = Lab::enter();
    let ended = train_with(&lab, "bit-of-two", 2, "weights@12@worker-0", &[]);
    ended.done();
    let back = "the run goes back to its checkpoint at step 11";
    told(&ended, &[back, "nobody can say which copy is right"]);
    assert_eq!(taken_back(&lab, "bit-of-two"), [11]);
    lab.equals_quiet("bit-of-two");
    lab.has_a_ledger_that_holds("bit-of-two");
}

#[test]
fn where_nobody_returns_the_run_fails_and_the_same_command_resumes() {
    let lab = Lab::enter();
    let mut command = lab.train("bit-for-good", 3, &[]);
    command.args(["--restarts", "0"]);
    command.env("MKS2_TEST_MISHAP", ordered("weights@12@worker-1"));
    let words = [
        "worker-1 on",
        "holds another state of training than the others",
        "after step 14; all were alike after step 11",
        "resumes from the checkpoint at step 11",
    ];
    ended(command).refused(7, &words);
    ended(lab.train("bit-for-good", 3, &[])).done();
    lab.equals_quiet("bit-for-good");
    lab.has_a_ledger_that_holds("bit-for-good");
}
