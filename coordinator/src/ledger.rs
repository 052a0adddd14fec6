//! The ledger of a run: what journal, metrics and checkpoints together prove about it.
//!
//! ```text
//! journal's objects ──► chain ──► timeline ─┐
//! job ───────────────► course ──────────────┼──► steps ──► Books
//! metrics.jsonl ────────────────────────────┘
//! manifests and parts of checkpoints ───────────► checkpoints
//! ```
//!
//! Pure: bytes go in, findings come out. What is not as it must be is a [`Violation`], and as many
//! as can be told apart are told.
//!
//! What is proved, with the module that does it:
//! 1. `chain`: every record is there, is byte for byte what a coordinator wrote, and continues the
//!    one before it; snapshots say what the records say.
//! 2. `timeline`: terms and generations only grow, a generation deals every lane to exactly one
//!    member, checkpoints go forward and are let go by the rules, a finished run has the checkpoint
//!    of its last step.
//! 3. `steps`: every committed step stands in the metrics once, in order, in its stage, with the
//!    samples of the plan, under a generation that could commit it.
//! 4. `checkpoints`: what the journal counts is there and is of this run.
//!
//! What no book can prove about itself: that nobody cut off the newest records together with
//! everything that followed from them, or wrote the whole journal anew with fitting digests.

mod chain;
mod checkpoints;
mod course;
mod steps;
mod timeline;

#[cfg(test)]
mod tests;

use mks2_proto::{
    failure::Failure,
    job::{Job, load},
};
use serde::Serialize;

pub use chain::Chain;
pub use checkpoints::{Found, Manifest, Part, check_bases, check_manifest, check_part};
pub use course::{Course, Leg};
pub use steps::{StepLine, Steps};
pub use timeline::{Committed, Formed, Timeline};

use crate::journal::Raw;

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Where: an object of the run directory, with a line where it has lines.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub cure: String,
}

impl Violation {
    /// A violation.
    pub fn new(place: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            what: what.into(),
            cure: cure.into(),
        }
    }
}

/// What a run has written about itself, read and held against each other.
#[derive(Clone, Debug)]
pub struct Books {
    /// Stages and lanes of the job.
    pub course: Course,
    /// The journal's records.
    pub chain: Chain,
    /// What they add up to.
    pub timeline: Timeline,
    /// The committed steps.
    pub steps: Steps,
    /// What is wrong.
    pub violations: Vec<Violation>,
}

impl Books {
    /// Reads the books of a run of `job`: the objects of its journal and its metrics.
    ///
    /// # Errors
    /// When the job cannot be encoded to be compared.
    pub fn read(job: &Job, raw: &Raw, metrics: &[u8]) -> Result<Self, Failure> {
        let course = Course::of(job);
        let mut violations = Vec::new();
        let chain = Chain::read(raw, &mut violations);
        let timeline = Timeline::read(&chain, &course, &mut violations);
        let steps = Steps::read(metrics, &timeline, &course, chain.is_whole, &mut violations);
        if let Some(origin) = &timeline.history.origin
            && origin.job_digest != load::digest(job)?
        {
            violations.push(Violation::new(
                "config.resolved.toml",
                "it is another job than the one that the journal names",
                "bring back the file as `mks2 train` wrote it; the plan cannot be known without it",
            ));
        }
        Ok(Self {
            course,
            chain,
            timeline,
            steps,
            violations,
        })
    }

    /// The member that computed a lane of a committed step: the one that held the lane in the
    /// generation under which the step was committed.
    #[must_use]
    pub fn holder(
        &self,
        step: u64,
        lane: u32,
    ) -> Option<(&Formed, &crate::journal::GenerationMember)> {
        let line = self.steps.committed.get(&step)?;
        let formed = self.timeline.generation(line.generation)?;
        let holder = formed
            .members
            .iter()
            .find(|member| member.lanes.contains(&lane))?;
        Some((formed, holder))
    }
}
