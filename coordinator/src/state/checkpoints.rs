//! The checkpoints that count: which there are, which one is next, which may go.

use std::collections::BTreeMap;

use mks2_proto::v1;
use serde::{Deserialize, Serialize};

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Steps since the beginning of the run.
    pub step: u64,
    /// The stage that made it.
    pub stage: String,
    /// The last one of its stage.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Location in the run directory.
    pub manifest_path: String,
    /// blake3 in hex.
    pub manifest_digest: String,
    /// The members' copies of the state were not compared before it was saved: it may hold damage that
    /// the next comparison finds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncompared: bool,
}

impl From<Checkpoint> for v1::CheckpointRef {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            step: checkpoint.step,
            stage: checkpoint.stage,
            r#final: checkpoint.is_final,
            manifest_path: checkpoint.manifest_path,
            manifest_digest: checkpoint.manifest_digest,
            uncompared: checkpoint.uncompared,
        }
    }
}

impl From<v1::CheckpointRef> for Checkpoint {
    fn from(reference: v1::CheckpointRef) -> Self {
        Self {
            step: reference.step,
            stage: reference.stage,
            is_final: reference.r#final,
            manifest_path: reference.manifest_path,
            manifest_digest: reference.manifest_digest,
            uncompared: reference.uncompared,
        }
    }
}

/// What a commit would mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the newest.
    Next,
    /// It is committed already, or a twin of it is: the end of the same step of the same stage,
    /// saved by another member.
    Known,
    /// It is older than the latest.
    OutOfOrder {
        /// Step of the latest.
        latest: u64,
    },
}

/// The committed checkpoints that have not been let go, by step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Checkpoints {
    kept: BTreeMap<u64, Checkpoint>,
}

impl Checkpoints {
    /// The newest one: where a resumed run starts.
    #[must_use]
    pub fn latest(&self) -> Option<&Checkpoint> {
        self.kept.values().next_back()
    }

    /// The newest one that is known to be right: where a run goes back to whose copies differ.
    #[must_use]
    pub fn latest_compared(&self) -> Option<&Checkpoint> {
        let newest = self.kept.values().rev();
        newest.into_iter().find(|checkpoint| !checkpoint.uncompared)
    }

    /// The one of a step.
    #[must_use]
    pub fn at(&self, step: u64) -> Option<&Checkpoint> {
        self.kept.get(&step)
    }

    /// The newest one of a stage: its last one, once it is finished.
    #[must_use]
    pub fn newest_of(&self, stage: &str) -> Option<&Checkpoint> {
        let newest = self.kept.values().rev();
        newest
            .into_iter()
            .find(|checkpoint| checkpoint.stage == stage)
    }

    /// Steps of all, oldest first.
    pub fn steps(&self) -> impl Iterator<Item = u64> {
        self.kept.keys().copied()
    }

    /// Last checkpoints of finished stages, oldest first.
    pub fn finished_stages(&self) -> impl Iterator<Item = &Checkpoint> {
        self.kept.values().filter(|checkpoint| checkpoint.is_final)
    }

    /// Where a checkpoint would stand among the others.
    #[must_use]
    pub fn place(&self, checkpoint: &Checkpoint) -> Place {
        let is_twin = |known: &Checkpoint| {
            (&known.stage, known.is_final) == (&checkpoint.stage, checkpoint.is_final)
        };
        match self.latest() {
            Some(_) if self.at(checkpoint.step).is_some_and(is_twin) => Place::Known,
            Some(latest) if checkpoint.step <= latest.step => Place::OutOfOrder {
                latest: latest.step,
            },
            _ => Place::Next,
        }
    }

    /// Adds the newest one.
    pub fn insert(&mut self, checkpoint: Checkpoint) {
        self.kept.insert(checkpoint.step, checkpoint);
    }

    /// Those that the retention policy does not keep: of the checkpoints inside stages the
    /// latest `keep_last` stay, at least the very latest one, and the one to go back to if copies
    /// differ; the last of a stage always stays.
    #[must_use]
    pub fn surplus(&self, keep_last: usize) -> Vec<Checkpoint> {
        let needed = [self.latest(), self.latest_compared()];
        let needed = needed.map(|needed| needed.map(|checkpoint| checkpoint.step));
        let inside = self
            .kept
            .values()
            .rev()
            .filter(|checkpoint| !checkpoint.is_final);
        let mut surplus: Vec<_> = inside
            .skip(keep_last)
            .filter(|checkpoint| {
                !needed.contains(&Some(checkpoint.step)) || planted!(LatestReleased)
            })
            .cloned()
            .collect();
        surplus.reverse();
        surplus
    }

    /// Takes the checkpoints of these steps out.
    pub fn remove(&mut self, steps: &[u64]) {
        self.kept.retain(|step, _| !steps.contains(step));
    }

    /// Those after a step.
    #[must_use]
    pub fn after(&self, step: u64) -> Vec<Checkpoint> {
        self.kept
            .range(step + 1..)
            .map(|(_, checkpoint)| checkpoint.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: u64, is_final: bool) -> Checkpoint {
        Checkpoint {
            step,
            stage: "memory".into(),
            is_final,
            manifest_path: format!("checkpoints/step-{step:08}/manifest.json"),
            manifest_digest: format!("{step:064x}"),
            uncompared: false,
        }
    }

    #[test]
    fn the_one_to_go_back_to_stays() {
        let mut kept = Checkpoints::default();
        for step in 10..20 {
            kept.insert(Checkpoint {
                uncompared: step != 12 && step != 16,
                ..checkpoint(step, false)
            });
            let surplus: Vec<u64> = kept.surplus(2).iter().map(|gone| gone.step).collect();
            kept.remove(&surplus);
        }
        assert_eq!(kept.steps().collect::<Vec<_>>(), [16, 18, 19]);
        assert_eq!(kept.latest_compared().map(|kept| kept.step), Some(16));
    }

    #[test]
    fn retention_keeps_the_last_ones_and_every_end_of_a_stage() {
        let mut kept = Checkpoints::default();
        for (step, is_final) in [
            (10, false),
            (20, false),
            (30, true),
            (40, false),
            (50, false),
            (60, true),
        ] {
            kept.insert(checkpoint(step, is_final));
        }
        let steps = |surplus: Vec<Checkpoint>| surplus.iter().map(|c| c.step).collect::<Vec<_>>();
        assert_eq!(steps(kept.surplus(2)), [10, 20]);
        assert_eq!(steps(kept.surplus(0)), [10, 20, 40, 50]);
        kept.remove(&[10, 20]);
        assert_eq!(kept.steps().collect::<Vec<_>>(), [30, 40, 50, 60]);
        assert_eq!(
            kept.finished_stages().map(|c| c.step).collect::<Vec<_>>(),
            [30, 60]
        );
        kept.insert(checkpoint(70, false));
        assert_eq!(
            steps(kept.surplus(0)),
            [40, 50],
            "the latest stays, whatever the policy"
        );
    }

    #[test]
    fn a_commit_goes_forward_or_repeats_the_same() {
        let mut kept = Checkpoints::default();
        assert_eq!(kept.place(&checkpoint(5, false)), Place::Next);
        kept.insert(checkpoint(5, false));
        assert_eq!(kept.place(&checkpoint(5, false)), Place::Known);
        let twin = Checkpoint {
            manifest_digest: "f".repeat(64),
            ..checkpoint(5, false)
        };
        assert_eq!(kept.place(&twin), Place::Known);
        assert_eq!(
            kept.place(&checkpoint(5, true)),
            Place::OutOfOrder { latest: 5 }
        );
        assert_eq!(
            kept.place(&checkpoint(4, false)),
            Place::OutOfOrder { latest: 5 }
        );
        assert_eq!(kept.place(&checkpoint(6, false)), Place::Next);
    }
}
