//! The memory stages of a run, from what its directory says.

use std::collections::BTreeMap;

use mks2_coordinator::journal::{self, Place};
use mks2_coordinator::metrics;
use mks2_coordinator::state::{Checkpoint, Checkpoints};
use mks2_dataset::checkpoint::{Manifest, read_manifest};
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, Stage, StageKind, load};

use crate::train::located;

/// Losses of a `memory` stage in `metrics.jsonl`.
const LOSSES: [&str; 3] = ["loss", "loss_caption", "loss_retrieval"];

/// A run and the checkpoints that it counts.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) place: Place,
    pub(super) job: Job,
    checkpoints: Checkpoints,
    named: String,
}

impl Run {
    /// The run at a path or URL, if there is one.
    ///
    /// # Errors
    /// Storage (exit 5), a job that this program cannot read (3).
    pub(super) async fn open(named: &str) -> Result<Option<Self>, Failure> {
        let (store, root) = store::open(named)?;
        let place = Place { store, root };
        let Some(toml) = object(&place, named, "config.resolved.toml").await? else {
            return Ok(None);
        };
        let job = load::parse(&String::from_utf8_lossy(&toml))?;
        let replayed = journal::replay(place.clone()).await;
        let replayed = replayed.map_err(|error| located(error.into(), named))?;
        Ok(Some(Self {
            place,
            job,
            checkpoints: replayed.history.checkpoints,
            named: named.to_owned(),
        }))
    }

    /// Its location, for messages.
    pub(super) fn location(&self) -> String {
        store::shown(&self.named)
    }

    /// The memory stage of this name, or the only one.
    ///
    /// # Errors
    /// When there is none, or several and none is named (exit 2).
    pub(super) fn stage(&self, wanted: Option<&str>) -> Result<&Stage, Failure> {
        let stages = self.job.stages.iter();
        let memories = stages.filter(|stage| stage.kind == StageKind::Memory);
        let memories: Vec<&Stage> = memories.collect();
        let names: Vec<&str> = memories.iter().map(|stage| stage.name.as_str()).collect();
        let cure = match names.is_empty() {
            true => "name a run with a stage of kind \"memory\"".to_owned(),
            false => format!("name one of them with --stage: {}", names.join(", ")),
        };
        match (wanted, memories.as_slice()) {
            (None, [only]) => Ok(only),
            (None, others) => Err(Failure::usage(
                format!(
                    "it is not clear which memory of {} is meant",
                    self.location()
                ),
                format!("its job has {} stages that store one", others.len()),
                cure,
            )),
            (Some(name), _) => {
                let named = memories.iter().find(|stage| stage.name == name);
                named.copied().ok_or_else(|| {
                    Failure::usage(
                        format!("'{name}' is no memory of {}", self.location()),
                        "its job has no stage of this name that stores one",
                        cure,
                    )
                })
            }
        }
    }

    /// The newest checkpoint of a stage.
    pub(super) fn newest_of(&self, stage: &str) -> Option<&Checkpoint> {
        self.checkpoints.newest_of(stage)
    }

    /// The last checkpoint of a stage.
    ///
    /// # Errors
    /// When the stage is not finished (exit 2).
    pub(super) fn last_of(&self, stage: &str) -> Result<&Checkpoint, Failure> {
        let newest = self.newest_of(stage);
        newest.filter(|found| found.is_final).ok_or_else(|| {
            Failure::usage(
                format!("the memory of stage '{stage}' is not finished"),
                match newest {
                    Some(found) => format!(
                        "the newest checkpoint of {} is that of step {}, in its midst",
                        self.location(),
                        found.step
                    ),
                    None => format!("{} has no checkpoint of it", self.location()),
                },
                "wait for the end of the stage, or continue the run",
            )
        })
    }

    /// The manifest of a checkpoint, as it was committed.
    ///
    /// # Errors
    /// A damaged or missing manifest (exit 8), storage (5).
    pub(super) async fn manifest(&self, of: &Checkpoint) -> Result<Manifest, Failure> {
        let Place { store, root } = &self.place;
        let digest = Some(of.manifest_digest.as_str());
        Ok(read_manifest(&**store, root, &of.manifest_path, digest).await?)
    }

    /// The stage that brought the language model of `stage`, and the digest of what it has left: as its
    /// checkpoint says, or one of those that were made upon it.
    ///
    /// # Errors
    /// A damaged or missing manifest (exit 8), storage (5).
    pub(super) async fn base_of(&self, stage: &Stage) -> Result<(&Stage, String), Failure> {
        let base = self.job.base_of(&stage.name);
        let base = base.ok_or_else(|| self.no_base(&stage.name))?;
        for ancestor in self.job.ancestry(&stage.name) {
            let Some(checkpoint) = self.newest_of(&ancestor.name).filter(|one| one.is_final) else {
                continue;
            };
            let manifest = self.manifest(checkpoint).await?;
            if ancestor.name == base.name {
                return Ok((base, manifest.weights_digest));
            }
            if let Some(digest) = manifest.facts.bases.get(&base.name) {
                return Ok((base, digest.clone()));
            }
        }
        Err(self.no_base(&stage.name))
    }

    fn no_base(&self, stage: &str) -> Failure {
        Failure::checkpoint(
            format!("the memory of stage '{stage}' cannot be exported"),
            format!(
                "no checkpoint of {} says which language model it was stored beside",
                self.location()
            ),
            "see what is missing with `mks2 ledger verify`",
        )
    }

    /// Losses of a step, by their names in `metrics.jsonl`. They stand on the card, and so the memory's id
    /// depends on them.
    ///
    /// # Errors
    /// A step that is not there (exit 8), storage (5).
    pub(super) async fn losses(&self, step: u64) -> Result<BTreeMap<String, f64>, Failure> {
        let lines = object(&self.place, &self.named, metrics::FILE_NAME).await?;
        losses_of(&lines.unwrap_or_default(), step).ok_or_else(|| {
            Failure::checkpoint(
                "the memory cannot be exported",
                format!(
                    "{} in {} has no line of step {step}, the last of the stage; without its losses the \
                     memory would have another id",
                    metrics::FILE_NAME,
                    self.location()
                ),
                "put the file back from a copy of the run; `mks2 ledger verify` says what else is missing",
            )
        })
    }
}

fn losses_of(lines: &[u8], step: u64) -> Option<BTreeMap<String, f64>> {
    let mut parsed = lines
        .rsplit(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    let line = parsed.find(|line| line["step"] == step)?;
    let losses = LOSSES.into_iter();
    Some(
        losses
            .filter_map(|name| Some((name.to_owned(), line[name].as_f64()?)))
            .collect(),
    )
}

async fn object(place: &Place, named: &str, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let path = place.root.clone().join(name);
    let read = store::get_if_there(&*place.store, &path).await;
    let bytes = read.map_err(|error| located(error.into(), named))?;
    Ok(bytes.map(|bytes| bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_of_the_step_or_none_at_all() {
        let lines = b"{\"step\":3,\"loss\":2.5,\"loss_caption\":1.5,\"lr\":0.1}\n{\"step\":4,\"loss\":2.25}\n{\"st";
        let of = |step| losses_of(lines, step);
        let third = [("loss".to_owned(), 2.5), ("loss_caption".to_owned(), 1.5)];
        assert_eq!(of(3), Some(third.into()));
        assert_eq!(of(4), Some([("loss".to_owned(), 2.25)].into()));
        assert_eq!(of(5), None);
        assert_eq!(losses_of(b"", 3), None);
    }
}
