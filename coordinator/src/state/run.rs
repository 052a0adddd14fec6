//! The states of a run.

use std::time::Duration;

use mks2_proto::{
    failure::Failure,
    ids::{Generation, MemberId},
    v1::RunState,
};

use super::Abortion;
use crate::assign::Assignment;

/// A generation at work.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    pub(crate) generation: Generation,
    pub(crate) assignment: Assignment,
}

impl Active {
    pub(crate) fn rank_of(&self, member: &MemberId) -> Option<u32> {
        self.assignment
            .iter()
            .find(|share| &share.member == member)
            .map(|share| share.rank.0)
    }

    pub(crate) fn workers(&self) -> u32 {
        u32::try_from(self.assignment.len()).unwrap_or(u32::MAX)
    }
}

/// The state of a run, with what belongs to it. The table of transitions is in
/// [`Machine`](super::Machine)'s documentation.
#[derive(Clone, Debug)]
pub(crate) enum Run {
    /// Not all members are here.
    Waiting,
    /// A generation computes steps.
    Running(Active),
    /// The same, until the next step border.
    Stopping { active: Active, reason: String },
    /// Members say that another one failed; that one's own fate is awaited.
    Ailing {
        active: Active,
        complainants: Vec<MemberId>,
        complaint: Failure,
        since: Duration,
    },
    /// Ended on request.
    Stopped { reason: String },
    /// The job is done.
    Finished,
    /// Ended by a failure.
    Failed(Abortion),
}

impl Run {
    /// Nothing can happen any more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(
            self,
            Self::Stopped { .. } | Self::Finished | Self::Failed(_)
        )
    }

    pub(crate) fn active(&self) -> Option<&Active> {
        match self {
            Self::Running(active) | Self::Stopping { active, .. } | Self::Ailing { active, .. } => {
                Some(active)
            }
            Self::Waiting | Self::Stopped { .. } | Self::Finished | Self::Failed(_) => None,
        }
    }

    /// As the wire names it.
    pub(crate) fn wire(&self) -> RunState {
        match self {
            Self::Waiting => RunState::WaitingForMembers,
            Self::Running(_) | Self::Ailing { .. } => RunState::Running,
            Self::Stopping { .. } => RunState::Stopping,
            Self::Stopped { .. } => RunState::Stopped,
            Self::Finished => RunState::Finished,
            Self::Failed(_) => RunState::Failed,
        }
    }
}
