//! `mks2 ledger` on whole runs: undisturbed, killed and resumed, and tampered with.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::lab::{Ended, Lab, TOTAL, awaited, ended, mks2, signal, workers_of};

/// Few steps, so that two runs take little time.
const SHORT: [&str; 6] = [
    "stage.bootstrap.steps=4",
    "stage.memory.steps=4",
    "stage.experts.steps=2",
    "stage.shuffled.steps=2",
    "stage.lora.steps=2",
    "checkpoint.every_steps=2",
];
const SHORT_TOTAL: u64 = 14;

/// `mks2 ledger QUESTION RUN ... --json`
fn ledger(question: &str, run: &Path, more: &[&str]) -> Ended {
    let mut command = mks2(&["ledger", question]);
    command.arg(run).args(more).arg("--json");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    ended(command)
}

#[track_caller]
fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).expect("JSON")
}

#[track_caller]
fn holds(run: &Path) -> Value {
    json(ledger("verify", run, &["--deep"]).done())
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

#[test]
fn the_ledger_of_an_undisturbed_run_holds() {
    let lab = Lab::enter();
    lab.quiet();
    let run = lab.path("quiet");
    let audit = holds(&run);
    assert_eq!(
        (&audit["state"], &audit["holds"]),
        (&"finished".into(), &true.into())
    );
    assert_eq!(audit["steps"]["committed"], TOTAL);
    assert_eq!(audit["steps"]["safe"], TOTAL);
    let stages = audit["stages"].as_array().expect("stages");
    assert_eq!(stages.len(), 5, "{audit:#}");
    let bootstrap = &stages[0];
    assert_eq!(
        (&bootstrap["rows_planned"], &bootstrap["rows_used"]),
        (&128.into(), &128.into())
    );
    let corpus = &bootstrap["corpora"][0];
    assert_eq!(
        (&corpus["times_min"], &corpus["times_max"]),
        (&0.into(), &1.into())
    );
    let by_url = format!("file://{}", run.display());
    ledger("verify", Path::new(&by_url), &[]).done();
    steps_and_rows_agree(&run);
    what_was_tampered_with_is_found(&lab);
}

/// Each row that a step shows names that step, found by key or by digest, and the other way round.
fn steps_and_rows_agree(run: &Path) {
    for (step, by) in [(3, "key"), (TOTAL, "digest")] {
        let answer = json(ledger("step", run, &[&step.to_string()]).done());
        assert_eq!(
            (&answer["committed"], &answer["generation"]),
            (&true.into(), &1.into())
        );
        let rows = answer["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 16, "the batch");
        let row = &rows[5];
        let found = json(ledger("row", run, &[text(&row[by])]).done());
        let same = found.as_array().expect("rows").iter();
        let mut same = same.filter(|found| found["corpus"] == row["corpus"]);
        let found = same.next().expect("the row");
        assert_eq!(
            (&found["key"], &found["digest"]),
            (&row["key"], &row["digest"])
        );
        let uses = found["steps"].as_array().expect("steps");
        let here = |used: &&Value| used["step"] == step && used["lane"] == row["lane"];
        assert_eq!(uses.iter().filter(here).count(), 1, "{found:#}");
        for used in uses {
            let other = json(ledger("step", run, &[&used["step"].to_string()]).done());
            let rows = other["rows"].as_array().expect("rows");
            let there =
                |there: &&Value| there["digest"] == row["digest"] && there["lane"] == used["lane"];
            assert_eq!(rows.iter().filter(there).count(), 1, "{other:#}");
        }
        let contained = found["checkpoints"].as_array().expect("checkpoints");
        assert!(contained.contains(&TOTAL.into()), "{found:#}");
        let first = uses[0]["step"].as_u64().expect("a step");
        let (others, before) = (&found["other_uses"], &found["last_before"]);
        // Texts and pictures of a bootstrap stage's corpus are used from the beginning on.
        match by {
            "key" => assert_eq!(
                (others.as_array().map(Vec::len), before),
                (Some(2), &Value::Null)
            ),
            _ => assert!(
                before.as_u64().is_some_and(|step| step < first),
                "{found:#}"
            ),
        }
        let is_behind = |step: &Value| step.as_u64() >= Some(first);
        assert!(contained.iter().all(is_behind), "{found:#}");
    }
    let nowhere = run.join("nothing");
    ledger("verify", &nowhere, &[]).refused(2, &["there is no run", "no such directory"]);
    ledger("step", run, &["29"]).refused(2, &["there is no step 29"]);
    ledger("row", run, &["no such key"]).refused(2, &["no row 'no such key'"]);
}

/// A copy of the run with one file changed does not hold, and names the file.
fn what_was_tampered_with_is_found(lab: &Lab) {
    let copy = lab.path("tampered");
    copied(&lab.path("quiet"), &copy);
    type Change = fn(&[u8]) -> Vec<u8>;
    let changes: [(&str, Change, &str); 3] = [
        ("journal/00000000000000000003.json", flip, "record 3"),
        ("metrics.jsonl", cut_second_line, "step 2 has no line"),
        (
            "checkpoints/step-00000008/manifest.json",
            flip,
            "another one",
        ),
    ];
    for (file, change, words) in changes {
        let path = copy.join(file);
        let original = std::fs::read(&path).expect("read");
        std::fs::write(&path, change(&original)).expect("written");
        let verified = ledger("verify", &copy, &[]);
        verified.refused(8, &["does not hold", file, words]);
        let audit = json(&verified);
        assert_eq!(
            (&audit["holds"], &audit["violations"][0]["place"]),
            (&false.into(), &file.into())
        );
        std::fs::write(&path, original).expect("written");
    }
    std::fs::remove_file(copy.join("journal/00000000000000000004.json")).expect("removed");
    ledger("verify", &copy, &[]).refused(8, &["record 4 is missing"]);
    ledger("step", &copy, &["1"]).refused(8, &["record 4", "mks2 ledger verify"]);
}

fn flip(bytes: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed[bytes.len() / 2] ^= 1;
    changed
}

fn cut_second_line(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
    let kept = lines.filter(|(at, _)| *at != 1);
    kept.flat_map(|(_, line)| line).copied().collect()
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("read") {
        let entry = entry.expect("read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copied(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
fn the_ledger_of_a_killed_and_resumed_run_holds_at_every_moment() {
    let lab = Lab::enter();
    let run = lab.path("audited");
    let mut launcher = lab
        .train("audited", 2, &SHORT)
        .spawn()
        .expect("mks2 starts");
    assert!(
        lab.reaches("audited", 5, &mut launcher),
        "it ended by itself"
    );
    let live = holds(&run);
    assert_eq!(live["state"], "unfinished");
    for process in workers_of(launcher.id()).into_iter().chain([launcher.id()]) {
        signal(process, "KILL");
    }
    awaited(launcher);
    let dead = holds(&run);
    assert!(dead["steps"]["committed"].as_u64() >= Some(5), "{dead:#}");
    ended(lab.train("audited", 3, &SHORT)).done();
    let audit = holds(&run);
    assert_eq!(
        (&audit["state"], &audit["terms"]),
        (&"finished".into(), &2.into())
    );
    assert_eq!(audit["generations"], 2, "one in each term");
    assert_eq!(audit["steps"]["committed"], SHORT_TOTAL);
    let last = json(ledger("step", &run, &[&SHORT_TOTAL.to_string()]).done());
    let members: std::collections::BTreeSet<&str> = last["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| text(&row["member"]))
        .collect();
    assert_eq!(members.len(), 3, "{last:#}");
    assert_eq!(
        (&last["generation"], &last["checkpoint"]["step"]),
        (&2.into(), &SHORT_TOTAL.into())
    );
    let mut again = lab.train("audited", 1, &SHORT);
    again.args(["--resume", "8"]);
    ended(again).done();
    let audit = holds(&run);
    assert_eq!(
        (&audit["terms"], &audit["steps"]["committed"]),
        (&3.into(), &SHORT_TOTAL.into())
    );
    let generation = |step: &str| json(ledger("step", &run, &[step]).done())["generation"].clone();
    assert!(generation("8").as_u64() < Some(3), "{audit:#}");
    assert_eq!(generation("9"), 3);
}
