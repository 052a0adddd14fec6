//! Whether damage of a member's copy can be known to the others: if it can, no checkpoint may hold it of
//! which its members say that it is right.

use std::collections::BTreeSet;

use super::office::Seats;

/// Copies that have lost a bit, and what became of them.
#[derive(Default)]
pub(super) struct Damage {
    /// Some copy was damaged at some time.
    was_there: bool,
    /// Processes whose copies are.
    damaged: BTreeSet<u64>,
    /// Processes that have seen it.
    finders: BTreeSet<u64>,
    /// Processes of the latest generation, and those that have applied a step.
    members: BTreeSet<u64>,
    holders: BTreeSet<u64>,
    /// Nobody could know of it: from then on the checkpoints hold it.
    is_hidden: bool,
}

impl Damage {
    pub(super) fn was_there(&self) -> bool {
        self.was_there
    }

    pub(super) fn is_hidden(&self) -> bool {
        self.is_hidden
    }

    /// One alone has nothing to compare with, and all may be damaged alike.
    pub(super) fn happened(&mut self, process: u64) {
        self.was_there = true;
        self.damaged.insert(process);
        // Two may lose the same bit.
        self.is_hidden |= self.members.len() < 2 || self.members.is_subset(&self.damaged);
    }

    pub(super) fn applied(&mut self, process: u64) {
        self.holders.insert(process);
    }

    pub(super) fn found(&mut self, process: u64) {
        self.finders.insert(process);
    }

    /// The run went back to a checkpoint.
    pub(super) fn taken_back(&mut self) {
        self.damaged.clear();
        self.finders.clear();
    }

    /// A generation was formed. One that is damaged and gone has left its part in all copies, which
    /// are alike; one that is left alone with newcomers tells them its own. `from_damaged`: the latest
    /// checkpoint holds damage.
    pub(super) fn formed(&mut self, seats: &Seats, from_damaged: bool) {
        let members: BTreeSet<u64> = seats.iter().map(|seat| seat.0).collect();
        if members.is_disjoint(&self.members) {
            // All are new, and begin at the latest checkpoint.
            self.taken_back();
            self.is_hidden |= from_damaged;
        }
        let is_known = !self.finders.is_disjoint(&members);
        let is_gone = !self.damaged.is_subset(&members);
        let knowing = members.intersection(&self.holders).count();
        let is_alone = knowing < 2 && !self.damaged.is_empty();
        self.is_hidden |= (is_gone || is_alone) && !is_known;
        self.members = members;
    }
}
