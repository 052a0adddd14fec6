//! Members that are let go: asked to end by their machines, by a person, or because the run is to
//! have fewer. They leave at a step border, and nothing is lost with them, since what they know of
//! the training all others know too.

use mks2_proto::{failure::Failure, ids::MemberId, v1::RefusalReason};

use super::{Action, Machine, Refused, Ticket, refused};

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
        if self.staying() > 0 || !self.candidates.is_empty() {
            return Vec::new();
        }
        self.stop_for(format!("all workers leave; {id}: {reason}"))
    }

    /// Somebody asks for a member to leave.
    pub(super) fn drain(&mut self, ticket: Ticket, id: &MemberId, reason: &str) -> Vec<Action> {
        if self.candidates.remove(id).is_some() {
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
        // It is not replaced.
        self.wanted = self.wanted.saturating_sub(1).max(self.config.workers.min);
        let mut actions = vec![Action::Accept(ticket)];
        actions.extend(self.member_leaves(id, reason));
        actions
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

    /// Somebody would leave, and another one stays who knows the state of training.
    pub(super) fn may_anybody_leave(&self) -> bool {
        let leaves =
            |member: &&super::Member| member.leaving.is_some() && member.finished.is_none();
        self.members.values().any(|member| leaves(&member)) && self.staying() > 0
    }

    /// Takes those out who leave with the generation that is about to form.
    pub(super) fn let_go(&mut self) -> Vec<(MemberId, String)> {
        if !self.may_anybody_leave() {
            return Vec::new();
        }
        let leaving: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.finished.is_none())
            .filter_map(|(id, member)| Some((id.clone(), member.leaving.clone()?)))
            .collect();
        for (id, _) in &leaving {
            if let Some(member) = self.members.remove(id) {
                self.departed.insert(id.clone(), member.incarnation);
            }
        }
        self.members_left += leaving.len() as u64;
        leaving
    }
}
