//! A worker that comes to a run at work (P9): it prepares the stage to which it is invited as every
//! worker does, but for the state of training, which it gets from the others.

use mks2_proto::failure::Failure;
use mks2_proto::job::{Stage, StageKind};

use super::Run;
use crate::flat::FlatState;
use crate::team::{Arrival, Blank, identity};

impl Run {
    pub(super) fn is_invited_to_another_than(&self, stage: &Stage) -> bool {
        let invited = self.invitation.as_ref();
        invited.is_some_and(|invitation| invitation.stage != stage.name)
    }

    /// Takes up what a stage has left that was finished without this worker.
    pub(super) fn catch_up(&mut self, stage: &Stage) -> Result<(), Failure> {
        match stage.kind {
            StageKind::Evaluate => return Ok(()),
            StageKind::Pretrained | StageKind::Attach => return self.take_brought(stage),
            StageKind::Bootstrap | StageKind::Memory | StageKind::Experts => {}
        }
        let invitation = self.invitation.as_ref();
        let finished = invitation.and_then(|invitation| {
            let mut finished = invitation.finished.iter();
            finished.find(|done| done.stage == stage.name).cloned()
        });
        match finished {
            Some(finished) => self.recall(stage, &finished),
            None => Err(Failure::environment(
                "this worker cannot take part yet",
                format!("stage '{}' has left no checkpoint so far", stage.name),
                "start it again",
            )),
        }
    }

    /// What a newcomer to this stage must have in common with the others.
    pub(super) fn identity(
        &self,
        stage: &Stage,
        state: &FlatState,
    ) -> Result<blake3::Hash, Failure> {
        let (plan, _) = self.sources().plan(stage)?;
        let what = (stage.name.as_str(), &self.bases(stage)?);
        Ok(identity(what, &plan, state.layout()))
    }

    /// Takes part in the stage from here on. False when the run has gone on to another one. Nothing
    /// to do for a worker that takes part already.
    pub(super) fn come_to(
        &mut self,
        stage: &Stage,
        blank: Option<Blank<'_>>,
    ) -> Result<bool, Failure> {
        let mut arrival = Arrival::new(blank);
        while let Some(invitation) = &self.invitation {
            // A new coordinator invites again: to the same stage, mostly.
            if invitation.stage != stage.name {
                return Ok(false);
            }
            self.session.ready(&stage.name)?;
            let invited = invitation.number;
            self.invitation = match self.team.enter_run(invited, &mut arrival)? {
                true => None,
                false => Some(self.session.wait_invitation(invited)?),
            };
        }
        Ok(true)
    }
}

pub(super) fn no_such_stage(name: &str) -> Failure {
    Failure::internal(
        "this worker cannot take part",
        format!("it was invited to stage '{name}', which is not in the job"),
    )
}
