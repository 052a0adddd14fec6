//! What the driver shows of the run, and how often.

use std::time::Duration;

use mks2_proto::v1;

use super::{Driver, Effect};
use crate::clock;
use crate::state::{Action, NOTICES};

/// How often the status shows what heartbeats say and how long they have been missing.
const GLANCE: Duration = Duration::from_millis(100);

/// How long the store may take for what it is given until people are told.
const STORE_PATIENCE: Duration = Duration::from_millis(1500);

impl Driver {
    /// Takes the status, to be shown when its turn comes: at once where something was decided, and
    /// now and then for what heartbeats say. It takes as much time as there are members, and where
    /// they are many it is taken that much less often.
    pub(super) fn show(&mut self, now: Duration) {
        let effort = self.machine.effort();
        let pause = match self.is_stale {
            true => effort,
            false => effort.max(GLANCE),
        };
        if now < self.shown + pause && !self.machine.is_over() {
            return;
        }
        (self.shown, self.is_stale) = (now, false);
        // An older one that waits shows nothing that this one does not, unless something was decided
        // since.
        let is_line = |effect: &Effect| matches!(effect, Effect::Do(Action::Measure { .. }));
        let last = self.outbox.iter().rposition(|effect| !is_line(effect));
        if let Some(at) = last.filter(|at| matches!(self.outbox[*at], Effect::Publish(_))) {
            self.outbox.remove(at);
        }
        let status = Box::new(self.machine.status(now));
        if self.is_store_slow() {
            self.show_told(&status);
        }
        self.outbox.push_back(Effect::Publish(status));
    }

    fn is_store_slow(&self) -> bool {
        self.busy && clock::since(self.wrote) >= STORE_PATIENCE
    }

    /// While a status waits behind a slow store: what members have told needs no record.
    fn show_told(&self, status: &v1::StatusResponse) {
        self.wiring.status.send_if_modified(|shown| {
            let mut told = shown.clone();
            told.step = status.step;
            told.stage.clone_from(&status.stage);
            told.metrics.clone_from(&status.metrics);
            told.checkpoints_skipped = status.checkpoints_skipped;
            let last = shown.notices.last().map_or(0, |notice| notice.number);
            let news = status.notices.iter().filter(|notice| notice.number > last);
            // That a member is lost is a decision, and others come after it.
            let told_ones = news.take_while(|notice| notice.lost_member.is_empty());
            told.notices.extend(told_ones.cloned());
            let surplus = told.notices.len().saturating_sub(NOTICES);
            told.notices.drain(..surplus);
            let is_news = *shown != told;
            *shown = told;
            is_news
        });
    }

    /// What is decided is not shown before it is recorded. That the store keeps it from being so can
    /// be said at once.
    pub(super) fn show_slow_store(&self) {
        if !self.is_store_slow() {
            return;
        }
        let words = format!(
            "the coordinator waits for its store, which has not taken what it was given for {} s",
            STORE_PATIENCE.as_secs_f64()
        );
        self.wiring.status.send_if_modified(|shown| {
            let is_news = shown.stalled != words;
            if is_news {
                tracing::warn!(run = self.run_id, "{words}");
                shown.reason.clone_from(&words);
                shown.stalled = words;
            }
            is_news
        });
    }

    pub(super) fn publish(&self, status: v1::StatusResponse) {
        self.wiring.status.send_if_modified(|shown| {
            let is_news = *shown != status;
            if is_news {
                *shown = status;
            }
            is_news
        });
    }
}
