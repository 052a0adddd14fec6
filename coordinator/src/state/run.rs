//! The states of a run.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use mks2_proto::{
    ids::{Generation, MemberId},
    v1::{self, RunState},
};

use super::Abortion;
use crate::assign::Assignment;

/// A generation at work.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    pub(crate) generation: Generation,
    pub(crate) assignment: Assignment,
    /// Ranks of its members: only for looking up.
    pub(crate) ranks: HashMap<MemberId, u32>,
    /// What its members are told, unless it has to be put together again.
    pub(crate) announced: Option<Arc<v1::Generation>>,
    /// Why it stops at the next step border, if it does.
    pub(crate) stop: Option<String>,
    /// Collectives have failed; the fate of those who are blamed is awaited.
    pub(crate) quarrel: Option<Quarrel>,
    /// Steps that were committed when it was formed.
    pub(crate) after_step: u64,
    /// Members of the generation before that were lost.
    pub(crate) lost: Vec<MemberId>,
    /// Members of the generation before that were let go.
    pub(crate) left: Vec<MemberId>,
    /// Members that are new in it.
    pub(crate) joined: Vec<MemberId>,
    /// Why it was formed, in words.
    pub(crate) reason: String,
    /// Its members were asked to meet at a border, since they are to change.
    pub(crate) is_asked: bool,
    /// It is over, and too few are left for the next one.
    pub(crate) held: Option<Held>,
}

/// What the generation that is waited for has to tell of the one before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// Members that were lost.
    pub(crate) lost: Vec<MemberId>,
    /// Members that were let go.
    pub(crate) left: Vec<MemberId>,
    /// What made them too few, in words.
    pub(crate) reason: String,
}

/// Members that could not reach each other.
#[derive(Clone, Debug)]
pub(crate) struct Quarrel {
    /// When the first complaint came.
    pub(crate) since: Duration,
    /// Who complains, of whom, and why.
    pub(crate) complaints: BTreeMap<MemberId, (Option<MemberId>, String)>,
}

impl Active {
    pub(crate) fn rank_of(&self, member: &MemberId) -> Option<u32> {
        self.ranks.get(member).copied()
    }

    pub(crate) fn member_of(&self, rank: u32) -> Option<&MemberId> {
        let share = self.assignment.iter().find(|share| share.rank.0 == rank);
        share.map(|share| &share.member)
    }

    pub(crate) fn workers(&self) -> u32 {
        u32::try_from(self.assignment.len()).unwrap_or(u32::MAX)
    }
}

/// The rank of each member of an assignment.
pub(crate) fn ranks(assignment: &Assignment) -> HashMap<MemberId, u32> {
    let shares = assignment.iter();
    shares
        .map(|share| (share.member.clone(), share.rank.0))
        .collect()
}

impl Quarrel {
    /// The complaints, one after the other.
    pub(crate) fn words(&self) -> String {
        let each = self
            .complaints
            .iter()
            .map(|(member, (_, why))| format!("{member}: {why}"));
        each.collect::<Vec<_>>().join("; ")
    }

    /// Whether somebody blames this member.
    pub(crate) fn blames(&self, member: &MemberId) -> bool {
        let mut blamed = self.complaints.values();
        blamed.any(|(of, _)| of.as_ref() == Some(member))
    }

    /// The member that has trouble with most of the others, whoever complains of it: one that is
    /// cut off from all blames but one of them. Of several the one of the highest rank, so that rank
    /// 0 stays. None when nobody is blamed.
    pub(crate) fn most_blamed(&self, active: &Active) -> Option<MemberId> {
        let complaints = self.complaints.iter();
        let pairs = complaints.filter_map(|(by, (of, _))| Some((by, of.as_ref()?)));
        let known = pairs.filter(|(_, of)| active.rank_of(of).is_some());
        let pairs: BTreeSet<_> = known.map(|(by, of)| (by.min(of), by.max(of))).collect();
        let mut votes: BTreeMap<&MemberId, usize> = BTreeMap::new();
        for member in pairs.iter().flat_map(|(one, other)| [*one, *other]) {
            *votes.entry(member).or_default() += 1;
        }
        let most = votes
            .into_iter()
            .max_by_key(|(member, count)| (*count, active.rank_of(member)));
        most.map(|(member, _)| member.clone())
    }
}

/// The state of a run, with what belongs to it. The table of transitions is in
/// [`Machine`](super::Machine)'s documentation.
#[derive(Clone, Debug)]
pub(crate) enum Run {
    /// Not all members are here.
    Waiting,
    /// A generation computes steps.
    Active(Box<Active>),
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
            Self::Active(active) => Some(active),
            _ => None,
        }
    }

    pub(crate) fn active_mut(&mut self) -> Option<&mut Active> {
        match self {
            Self::Active(active) => Some(active),
            _ => None,
        }
    }

    /// As the wire names it.
    pub(crate) fn wire(&self) -> RunState {
        match self {
            Self::Waiting => RunState::WaitingForMembers,
            Self::Active(active) if active.stop.is_some() => RunState::Stopping,
            Self::Active(_) => RunState::Running,
            Self::Stopped { .. } => RunState::Stopped,
            Self::Finished => RunState::Finished,
            Self::Failed(_) => RunState::Failed,
        }
    }
}
