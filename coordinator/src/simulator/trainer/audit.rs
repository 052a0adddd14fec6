//! Comparing the workers' copies of the state: follows `worker/src/audit.rs` and `train/audit.rs`.

use mks2_proto::{failure::Failure, v1::Phase};

use super::Trainer;
use crate::simulator::{executor::sleep, mesh::Broken, team::Standing};

impl Trainer {
    /// Returns once the copies of all members are alike, whoever they are by then.
    pub(super) async fn audit(&mut self) -> Result<(), Failure> {
        while self.team.compared != self.committed {
            let Err(cause) = self.compare().await else {
                return Ok(());
            };
            let (standing, state) = (self.standing(), self.state());
            let all = self.team.regroup(cause, standing, &state).await?;
            self.tell_again()?;
            let is_past = |one: &Standing| {
                let same = (one.point, one.committed) == (standing.point, standing.committed);
                same && one.compared == one.committed
            };
            if all.iter().any(is_past) {
                self.team.compared = standing.committed;
            }
        }
        Ok(())
    }

    async fn compare(&mut self) -> Result<(), Broken> {
        if self.team.world() > 1 {
            self.session.set_phase(Phase::Auditing, 0);
            sleep(self.chance.millis(0, 2)).await;
            self.session.set_phase(Phase::Auditing, self.team.next());
            let mine = vec![self.weights, self.committed];
            self.team.compare(mine).await?;
        }
        self.team.compared = self.committed;
        Ok(())
    }

    /// Memory loses a bit of the weights, if it is to.
    pub(super) fn lose_a_bit(&mut self) {
        let world = &self.session.world;
        if world.loses_a_bit(self.session.host) {
            self.weights ^= 1 << self.chance.below(64);
            world.note("loses a bit", &[self.session.node.0, self.committed]);
            world.checks.borrow_mut().damaged(&self.session.who);
        }
    }
}
