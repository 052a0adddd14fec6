//! P10: deaths and requests to stop cost time, and change no bit.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::chance::Chance;
use crate::lab::{Ended, KEEP_LAST, Lab, TOTAL, awaited, ended, signal, workers_of};

/// How often everything is killed.
const DEATHS: usize = 6;

/// The launcher and its workers, in any order.
fn kill_all(launcher: u32, chance: &mut Chance) {
    let mut processes = workers_of(launcher);
    processes.push(launcher);
    while !processes.is_empty() {
        signal(processes.swap_remove(chance.below(processes.len())), "KILL");
    }
}

/// Starts the run and kills everything at a random moment; false if it had ended before.
#[expect(
    clippy::print_stdout,
    reason = "a failed test shows what had been drawn"
)]
fn killed_at_random(lab: &Lab, run: &str, chance: &mut Chance) -> bool {
    let workers = 1 + chance.below(4);
    let mut launcher = lab.train(run, workers, &[]).spawn().expect("mks2 starts");
    let at = lab.steps(run).len() + chance.below(1 + TOTAL / DEATHS);
    let more = Duration::from_millis(chance.below(150) as u64);
    println!("{workers} workers, killed {more:?} after step {at}");
    if !lab.reaches(run, at, &mut launcher) {
        awaited(launcher).done();
        return false;
    }
    std::thread::sleep(more);
    kill_all(launcher.id(), chance);
    awaited(launcher);
    true
}

#[test]
fn deaths_of_everything_at_random_moments_change_no_bit() {
    let lab = Lab::enter();
    let mut chance = Chance::new();
    lab.quiet();
    let killed = (0..DEATHS).take_while(|_| killed_at_random(&lab, "stormy", &mut chance));
    let killed = killed.count();
    println!("killed {killed} times");
    assert!(killed > 1, "it was done before it could be killed");
    ended(lab.train("stormy", 2, &[])).done();
    lab.equals_quiet("stormy");
    only_what_counts_is_kept(&lab, "stormy");
    for _ in 0..2 {
        let again = ended(lab.train("stormy", 2, &[]));
        assert!(again.done().err.contains("done already"), "{}", again.err);
    }
}

/// The retention policy, and no object that nobody needs.
fn only_what_counts_is_kept(lab: &Lab, run: &str) {
    let manifests = lab.manifests(run);
    let last = |manifest: &&Value| manifest["final"].as_bool().expect("final");
    let finals = manifests.iter().filter(last).count();
    assert_eq!(finals, 5, "one for each stage");
    assert!(manifests.len() - finals <= KEEP_LAST, "{manifests:#?}");
    let parts = manifests
        .iter()
        .flat_map(|manifest| manifest["parts"].as_array());
    let needed: BTreeSet<String> = parts
        .flatten()
        .map(|part| part["path"].as_str().expect("a path").to_owned())
        .collect();
    let objects = std::fs::read_dir(lab.path(run).join("objects")).expect("objects");
    let there: BTreeSet<String> = objects
        .map(|entry| {
            let name = entry.expect("read").file_name();
            format!("objects/{}", name.to_string_lossy())
        })
        .collect();
    assert_eq!(there, needed);
}

/// Starts the run and disturbs it once it has done a step more than `after`.
fn disturbed(lab: &Lab, run: &str, after: usize, disturb: impl Fn(u32)) -> Ended {
    let mut command = lab.train(run, 2, &[]);
    command.args(["--restarts", "0"]);
    let mut launcher = command.spawn().expect("mks2 starts");
    assert!(
        lab.reaches(run, after + 1, &mut launcher),
        "it ended by itself"
    );
    disturb(launcher.id());
    awaited(launcher)
}

#[test]
fn ctrl_c_checkpoints_and_a_damaged_checkpoint_is_refused() {
    let lab = Lab::enter();
    let stopped = disturbed(&lab, "asked", 4, |launcher| signal(launcher, "INT"));
    let step = lab.steps("asked").len();
    let safe = format!("checkpoint of step {step}");
    let words = ["the run was stopped", &safe, "go on with: mks2 train"];
    stopped.stopped(&words);

    let manifests = lab.manifests("asked");
    let latest = manifests.last().expect("a checkpoint");
    let part = &latest["parts"][0];
    let (name, path) = (text(&part["name"]), text(&part["path"]));
    let object = lab.path("asked").join(path);
    flip_a_byte(&object);
    let refused = ended(lab.train("asked", 2, &[]));
    refused.refused(8, &["checkpoint is refused", name, path, "--resume"]);
    flip_a_byte(&object);
    ended(lab.train("asked", 2, &[])).done();
    lab.equals_quiet("asked");
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn flip_a_byte(object: &PathBuf) {
    let mut bytes = std::fs::read(object).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(object, bytes).expect("written");
}

#[test]
fn the_last_worker_is_named_and_the_run_goes_on_from_its_checkpoint() {
    let lab = Lab::enter();
    let all = |launcher| {
        let workers = workers_of(launcher);
        signal(workers[1], "KILL");
        signal(workers[0], "KILL");
    };
    let lost = disturbed(&lab, "bereft", 10, all);
    let words = ["was lost", "SIGKILL", ".log", "same command"];
    lost.refused(7, &words);
    ended(lab.train("bereft", 3, &[])).done();
    lab.equals_quiet("bereft");
    // One that the run went on without, for a moment, and the one that ended it.
    assert_eq!(lab.report("bereft")["failures"], 2);
}
