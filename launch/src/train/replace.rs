//! Other processes for those that ended, and for places that are new.

use std::time::Duration;

use mks2_proto::failure::Failure;
use mks2_proto::v1::{RunState, StatusResponse};
use tokio::sync::watch;

use super::fleet::{Exit, Fleet};
use super::supervise::{Fate, Supervisor};
use super::{FAREWELL, Follow, LAST_ENTRY, LAST_WORDS, is_over, resume_words};

impl Follow<'_> {
    /// Another process for one that ended, if the run wants it.
    pub(super) async fn replace(
        &self,
        exit: &Exit,
        fleet: &Fleet,
        supervisor: &mut Supervisor,
        watch: &mut watch::Receiver<StatusResponse>,
    ) -> Result<(), Failure> {
        let status = watch.borrow().clone();
        let there = fleet.alive() + supervisor.waiting();
        let is_wanted = there < status.wanted_members as usize
            && !is_over(&status)
            && status.state() != RunState::Stopping;
        let fate = supervisor.ended(exit.rank, exit.status, is_wanted);
        if fate == Fate::Exhausted {
            let option = match exit.status.success() {
                true => "--preemptions",
                false => "--restarts",
            };
            self.output.note(&format!(
                "worker-{} is not started again: {option} is used up",
                exit.rank
            ));
        }
        let there = fleet.alive() + supervisor.waiting();
        let is_short = is_wanted && there < self.args.workers.min as usize;
        if there > 0 && is_short {
            self.output
                .note("too few workers are left, and no others are started");
            // What the others know is saved.
            let stop = self.running.stop("too few workers are left");
            let _late = tokio::time::timeout(FAREWELL, stop).await;
        }
        if there > 0 {
            return Ok(());
        }
        // The coordinator waits for workers, and nobody will start any: unless it has an end of
        // its own to tell.
        let patience = match exit.status.success() {
            true => LAST_ENTRY,
            false => LAST_WORDS,
        };
        let over = tokio::time::timeout(patience, watch.wait_for(is_over));
        if over.await.is_ok() {
            return Ok(());
        }
        Err(self.nobody_left(&watch.borrow()))
    }

    fn nobody_left(&self, status: &StatusResponse) -> Failure {
        let last = status.notices.last();
        let why = last.map_or_else(
            || "all have ended".to_owned(),
            |notice| format!("the last one: {}: {}", notice.what, notice.why),
        );
        let cure = resume_words(self.args, self.prepared);
        Failure::run_failed("no worker is left", why, cure)
    }
}

/// The run is to have more workers than are there: places of those that ended first.
pub(super) fn add_workers(wanted: u32, fleet: &Fleet, supervisor: &mut Supervisor) {
    let there = fleet.alive() + supervisor.waiting();
    let missing = (wanted as usize).saturating_sub(there);
    let is_free = |rank: u32| {
        let worker = fleet.workers().get(rank as usize);
        worker.is_none_or(|worker| worker.exit.is_some()) && !supervisor.is_waiting(rank)
    };
    let places: Vec<u32> = (0..).filter(|rank| is_free(*rank)).take(missing).collect();
    for rank in places {
        supervisor.start(rank, Duration::ZERO);
    }
}
