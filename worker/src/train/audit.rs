//! Comparing the members' copies of the state between two steps; see [`audit`](crate::audit).

use mks2_proto::agreement::Verdict;
use mks2_proto::failure::Failure;
use mks2_proto::v1::Phase;
use tracing::{info, info_span};

use super::Trainer;
use crate::audit::{self, Difference};
use crate::control::Control;
use crate::exact::{BallotError, ReduceError};
use crate::objective::Objective;
use crate::replica::{Flip, flip_in};
use crate::team::{Cause, Setback, Standing, Team};

impl<O: Objective> Trainer<'_, O> {
    /// Returns once the copies of all members are alike, whoever they are by then. Nothing to do
    /// where that is known.
    ///
    /// # Errors
    /// When the run is over for this worker, as it is when its copy is the odd one or when the run
    /// goes back to a checkpoint.
    pub fn audit(&mut self, control: &dyn Control, team: &mut Team) -> Result<(), Failure> {
        while self.settings.audit.every_steps > 0 && team.compared() != self.global_step() {
            let cause = match self.compare(control, team) {
                Ok(()) => return Ok(()),
                Err(Setback::Fatal(failure)) => return Err(failure),
                Err(Setback::Peers(cause)) => cause,
            };
            let standing = self.standing(team);
            let all = team.regroup(cause, &standing, Some(self.original()))?;
            self.loader.hold(team.held())?;
            self.tell_again(control, team)?;
            let is_past = |one: &Standing| {
                let same = (one.point, one.committed) == (standing.point, standing.committed);
                same && one.compared == one.committed
            };
            // Whoever is past it has seen that all were alike.
            if all.iter().any(is_past) {
                self.alike(standing.committed, team);
            }
        }
        Ok(())
    }

    fn alike(&self, step: u64, team: &mut Team) {
        team.set_compared(step);
        self.objective.compared();
    }

    /// Compares the copies of all members once.
    pub(super) fn compare(&self, control: &dyn Control, team: &mut Team) -> Result<(), Setback> {
        let step = self.global_step();
        if team.world() > 1 {
            let _span = info_span!("audit").entered();
            // A member that hashes moves; then it waits for the others.
            control.set_phase(Phase::Auditing, 0);
            let digest = self.digest()?;
            control.set_phase(Phase::Auditing, team.collective().sequence() + 1);
            let verdict = audit::compare(team.collective(), Some(digest))?;
            match verdict {
                Verdict::Alike => {}
                Verdict::Odd(odd) => return Err(differ(step, team, odd)),
                Verdict::Split => return Err(differ(step, team, Vec::new())),
            }
        }
        self.alike(step, team);
        Ok(())
    }

    /// Digest of everything that a step is computed from and that all members hold alike.
    ///
    /// # Errors
    /// When something cannot be read from its device.
    pub fn digest(&self) -> Result<blake3::Hash, Failure> {
        audit::digest(&self.replica, &self.frozen)
    }

    /// Gradients that are no numbers, or scales that differ, may come from a damaged copy: then it is
    /// that which has to be told. Every member has met the same.
    pub(super) fn suspect(
        &self,
        failure: Failure,
        control: &dyn Control,
        team: &mut Team,
    ) -> Setback {
        if self.settings.audit.every_steps == 0 {
            return failure.into();
        }
        info!(why = %failure.what, "the copies of the state are compared");
        match self.compare(control, team) {
            Ok(()) => failure.into(),
            Err(setback) => setback,
        }
    }

    /// Loses a bit, if a test has ordered that.
    pub(super) fn lose_a_bit(&mut self, control: &dyn Control) -> Result<(), Failure> {
        let Some(place) = control.ordered_flip() else {
            return Ok(());
        };
        let key = format!("{} {}", place.name(), self.global_step());
        let digest = blake3::hash(key.as_bytes());
        let first = digest.as_bytes().first_chunk();
        let choice = first.map_or(0, |first| u64::from_le_bytes(*first));
        info!(place = place.name(), "a bit is flipped on order of a test");
        match (place, self.frozen.last_mut()) {
            (Flip::Frozen, Some(frozen)) => Ok(flip_in(frozen, choice)?),
            _ => self.replica.flip(place, choice),
        }
    }
}

fn differ(step: u64, team: &Team, odd: Vec<usize>) -> Setback {
    Setback::Peers(Cause::Differ(Difference {
        step,
        agreed_step: team.compared(),
        odd,
    }))
}

/// Whether the ranks' scales differ, which no sound copies' do.
pub(super) fn is_divergence(error: &ReduceError) -> bool {
    matches!(error, ReduceError::Ballot(BallotError::Diverged { .. }))
}
