//! What members report and ask: steps, stages, checkpoints, stopping, the end.

use std::{collections::btree_map::Entry, time::Duration};

use mks2_proto::{
    failure::{ExitCode, Failure},
    ids::{Generation, MemberId},
    v1::{CheckpointSkipped, Heartbeat, RefusalReason, StepCommitted, report::Kind},
};

use super::{
    Action, Checkpoint, Identity, Machine, Place, Refused, Ticket, corruption::void, refused,
    run::Run,
};
use crate::journal;

impl Machine {
    pub(super) fn report(
        &mut self,
        now: Duration,
        who: &Identity,
        generation: Generation,
        kind: Kind,
    ) -> Vec<Action> {
        if let Some(actions) = self.candidate_said(now, who, &kind) {
            return actions;
        }
        let current = generation == self.generation && self.run.active().is_some();
        let Some(member) = self.member_mut(who) else {
            return Vec::new();
        };
        member.heard = now;
        match kind {
            Kind::Failed(failed) => return self.member_failed(&who.member, failed.into()),
            // Whoever complains waits for the next generation, which is there already.
            Kind::PeerLost(_) | Kind::AtBorder(_) if !current => return Vec::new(),
            // True still, if its generation is over.
            Kind::PeerLost(report) => return self.peer_lost(now, who, report),
            Kind::ReplicasDiffer(found) => return self.replicas_differ(found),
            Kind::AtBorder(border) => return self.at_border(border.step),
            Kind::Leaving(leaving) => return self.member_leaves(&who.member, &leaving.reason),
            // It has become a member since.
            Kind::Ready(_) => return Vec::new(),
            // It told so as a candidate, and tells it again: its generation is in that stage.
            Kind::StageChanged(stage) if generation == Generation(0) => {
                return self.stage_changed(stage);
            }
            _ => {}
        }
        if let Err(refused) = self.check_generation(generation) {
            return vec![Action::Reject(who.member.clone(), refused)];
        }
        match kind {
            Kind::StepCommitted(step) => self.step_committed(who, generation, step),
            Kind::StageChanged(stage) => self.stage_changed(stage),
            Kind::Finished(finished) => self.member_finished(who, current, finished.complete),
            Kind::CheckpointSkipped(skipped) => {
                self.checkpoint_skipped(skipped);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// A sign of life.
    pub(super) fn beat(
        &mut self,
        now: Duration,
        heard: Duration,
        who: &Identity,
        generation: Generation,
        said: Heartbeat,
    ) {
        self.keep_books(heard, who, &said);
        if let Some(candidate) = self.candidate_mut(who) {
            return candidate.member.beat(now, heard, said, true);
        }
        let current = generation == self.generation && self.run.active().is_some();
        let Some(member) = self.member_mut(who) else {
            return;
        };
        let was_blank = member.is_blank;
        member.beat(now, heard, said, current);
        let (committed, is_blank) = (member.committed, member.is_blank);
        self.step = self.step.max(committed);
        self.is_unsettled |= is_blank != was_blank;
    }

    /// What a member has done stays done when the generation changes, and its news of it counts.
    /// Messages of other terms, or after the end, do not.
    fn check_generation(&self, generation: Generation) -> Result<(), Refused> {
        if self.run.is_over() {
            return Err(self.run_over("the message comes too late"));
        }
        let of_this_term = self.oldest_generation() <= generation && generation <= self.generation;
        if of_this_term && self.run.active().is_some() {
            return Ok(());
        }
        let failure = Failure::run_failed(
            "the message comes too late",
            format!(
                "it speaks of generation {generation}, the run is in {}",
                self.generation
            ),
            self.resume_words(),
        );
        Err(refused(RefusalReason::StaleGeneration, failure))
    }

    /// The first generation whose members can be there.
    fn oldest_generation(&self) -> Generation {
        match self.config.restored {
            Some(_) => Generation(1),
            None => Generation(self.config.last_generation.0 + 1),
        }
    }

    /// Steps come one after the other; known ones may be told again.
    fn step_committed(
        &mut self,
        who: &Identity,
        generation: Generation,
        step: StepCommitted,
    ) -> Vec<Action> {
        let Some(member) = self.member_mut(who) else {
            return Vec::new();
        };
        let due = member.committed + 1;
        if step.step > due {
            let failure = Failure::internal(
                format!("{} reports step {} out of order", who.member, step.step),
                format!("step {due} is the next one"),
            );
            let refused = refused(RefusalReason::OutOfOrder, failure);
            return vec![Action::Reject(who.member.clone(), refused)];
        }
        member.committed = member.committed.max(step.step);
        let was_blank = std::mem::replace(&mut member.is_blank, false);
        self.is_unsettled |= was_blank;
        self.step = self.step.max(step.step);
        self.measure(generation, step).into_iter().collect()
    }

    /// Rank 0 of a generation measures for all; each step counts once.
    fn measure(&mut self, generation: Generation, step: StepCommitted) -> Option<Action> {
        let is_new = step.step > self.measured || planted!(MeasuredTwice);
        let metrics = step.metrics.filter(|_| is_new)?;
        self.measured = step.step;
        let action = Action::Measure {
            generation,
            step: step.step,
            metrics: Box::new(metrics.clone()),
        };
        self.metrics = Some(metrics);
        Some(action)
    }

    /// One that finished in an earlier generation has left before the others could count on it.
    fn member_finished(&mut self, who: &Identity, current: bool, complete: bool) -> Vec<Action> {
        if let Some(member) = self.member_mut(who) {
            member.finished = Some(complete);
        }
        let mut ends = self.members.values().map(|member| member.finished);
        if ends.all(|end| end.is_some()) {
            return self.conclude();
        }
        if current {
            return Vec::new();
        }
        let reason = format!("{} has finished its part", who.member);
        self.form_generation(Vec::new(), reason)
    }

    fn checkpoint_skipped(&mut self, skipped: CheckpointSkipped) {
        self.checkpoints_skipped += 1;
        let failure = skipped.failure.map(Failure::from);
        let why = failure.map_or_else(String::new, |f| format!("{}: {}", f.what, f.why));
        let step = skipped.step;
        let what = format!("the checkpoint at step {step} was skipped; training goes on");
        self.notice(&Failure::run_failed(what, why, ""), None);
    }

    /// A member failed by itself. What would happen to every other one too ends the run: bad data,
    /// a loss that is no number. What may be its own trouble (a bug, its device) is the loss of
    /// this one.
    fn member_failed(&mut self, id: &MemberId, failure: Failure) -> Vec<Action> {
        if self.run.is_over() {
            return Vec::new();
        }
        let alone = self.members.len() < 2 && (!self.config.returns || self.is_hopeless(id));
        let its_own = matches!(failure.exit, ExitCode::Internal | ExitCode::Environment);
        if self.run.active().is_some() && its_own && !alone {
            let how = format!("it failed: {}: {}", failure.what, failure.why);
            return self.lose(id, &how);
        }
        let failure = self.with_name(id, failure);
        self.fail(failure, None)
    }

    /// The only member of a generation that has done nothing: a new process would fare like it. One
    /// that has no state of training may have lost those that could have told it.
    fn is_hopeless(&self, id: &MemberId) -> bool {
        let active = self.run.active();
        let is_blank = self.members.get(id).is_some_and(|member| member.is_blank);
        active.is_none_or(|a| self.step == a.after_step && !is_blank)
    }

    fn with_name(&self, id: &MemberId, mut failure: Failure) -> Failure {
        let rank = self.run.active().and_then(|active| active.rank_of(id));
        let host = self
            .members
            .get(id)
            .map(|member| member.host.clone())
            .unwrap_or_default();
        let place = match rank {
            Some(rank) => format!("{id} (rank {rank} on {host})"),
            None => format!("{id} (on {host})"),
        };
        failure.what = format!("{place}: {}", failure.what);
        failure
    }

    pub(super) fn commit(
        &mut self,
        ticket: Ticket,
        who: &Identity,
        generation: Generation,
        checkpoint: Checkpoint,
    ) -> Vec<Action> {
        let may_have_been_let_go = self.departed.get(&who.member) == Some(&who.incarnation);
        let allowed = match self.member_mut(who) {
            // What it began to save, it ends.
            None if may_have_been_let_go => self.check_generation(generation),
            None => Err(self.unknown(who)),
            Some(_) => self.check_generation(generation),
        };
        if let Err(refused) = allowed {
            return vec![Action::Refuse(ticket, refused)];
        }
        match self.checkpoints.place(&checkpoint) {
            // The news of its steps is on its way: it takes another one than this request.
            Place::Next if checkpoint.step > self.measured && !planted!(CommitBeforeNews) => {
                let what = format!("the checkpoint at step {} is too early", checkpoint.step);
                vec![Action::Refuse(ticket, self.not_yet_told(&what))]
            }
            Place::Next if planted!(CommitBeforeManifest) => self.count(ticket, checkpoint),
            Place::Next => self.write_manifest(ticket, checkpoint),
            Place::Known => vec![Action::Committed(ticket, Vec::new())],
            Place::OutOfOrder { latest } => {
                let failure = Failure::checkpoint(
                    format!(
                        "the checkpoint at step {} is not committed",
                        checkpoint.step
                    ),
                    format!("the run has one at step {latest} already"),
                    "checkpoints go forward: resume the run from the one that it has",
                );
                vec![Action::Refuse(
                    ticket,
                    refused(RefusalReason::OutOfOrder, failure),
                )]
            }
        }
    }

    /// A member that took over may save a step whose manifest is on its way already: the first
    /// one's fate is the answer for both.
    fn write_manifest(&mut self, ticket: Ticket, checkpoint: Checkpoint) -> Vec<Action> {
        match self.writing.entry(checkpoint.step) {
            Entry::Occupied(mut others) => {
                others.get_mut().push(ticket);
                Vec::new()
            }
            Entry::Vacant(first) => {
                first.insert(Vec::new());
                vec![Action::WriteManifest(ticket, checkpoint)]
            }
        }
    }

    /// The manifest could not be written: the checkpoint is skipped.
    pub(super) fn manifest_failed(
        &mut self,
        ticket: Ticket,
        step: u64,
        failure: Failure,
    ) -> Vec<Action> {
        let waiting = self.writing.remove(&step).unwrap_or_default();
        let refused = refused(RefusalReason::Storage, failure);
        let all = std::iter::once(ticket).chain(waiting);
        all.map(|ticket| Action::Refuse(ticket, refused.clone()))
            .collect()
    }

    /// The manifest is in the store: the checkpoint counts, and the retention policy lets others
    /// go.
    pub(super) fn committed(&mut self, ticket: Ticket, checkpoint: Checkpoint) -> Vec<Action> {
        let Some(waiting) = self.writing.remove(&checkpoint.step) else {
            // Its manifest goes with what the run was taken back over.
            return vec![Action::Refuse(ticket, void(checkpoint.step))];
        };
        let twins = waiting
            .into_iter()
            .map(|twin| Action::Committed(twin, Vec::new()));
        let mut actions = self.count(ticket, checkpoint);
        actions.extend(twins);
        actions
    }

    fn count(&mut self, ticket: Ticket, checkpoint: Checkpoint) -> Vec<Action> {
        if self.checkpoints.place(&checkpoint) != Place::Next {
            return vec![Action::Committed(ticket, Vec::new())];
        }
        self.checkpoints.insert(checkpoint.clone());
        self.books.saved(!checkpoint.uncompared);
        let released = self.checkpoints.surplus(self.config.keep_last);
        let steps: Vec<_> = released.iter().map(|checkpoint| checkpoint.step).collect();
        self.checkpoints.remove(&steps);
        let entry = journal::Entry::CheckpointCommitted {
            checkpoint,
            released: steps,
        };
        if planted!(AnsweredBeforeRecorded) {
            return vec![Action::Committed(ticket, released), Action::Persist(entry)];
        }
        vec![Action::Persist(entry), Action::Committed(ticket, released)]
    }

    pub(super) fn stop(&mut self, ticket: Ticket, reason: String) -> Vec<Action> {
        let mut actions = self.stop_for(reason);
        actions.push(Action::Accept(ticket));
        actions
    }

    /// The run stops at once where nothing is at work, else at the next step border.
    pub(super) fn stop_for(&mut self, reason: String) -> Vec<Action> {
        let stopped = match &mut self.run {
            Run::Waiting => {
                self.run = Run::Stopped {
                    reason: reason.clone(),
                };
                Some(Action::Persist(journal::Entry::RunStopped {
                    step: self.step.max(self.measured),
                }))
            }
            Run::Active(active) if active.stop.is_none() => {
                active.stop = Some(reason.clone());
                None
            }
            _ => return Vec::new(),
        };
        let tell = self.ask_everybody(&reason);
        let asked = Action::Persist(journal::Entry::StopRequested { reason });
        let asked = std::iter::once(asked).chain(stopped);
        asked.chain(tell).collect()
    }

    fn ask_everybody(&self, reason: &str) -> Vec<Action> {
        self.attached()
            .map(|id| Action::AskToStop(id.clone(), reason.to_owned()))
            .collect()
    }
}
