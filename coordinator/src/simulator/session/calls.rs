//! What a worker waits for, and says when it has come; its reports in their order.

use std::time::Duration;

use mks2_proto::{
    failure::Failure,
    retelling::Labelled,
    v1::{self, report::Kind},
};

use super::{Assignment, Call, Invitation, Session};
use crate::simulator::executor::now;

impl Session {
    pub(in crate::simulator) async fn wait_generation(
        &self,
        after: u64,
    ) -> Result<Assignment, Failure> {
        let look = || {
            if let Some(over) = &*self.over.borrow() {
                return Some(Err(over.clone()));
            }
            let known = self.assignment.borrow();
            if let Some(next) = known.as_ref().filter(|a| a.generation > after) {
                self.generation.set(next.generation);
                return Some(Ok(next.clone()));
            }
            None
        };
        self.changed.until(look).await
    }

    pub(in crate::simulator) async fn wait_invitation(
        &self,
        after: u64,
    ) -> Result<Invitation, Failure> {
        let look = || {
            if let Some(over) = &*self.over.borrow() {
                return Some(Err(over.clone()));
            }
            let known = self.invitation.borrow();
            let next = known.as_ref().filter(|i| i.number > after);
            next.map(|next| Ok(next.clone()))
        };
        self.changed.until(look).await
    }

    pub(in crate::simulator) async fn wait_call(&self, invited: u64) -> Result<Call, Failure> {
        let look = || {
            if let Some(over) = &*self.over.borrow() {
                return Some(Err(over.clone()));
            }
            if let Some(first) = &*self.assignment.borrow() {
                self.generation.set(first.generation);
                return Some(Ok(Call::Generation(first.clone())));
            }
            let known = self.invitation.borrow();
            if known.as_ref().is_some_and(|i| i.number > invited) {
                return Some(Ok(Call::Invitation));
            }
            let stopped = || Failure::stopped("stopped before the first step", "", "");
            self.stop.get().then(|| Err(stopped()))
        };
        self.changed.until(look).await
    }

    /// This worker has the state of training behind a step.
    pub(in crate::simulator) fn entered(&self, step: u64) -> Result<(), Failure> {
        self.step.set(self.step.get().max(step));
        let (phase, collective) = self.phase.get();
        self.report(Kind::Heartbeat(v1::Heartbeat {
            step: self.step.get(),
            phase: phase.into(),
            collective,
            ..v1::Heartbeat::default()
        }))
    }

    pub(in crate::simulator) fn at_border(
        &self,
        generation: u64,
        step: u64,
    ) -> Result<(), Failure> {
        self.send((generation, Kind::AtBorder(v1::AtBorder { step })))
    }

    /// SIGTERM.
    pub(in crate::simulator) fn leave(&self) {
        let reason = "SIGTERM".to_owned();
        if self.report(Kind::Leaving(v1::Leaving { reason })).is_ok() {
            self.asked_at.set(Some(now()));
            self.world.checks.borrow_mut().would_leave(&self.who);
        }
    }

    /// Since when the coordinator could know that this worker would leave; none: it need not.
    pub(in crate::simulator) fn would_leave_since(&self) -> Option<Duration> {
        let asked = self.asked_at.get().filter(|_| self.is_connected());
        asked.map(|asked| asked.max(self.attached_at.get()))
    }

    /// The next report. Some(None): the trainer is done.
    #[expect(
        clippy::option_option,
        reason = "not yet, never again, or the next one"
    )]
    pub(super) fn next(&self) -> Option<Option<Labelled>> {
        match self.mail.borrow_mut().pop() {
            Some(labelled) => Some(Some(labelled)),
            None => self.is_closed.get().then_some(None),
        }
    }

    pub(super) fn handled(&self, labelled: Labelled, sent: bool) {
        let is_told_once = match labelled.1 {
            Kind::StepCommitted(_) => planted!(StepsToldOnce),
            Kind::Leaving(_) => planted!(LeavingToldOnce),
            _ => false,
        };
        if sent && is_told_once {
            return;
        }
        self.mail.borrow_mut().handled(labelled, sent);
    }
}
