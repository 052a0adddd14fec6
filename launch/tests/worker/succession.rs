//! P11: the coordinator dies; its workers go on, and find the next one.

use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::cluster::{Cluster, Coordinator};
use crate::lab::{Lab, TOTAL, signal};

#[test]
fn a_coordinator_that_is_killed_has_a_successor() {
    let lab = Lab::enter();
    let mut chance = Chance::new();
    lab.quiet();
    let mut cluster = Cluster::start(&lab, "succeeded", 2);
    // At the same address, at another one, and back.
    for (round, address) in [0, 1, 0].into_iter().enumerate() {
        cluster.reaches((round + 1) * TOTAL / 5 + chance.below(3));
        cluster.kill_coordinator();
        // The workers go on meanwhile.
        std::thread::sleep(Duration::from_millis(chance.below(900) as u64));
        cluster.succeed(address);
    }
    cluster.ends_like_the_quiet_run();
    let terms = lab.journal("succeeded", "term-taken");
    assert_eq!(terms.len(), 4);
    assert_eq!(
        lab.journal("succeeded", "generation-formed").len(),
        1,
        "nobody was lost"
    );
}

/// A run whose first coordinator stands still, and another one is in office.
fn superseded<'a>(lab: &'a Lab, run: &'a str) -> (Cluster<'a>, Coordinator) {
    lab.quiet();
    let mut cluster = Cluster::start(lab, run, 2);
    cluster.reaches(TOTAL / 4);
    // On another machine it would not be held up by the lock of the local folder.
    std::fs::remove_file(lab.path(run).join("lock")).expect("a lock");
    signal(cluster.coordinator.id(), "STOP");
    let old = cluster.succeed(1);
    (cluster, old)
}

#[test]
fn a_coordinator_that_wakes_up_again_is_fenced() {
    let lab = Lab::enter();
    let (mut cluster, old) = superseded(&lab, "fenced");
    cluster.reaches(TOTAL / 2);
    signal(old.id(), "CONT");
    old.ends_fenced();
    cluster.ends_like_the_quiet_run();
}

#[test]
fn a_coordinator_that_wakes_up_when_the_run_is_over_changes_nothing() {
    let lab = Lab::enter();
    let (cluster, old) = superseded(&lab, "slept-long");
    cluster.ends_like_the_quiet_run();
    signal(old.id(), "CONT");
    old.ends_fenced();
    lab.has_weights_of_quiet("slept-long");
    lab.has_a_ledger_that_holds("slept-long");
}

#[test]
fn a_worker_that_is_asked_to_end_while_there_is_no_coordinator_waits_for_the_next_one() {
    let lab = Lab::enter();
    lab.quiet();
    let run = "asked-alone";
    let mut cluster = Cluster::start(&lab, run, 3);
    cluster.reaches(TOTAL / 4);
    cluster.kill_coordinator();
    cluster.ask_to_end(1);
    std::thread::sleep(Duration::from_millis(300));
    cluster.succeed(1);
    cluster.ends_like_the_quiet_run();
    let formed = lab.journal(run, "generation-formed");
    let names = |key: &str| {
        let names = formed.iter().filter_map(|entry| entry[key].as_array());
        names.flatten().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names("left"), ["worker-1"]);
    assert!(names("lost").is_empty(), "{formed:?}");
}

#[test]
fn a_worker_that_no_coordinator_lets_go_ends_when_its_time_is_over() {
    let lab = Lab::enter();
    lab.quiet();
    let run = "never-let-go";
    let mut cluster = Cluster::start_with(&lab, run, 2, &[("MKS2_GRACE", "1")]);
    cluster.reaches(TOTAL / 4);
    cluster.kill_coordinator();
    let began = Instant::now();
    assert_eq!(cluster.ask_to_end_and_wait(1), Some(143));
    // They look for a coordinator for five minutes.
    let took = began.elapsed().as_secs_f64();
    assert!((0.9..60.0).contains(&took), "{took} s");
    cluster.succeed(0);
    cluster.ends_without(1);
}

#[test]
fn a_second_coordinator_takes_over_from_a_living_one() {
    let lab = Lab::enter();
    lab.quiet();
    let mut cluster = Cluster::start(&lab, "taken-over", 2);
    cluster.reaches(TOTAL / 4);
    std::fs::remove_file(lab.path("taken-over").join("lock")).expect("a lock");
    // Its next record is refused, and its workers find the other one.
    cluster.succeed(1).ends_fenced();
    cluster.ends_like_the_quiet_run();
}
