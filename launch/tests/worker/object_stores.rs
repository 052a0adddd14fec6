//! Whole runs in object stores: the store alone says who is in office (P11).

use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

use mks2_coordinator::journal::{JournalError, Place, replay};
use mks2_proto::ids::Incarnation;

use crate::cluster::Cluster;
use crate::lab::{Lab, TOTAL, signal};
use crate::servers::{Kind, runtime};

/// Writers of a race, and races.
const WRITERS: u64 = 32;
const RACES: u64 = 10;

#[test]
fn of_coordinators_that_write_the_same_record_one_wins_on_s3() {
    one_wins(Kind::S3);
}

#[test]
fn of_coordinators_that_write_the_same_record_one_wins_on_azure() {
    one_wins(Kind::Azure);
}

fn one_wins(kind: Kind) {
    let Some(lab) = Lab::enter_with(kind) else {
        return;
    };
    let place = lab.server().place(&lab.server().url("races"));
    runtime().block_on(async {
        for race in 0..RACES {
            raced(&place).await;
            let found = replay(place.clone()).await.expect("whole");
            assert_eq!(found.number, race + 1, "no record is lost or doubled");
            assert_eq!(found.history.term.0, race + 1);
        }
    });
}

/// All take the next term at once, and one has it.
async fn raced(place: &Place) {
    let seen = replay(place.clone()).await.expect("whole");
    let start = Arc::new(tokio::sync::Barrier::new(WRITERS as usize));
    let take = |writer| {
        let (seen, start) = (seen.clone(), Arc::clone(&start));
        async move {
            start.wait().await;
            seen.take_term(Incarnation(writer)).await
        }
    };
    let taken = futures::future::join_all((0..WRITERS).map(take)).await;
    let mut winners = Vec::new();
    for outcome in taken {
        match outcome {
            Ok(journal) => winners.push(journal),
            Err(JournalError::Fenced { number, .. }) => assert_eq!(number, seen.number + 1),
            Err(other) => panic!("{other}"),
        }
    }
    let journal = winners.pop().expect("a winner");
    assert!(winners.is_empty(), "a second one won");
    journal.check_office().await.expect("it is in office");
}

#[test]
fn a_run_on_s3_goes_on_whichever_coordinator_dies_or_wakes_up() {
    coordinators_come_and_go(Kind::S3);
}

#[test]
fn a_run_on_azure_goes_on_whichever_coordinator_dies_or_wakes_up() {
    coordinators_come_and_go(Kind::Azure);
}

fn coordinators_come_and_go(kind: Kind) {
    let Some(lab) = Lab::enter_with(kind) else {
        return;
    };
    lab.quiet();
    let run = lab.server().url("runs/come and go");
    let mut cluster = Cluster::start(&lab, &run, 2);
    cluster.reaches(TOTAL / 7);
    cluster.kill_coordinator();
    // The workers go on meanwhile.
    std::thread::sleep(Duration::from_millis(500));
    cluster.succeed(0);
    cluster.reaches(2 * TOTAL / 7);
    // Another one beside a living one.
    cluster.succeed(1).ends_fenced();
    cluster.reaches(3 * TOTAL / 7);
    // Another one beside one that stands still, which wakes up when the run has gone on.
    signal(cluster.coordinator.id(), "STOP");
    let old = cluster.succeed(0);
    cluster.reaches(5 * TOTAL / 7);
    signal(old.id(), "CONT");
    old.ends_fenced();
    cluster.ends_like_the_quiet_run();
    assert_eq!(lab.journal(&run, "term-taken").len(), 4);
    let generations = lab.journal(&run, "generation-formed");
    assert_eq!(generations.len(), 1, "nobody was lost");
    lab.shows_no_secret(&run);
}

#[test]
fn a_server_that_stands_still_is_named_and_costs_checkpoints_and_no_training() {
    let Some(lab) = Lab::enter_with(Kind::S3) else {
        return;
    };
    lab.quiet();
    let run = lab.server().url("runs/hanging");
    let mut command = lab.train(&run, 2, &["checkpoint.every_steps=1"]);
    command.env("MKS2_UPLOAD_LIMIT", "1");
    let mut launcher = command.spawn().expect("mks2 starts");
    while lab.journal(&run, "checkpoint-committed").is_empty() {
        let ended = launcher.try_wait().expect("waited");
        assert!(ended.is_none(), "it has ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    lab.server().signal("STOP");
    // A second alarm shows that a step was done meanwhile.
    let mut told = BufReader::new(launcher.stderr.take().expect("piped")).lines();
    let (mut alarms, mut is_named) = (0, false);
    while alarms < 2 || !is_named {
        let line = told.next().expect("more to be told").expect("text");
        alarms += usize::from(line.contains("was skipped"));
        is_named |= line.contains("the coordinator waits for its store");
    }
    lab.server().signal("CONT");
    let rest: Vec<_> = told.map_while(Result::ok).collect();
    assert!(launcher.wait().expect("ended").success(), "{rest:#?}");
    lab.equals_quiet(&run);
    lab.has_a_ledger_that_holds(&run);
}
