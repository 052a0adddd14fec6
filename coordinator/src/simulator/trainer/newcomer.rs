//! A worker that comes to a run at work: follows `worker/src/run/newcomer.rs`.

use mks2_proto::{
    failure::Failure,
    v1::{Ready, report::Kind},
};

use super::{Committed, Trainer, metrics};
use crate::{ledger::Leg, simulator::team::State};

impl Trainer {
    pub(super) fn is_invited_to_another_than(&self, stage: &str) -> bool {
        let invited = self.invitation.as_ref();
        invited.is_some_and(|invitation| invitation.stage != stage)
    }

    /// Takes up what a stage has left that was finished without this worker.
    pub(super) async fn catch_up(&mut self, stage: &str) -> Result<(), Failure> {
        let invitation = self.invitation.as_ref();
        let finished = invitation.and_then(|invitation| {
            let mut finished = invitation.finished.iter();
            finished.find(|done| done.stage == stage).cloned()
        });
        let Some(finished) = finished else {
            return Err(Failure::environment("a stage has left nothing", "", ""));
        };
        self.weights = self.saver.read(&finished).await?;
        self.committed = finished.step;
        Ok(())
    }

    /// Takes part in the stage from here on. False when the run has gone on to another one.
    pub(super) async fn come_to(
        &mut self,
        stage: &str,
        leg: Option<&Leg>,
    ) -> Result<bool, Failure> {
        while let Some(invitation) = &self.invitation {
            if invitation.stage != stage {
                return Ok(false);
            }
            let (stage, invited) = (stage.to_owned(), invitation.number);
            self.session.report(Kind::Ready(Ready { stage }))?;
            let Some((source, state)) = self.team.enter_run(invited).await? else {
                self.invitation = Some(self.session.wait_invitation(invited).await?);
                continue;
            };
            self.invitation = None;
            self.committed = source.committed;
            if !planted!(NothingHandedOver) {
                self.weights = state.weights;
            }
            let told = |leg: &Leg| {
                let recent = state.recent.iter();
                let told = recent.map(|&[generation, step, workers]| Committed {
                    generation,
                    step,
                    metrics: metrics(leg, step, workers),
                });
                told.collect()
            };
            self.recent = leg.map(told).unwrap_or_default();
        }
        Ok(true)
    }

    /// What a newcomer needs of this worker.
    pub(super) fn state(&self) -> State {
        let recent = self.recent.iter();
        let recent = recent.map(|one| [one.generation, one.step, one.metrics.workers.into()]);
        State {
            weights: self.weights,
            recent: recent.collect(),
        }
    }
}
