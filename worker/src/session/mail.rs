//! What a worker has to tell its coordinator: on its way from the trainer, or waiting in its order.

use mks2_proto::failure::Failure;
use mks2_proto::retelling::{Labelled, Reports, WAITING};
use tokio::sync::mpsc;

/// Reports as they come, and those that have.
pub(super) struct Mail {
    incoming: mpsc::Receiver<Labelled>,
    reports: Reports,
    /// The trainer is done.
    closed: bool,
}

impl Mail {
    pub(super) fn new(incoming: mpsc::Receiver<Labelled>) -> Self {
        Self {
            incoming,
            reports: Reports::default(),
            closed: false,
        }
    }

    /// The next report; none: the trainer is done. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Labelled> {
        match self.reports.pop() {
            Some(labelled) => Some(labelled),
            None if self.closed => None,
            None => self.incoming.recv().await,
        }
    }

    /// What became of a report.
    pub(super) fn handled(&mut self, labelled: Labelled, sent: bool) {
        self.reports.handled(labelled, sent);
    }

    /// Takes reports in while nobody can be told, for ever: the trainer must not wait. Returns when
    /// there are too many. Cancel safe.
    pub(super) async fn collect(&mut self) -> Failure {
        while !self.reports.is_full() {
            match self.incoming.recv().await {
                Some(labelled) => self.reports.push(labelled),
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

    /// There is a new coordinator.
    pub(super) fn tell_again(&mut self) {
        self.reports.tell_again();
    }
}

#[cfg(test)]
mod tests {
    use mks2_proto::v1::report::Kind;
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
