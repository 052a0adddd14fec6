//! A generation in the words of the journal and in those that its members are told, and how long it
//! takes to tell them.

use std::{sync::Arc, time::Duration};

use mks2_proto::v1;

use super::{FEW, Machine, run::Active};
use crate::{
    assign::Share,
    journal::{Entry, GenerationMember},
};

/// How long it takes to tell a member of another one: some 12 bytes over a network of 1 Gbit/s. Of ten
/// thousand members each is told of ten thousand.
const TELLING: Duration = Duration::from_nanos(100);
const MOST_TELLING: Duration = Duration::from_secs(30);

impl Machine {
    /// The generation at work, as its members are told.
    pub(super) fn announced(&mut self) -> Option<Arc<v1::Generation>> {
        let active = self.run.active()?;
        let known = active.announced.clone();
        let announced = known.unwrap_or_else(|| Arc::new(self.wire_generation(active)));
        self.run.active_mut()?.announced = Some(Arc::clone(&announced));
        Some(announced)
    }

    /// The record of a generation.
    pub(super) fn record_of(&self, active: &Active) -> Entry {
        let member = |share: &Share| {
            let known = self.members.get(&share.member)?;
            Some(GenerationMember {
                member: share.member.clone(),
                incarnation: known.incarnation,
                host: known.host.clone(),
                data_address: known.data_address.clone(),
                lanes: share.lanes.clone(),
            })
        };
        Entry::GenerationFormed {
            generation: active.generation,
            members: active.assignment.iter().filter_map(member).collect(),
            after_step: active.after_step,
            lost: active.lost.clone(),
            left: active.left.clone(),
            joined: active.joined.clone(),
        }
    }

    /// A generation as its members are told.
    pub(super) fn wire_generation(&self, active: &Active) -> v1::Generation {
        let member = |share: &Share| {
            let known = self.members.get(&share.member)?;
            Some(v1::Member {
                member_id: share.member.to_string(),
                rank: share.rank.0,
                data_address: known.data_address.clone(),
                host: known.host.clone(),
                lanes: share.lanes.clone(),
            })
        };
        v1::Generation {
            number: active.generation.0,
            members: active.assignment.iter().filter_map(member).collect(),
            after_step: active.after_step,
            lost: active.lost.iter().map(ToString::to_string).collect(),
            reason: active.reason.clone(),
            joined: active.joined.iter().map(ToString::to_string).collect(),
            left: active.left.iter().map(ToString::to_string).collect(),
        }
    }
}

/// How long it takes to tell so many members of each other.
pub(super) fn telling(members: usize) -> Duration {
    let pairs = members.saturating_mul(members.saturating_sub(FEW));
    let pairs = u32::try_from(pairs).unwrap_or(u32::MAX);
    TELLING.saturating_mul(pairs).min(MOST_TELLING)
}
