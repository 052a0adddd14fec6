//! Where the run's time goes: the accounts that processes send, and the places that nobody has.

use std::time::Duration;

use mks2_proto::{goodput::Activity, ids::MemberId, v1::Heartbeat};

use super::{Config, Identity, Machine};
use crate::books::Books;

impl Machine {
    /// Where the run's time has gone.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// The useful part of it, between 0 and 1.
    #[must_use]
    pub fn goodput(&self) -> Option<f64> {
        self.books.run().share(Activity::Useful)
    }

    /// Where there is no generation to take up, what came after the latest checkpoint is void.
    pub(super) fn books_of_earlier_terms(config: &Config) -> Books {
        let mut books = config.books.clone();
        if config.restored.is_none() {
            books.rewound();
        }
        books
    }

    /// A process that takes part, or prepares to, may say where its time has gone.
    pub(super) fn keep_books(&mut self, now: Duration, who: &Identity, beat: &Heartbeat) {
        let Some(spent) = beat.spent else { return };
        if let Some(candidate) = self.candidate_mut(who) {
            candidate.member.accounted = now;
        } else if let Some(member) = self.member_mut(who) {
            member.accounted = now;
        } else {
            return;
        }
        self.books.note(&who.member, who.incarnation, spent.into());
    }

    /// The time since the last event, for places that nobody has.
    pub(super) fn count_vacancies(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.last_event);
        let vacant = self.vacancies();
        self.books.vacant(vacant, passed);
    }

    /// Places that nobody has: none once the run comes to its end.
    fn vacancies(&self) -> usize {
        let stops = self
            .run
            .active()
            .is_some_and(|active| active.stop.is_some());
        if self.run.is_over() || stops {
            return 0;
        }
        let places = self.places.min(self.wanted) as usize;
        let vacant = places.saturating_sub(self.members.len() + self.candidates.len());
        // Looking at every member at every event is left for when it matters: none has finished
        // before the first generation.
        match vacant > 0 && self.run.active().is_some() && self.wanted_now() == 0 {
            true => 0,
            false => vacant,
        }
    }

    /// A generation has so many members.
    pub(super) fn count_places(&mut self, members: usize) {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        self.places = self.places.max(members);
    }

    /// A member is lost: since its last account its place counts as empty.
    pub(super) fn close_account(&mut self, id: &MemberId) {
        let last = self.members.get(id).map(|member| member.accounted);
        let since = last.map(|last| self.last_event.saturating_sub(last));
        self.books.vacant(1, since.unwrap_or_default());
    }
}
