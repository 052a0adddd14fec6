//! The last steps that were committed. Whoever is rank 0 tells the coordinator of each; when it is
//! lost, the news may be lost with it, and the next one tells again.

use std::collections::VecDeque;

use mks2_proto::v1::{self, StepMetrics, report::Kind};
use prost::Message;

/// Steps that are remembered.
const RECENT: usize = 1024;
/// Steps that a newcomer is told.
const TOLD: usize = 16;

/// A step that was committed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Committed {
    pub(super) generation: u64,
    /// Counted over all stages.
    pub(super) step: u64,
    pub(super) metrics: StepMetrics,
}

/// The last steps of a stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recent {
    /// Oldest first.
    steps: VecDeque<Committed>,
    /// The lanes' sums of the last one (see [`LaneLoss`](crate::objective::LaneLoss)).
    sums: Vec<f64>,
}

impl Recent {
    pub(super) fn push(&mut self, committed: Committed, sums: Vec<f64>) {
        if self.steps.len() == RECENT {
            self.steps.pop_front();
        }
        self.steps.push_back(committed);
        self.sums = sums;
    }

    pub(super) fn steps(&self) -> impl Iterator<Item = &Committed> {
        self.steps.iter()
    }

    /// The lanes' sums of the last step, added.
    pub(crate) fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// The last few for a newcomer: count of sums u32 and each f64, then each step as its report on
    /// the wire behind its length u32; little endian.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.sums.len() as u32).to_le_bytes().to_vec();
        bytes.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        let first = self.steps.len().saturating_sub(TOLD);
        for committed in self.steps.range(first..) {
            let report = v1::Report {
                generation: committed.generation,
                kind: Some(Kind::StepCommitted(v1::StepCommitted {
                    step: committed.step,
                    metrics: Some(committed.metrics.clone()),
                })),
                ..v1::Report::default()
            };
            let report = report.encode_to_vec();
            bytes.extend((report.len() as u32).to_le_bytes());
            bytes.extend(report);
        }
        bytes
    }

    /// What [`Recent::encode`] gave.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (count, rest) = bytes.split_first_chunk()?;
        let length = (u32::from_le_bytes(*count) as usize).checked_mul(8)?;
        let (sums, mut rest) = rest.split_at_checked(length)?;
        let mut recent = Self::default();
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk()?;
            let (report, behind) = behind.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = behind;
            let report = v1::Report::decode(report).ok()?;
            let Some(Kind::StepCommitted(told)) = report.kind else {
                return None;
            };
            recent.steps.push_back(Committed {
                generation: report.generation,
                step: told.step,
                metrics: told.metrics?,
            });
        }
        let sums = sums.as_chunks().0.iter();
        recent.sums = sums.map(|sum| f64::from_le_bytes(*sum)).collect();
        Some(recent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::train::Progress;

    proptest! {
        #[test]
        fn what_a_newcomer_is_told_survives_the_wire(
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), -1e9..1e9), 0..TOLD),
            sums in prop::collection::vec(-1e9..1e9, 0..5),
            progress: (u64, u64, u64),
            loss in prop::option::of(-1e9..1e9),
        ) {
            let mut recent = Recent { sums, ..Recent::default() };
            for (generation, step, loss) in steps {
                let metrics = StepMetrics { loss, ..StepMetrics::default() };
                recent.steps.push_back(Committed { generation, step, metrics });
            }
            prop_assert_eq!(Recent::decode(&recent.encode()), Some(recent.clone()));
            let (step, samples, tokens) = progress;
            let progress = Progress { step, samples, tokens, seconds: 0.1, loss };
            let bytes = [progress.encode(), recent.encode()].concat();
            let (decoded, rest) = Progress::decode(&bytes).expect("whole");
            prop_assert_eq!(decoded, progress);
            prop_assert_eq!(Recent::decode(rest), Some(recent));
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(bytes: Vec<u8>) {
            let _ = Recent::decode(&bytes);
            let _ = Progress::decode(&bytes);
        }
    }

    #[test]
    fn only_the_last_steps_are_kept_and_told() {
        let mut recent = Recent::default();
        for step in 1..=2000 {
            let metrics = StepMetrics::default();
            let committed = Committed {
                generation: 1,
                step,
                metrics,
            };
            recent.push(committed, vec![step as f64]);
        }
        assert_eq!(recent.steps().count(), RECENT);
        let told = Recent::decode(&recent.encode()).expect("whole");
        let steps: Vec<u64> = told.steps().map(|one| one.step).collect();
        assert_eq!(steps, (1985..=2000).collect::<Vec<_>>());
        assert_eq!(told.sums(), [2000.0]);
    }
}
