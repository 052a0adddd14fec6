//! Every moment of every worker is accounted for, and the account says what it was lost to.

use serde_json::Value;

use crate::lab::{Lab, ended};

/// What a run spends its time on, in seconds.
fn seconds(account: &Value, activity: &str) -> f64 {
    let share = account[activity].as_f64().expect("a share");
    share * account["seconds"].as_f64().expect("seconds")
}

/// From the first record of the journal to the last, in seconds.
fn wall_seconds(lab: &Lab, run: &str) -> f64 {
    let mut moments: Vec<u64> = lab
        .records(run)
        .iter()
        .map(|record| record["at_ms"].as_u64().expect("a time"))
        .collect();
    moments.sort_unstable();
    let (first, last) = (moments.first(), moments.last());
    last.zip(first).map_or(0, |(last, first)| last - first) as f64 / 1000.0
}

#[test]
fn the_time_of_a_run_adds_up_and_says_what_it_was_lost_to() {
    let lab = Lab::enter();
    let mut command = lab.train("accounted", 3, &[]);
    let naps = (14..20).map(|step| format!("nap@loading@{step}@worker-0"));
    let naps = naps.collect::<Vec<_>>().join(",");
    let mishaps = format!("kill@computing@9@worker-1,{naps}");
    command.env("MKS2_TEST_MISHAP", mishaps);
    let ended = ended(command);
    ended.done();
    assert!(ended.out.contains("time: useful "), "{}", ended.out);

    let goodput = &lab.report("accounted")["goodput"];
    let run = &goodput["run"];
    let parts = run.as_object().expect("an account").iter();
    let parts = parts.filter(|(name, _)| *name != "seconds");
    let whole: f64 = parts
        .map(|(_, share)| share.as_f64().expect("a share"))
        .sum();
    assert!((whole - 1.0).abs() < 1e-9, "{run}");
    let (told, lived) = (
        run["seconds"].as_f64(),
        3.0 * wall_seconds(&lab, "accounted"),
    );
    let missed = (told.expect("seconds") - lived).abs() / lived;
    assert!(
        missed < 0.1,
        "{told:?} of {lived} worker-seconds are accounted for"
    );

    let worker = |name: &str| &goodput["workers"][name];
    // Six naps of half a second: data to the one who naps, stragglers to those who wait for it.
    assert!(seconds(worker("worker-0"), "data") > 2.5, "{goodput}");
    assert!(seconds(worker("worker-2"), "straggler") > 2.0, "{goodput}");
    assert!(seconds(worker("worker-2"), "recovery") > 0.0, "{goodput}");
    assert!(seconds(worker("worker-1"), "restart") > 0.0, "{goodput}");
    assert!(
        seconds(run, "useful") > seconds(run, "recovery"),
        "{goodput}"
    );

    let metrics = std::fs::read_to_string(lab.path("accounted").join("metrics.jsonl"));
    let metrics = metrics.expect("metrics");
    let last: Value = serde_json::from_str(metrics.lines().last().expect("a line")).expect("JSON");
    let goodput = last["goodput"].as_f64().expect("a share");
    assert!(goodput > 0.0 && goodput < 1.0, "{goodput}");
}

#[test]
fn workers_that_are_missing_cost_restarts_and_evaluations_are_none_of_it() {
    let lab = Lab::enter();
    let run = lab.train("missing", "2:2", &[]);
    let mut command = run;
    command.env("MKS2_TEST_MISHAP", "kill@reducing@6@worker-0");
    ended(command).done();
    let goodput = &lab.report("missing")["goodput"];
    // The other one waited in the middle of a step until somebody came.
    assert!(
        seconds(&goodput["workers"]["worker-1"], "restart") > 0.3,
        "{goodput}"
    );

    lab.evaluated().done();
    let evaluated = &lab.report("evaluated")["goodput"]["run"];
    assert!(seconds(evaluated, "evaluation") > 0.5, "{evaluated}");
    assert!(seconds(evaluated, "recovery") == 0.0, "{evaluated}");
}
