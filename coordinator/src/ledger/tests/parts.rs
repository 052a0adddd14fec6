//! Checkpoints: manifests and parts that are missing, exchanged or of another run.

use serde_json::{Value, json};

use super::{
    books::{Book, checkpoint, job},
    found,
};
use crate::{
    ledger::{Course, Found, Manifest, Part, Violation, check_bases, check_manifest, check_part},
    state::Checkpoint,
};

/// The manifest of the checkpoint at step 60, as a worker writes it.
fn manifest() -> Value {
    json!({
        "version": 1, "step": 60, "stage": "memory", "stage_step": 20, "final": false,
        "seed": job().seed, "config_digest": mks2_proto::job::load::digest(&job()).expect("encoded"),
        "corpora": {"emoji": "e"}, "bases": {"bootstrap": "b"}, "loss": 0.5, "seconds": 1.0,
        "samples": 320, "tokens": 99, "model_digest": "m", "weights_digest": "w",
        "parts": [{"name": "weights-00000", "path": "objects/1-d", "digest": "d", "bytes": 9, "tensors": []}],
    })
}

/// What is found of a manifest that was committed as it is.
fn judged(manifest: &Value) -> (Option<Manifest>, Vec<Violation>) {
    let bytes = serde_json::to_vec(manifest).expect("encoded");
    let checkpoint = Checkpoint {
        manifest_digest: blake3::hash(&bytes).to_hex().to_string(),
        ..checkpoint(60)
    };
    judge(&checkpoint, Some(&bytes))
}

fn judge(checkpoint: &Checkpoint, bytes: Option<&[u8]>) -> (Option<Manifest>, Vec<Violation>) {
    let origin = Book::finished().read().timeline.history.origin;
    let (course, mut violations) = (Course::of(&job()), Vec::new());
    let origin = origin.expect("a run");
    let manifest = check_manifest(checkpoint, bytes, &origin, &course, &mut violations);
    (manifest, violations)
}

#[test]
fn a_manifest_of_this_run_holds() {
    let (read, violations) = judged(&manifest());
    assert_eq!(violations, []);
    assert_eq!(read.expect("whole").parts[0].path, "objects/1-d");
}

#[test]
fn a_missing_or_exchanged_manifest_is_found() {
    let bytes = serde_json::to_vec(&manifest()).expect("encoded");
    for (bytes, words) in [
        (None, "the manifest of the checkpoint at step 60 is missing"),
        (Some(&bytes[..]), "its digest is another one"),
    ] {
        let (manifest, violations) = judge(&checkpoint(60), bytes);
        assert_eq!(manifest, None);
        found(
            &violations,
            "checkpoints/step-00000060/manifest.json",
            words,
        );
    }
    let (_, violations) = judged(&json!({"step": 60}));
    found(&violations, "manifest.json", "cannot be read");
}

#[test]
fn a_manifest_of_another_run_is_found() {
    for (field, value, words) in [
        ("step", json!(61), "it is of step 61"),
        ("final", json!(true), "where the journal has step 60"),
        ("seed", json!(99), "of another job"),
        ("config_digest", json!("x"), "of another job"),
        ("samples", json!(336), "has used 336 samples in 20 steps"),
        ("stage_step", json!(21), "in 21 steps"),
        ("corpora", json!({"emoji": "x"}), "another corpus 'emoji'"),
        ("corpora", json!({}), "another corpus 'emoji'"),
    ] {
        let mut changed = manifest();
        changed[field] = value;
        found(&judged(&changed).1, "step-00000060", words);
    }
}

#[test]
fn parts_are_there_with_their_size_and_digest() {
    let part = Part {
        name: "weights-00000".into(),
        path: "objects/1-d".into(),
        digest: "d".into(),
        bytes: 9,
    };
    let there = |bytes, digest: Option<&str>| {
        let digest = digest.map(str::to_owned);
        check_part(60, &part, Some(&Found { bytes, digest }))
    };
    assert_eq!(there(9, None), None);
    assert_eq!(there(9, Some("d")), None);
    for (violation, words) in [
        (check_part(60, &part, None), "is missing"),
        (there(8, Some("d")), "has 8 bytes and should have 9"),
        (there(9, Some("x")), "was changed"),
    ] {
        found(&Vec::from_iter(violation), "objects/1-d", words);
    }
}

#[test]
fn stages_start_from_what_their_bases_have_left() {
    let memory = judged(&manifest()).0.expect("whole");
    let bootstrap = |weights: &str| Manifest {
        stage: "bootstrap".into(),
        is_final: true,
        weights_digest: weights.into(),
        bases: std::collections::BTreeMap::new(),
        ..memory.clone()
    };
    let judge = |weights| {
        let mut violations = Vec::new();
        check_bases(&[bootstrap(weights), memory.clone()], &mut violations);
        violations
    };
    assert_eq!(judge("b"), []);
    found(
        &judge("x"),
        "step-00000060",
        "other weights than stage 'bootstrap'",
    );
}

#[test]
fn what_builds_on_what_follows_the_job() {
    let course = Course::of(&job());
    for (stage, base, builds) in [
        ("bootstrap", "bootstrap", true),
        ("with-memory", "bootstrap", true),
        ("with-memory", "memory", true),
        ("bootstrap", "memory", false),
        ("memory", "with-memory", false),
    ] {
        assert_eq!(course.builds_on(stage, base), builds, "{stage} on {base}");
    }
    assert_eq!(course.leg_of(40).expect("a stage").name, "bootstrap");
    assert_eq!(course.leg_of(41).expect("a stage").name, "memory");
    assert!(course.leg_of(0).is_none() && course.leg_of(91).is_none());
}
