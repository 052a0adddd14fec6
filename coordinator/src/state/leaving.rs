//! Members that are let go: asked to end by their machines, by a person, or because the run is to
//! have fewer. They leave at a step border, and nothing is lost with them, since what they know of
//! the training all others know too.

use mks2_proto::{failure::Failure, ids::MemberId, v1::RefusalReason};

use super::{Action, Machine, Member, Refused, Ticket, refused};

impl Machine {
    /// A member would leave.
    pub(super) fn member_leaves(&mut self, id: &MemberId, reason: &str) -> Vec<Action> {
        let Some(member) = self.members.get_mut(id) else {
            return Vec::new();
        };
        member.leaving.get_or_insert_with(|| reason.to_owned());
        if self.run.active().is_none() {
            // Nothing is at work: it may go at once.
            self.members.remove(id);
            return vec![Action::LetGo(id.clone(), reason.to_owned())];
        }
        let is_held = self
            .run
            .active()
            .is_some_and(|active| active.held.is_some());
        if is_held && self.may_anybody_leave() && !planted!(HeldAgainstItsWill) {
            // No border comes while the run waits.
            return self.form_generation(Vec::new(), format!("{id} leaves: {reason}"));
        }
        Vec::new()
    }

    /// Somebody asks for a member to leave.
    pub(super) fn drain(&mut self, ticket: Ticket, id: &MemberId, reason: &str) -> Vec<Action> {
        if self.candidates.remove(id).is_some() {
            self.want_one_less();
            let go = Action::LetGo(id.clone(), reason.to_owned());
            return vec![Action::Accept(ticket), go];
        }
        if !self.members.contains_key(id) {
            let names: Vec<_> = self.members.keys().map(MemberId::as_str).collect();
            let failure = Failure::usage(
                format!("{id} cannot be let go: there is no such worker"),
                format!("the run has {}", names.join(", ")),
                "see `mks2 status`",
            );
            let refused = refused(RefusalReason::UnknownMember, failure);
            return vec![Action::Refuse(ticket, refused)];
        }
        let is_news = self.members.get(id).is_some_and(Member::stays);
        if is_news {
            self.want_one_less();
        }
        let mut actions = vec![Action::Accept(ticket)];
        actions.extend(self.member_leaves(id, reason));
        actions
    }

    /// One that is let go by a person is not replaced.
    fn want_one_less(&mut self) {
        self.wanted = self.wanted.saturating_sub(1).max(self.config.workers.min);
    }

    /// Somebody asks for another number of workers.
    pub(super) fn scale(&mut self, ticket: Ticket, workers: u32) -> Vec<Action> {
        if let Err(refused) = self.can_scale(workers) {
            return vec![Action::Refuse(ticket, refused)];
        }
        self.wanted = workers;
        let surplus = self.staying().saturating_sub(workers as usize);
        let rank = |id: &MemberId| self.run.active().and_then(|active| active.rank_of(id));
        let mut staying: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.stays())
            .map(|(id, _)| id.clone())
            .collect();
        staying.sort_by_key(|id| std::cmp::Reverse(rank(id)));
        let reason = format!("the run is to have {workers} workers");
        let mut actions = vec![Action::Accept(ticket)];
        for id in staying.into_iter().take(surplus) {
            actions.extend(self.member_leaves(&id, &reason));
        }
        actions
    }

    fn can_scale(&self, workers: u32) -> Result<(), Refused> {
        let refuse = |why: String, cure: String| {
            let what = format!("the run cannot have {workers} workers");
            refused(RefusalReason::Malformed, Failure::usage(what, why, cure))
        };
        let (min, lanes) = (self.config.workers.min, self.config.lanes);
        if self.run.is_over() {
            return Err(self.run_over("the run cannot be scaled"));
        }
        if workers < min.max(1) {
            return Err(refuse(
                format!("it was started for at least {min}"),
                format!("ask for {} or more", min.max(1)),
            ));
        }
        if workers > lanes {
            return Err(refuse(
                format!("it has {lanes} lanes, and each worker holds at least one"),
                format!("ask for {lanes} or fewer"),
            ));
        }
        Ok(())
    }

    /// Members that work and are not about to leave.
    pub(super) fn staying(&self) -> usize {
        let members = self.members.values();
        members.filter(|member| member.stays()).count()
    }

    /// Those who leave with the next generation. One of them stays where no other member does: it
    /// tells the state of training to those that are `ready`, and leaves after them.
    pub(super) fn leavers(&self, is_somebody_ready: bool) -> Vec<MemberId> {
        let rank = |id: &MemberId| self.run.active().and_then(|active| active.rank_of(id));
        let leaves = |member: &Member| member.leaving.is_some() && member.finished.is_none();
        let leaving = self.members.iter().filter(|(_, member)| leaves(member));
        let mut leaving: Vec<_> = leaving.map(|(id, _)| id.clone()).collect();
        let knows = |member: &Member| member.stays() && member.knows();
        if self.members.values().any(knows) {
            return leaving;
        }
        if !is_somebody_ready {
            return Vec::new();
        }
        let knows = |id: &&MemberId| self.members.get(*id).is_some_and(Member::knows);
        let source = leaving
            .iter()
            .filter(knows)
            .min_by_key(|id| rank(id))
            .cloned();
        leaving.retain(|id| Some(id) != source.as_ref());
        leaving
    }

    /// Somebody may leave at the next border.
    pub(super) fn may_anybody_leave(&self) -> bool {
        !self.leavers(!self.ready().is_empty()).is_empty()
    }

    /// All members would leave, and nobody comes to whom they could leave the run.
    pub(super) fn all_leave(&self) -> Option<String> {
        let active = self.run.active()?;
        let mut working = self.members.iter().filter(|(_, m)| m.finished.is_none());
        let nobody_comes = self.candidates.is_empty() || self.config.lanes == 1;
        let first = working.next()?;
        let all = first.1.leaving.is_some() && working.all(|(_, m)| m.leaving.is_some());
        if !all || !nobody_comes || active.stop.is_some() || self.reunion.is_some() {
            return None;
        }
        let (id, reason) = (first.0, first.1.leaving.as_deref().unwrap_or_default());
        Some(format!("all workers leave; {id}: {reason}"))
    }

    /// Takes those out who leave with the generation that is about to form.
    pub(super) fn let_go(&mut self) -> Vec<(MemberId, String)> {
        let mut gone = Vec::new();
        for id in self.leavers(!self.ready().is_empty()) {
            if let Some(member) = self.members.remove(&id) {
                self.departed.insert(id.clone(), member.incarnation);
                gone.push((id, member.leaving.unwrap_or_default()));
            }
        }
        self.members_left += gone.len() as u64;
        gone
    }
}
