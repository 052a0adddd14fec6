//! Checkpoints that count, held against what is stored: the manifest that the journal names, and
//! the parts that the manifest names.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Course, Violation};
use crate::{journal::Origin, state::Checkpoint};

const RESTORE: &str = "bring the file back from a copy of the run directory, or go back to a \
     checkpoint before it: mks2 train JOB --run RUN --resume STEP";

/// What the ledger reads of a checkpoint's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Manifest {
    /// Steps since the beginning of the run.
    pub step: u64,
    /// The stage.
    pub stage: String,
    /// Steps since the beginning of the stage.
    pub stage_step: u64,
    /// The last checkpoint of its stage.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The job's seed.
    pub seed: u64,
    /// Digest of the job.
    pub config_digest: String,
    /// Digests of the manifests of the stage's corpora, by name.
    pub corpora: BTreeMap<String, String>,
    /// `weights_digest` of the stages that it started from, by name.
    pub bases: BTreeMap<String, String>,
    /// Samples since the beginning of the stage.
    pub samples: u64,
    /// Digest of the trained parameters' values.
    pub weights_digest: String,
    /// The files that it consists of.
    pub parts: Vec<Part>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Part {
    /// What it is for, and its number.
    pub name: String,
    /// Where it lies in the run directory.
    pub path: String,
    /// blake3 of the file in hex.
    pub digest: String,
    /// Size of the file.
    pub bytes: u64,
}

/// What there is of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Size in bytes.
    pub bytes: u64,
    /// blake3 in hex of the contents, if they were read.
    pub digest: Option<String>,
}

/// Holds the bytes of a manifest against the record of its checkpoint, the run and the job.
/// Returns the manifest if it is the one that was committed.
pub fn check_manifest(
    checkpoint: &Checkpoint,
    bytes: Option<&[u8]>,
    origin: &Origin,
    course: &Course,
    violations: &mut Vec<Violation>,
) -> Option<Manifest> {
    let step = checkpoint.step;
    let mut object = |what: String| {
        violations.push(Violation::new(&checkpoint.manifest_path, what, RESTORE));
    };
    let Some(bytes) = bytes else {
        object(format!(
            "the manifest of the checkpoint at step {step} is missing"
        ));
        return None;
    };
    if blake3::hash(bytes).to_hex().as_str() != checkpoint.manifest_digest {
        object(format!(
            "the manifest of the checkpoint at step {step} is not the one that was committed: its \
             digest is another one"
        ));
        return None;
    }
    let manifest: Manifest = match serde_json::from_slice(bytes) {
        Ok(manifest) => manifest,
        Err(error) => {
            object(format!(
                "the manifest of the checkpoint at step {step} cannot be read: {error}"
            ));
            return None;
        }
    };
    for what in disagreements(checkpoint, &manifest, origin, course) {
        object(what);
    }
    Some(manifest)
}

fn disagreements(
    checkpoint: &Checkpoint,
    manifest: &Manifest,
    origin: &Origin,
    course: &Course,
) -> Vec<String> {
    let Checkpoint {
        step,
        stage,
        is_final,
        ..
    } = checkpoint;
    let mut found = Vec::new();
    if (&manifest.step, &manifest.stage, &manifest.is_final) != (step, stage, is_final) {
        found.push(format!(
            "it is of step {} of stage '{}', where the journal has step {step} of stage '{stage}'",
            manifest.step, manifest.stage
        ));
    }
    if manifest.config_digest != origin.job_digest || manifest.seed != course.seed {
        found.push(format!("the checkpoint at step {step} is of another job"));
    }
    let leg = course.leg_of(*step).filter(|leg| &leg.name == stage);
    if let Some(leg) = leg {
        let stage_step = step - leg.before;
        if (manifest.stage_step, manifest.samples) != (stage_step, stage_step * leg.batch) {
            found.push(format!(
                "the checkpoint at step {step} has used {} samples in {} steps of its stage, and \
                 the plan gives {} in {stage_step}",
                manifest.samples,
                manifest.stage_step,
                stage_step * leg.batch
            ));
        }
        let of_run = |name: &&String| {
            let digest = manifest.corpora.get(*name);
            digest.is_none() || digest != origin.corpora.get(*name)
        };
        if let Some(name) = leg.corpora.iter().find(of_run) {
            found.push(format!(
                "the checkpoint at step {step} was trained on another corpus '{name}' than the run"
            ));
        }
    }
    found
}

/// Holds what there is of a part against the manifest that names it.
#[must_use]
pub fn check_part(step: u64, part: &Part, found: Option<&Found>) -> Option<Violation> {
    let named = format!("part '{}' of the checkpoint at step {step}", part.name);
    let what = match found {
        None => format!("{named} is missing"),
        Some(found) if found.bytes != part.bytes => {
            format!(
                "{named} has {} bytes and should have {}",
                found.bytes, part.bytes
            )
        }
        Some(Found {
            digest: Some(digest),
            ..
        }) if digest != &part.digest => format!("{named} was changed: its digest is {digest}"),
        Some(_) => return None,
    };
    Some(Violation::new(&part.path, what, RESTORE))
}

/// Holds against each other what stages have left and what later ones say that they started from. What
/// stages of published models and attached memories have left is in no checkpoint: all must have started
/// from the same.
pub fn check_bases(manifests: &[Manifest], violations: &mut Vec<Violation>) {
    let mut results: BTreeMap<&str, &str> = manifests
        .iter()
        .filter(|manifest| manifest.is_final)
        .map(|manifest| (manifest.stage.as_str(), manifest.weights_digest.as_str()))
        .collect();
    for manifest in manifests {
        for (base, digest) in &manifest.bases {
            if results.entry(base.as_str()).or_insert(digest.as_str()) != digest {
                violations.push(Violation::new(
                    format!("checkpoints/step-{:08}/manifest.json", manifest.step),
                    format!(
                        "stage '{}' started from other weights than stage '{base}' has left",
                        manifest.stage
                    ),
                    "rewind the run to the end of that stage: mks2 train JOB --run RUN --resume STEP",
                ));
            }
        }
    }
}
