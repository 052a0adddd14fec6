//! What a worker has to tell its coordinator: follows `worker/src/session/mail.rs`.

use std::collections::VecDeque;

use mks2_proto::v1::report::Kind;

use super::Labelled;

/// Reports in their order: on their way, waiting, and told lately.
#[derive(Default)]
pub(super) struct Mail {
    pub(super) waiting: VecDeque<Labelled>,
    told: Vec<Labelled>,
    complaint: Option<Labelled>,
    difference: Option<Labelled>,
    stage: Option<Labelled>,
    ready: Option<Labelled>,
    pub(super) is_closed: bool,
}

impl Mail {
    /// Some(None): the trainer is done.
    #[expect(
        clippy::option_option,
        reason = "not yet, never again, or the next one"
    )]
    pub(super) fn next(&mut self) -> Option<Option<Labelled>> {
        match self.waiting.pop_front() {
            Some(labelled) => Some(Some(labelled)),
            None => self.is_closed.then_some(None),
        }
    }

    pub(super) fn handled(&mut self, labelled: Labelled, sent: bool) {
        if !sent {
            return self.waiting.push_front(labelled);
        }
        match labelled.1 {
            Kind::StepCommitted(_) => self.told.push(labelled),
            Kind::PeerLost(_) | Kind::AtBorder(_) => self.complaint = Some(labelled),
            Kind::ReplicasDiffer(_) => self.difference = Some(labelled),
            Kind::StageChanged(_) => self.stage = Some(labelled),
            Kind::Ready(_) => self.ready = Some(labelled),
            _ => {}
        }
    }

    /// A new coordinator is told the stage, the latest steps and the latest complaint again.
    pub(super) fn tell_again(&mut self) {
        if planted!(StepsToldOnce) {
            self.told.clear();
        }
        let complaint = self.difference.take().into_iter();
        let complaint = complaint.chain(self.complaint.take());
        let told = std::mem::take(&mut self.told);
        let before = self.stage.take().into_iter().chain(self.ready.take());
        let again = before.chain(told).chain(complaint);
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting = again.chain(waiting).collect();
    }
}
