//! Whole runs, with workers that join and report but train nothing.

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::Duration;

use crate::pretender::script;
use crate::support::{Ended, Place, ended, eventually, is_alive, signal, start};

/// Steps that the metrics of the run hold.
fn steps(place: &Place) -> usize {
    std::fs::read_to_string(place.path("run/metrics.jsonl")).map_or(0, |text| text.lines().count())
}

fn wait_for_steps(place: &Place, number: usize) {
    eventually("steps are done", || (steps(place) >= number).then_some(()));
}

#[test]
fn a_run_ends_well_and_tells_its_stages() {
    let place = Place::new();
    let run = ended(start(place.train(&script("finish"), &["--workers", "2"])));
    for words in ["2 workers, 4 lanes", "bootstrap", "loss 0.0500"] {
        assert!(run.done().err.contains(words), "{words} in:\n{}", run.err);
    }
    assert_eq!(steps(&place), 20);
    assert!(place.path("run/config.resolved.toml").exists());
    assert!(place.path("run/logs/worker-1.log").exists());
    for _ in 0..2 {
        let again = ended(start(place.train(&script("finish"), &["--workers", "2"])));
        assert!(again.done().err.contains("done already"), "{}", again.err);
    }
}

#[test]
fn progress_is_json_when_logs_are() {
    let place = Place::new();
    let more = ["--log-format", "json"];
    let run = Ended::from(
        place
            .train(&script("finish"), &more)
            .output()
            .expect("runs"),
    );
    let events: Vec<serde_json::Value> = run
        .done()
        .err
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let progress = events.iter().find(|event| event["message"] == "progress");
    let progress = progress.unwrap_or_else(|| panic!("no progress in:\n{}", run.err));
    assert_eq!(progress["stage"], "bootstrap");
}

#[test]
fn quiet_runs_say_nothing_but_errors() {
    let place = Place::new();
    let run = Ended::from(
        place
            .train(&script("finish"), &["--quiet"])
            .output()
            .expect("runs"),
    );
    assert_eq!(run.done().err, "");
}

#[test]
fn a_killed_worker_is_named_and_the_last_one_ends_the_run() {
    let place = Place::new();
    let once = ["--workers", "2", "--restarts", "0"];
    let launcher = start(place.train(&script("linger"), &once));
    let workers = place.sleepers(2);
    wait_for_steps(&place, 3);
    let kill = |worker: &str| {
        let pid = std::fs::read_to_string(place.path(&format!("worker.sh.pids/{worker}")));
        let pid = pid.expect("its process").trim().parse();
        signal(pid.expect("a number"), "KILL");
    };
    kill("worker-1");
    eventually("the run goes on without it", || {
        let status = place.run(&["status", "run"]);
        status
            .out
            .contains("1 worker is at work in generation 2")
            .then_some(())
    });
    let status = place.run(&["status", "run"]);
    assert!(
        status.out.contains("worker-1 was lost (rank 1 on here"),
        "{}",
        status.out
    );
    kill("worker-0");
    let run = ended(launcher);
    for words in [
        "warning: worker-1 was lost (rank 1 on here",
        "worker-1: it was killed by signal 9 (SIGKILL)",
        "worker-1.log",
    ] {
        assert!(run.err.contains(words), "{words}: {}", run.err);
    }
    let words = [
        "worker-0 was lost",
        "rank 0 on here",
        "(SIGKILL)",
        "worker-0.log",
        "same command",
    ];
    run.refused(7, &words);
    assert!(
        workers.iter().all(|pid| !is_alive(*pid)),
        "no child may outlive the launcher"
    );
}

#[test]
fn the_first_failure_is_the_cause_and_gives_the_exit_code() {
    let place = Place::new();
    let run = ended(start(place.train(&script("fail"), &["--workers", "2"])));
    run.refused(
        4,
        &["a picture cannot be read", "row 7 is damaged", "verify it"],
    );
}

#[test]
fn ctrl_c_in_a_run_stops_at_a_step_border() {
    let place = Place::new();
    let launcher = start(place.train(&script("linger"), &["--workers", "2"]));
    wait_for_steps(&place, 3);
    signal(launcher.id(), "INT");
    let run = ended(launcher);
    run.stopped(&["mks2 train job.toml --run run --workers 2"]);
    assert!(run.err.contains("stopped at step "), "{}", run.err);
    assert!(
        place.run(&["status", "run"]).done().out.contains("stopped"),
        "the journal knows"
    );
}

#[test]
fn a_closed_terminal_stops_a_run_unless_nohup_keeps_it_away() {
    let place = Place::new();
    // Whatever holds for the process of the tests itself.
    let start_with = |signals: &str| {
        let plain = place.train(&script("linger"), &["--workers", "2"]);
        let mut command = Command::new("env");
        command.arg(signals).arg(plain.get_program());
        command.args(plain.get_args());
        place.settle(&mut command);
        let set = plain.get_envs();
        command.envs(set.filter_map(|(name, value)| Some((name, value?))));
        start(command)
    };
    let launcher = start_with("--default-signal=HUP");
    wait_for_steps(&place, 3);
    signal(launcher.id(), "HUP");
    ended(launcher).stopped(&[]);
    // As `nohup` does it.
    let launcher = start_with("--ignore-signal=HUP");
    let done = steps(&place);
    wait_for_steps(&place, done + 3);
    signal(launcher.id(), "HUP");
    wait_for_steps(&place, done + 20);
    signal(launcher.id(), "INT");
    ended(launcher).stopped(&[]);
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let place = Place::new();
    let deaf = "mkdir -p \"$0.pids\"; echo $$ > \"$0.pids/$MKS2_MEMBER_ID\"; \
        trap '' TERM INT; while :; do sleep 0.1; done";
    let launcher = start(place.train(deaf, &[]));
    let workers = place.sleepers(1);
    signal(launcher.id(), "INT");
    std::thread::sleep(Duration::from_millis(50));
    signal(launcher.id(), "INT");
    ended(launcher).stopped(&[]);
    assert!(!is_alive(workers[0]));
}

#[test]
fn a_run_that_was_stopped_twice_counts_as_stopped() {
    let place = Place::new();
    let launcher = start(place.train(&script("deaf"), &["--workers", "2"]));
    wait_for_steps(&place, 3);
    signal(launcher.id(), "INT");
    eventually("the first request is heard", || {
        let status = place.run(&["status", "run"]);
        status.out.contains("stopping").then_some(())
    });
    signal(launcher.id(), "INT");
    ended(launcher).stopped(&["at once"]);
    let status = place.run(&["status", "run"]);
    assert!(
        status.done().out.contains("stopped, nobody trains in it"),
        "{}",
        status.out
    );
}

#[test]
fn a_silent_worker_is_named_and_killed() {
    let place = Place::new();
    let mut launcher = start(place.train(&script("linger"), &["--workers", "2"]));
    let workers = place.sleepers(2);
    wait_for_steps(&place, 3);
    let pid = std::fs::read_to_string(place.path("worker.sh.pids/worker-1")).expect("its process");
    let pid = pid.trim().parse().expect("a number");
    let mut err = BufReader::new(launcher.stderr.take().expect("piped")).lines();
    signal(pid, "STOP");
    assert!(err.any(|line| line.is_ok_and(|line| line.contains("worker-1 was lost"))));
    let why = err.next().expect("a reason").expect("text");
    assert!(why.contains("nothing was heard of it"), "{why}");
    eventually("it is killed", || (!is_alive(pid)).then_some(()));
    signal(launcher.id(), "INT");
    assert!(err.any(|line| line.is_ok_and(|line| line.contains("the run was stopped"))));
    assert_eq!(ended(launcher).code, Some(130));
    assert!(workers.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn a_reader_that_has_seen_enough_does_not_end_the_run() {
    let place = Place::new();
    let mut launcher = start(place.train(&script("finish"), &["--workers", "2"]));
    drop(launcher.stderr.take());
    drop(launcher.stdout.take());
    assert_eq!(ended(launcher).code, Some(0));
    let status = place.run(&["status", "run"]);
    assert!(status.done().out.contains("finished"), "{}", status.out);
    let mut refused = start(place.mks2(&["plan", "nothing.toml"]));
    drop(refused.stderr.take());
    assert_eq!(ended(refused).code, Some(3));
}

#[test]
fn a_stage_that_fails_does_not_look_finished() {
    let place = Place::new();
    let run = ended(start(place.train(&script("fail"), &["--workers", "2"])));
    assert!(
        run.err.contains("stopped at step ") && !run.err.contains("  in 0:"),
        "{}",
        run.err
    );
}

#[test]
fn a_live_run_shows_its_members_and_stage() {
    let place = Place::new();
    let launcher = start(place.train(&script("linger"), &["--workers", "2"]));
    wait_for_steps(&place, 3);
    let status = place.run(&["status", "run"]);
    for words in [
        "running",
        "stage       bootstrap",
        "worker-0",
        "worker-1",
        "0-1",
        "2-3",
    ] {
        assert!(
            status.done().out.contains(words),
            "{words} in:\n{}",
            status.out
        );
    }
    signal(launcher.id(), "INT");
    ended(launcher);
}
