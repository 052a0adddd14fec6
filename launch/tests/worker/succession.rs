//! P11: the coordinator dies; its workers go on, and find the next one.

use std::time::Duration;

use crate::chance::Chance;
use crate::cluster::Cluster;
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

#[test]
fn a_coordinator_that_wakes_up_again_is_fenced() {
    let lab = Lab::enter();
    lab.quiet();
    let mut cluster = Cluster::start(&lab, "fenced", 2);
    cluster.reaches(TOTAL / 4);
    // On another machine it would not be held up by the lock of the local folder.
    std::fs::remove_file(lab.path("fenced").join("lock")).expect("a lock");
    signal(cluster.coordinator.id(), "STOP");
    let old = cluster.succeed(1);
    cluster.reaches(TOTAL / 2);
    signal(old.id(), "CONT");
    old.ends_fenced();
    cluster.ends_like_the_quiet_run();
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
