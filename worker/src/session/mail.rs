//! What a worker has to tell its coordinator: on its way, waiting for one, or told lately.

use std::collections::VecDeque;

use mks2_proto::failure::Failure;
use mks2_proto::v1::report::Kind;
use tokio::sync::mpsc;

use super::Labelled;

/// Steps that a new coordinator is told again: the one before may not have written them down.
const TOLD: usize = 1024;
/// Reports that may wait for a coordinator.
const WAITING: usize = 1 << 20;

/// Reports in their order.
pub(super) struct Mail {
    incoming: mpsc::Receiver<Labelled>,
    waiting: VecDeque<Labelled>,
    /// The latest steps that were told.
    told: VecDeque<Labelled>,
    /// What ended the latest generation, the latest stage and the stage that was prepared, as far
    /// as they were told.
    complaint: Option<Labelled>,
    /// That the members' copies differ, which is true whatever comes after.
    difference: Option<Labelled>,
    stage: Option<Labelled>,
    ready: Option<Labelled>,
    /// The trainer is done.
    closed: bool,
}

impl Mail {
    pub(super) fn new(incoming: mpsc::Receiver<Labelled>) -> Self {
        Self {
            incoming,
            waiting: VecDeque::new(),
            told: VecDeque::new(),
            complaint: None,
            difference: None,
            stage: None,
            ready: None,
            closed: false,
        }
    }

    /// The next report; none: the trainer is done. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Labelled> {
        match self.waiting.pop_front() {
            Some(labelled) => Some(labelled),
            None if self.closed => None,
            None => self.incoming.recv().await,
        }
    }

    /// What became of a report.
    pub(super) fn handled(&mut self, labelled: Labelled, sent: bool) {
        if !sent {
            self.waiting.push_front(labelled);
            return;
        }
        match labelled.1 {
            Kind::StepCommitted(_) => {
                if self.told.len() == TOLD {
                    self.told.pop_front();
                }
                self.told.push_back(labelled);
            }
            Kind::PeerLost(_) | Kind::AtBorder(_) => self.complaint = Some(labelled),
            Kind::ReplicasDiffer(_) => self.difference = Some(labelled),
            Kind::Ready(_) => self.ready = Some(labelled),
            Kind::StageChanged(_) => self.stage = Some(labelled),
            _ => {}
        }
    }

    /// Takes reports in while nobody can be told, for ever: the trainer must not wait. Returns when
    /// there are too many. Cancel safe.
    pub(super) async fn collect(&mut self) -> Failure {
        while self.waiting.len() < WAITING {
            match self.incoming.recv().await {
                Some(labelled) => self.waiting.push_back(labelled),
                None => {
                    self.closed = true;
                    std::future::pending::<()>().await;
                }
            }
        }
        Failure::run_failed(
            "the coordinator was lost",
            format!("{WAITING} reports wait for it"),
            "start it again; the same command resumes from the latest checkpoint",
        )
    }

    /// A new coordinator is told the stage and the latest steps again, before what waits, and the
    /// latest complaint: it means nothing any more unless its generation is still the last one.
    pub(super) fn tell_again(&mut self) {
        let last = [self.complaint.take(), self.difference.take()];
        for labelled in last.into_iter().flatten() {
            self.waiting.push_front(labelled);
        }
        while let Some(labelled) = self.told.pop_back() {
            self.waiting.push_front(labelled);
        }
        for labelled in [self.ready.take(), self.stage.take()].into_iter().flatten() {
            self.waiting.push_front(labelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use mks2_proto::v1::{Finished, StepCommitted};

    use super::*;

    fn step(step: u64) -> Labelled {
        let metrics = None;
        (1, Kind::StepCommitted(StepCommitted { step, metrics }))
    }

    #[tokio::test]
    async fn steps_are_told_again_in_order_and_nothing_is_lost() {
        let (sender, incoming) = mpsc::channel(8);
        let mut mail = Mail::new(incoming);
        for number in 1..=3 {
            sender.send(step(number)).await.unwrap();
        }
        for sent in [true, true, false] {
            let labelled = mail.next().await.unwrap();
            mail.handled(labelled, sent);
        }
        sender.send(step(4)).await.unwrap();
        let done = Kind::Finished(Finished { complete: true });
        sender.send((1, done.clone())).await.unwrap();
        drop(sender);
        let _searching =
            tokio::time::timeout(std::time::Duration::from_millis(50), mail.collect()).await;
        mail.tell_again();
        for number in 1..=4 {
            assert_eq!(mail.next().await, Some(step(number)));
        }
        assert_eq!(mail.next().await, Some((1, done)));
        assert_eq!(mail.next().await, None);
    }
}
