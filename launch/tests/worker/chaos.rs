//! `mks2 chaos`: a job whose processes are killed is the job that nobody disturbed.

use serde_json::Value;

use crate::lab::{Ended, Lab, mks2};

/// The small job, with a stage that is long enough to be disturbed.
fn chaos(lab: &Lab, out: &str, options: &[&str]) -> Ended {
    let mut command = mks2(&["chaos"]);
    command.arg(lab.path("small.toml"));
    command.arg("--out").arg(lab.path(out));
    command.args(options);
    let mut set = |setting: String| {
        command.arg("--set").arg(setting);
    };
    for name in ["emoji", "colors-train", "colors-test"] {
        set(format!("data.{name}.url={}", lab.path(name).display()));
    }
    for (stage, steps) in [("bootstrap", 20), ("memory", 2000)] {
        set(format!("stage.{stage}.steps={steps}"));
        set(format!("stage.{stage}.batch_size=16"));
    }
    set("checkpoint.every_steps=10".into());
    Ended::from(command.output().expect("mks2 runs"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

#[test]
fn a_job_whose_processes_are_killed_is_the_quiet_one() {
    let lab = Lab::enter();
    let kills = ["--kill-every", "3s", "--coordinator-every", "12s"];
    let alone = [
        "--stop-every",
        "0",
        "--cut-every",
        "0",
        "--scale-every",
        "0",
    ];
    let rest = ["--for", "12s", "--workers", "3", "--seed", "5", "--json"];
    let ended = chaos(&lab, "chaos", &[&kills[..], &alone, &rest].concat());
    let report: Value = serde_json::from_str(&ended.done().out).expect("JSON");
    let score = &report["score"];
    assert_eq!(
        (number(&score["rows_lost"]), number(&score["rows_doubled"])),
        (0, 0)
    );
    let bits = &score["bits"];
    assert_eq!(number(&bits["different"]), 0);
    assert!(number(&bits["steps_compared"]) > 0 && number(&bits["checkpoints_compared"]) > 0);
    assert_eq!(report["ledger_holds"], true);
    let faults = &score["faults"];
    assert_eq!(number(&faults["kill"]["count"]), 4, "{}", ended.err);
    assert_eq!(number(&faults["coordinator killed"]["count"]), 1);
    assert!(number(&faults["kill"]["lost"]) > 0, "{}", ended.err);
    assert!(score["goodput"].as_f64().expect("a share") > 0.0);
    // They took place when the seed says.
    let times = |list: &Value, key: &str| -> Vec<f64> {
        let list = list.as_array().expect("a list");
        list.iter()
            .map(|one| one[key].as_f64().expect("seconds"))
            .collect()
    };
    let (planned, made) = (
        times(&report["plan"], "at"),
        times(&score["outcomes"], "at_seconds"),
    );
    assert_eq!(planned.len(), 5);
    for (planned, made) in planned.iter().zip(&made) {
        assert!(made >= planned, "{planned} s became {made} s");
    }
    lab.has_a_ledger_that_holds("chaos/chaos");
    lab.has_a_ledger_that_holds("chaos/quiet");
    // Both runs have to begin at the beginning.
    chaos(&lab, "chaos", &[]).refused(2, &["is not empty", "--out"]);
}

#[test]
fn chaos_needs_workers_that_can_be_spared_and_bits_that_can_be_compared() {
    let lab = Lab::enter();
    chaos(&lab, "lonely", &["--workers", "1"]).refused(2, &["--workers 2"]);
    chaos(&lab, "crowded", &["--workers", "9"]).refused(3, &["8 lanes"]);
    let fast = ["--set", "reduction=fast"];
    chaos(&lab, "fast", &fast).refused(3, &["reduction=exact"]);
    chaos(&lab, "odd", &["--kill-every", "often"]).refused(2, &["for example 15s"]);
}
