//! The launcher and its children: locks, signals, deaths. The workers are scripts that sleep.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::pretender::script;
use crate::support::{Place, SLEEPER, ended, eventually, is_alive, signal, start};

#[test]
fn a_run_directory_has_one_launcher() {
    let place = Place::new();
    let first = start(place.train(SLEEPER, &[]));
    place.sleepers(1);
    let second = ended(start(place.train(SLEEPER, &[])));
    second.refused(6, &["in use", &format!("process {}", first.id())]);
    signal(first.id(), "KILL");
    ended(first);
}

#[test]
fn children_die_with_the_launcher_even_by_kill_9() {
    let place = Place::new();
    let launcher = start(place.train(SLEEPER, &["--workers", "2"]));
    let workers = place.sleepers(2);
    assert!(workers.iter().all(|pid| is_alive(*pid)));
    signal(launcher.id(), "KILL");
    ended(launcher);
    eventually("the workers die", || {
        workers.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
}

#[test]
fn ctrl_c_stops_the_run_and_tells_how_to_go_on() {
    let place = Place::new();
    let launcher = start(place.train(SLEEPER, &["--workers", "2", "--set", "seed=5"]));
    let workers = place.sleepers(2);
    signal(launcher.id(), "INT");
    let ended = ended(launcher);
    let command = "mks2 train job.toml --run run --workers 2 --set seed=5";
    ended.stopped(&[command]);
    assert!(
        ended.err.contains("once more stops at once"),
        "{}",
        ended.err
    );
    assert!(
        workers.iter().all(|pid| !is_alive(*pid)),
        "no child may outlive the launcher"
    );
    assert!(!place.path("run/coordinator.json").exists());
}

#[test]
fn a_stubborn_worker_is_killed_after_its_grace() {
    let place = Place::new();
    let stubborn = "trap '' TERM; mkdir -p \"$0.pids\"; echo $$ > \"$0.pids/$MKS2_MEMBER_ID\"; \
        while :; do sleep 0.1; done";
    let launcher = start(place.train(stubborn, &[]));
    let workers = place.sleepers(1);
    signal(launcher.id(), "TERM");
    ended(launcher).stopped(&[]);
    assert!(!is_alive(workers[0]));
}

#[test]
fn a_live_run_can_be_asked_for_its_status() {
    let place = Place::new();
    let launcher = start(place.train(SLEEPER, &["--workers", "2"]));
    place.sleepers(2);
    let contact = place.path("run/coordinator.json");
    let mode = std::fs::metadata(&contact)
        .expect("published")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = place.run(&["status", "run", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.done().out).expect("JSON");
    assert_eq!(
        (&status["live"], &status["state"]),
        (&true.into(), &"waiting".into())
    );
    assert!(place.run(&["status", "run"]).done().out.contains("0 of 2"));

    let contact: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&contact).expect("read")).expect("JSON");
    let endpoint = contact["endpoint"].as_str().expect("text");
    let mut remote = place.mks2(&["status", endpoint]);
    remote.env("MKS2_TOKEN", contact["token"].as_str().expect("text"));
    assert!(remote.status().expect("runs").success());
    place.run(&["status", endpoint]).refused(2, &["MKS2_TOKEN"]);
    let mut wrong = place.mks2(&["status", endpoint]);
    let wrong = wrong
        .env("MKS2_TOKEN", "another-token")
        .output()
        .expect("runs");
    assert_ne!(wrong.status.code(), Some(0));

    signal(launcher.id(), "INT");
    ended(launcher);
    let resting = place.run(&["status", "run"]);
    assert!(
        resting.done().out.contains("stopped, nobody trains in it"),
        "{}",
        resting.out
    );
}

#[test]
fn a_run_in_an_object_store_says_how_to_follow_it() {
    let place = Place::new();
    let worker = place.worker(SLEEPER);
    let mut command = place.mks2(&["train", "job.toml", "--run", "memory://far/run"]);
    command.env("MKS2_WORKER", worker);
    let mut launcher = start(command);
    place.sleepers(1);
    let mut lines = BufReader::new(launcher.stderr.take().expect("piped")).lines();
    let line = lines
        .find(|line| {
            line.as_ref()
                .is_ok_and(|line| line.contains("coordinator:"))
        })
        .expect("a line")
        .expect("read");
    let (_, folder) = line.split_once("mks2 watch ").expect("a command");
    let status = place.run(&["status", folder]);
    assert!(
        status.done().out.contains("memory://far/run"),
        "{}",
        status.out
    );
    signal(launcher.id(), "INT");
    assert_eq!(ended(launcher).code, Some(130));
    assert!(!PathBuf::from(folder).join("coordinator.json").exists());
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn an_unfinished_run_may_be_in_the_hands_of_another_machine() {
    let place = Place::new();
    let launcher = start(place.train(&script("linger"), &["--workers", "2"]));
    place.sleepers(2);
    eventually("steps are done", || {
        place.path("run/metrics.jsonl").exists().then_some(())
    });
    signal(launcher.id(), "KILL");
    ended(launcher);
    let resting = place.run(&["status", "run"]);
    let words = [
        "not finished; no coordinator of this machine",
        "mks2 status HOST:PORT",
        "mks2 train JOB --run",
    ];
    for word in words {
        assert!(resting.done().out.contains(word), "{word}: {}", resting.out);
    }
    assert!(!resting.out.contains("nobody trains"), "{}", resting.out);
}

#[test]
fn a_watched_run_is_followed_to_its_end() {
    let place = Place::new();
    let launcher = start(place.train(SLEEPER, &[]));
    place.sleepers(1);
    let mut watcher = start(place.mks2(&["watch", "run"]));
    let mut lines = BufReader::new(watcher.stderr.take().expect("piped")).lines();
    lines.next().expect("it is connected").expect("read");
    signal(launcher.id(), "INT");
    ended(launcher);
    let told: Vec<_> = lines.map_while(Result::ok).collect();
    ended(watcher).done();
    assert!(
        told.iter().any(|line| line.contains("the run was stopped")),
        "{told:?}"
    );
}

#[test]
fn there_is_no_status_where_there_is_no_run() {
    let place = Place::new();
    place
        .run(&["status", "nowhere"])
        .refused(2, &["no run at", "nowhere"]);
    place
        .run(&["report", "nowhere"])
        .refused(2, &["no run at", "nowhere"]);
    let mut command = place.mks2(&["status", "127.0.0.1:1"]);
    let output = command
        .env("MKS2_TOKEN", "long-enough")
        .output()
        .expect("runs");
    crate::support::Ended::from(output).refused(6, &["127.0.0.1:1"]);
}

#[test]
fn a_run_without_a_checkpoint_gives_way_to_another_job() {
    let place = Place::new();
    for seed in ["seed=1", "seed=2"] {
        let launcher = start(place.train(SLEEPER, &["--set", seed]));
        place.sleepers(1);
        signal(launcher.id(), "INT");
        assert_eq!(ended(launcher).code, Some(130), "{seed}");
        std::fs::remove_dir_all(place.path("worker.sh.pids")).expect("removed");
    }
}
