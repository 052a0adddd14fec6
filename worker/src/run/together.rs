//! What the workers do together around the steps of a stage, again if a peer is lost meanwhile.

use mks2_dataset::plan::Plan;
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::goodput::Activity;
use mks2_proto::job::Stage;
use mks2_proto::v1::Phase;

use super::{End, Run};
use crate::collectives::schedule;
use crate::objective::Objective;
use crate::team::{Original, Part, Point, Setback, Standing};
use crate::train::Trainer;

/// The way over the border behind a stage.
enum Crossing {
    /// All are over it.
    Over(End),
    /// A peer was lost. Those that are left try again.
    Again,
}

impl Run {
    /// Compares with all workers what a stage is about to do (P3) and what it starts from: a
    /// worker with another plan, other parameters or other bits would hang or spoil the rest.
    pub(super) fn agree(
        &mut self,
        stage: &Stage,
        plan: &Plan,
        original: Original<'_>,
        committed: u64,
    ) -> Result<(), Failure> {
        let state = &original.replica.state;
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.config_digest.as_bytes());
        hasher.update(stage.name.as_bytes());
        hasher.update(&committed.to_le_bytes());
        hasher.update(plan.digest().as_bytes());
        hasher.update(state.layout().digest().as_bytes());
        hasher.update(state.weights_digest()?.as_bytes());
        hasher.update(self.bases(stage)?.as_bytes());
        let (digest, what) = (
            hasher.finalize(),
            format!("start of stage '{}'", stage.name),
        );
        let standing = self.standing(committed);
        loop {
            self.meet();
            let agreed = schedule::agree(self.team.collective(), &what, &digest);
            match agreed.map_err(Setback::from) {
                Ok(()) => return Ok(()),
                Err(Setback::Fatal(failure)) => return Err(failure),
                Err(Setback::Peers(cause)) => {
                    let all = self.team.regroup(cause, &standing, Some(original))?;
                    // Whoever is further has compared with this worker, too.
                    if all.iter().any(|one| one.point > standing.point) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Evaluates, and goes on behind the stage.
    pub(super) fn evaluate(&mut self, stage: &Stage, committed: u64) -> Result<End, Failure> {
        let start = Point {
            part: Part::Start,
            ..self.team.point()
        };
        loop {
            self.team.enter(start);
            match self.measure(stage) {
                Ok(()) => {}
                Err(Setback::Fatal(failure)) if failure.exit == ExitCode::Stopped => {
                    return Ok(End::Stopped);
                }
                Err(Setback::Fatal(failure)) => return Err(failure),
                Err(Setback::Peers(cause)) => {
                    let standing = self.standing(committed);
                    self.team.regroup(cause, &standing, None)?;
                    continue;
                }
            }
            self.enter_border();
            let standing = self.standing(committed);
            // Rank 0 has written down what was found when it comes to the border. If it is lost
            // before, nobody else has: all measure again.
            if let Crossing::Over(end) = self.try_to_cross(&standing, None)? {
                return Ok(end);
            }
        }
    }

    /// Goes on behind a stage that was finished before.
    pub(super) fn cross_alone(&mut self, committed: u64) -> Result<End, Failure> {
        self.enter_border();
        let standing = self.standing(committed);
        loop {
            if let Crossing::Over(end) = self.try_to_cross(&standing, None)? {
                return Ok(end);
            }
        }
    }

    /// Goes on behind a stage that was trained. Before anybody does, all have compared
    /// their copies, and rank 0 has `saved` the stage's end; if it is lost, the next one saves it.
    pub(super) fn cross<O: Objective>(
        &mut self,
        trainer: &mut Trainer<'_, O>,
        saved: impl Fn(&mut Self, &Trainer<'_, O>) -> Result<(), Failure>,
    ) -> Result<End, Failure> {
        self.enter_border();
        trainer.audit(&*self.session, &mut self.team)?;
        let mut is_saved = false;
        loop {
            if self.team.rank() == 0 && !is_saved {
                saved(self, trainer)?;
                is_saved = true;
            }
            let standing = trainer.standing(&self.team);
            let crossing = self.try_to_cross(&standing, Some(trainer.original()))?;
            if let Crossing::Over(end) = crossing {
                return Ok(end);
            }
            trainer.tell_again(&*self.session, &self.team)?;
        }
    }

    /// All meet, and learn whether some worker was asked to stop.
    fn try_to_cross(
        &mut self,
        standing: &Standing,
        original: Option<Original<'_>>,
    ) -> Result<Crossing, Failure> {
        self.meet();
        if original.is_some() && self.team.rank() != 0 {
            // What keeps rank 0 is the end of the stage, which it saves.
            self.session.wait_for(Activity::Checkpoint);
        }
        let mine = [u8::from(self.session.stop_requested())];
        let gathered = self.team.collective().all_gather(&mine);
        match gathered.map_err(Setback::from) {
            Ok(all) => {
                let stop = all.iter().any(|flag| flag.first() == Some(&1));
                let end = if stop { End::Stopped } else { End::Complete };
                Ok(Crossing::Over(end))
            }
            Err(Setback::Fatal(failure)) => Err(failure),
            Err(Setback::Peers(cause)) => {
                let all = self.team.regroup(cause, standing, original)?;
                // Whoever is further would not be there if one had been asked to stop.
                if all.iter().any(|one| one.point > standing.point) {
                    return Ok(Crossing::Over(End::Complete));
                }
                Ok(Crossing::Again)
            }
        }
    }

    /// Says that this worker is about to wait for all others.
    fn meet(&mut self) {
        let collective = self.team.collective().sequence() + 1;
        self.session.set_phase(Phase::Voting, collective);
    }

    fn enter_border(&mut self) {
        self.team.enter(Point {
            part: Part::Border,
            ..self.team.point()
        });
    }

    fn standing(&self, committed: u64) -> Standing {
        Standing {
            point: self.team.point(),
            committed,
            compared: self.team.compared(),
            ..Standing::default()
        }
    }
}
