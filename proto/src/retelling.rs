//! What a worker has to tell its coordinator, in its order, and what it tells a new one again: the
//! coordinator before may have died with the news.
//!
//! ```text
//! told again: stage, ready ── latest steps ── difference, complaint ── leaving ── what waits
//! ```

use std::collections::VecDeque;

use crate::v1::report::Kind;

/// Steps that a new coordinator is told again: the one before may not have written them down.
const TOLD: usize = 1024;
/// Reports that may wait for a coordinator.
pub const WAITING: usize = 1 << 20;

/// A report and the generation in which it was written.
pub type Labelled = (u64, Kind);

/// Reports that wait, and those that were told lately.
#[derive(Debug, Default)]
pub struct Reports {
    waiting: VecDeque<Labelled>,
    /// The latest steps that were told.
    told: VecDeque<Labelled>,
    /// What ended the latest generation, the latest stage and the stage that was prepared, as far
    /// as they were told.
    complaint: Option<Labelled>,
    stage: Option<Labelled>,
    ready: Option<Labelled>,
    /// That the members' copies differ, and that this one was asked to end, which are true whatever
    /// comes after.
    difference: Option<Labelled>,
    leaving: Option<Labelled>,
}

impl Reports {
    /// Takes a report in, behind all others.
    pub fn push(&mut self, labelled: Labelled) {
        self.waiting.push_back(labelled);
    }

    /// The next one to tell.
    pub fn pop(&mut self) -> Option<Labelled> {
        self.waiting.pop_front()
    }

    /// Too many wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING
    }

    /// What became of a report that was taken out.
    pub fn handled(&mut self, labelled: Labelled, sent: bool) {
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
            Kind::Leaving(_) => self.leaving = Some(labelled),
            Kind::Ready(_) => self.ready = Some(labelled),
            Kind::StageChanged(_) => self.stage = Some(labelled),
            _ => {}
        }
    }

    /// A new coordinator is told the stage and the latest steps again, before what waits, and the
    /// latest complaint: it means nothing any more unless its generation is still the last one. That
    /// this worker leaves comes last, since one that is let go is not listened to.
    pub fn tell_again(&mut self) {
        let last = [
            self.leaving.take(),
            self.complaint.take(),
            self.difference.take(),
        ];
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
    use super::*;
    use crate::v1::{
        AtBorder, Finished, Leaving, Ready, ReplicasDiffer, StageChanged, StepCommitted,
    };

    fn step(step: u64) -> Labelled {
        let metrics = None;
        (1, Kind::StepCommitted(StepCommitted { step, metrics }))
    }

    fn tell(reports: &mut Reports, labelled: Labelled) {
        reports.push(labelled);
        let next = reports.pop().unwrap();
        reports.handled(next, true);
    }

    fn rest(reports: &mut Reports) -> Vec<Labelled> {
        std::iter::from_fn(|| reports.pop()).collect()
    }

    #[test]
    fn a_new_coordinator_is_told_in_the_order_in_which_it_can_understand() {
        let mut reports = Reports::default();
        let leaving = (2, Kind::Leaving(Leaving::default()));
        let border = (2, Kind::AtBorder(AtBorder { step: 2 }));
        let differ = (2, Kind::ReplicasDiffer(ReplicasDiffer::default()));
        let ready = (0, Kind::Ready(Ready::default()));
        let stage = (0, Kind::StageChanged(StageChanged::default()));
        let done = (2, Kind::Finished(Finished { complete: true }));
        let told = [
            leaving.clone(),
            border.clone(),
            step(1),
            differ.clone(),
            ready.clone(),
            step(2),
            stage.clone(),
        ];
        for labelled in told {
            tell(&mut reports, labelled);
        }
        reports.push(step(3));
        let unsent = reports.pop().unwrap();
        reports.handled(unsent, false);
        reports.push(done.clone());
        reports.tell_again();
        let due = [
            stage,
            ready,
            step(1),
            step(2),
            differ,
            border,
            leaving,
            step(3),
            done,
        ];
        assert_eq!(rest(&mut reports), due);
        // Nothing of it was told: nothing is told again.
        reports.tell_again();
        assert_eq!(rest(&mut reports), []);
    }

    #[test]
    fn every_coordinator_is_told_again_and_of_the_latest_steps_alone() {
        let mut reports = Reports::default();
        tell(&mut reports, (1, Kind::Leaving(Leaving::default())));
        for number in 1..=TOLD as u64 + 2 {
            tell(&mut reports, step(number));
        }
        for _ in 0..3 {
            reports.tell_again();
            let again = rest(&mut reports);
            assert_eq!(again.len(), TOLD + 1);
            assert_eq!(again[0], step(3));
            assert!(matches!(again[TOLD].1, Kind::Leaving(_)));
            for labelled in again {
                reports.handled(labelled, true);
            }
        }
    }
}
