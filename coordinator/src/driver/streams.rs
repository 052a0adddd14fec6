//! The ways down to the members: streams by number, and by member.

use std::collections::{BTreeMap, HashMap};

use mks2_proto::ids::MemberId;

use super::Directives;
use crate::state::StreamId;

/// See the module. A member may have several for a moment; the newest one counts.
#[derive(Default)]
pub(super) struct Streams {
    members: HashMap<StreamId, MemberId>,
    /// Only for looking up.
    ways: HashMap<MemberId, BTreeMap<StreamId, Directives>>,
}

impl Streams {
    pub(super) fn insert(&mut self, stream: StreamId, member: MemberId, way: Directives) {
        self.members.insert(stream, member.clone());
        self.ways.entry(member).or_default().insert(stream, way);
    }

    pub(super) fn remove(&mut self, stream: StreamId) {
        let Some(member) = self.members.remove(&stream) else {
            return;
        };
        if let Some(ways) = self.ways.get_mut(&member) {
            ways.remove(&stream);
            if ways.is_empty() {
                self.ways.remove(&member);
            }
        }
    }

    pub(super) fn newest(&self, member: &MemberId) -> Option<(StreamId, &Directives)> {
        let (stream, way) = self.ways.get(member)?.last_key_value()?;
        Some((*stream, way))
    }

    pub(super) fn clear(&mut self) {
        self.members.clear();
        self.ways.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}
