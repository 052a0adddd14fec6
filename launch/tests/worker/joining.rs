//! P9 and P10: workers come to a run at work and leave it, and no bit differs.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::gates::Gates;
use crate::lab::{Ended, Lab, TOTAL, awaited, ended, mks2, signal, workers_of};

/// The run's last step.
const LAST: u64 = TOTAL as u64;

/// What happens to nobody.
const NOTHING: &str = "nap@loading@1@nobody";

fn spawned(mut command: Command) -> Child {
    command.spawn().expect("mks2 starts")
}

/// How many members each generation had, and how many of them were new in it.
fn generations(lab: &Lab, run: &str) -> Vec<(usize, usize)> {
    let formed = lab.journal(run, "generation-formed");
    let count = |names: &serde_json::Value| names.as_array().map_or(0, Vec::len);
    let formed = formed.iter();
    formed
        .map(|entry| (count(&entry["members"]), count(&entry["joined"])))
        .collect()
}

#[track_caller]
fn is_like_the_quiet_run(lab: &Lab, ended: &Ended, run: &str) {
    ended.done();
    lab.equals_quiet(run);
    lab.has_a_ledger_that_holds(run);
}

#[test]
fn a_worker_that_died_is_started_again_and_comes_in_at_a_step_border() {
    let lab = Lab::enter();
    let mut command = lab.train("replaced", 3, &[]);
    let gates = Gates::new(&lab, "replaced", "worker-0", 10..LAST);
    gates.shut(&mut command, "kill@computing@9@worker-1");
    let launcher = spawned(command);
    gates.until("worker-1 is back", || {
        generations(&lab, "replaced").len() == 3
    });
    gates.open_all();
    let ended = awaited(launcher);
    is_like_the_quiet_run(&lab, &ended, "replaced");
    assert_eq!(generations(&lab, "replaced"), [(3, 0), (2, 0), (3, 1)]);
    assert!(
        ended.err.contains("worker-1 is started again"),
        "{}",
        ended.err
    );
}

#[test]
fn below_the_minimum_the_run_waits_in_the_middle_of_a_step() {
    let lab = Lab::enter();
    let mut command = lab.train("held", "2:2", &[]);
    let mishaps = "kill@reducing@6@worker-0,kill@computing@18@worker-1";
    command.env("MKS2_TEST_MISHAP", mishaps);
    let ended = ended(command);
    is_like_the_quiet_run(&lab, &ended, "held");
    assert_eq!(generations(&lab, "held"), [(2, 0), (2, 1), (2, 1)]);
}

#[test]
fn the_last_worker_dies_and_the_run_goes_on_from_its_checkpoint() {
    let lab = Lab::enter();
    let mut command = lab.train("forsaken", 1, &[]);
    command.env("MKS2_TEST_MISHAP", "kill@updating@12@worker-0");
    let ended = ended(command);
    is_like_the_quiet_run(&lab, &ended, "forsaken");
    assert_eq!(generations(&lab, "forsaken"), [(1, 0), (1, 0)]);
}

#[test]
fn the_last_ones_die_together_and_without_restarts_the_run_fails() {
    let lab = Lab::enter();
    let mut command = lab.train("given-up", 2, &[]);
    command.args(["--restarts", "0"]);
    let mishaps = "kill@updating@12@worker-0,kill@updating@12@worker-1";
    command.env("MKS2_TEST_MISHAP", mishaps);
    let ended = ended(command);
    assert_eq!(ended.code, Some(7), "{}", ended.err);
    assert!(ended.err.contains("was lost"), "{}", ended.err);
    self::ended(lab.train("given-up", 2, &[])).done();
    lab.equals_quiet("given-up");
}

#[test]
fn workers_come_and_leave_on_request() {
    let lab = Lab::enter();
    let mut command = lab.train("scaled", 1, &[]);
    let gates = Gates::new(&lab, "scaled", "worker-0", 4..LAST);
    gates.shut(&mut command, "");
    let mut launcher = spawned(command);
    assert!(lab.reaches("scaled", 3, &mut launcher));
    let run = lab.path("scaled").display().to_string();
    let steer = |arguments: &[&str]| {
        let output = mks2(arguments).output().expect("mks2 runs");
        Ended::from(output).done();
    };
    steer(&["scale", &run, "3"]);
    let formed = |members: usize| {
        gates.until(&format!("there are {members} members"), || {
            generations(&lab, "scaled").last().map(|last| last.0) == Some(members)
        });
    };
    formed(3);
    steer(&["drain", &run, "worker-1"]);
    formed(2);
    steer(&["scale", &run, "1"]);
    formed(1);
    gates.open_all();
    let ended = awaited(launcher);
    is_like_the_quiet_run(&lab, &ended, "scaled");
    assert_eq!(lab.report("scaled")["failures"], 0, "{}", ended.err);
}

#[test]
fn a_worker_that_is_asked_to_end_leaves_at_a_border_and_is_replaced() {
    let lab = Lab::enter();
    let mut command = lab.train("preempted", 2, &[]);
    command.args(["--restarts", "0"]);
    // The one that saves is the one that leaves, and nothing that it saved is lost.
    let gates = Gates::new(&lab, "preempted", "worker-1", 10..LAST);
    gates.shut(&mut command, "");
    let mut launcher = spawned(command);
    assert!(lab.reaches("preempted", 9, &mut launcher));
    let workers = workers_of(launcher.id());
    signal(workers[0], "TERM");
    let left = || {
        let formed = lab.journal("preempted", "generation-formed");
        let left = formed.iter().filter(|entry| entry["left"].is_array());
        left.count()
    };
    gates.until("it leaves", || left() > 0);
    gates.open_all();
    let ended = awaited(launcher);
    is_like_the_quiet_run(&lab, &ended, "preempted");
    assert_eq!(left(), 1);
    assert_eq!(lab.report("preempted")["failures"], 0, "{}", ended.err);
}

/// The one that has told the newcomer half of it is gone: another one goes on.
#[test]
fn the_one_that_hands_the_state_over_dies() {
    let lab = Lab::enter();
    let mut command = lab.train("orphaned", 3, &[]);
    // The third time it regroups in a step is the handover.
    let deaths = (10..=TOTAL).map(|step| format!("kill@regrouping#3@{step}@worker-0"));
    let deaths = deaths.collect::<Vec<_>>().join(",");
    let gates = Gates::new(&lab, "orphaned", "worker-2", 10..LAST);
    gates.shut(&mut command, &format!("kill@computing@9@worker-1,{deaths}"));
    let launcher = spawned(command);
    gates.until("worker-1 is back", || {
        generations(&lab, "orphaned").len() >= 3
    });
    gates.open_all();
    let ended = awaited(launcher);
    is_like_the_quiet_run(&lab, &ended, "orphaned");
    let formed = generations(&lab, "orphaned");
    assert_eq!(formed[..3], [(3, 0), (2, 0), (3, 1)], "{formed:?}");
    assert!(
        ended.err.contains("worker-0 was lost"),
        "it did not hand anything over: {}",
        ended.err
    );
}

/// A coordinator as a process of its own, and the command of a worker for it.
fn coordinated(
    lab: &Lab,
    run: &str,
    workers: &str,
) -> (Child, impl Fn(&str, &str) -> Command + use<>) {
    let mut coordinator = lab.coordinate(run, workers, "127.0.0.1:0");
    coordinator.env("MKS2_TOKEN", "the-token-of-the-tests");
    let mut coordinator = spawned(coordinator);
    let contact = lab.path(run).join("coordinator.json");
    while !contact.exists() {
        assert!(coordinator.try_wait().expect("waited").is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    let run = lab.path(run).display().to_string();
    let join = move |name: &str, mishaps: &str| {
        let mut command = mks2(&["worker", "--join", &run, "--name", name]);
        command.env("MKS2_TEST_MISHAP", mishaps);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    (coordinator, join)
}

#[test]
fn a_newcomer_dies_in_the_handover_and_another_one_comes() {
    let lab = Lab::enter();
    let run = "miscarried";
    let (mut coordinator, join) = coordinated(&lab, run, "1:2");
    let gates = Gates::new(&lab, run, "first", 4..LAST);
    let mut first = join("first", NOTHING);
    gates.shut(&mut first, "");
    let first = spawned(first);
    assert!(lab.reaches(run, 3, &mut coordinator));
    // It knows of no step yet.
    let mut second = spawned(join("second", "kill@regrouping#2@1@second"));
    gates.until("the second one is killed", || {
        second.try_wait().expect("waited").is_some()
    });
    let second = awaited(second);
    assert_eq!(second.code, None, "it was not killed: {}", second.err);
    let third = spawned(join("third", NOTHING));
    gates.until("the third one takes part", || {
        generations(&lab, run).len() == 4
    });
    gates.open_all();
    for worker in [first, third] {
        awaited(worker).done();
    }
    awaited(coordinator).done();
    lab.has_weights_of_quiet(run);
    lab.has_a_ledger_that_holds(run);
    assert_eq!(generations(&lab, run), [(1, 0), (2, 1), (1, 0), (2, 1)]);
}

#[test]
fn a_worker_is_told_where_several_coordinators_may_be() {
    let lab = Lab::enter();
    let run = "listed";
    let (coordinator, _) = coordinated(&lab, run, "1");
    let contact = std::fs::read(lab.path(run).join("coordinator.json")).expect("read");
    let contact: serde_json::Value = serde_json::from_slice(&contact).expect("JSON");
    let endpoint = contact["endpoint"].as_str().expect("an address");
    let nobody = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr();
    let both = format!("{},{endpoint}", nobody.expect("an address"));
    let mut worker = mks2(&["worker", "--join", &both]);
    worker.env("MKS2_TOKEN", "the-token-of-the-tests");
    worker.stdout(Stdio::null()).stderr(Stdio::piped());
    awaited(spawned(worker)).done();
    awaited(coordinator).done();
    lab.has_weights_of_quiet(run);
}

#[test]
fn the_last_worker_dies_and_another_one_comes_by_hand() {
    let lab = Lab::enter();
    let run = "abandoned";
    let (coordinator, join) = coordinated(&lab, run, "1");
    let first = ended(join("first", "kill@updating@12@first"));
    assert_eq!(first.code, None, "it was not killed: {}", first.err);
    std::thread::sleep(Duration::from_secs(1));
    ended(join("second", NOTHING)).done();
    awaited(coordinator).done();
    lab.has_weights_of_quiet(run);
    lab.has_a_ledger_that_holds(run);
    assert_eq!(generations(&lab, run), [(1, 0), (1, 0)]);
}

#[test]
fn workers_join_by_hand() {
    let lab = Lab::enter();
    let (mut coordinator, join) = coordinated(&lab, "joined", "1:2");
    let gates = Gates::new(&lab, "joined", "first", 4..LAST);
    let mut first = join("first", NOTHING);
    gates.shut(&mut first, "");
    let first = spawned(first);
    assert!(lab.reaches("joined", 3, &mut coordinator));
    let second = spawned(join("second", NOTHING));
    gates.until("the second one takes part", || {
        generations(&lab, "joined").len() == 2
    });
    let third = ended(join("third", NOTHING));
    gates.open_all();
    assert_eq!(third.code, Some(3), "{}", third.err);
    assert!(
        third.err.contains("the run has all its workers"),
        "{}",
        third.err
    );
    for worker in [first, second] {
        awaited(worker).done();
    }
    awaited(coordinator).done();
    lab.has_weights_of_quiet("joined");
    lab.has_a_ledger_that_holds("joined");
    assert_eq!(generations(&lab, "joined"), [(1, 0), (2, 1)]);
}
