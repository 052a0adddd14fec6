//! What a finished run has left in its directory: the fields that others read.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::lab::{Lab, TOTAL};

/// Keys of an object, sorted.
fn keys(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

#[track_caller]
fn has(value: &Value, names: &[&str]) {
    let missing: Vec<_> = names
        .iter()
        .filter(|name| value.get(**name).is_none())
        .collect();
    assert!(missing.is_empty(), "{missing:?} missing in {value:#}");
}

#[track_caller]
fn share(value: &Value) {
    let number = value.as_f64().expect("a number");
    assert!((0.0..=1.0).contains(&number), "{number} is no share");
}

#[test]
fn report_metrics_and_evaluation_have_their_fields() {
    let lab = Lab::enter();
    let run = lab.evaluated();
    for words in [
        "stage",
        "retrieval R@1",
        "questions: MKS2",
        "reduction exact",
    ] {
        assert!(run.done().out.contains(words), "{}", run.out);
    }
    let report = lab.report("evaluated");
    check_report(&report);
    check_evaluation(&report["evaluation"]);
    check_metrics(&lab);
    let files = [
        "run.json",
        "config.resolved.toml",
        "report.html",
        "journal",
        "logs",
        "checkpoints",
    ];
    for file in files {
        assert!(lab.path("evaluated").join(file).exists(), "{file}");
    }
}

fn check_report(report: &Value) {
    let names = [
        "weights_digest",
        "stages",
        "evaluation",
        "reduction",
        "workers",
        "evaluation_seconds",
        "failures",
        "interruptions",
        "goodput",
    ];
    assert_eq!(keys(report), names.into_iter().collect());
    assert_eq!(report["weights_digest"].as_str().expect("text").len(), 64);
    assert_eq!(
        (&report["reduction"], &report["failures"]),
        (&"exact".into(), &0.into())
    );
    assert_eq!(report["workers"], 2);
    let stages = report["stages"].as_array().expect("a list");
    let found: Vec<_> = stages.iter().map(|stage| stage["name"].as_str()).collect();
    let expected = ["bootstrap", "memory", "experts", "shuffled", "lora"];
    assert_eq!(found, expected.map(Some));
    for stage in stages {
        let names = ["name", "steps", "seconds", "loss", "weights_digest"];
        assert_eq!(keys(stage), names.into_iter().collect());
        assert!(
            stage["loss"].as_f64().is_some_and(f64::is_finite),
            "{stage}"
        );
    }
}

fn check_evaluation(evaluation: &Value) {
    let (retrieval, caption) = (&evaluation["retrieval"], &evaluation["caption"]);
    has(retrieval, &["r1", "r5", "r10", "n"]);
    assert_eq!(retrieval["n"], 1580, "every picture");
    for name in ["r1", "r5", "r10"] {
        share(&retrieval[name]);
    }
    has(caption, &["loss", "loss_without_image"]);
    let questions = &evaluation["questions"];
    has(questions, &["majority", "lora", "mks2", "shuffled", "n"]);
    for name in ["majority", "lora", "mks2", "shuffled"] {
        share(&questions[name]);
    }
    assert!(questions["n"].as_u64().is_some_and(|n| n > 0));
}

fn check_metrics(lab: &Lab) {
    let steps: Vec<u64> = (1..=TOTAL as u64).collect();
    assert_eq!(lab.steps("evaluated"), steps);
    let metrics = std::fs::read_to_string(lab.path("evaluated").join("metrics.jsonl"));
    for line in metrics.expect("metrics").lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let everywhere = [
            "step",
            "epoch",
            "stage",
            "loss",
            "grad_norm",
            "lr",
            "samples",
            "tokens",
            "step_seconds",
            "data_wait_seconds",
            "comm_wait_seconds",
            "workers",
            "generation",
            "goodput",
        ];
        let own: &[&str] = match line["stage"].as_str().expect("text") {
            "bootstrap" => &["loss_language", "loss_contrastive"],
            "memory" => &["loss_caption", "loss_retrieval"],
            _ => &["loss_language"],
        };
        let expected = everywhere.iter().chain(own).copied().collect();
        assert_eq!(keys(&line), expected, "{line}");
    }
}
