//! What workers do together around the steps: follows `worker/src/run/together.rs`.

use mks2_proto::{agreement::Part, failure::Failure, v1::Phase};

use super::{End, Trainer, start_of};
use crate::{
    ledger::Leg,
    simulator::{chance::fold_number, executor::sleep},
};

enum Crossing {
    Over(End),
    Again { some_are_behind: bool },
}

impl Trainer {
    /// All begin a stage with the same.
    pub(super) async fn agree(&mut self) -> Result<(), Failure> {
        let standing = self.standing();
        loop {
            self.meet();
            let digest = fold_number(self.weights, self.committed);
            match self.team.all_gather(vec![digest]).await {
                Ok(all) if all.iter().all(|words| words[0] == digest) => return Ok(()),
                Ok(_) => {
                    let words = format!("at step {}", self.committed);
                    let world = &self.session.world;
                    world.violated("all workers begin a stage with the same weights", words);
                    return Err(Failure::internal("the workers differ", ""));
                }
                Err(cause) => {
                    let state = self.state();
                    let all = self.team.regroup(cause, standing, &state).await?;
                    if all.iter().any(|one| one.point > standing.point) {
                        return Ok(());
                    }
                }
            }
        }
    }

    pub(super) async fn evaluate(&mut self) -> Result<End, Failure> {
        let start = start_of(self.team.point.stage);
        // A newcomer may find the others behind it.
        let mut is_measured = self.team.point.part == Part::Border;
        loop {
            let measured = match std::mem::take(&mut is_measured) {
                true => Ok(Vec::new()),
                false => {
                    self.team.point = start;
                    self.session.set_phase(Phase::Evaluating, 0);
                    sleep(self.chance.millis(5, 50)).await;
                    self.team.all_gather(vec![self.weights]).await
                }
            };
            if let Err(cause) = measured {
                let (standing, state) = (self.standing(), self.state());
                self.team.regroup(cause, standing, &state).await?;
                continue;
            }
            self.team.point.part = Part::Border;
            loop {
                match self.try_to_cross().await? {
                    Crossing::Over(end) => return Ok(end),
                    Crossing::Again { some_are_behind } if some_are_behind => break,
                    Crossing::Again { .. } => {}
                }
            }
        }
    }

    pub(super) async fn cross_alone(&mut self) -> Result<End, Failure> {
        self.team.point.part = Part::Border;
        loop {
            if let Crossing::Over(end) = self.try_to_cross().await? {
                return Ok(end);
            }
        }
    }

    /// Before anybody goes on, rank 0 has saved the stage's end.
    pub(super) async fn cross(&mut self, leg: &Leg) -> Result<End, Failure> {
        self.team.point.part = Part::Border;
        self.audit().await?;
        let mut is_saved = planted!(BorderBeforeSaved);
        loop {
            if self.team.rank() == 0 && !is_saved {
                self.save(leg).await?;
                self.saver.settle().await?;
                is_saved = true;
            }
            if let Crossing::Over(end) = self.try_to_cross().await? {
                return Ok(end);
            }
            self.tell_again()?;
        }
    }

    async fn try_to_cross(&mut self) -> Result<Crossing, Failure> {
        self.meet();
        let standing = self.standing();
        let mine = vec![self.session.stop_requested().into()];
        match self.team.all_gather(mine).await {
            Ok(all) => {
                let stop = all.iter().any(|words| words[0] == 1);
                let end = if stop { End::Stopped } else { End::Complete };
                Ok(Crossing::Over(end))
            }
            Err(cause) => {
                let state = self.state();
                let all = self.team.regroup(cause, standing, &state).await?;
                if all.iter().any(|one| one.point > standing.point) {
                    return Ok(Crossing::Over(End::Complete));
                }
                let some_are_behind = all.iter().any(|one| one.point < standing.point);
                Ok(Crossing::Again { some_are_behind })
            }
        }
    }

    fn meet(&self) {
        self.session.set_phase(Phase::Voting, self.team.next());
    }
}
