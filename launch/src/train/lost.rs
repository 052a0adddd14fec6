//! Workers that the run goes on without. One may still be there, stopped or cut off: what it does is
//! thrown away, so it is ended, after a moment in which it may end by itself and show how.

use std::collections::BTreeMap;

use mks2_proto::v1::StatusResponse;
use tokio::time::Instant;

use super::{
    LAST_BREATH, cause,
    fleet::{Fleet, Worker},
};

/// Who is to be ended, and when.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Number of the last notice that was heard.
    heard: u64,
    due: BTreeMap<u32, Instant>,
}

impl Lost {
    /// Takes the losses in that a status tells.
    pub(super) fn hear(&mut self, status: &StatusResponse, fleet: &Fleet) {
        for notice in status.notices.iter().filter(|n| n.number > self.heard) {
            let Some(rank) = cause::rank_of(&notice.lost_member, fleet.workers()) else {
                continue;
            };
            // Another process may be there in its place already.
            let worker = fleet.workers().get(rank as usize);
            let is_there = |worker: &&Worker| worker.exit.is_none();
            if worker
                .filter(is_there)
                .is_some_and(|worker| worker.pid == notice.lost_pid)
            {
                self.due.insert(rank, Instant::now() + LAST_BREATH);
            }
        }
        let last = status.notices.last().map_or(0, |notice| notice.number);
        self.heard = self.heard.max(last);
    }

    /// One has ended by itself.
    pub(super) fn forget(&mut self, rank: u32) {
        self.due.remove(&rank);
    }

    /// Waits until the time of one is up. Pending while nobody is lost; cancel safe.
    pub(super) async fn is_due(&self) -> u32 {
        match self.due.iter().min_by_key(|(_, due)| **due) {
            Some((rank, due)) => {
                tokio::time::sleep_until(*due).await;
                *rank
            }
            None => std::future::pending().await,
        }
    }

    /// Ends one that is due, if it is still there.
    pub(super) fn end(&mut self, rank: u32, fleet: &Fleet) {
        self.due.remove(&rank);
        fleet.kill_one(rank);
    }
}
