//! A step whose team has lost a member: what the trainer does with what is there.

use std::time::Instant;

use mks2_proto::failure::Failure;
use tracing::info;

use super::Trainer;
use super::work::{Vote, Work};
use crate::control::Control;
use crate::objective::Objective;
use crate::team::{Cause, Original, Standing, Team, identity};

impl<O: Objective> Trainer<'_, O> {
    /// Goes on with those that are left. A vote means that one of them has committed the step: then
    /// so must this one.
    pub(super) fn regroup(
        &mut self,
        cause: Cause,
        work: &mut Work<O>,
        control: &dyn Control,
        team: &mut Team,
    ) -> Result<Option<Vote>, Failure> {
        let began = Instant::now();
        let standing = self.standing(team);
        let all = team.regroup(cause, &standing, Some(self.original()))?;
        self.loader.hold(team.held())?;
        work.waits.comm += began.elapsed().as_secs_f64();
        if let Some(ahead) = all.iter().find(|one| one.committed > standing.committed) {
            if !work.is_reduced || ahead.committed != standing.committed + 1 {
                return Err(apart(&standing, ahead));
            }
            info!("the step was committed by others; this worker follows");
            self.tell_again(control, team)?;
            return Ok(Some(Vote {
                stop: all.iter().any(|one| one.point > standing.point),
                // This is the next generation.
                regroup: false,
                sums: ahead.sums.clone(),
            }));
        }
        if work.keep(team.held()) {
            self.replica.reducer.begin_again();
        }
        let kept = self.replica.reducer.lanes().len();
        info!(kept, of = team.held().len(), "the step goes on");
        self.tell_again(control, team)?;
        Ok(None)
    }

    /// Behind a step: lets the generation end and takes part in the next one, with others.
    pub(super) fn meet(&mut self, control: &dyn Control, team: &mut Team) -> Result<(), Failure> {
        let standing = self.standing(team);
        team.meet(&standing, Some(self.original()))?;
        self.loader.hold(team.held())?;
        self.tell_again(control, team)
    }

    /// What a newcomer needs of this worker.
    pub fn original(&self) -> Original<'_> {
        let (settings, layout) = (&self.settings, self.replica.state.layout());
        let what = (settings.stage, &settings.bases);
        Original {
            identity: identity(what, &self.plan, layout),
            replica: &self.replica,
        }
    }

    /// Where this worker stands between two commits.
    pub fn standing(&self, team: &Team) -> Standing {
        Standing {
            point: team.point(),
            committed: self.global_step(),
            compared: team.compared(),
            sums: self.replica.recent.sums().to_vec(),
            newcomer: None,
        }
    }

    /// The news of the last steps may have died with the rank 0 that told it: the one that is rank
    /// 0 now tells it again.
    ///
    /// # Errors
    /// When the run is over.
    pub fn tell_again(&self, control: &dyn Control, team: &Team) -> Result<(), Failure> {
        if team.rank() != 0 {
            return Ok(());
        }
        for one in self.replica.recent.steps() {
            control.step_committed(one.generation, one.step, Some(one.metrics.clone()))?;
        }
        Ok(())
    }
}

fn apart(mine: &Standing, other: &Standing) -> Failure {
    Failure::internal(
        "the workers have come apart",
        format!(
            "this one has committed {} steps, another one {}",
            mine.committed, other.committed
        ),
    )
}
