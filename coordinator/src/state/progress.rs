//! What members report and ask: steps, stages, checkpoints, stopping, the end.

use std::time::Duration;

use mks2_proto::{
    failure::{ExitCode, Failure},
    ids::{Generation, MemberId},
    v1::{RefusalReason, StepCommitted, report::Kind},
};

use super::{Action, Checkpoint, Identity, Machine, Place, Refused, Ticket, refused, run::Run};
use crate::journal::Entry;

impl Machine {
    pub(super) fn report(
        &mut self,
        now: Duration,
        who: &Identity,
        generation: Generation,
        kind: Kind,
    ) -> Vec<Action> {
        let current = generation == self.generation && self.run.active().is_some();
        let Some(member) = self.member_mut(who) else {
            return Vec::new();
        };
        member.heard = now;
        let allowed = match kind {
            Kind::Heartbeat(beat) => {
                member.beat(beat, current);
                return Vec::new();
            }
            Kind::Failed(failed) => return self.member_failed(now, &who.member, failed.into()),
            _ => self.check_generation(generation),
        };
        if let Err(refused) = allowed {
            return vec![Action::Reject(who.member.clone(), refused)];
        }
        match kind {
            Kind::StepCommitted(step) => self.step_committed(who, step),
            Kind::StageChanged(stage) => {
                self.stage = Some(stage);
                Vec::new()
            }
            Kind::Finished(finished) => self.member_finished(who, finished.complete),
            Kind::Heartbeat(_) | Kind::Failed(_) => Vec::new(),
        }
    }

    /// A message counts only in the generation in which it was written, while the run lasts.
    fn check_generation(&self, generation: Generation) -> Result<(), Refused> {
        if self.run.is_over() {
            return Err(self.run_over("the message comes too late"));
        }
        if generation == self.generation && self.run.active().is_some() {
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

    fn step_committed(&mut self, who: &Identity, step: StepCommitted) -> Vec<Action> {
        let Some(member) = self.member_mut(who) else {
            return Vec::new();
        };
        let due = member.committed + 1;
        if step.step != due {
            let failure = Failure::internal(
                format!("{} reports step {} out of order", who.member, step.step),
                format!("step {due} is the next one"),
            );
            let refused = refused(RefusalReason::OutOfOrder, failure);
            return vec![Action::Reject(who.member.clone(), refused)];
        }
        member.committed = due;
        self.step = self.step.max(due);
        self.measure(who, step).into_iter().collect()
    }

    /// Rank 0 measures for all.
    fn measure(&mut self, who: &Identity, step: StepCommitted) -> Option<Action> {
        let active = self.run.active()?;
        let metrics = step
            .metrics
            .filter(|_| active.rank_of(&who.member) == Some(0))?;
        let action = Action::Measure {
            generation: active.generation,
            workers: active.workers(),
            step: step.step,
            metrics: Box::new(metrics.clone()),
        };
        self.metrics = Some(metrics);
        Some(action)
    }

    fn member_finished(&mut self, who: &Identity, complete: bool) -> Vec<Action> {
        if let Some(member) = self.member_mut(who) {
            member.finished = Some(complete);
        }
        let mut ends = self.members.values().map(|member| member.finished);
        if ends.any(|end| end.is_none()) {
            return Vec::new();
        }
        let complete = self
            .members
            .values()
            .all(|member| member.finished == Some(true));
        let entry = if complete {
            self.run = Run::Finished;
            Entry::RunFinished { step: self.step }
        } else {
            self.run = Run::Stopped {
                reason: self.stop_reason(),
            };
            Entry::RunStopped { step: self.step }
        };
        vec![Action::Persist(entry)]
    }

    fn stop_reason(&self) -> String {
        match &self.run {
            Run::Stopping { reason, .. } => reason.clone(),
            _ => "the workers stopped".to_owned(),
        }
    }

    /// A member failed by itself: that is the cause. Or because of another one: then that one's
    /// own fate is awaited for a moment, since its name is the better answer.
    fn member_failed(&mut self, now: Duration, id: &MemberId, failure: Failure) -> Vec<Action> {
        if self.run.is_over() {
            return Vec::new();
        }
        let failure = self.with_name(id, failure);
        let echo = failure.exit == ExitCode::RunFailed;
        match &mut self.run {
            Run::Running(active) | Run::Stopping { active, .. } if echo => {
                self.run = Run::Ailing {
                    active: active.clone(),
                    complainants: vec![id.clone()],
                    complaint: failure,
                    since: now,
                };
                Vec::new()
            }
            Run::Ailing { complainants, .. } if echo => {
                complainants.push(id.clone());
                Vec::new()
            }
            _ => self.fail(failure, None),
        }
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
        let allowed = match self.member_mut(who) {
            None => Err(self.unknown(who)),
            Some(_) => self.check_generation(generation),
        };
        if let Err(refused) = allowed {
            return vec![Action::Refuse(ticket, refused)];
        }
        match self.checkpoints.place(&checkpoint) {
            Place::Next => vec![Action::WriteManifest(ticket, checkpoint)],
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

    /// The manifest is in the store: the checkpoint counts, and the retention policy lets others
    /// go.
    pub(super) fn committed(&mut self, ticket: Ticket, checkpoint: Checkpoint) -> Vec<Action> {
        if self.checkpoints.place(&checkpoint) != Place::Next {
            return vec![Action::Committed(ticket, Vec::new())];
        }
        self.checkpoints.insert(checkpoint.clone());
        let released = self.checkpoints.surplus(self.config.keep_last);
        let steps: Vec<_> = released.iter().map(|checkpoint| checkpoint.step).collect();
        self.checkpoints.remove(&steps);
        let entry = Entry::CheckpointCommitted {
            checkpoint,
            released: steps,
        };
        vec![Action::Persist(entry), Action::Committed(ticket, released)]
    }

    pub(super) fn stop(&mut self, ticket: Ticket, reason: String) -> Vec<Action> {
        let asked = Action::Persist(Entry::StopRequested {
            reason: reason.clone(),
        });
        match std::mem::replace(&mut self.run, Run::Waiting) {
            Run::Waiting => {
                let tell = self.ask_everybody(&reason);
                self.run = Run::Stopped { reason };
                let stopped = Action::Persist(Entry::RunStopped { step: self.step });
                [asked, stopped]
                    .into_iter()
                    .chain(tell)
                    .chain([Action::Accept(ticket)])
                    .collect()
            }
            Run::Running(active) => {
                let tell = self.ask_everybody(&reason);
                self.run = Run::Stopping { active, reason };
                [asked]
                    .into_iter()
                    .chain(tell)
                    .chain([Action::Accept(ticket)])
                    .collect()
            }
            other => {
                self.run = other;
                vec![Action::Accept(ticket)]
            }
        }
    }

    fn ask_everybody(&self, reason: &str) -> Vec<Action> {
        self.attached()
            .map(|id| Action::AskToStop(id.clone(), reason.to_owned()))
            .collect()
    }
}
