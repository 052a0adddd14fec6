//! Starting workers anew in the place of those that ended, while the run goes on without them.
//!
//! Failures and preemptions have budgets of their own: a worker that was asked to end and left at a
//! step border is no sign of trouble. What every new process would meet again (a wrong job, a
//! damaged corpus) is not tried again.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::Duration;

use mks2_proto::failure::{ExitCode, TERMINATED};
use tokio::time::Instant;

/// The first restart of a worker comes at once, the second after this, and so on.
const PAUSE: Duration = Duration::from_millis(500);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Who is to be started, and when.
#[derive(Debug)]
pub(super) struct Supervisor {
    failures_left: u32,
    preemptions_left: u32,
    /// Restarts of each worker so far, for the pauses.
    restarts: BTreeMap<u32, u32>,
    due: BTreeMap<u32, Instant>,
}

/// What becomes of a worker that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is started again, after this pause.
    Again(Duration),
    /// The run wants no other one.
    NotWanted,
    /// Another one would end the same way.
    Hopeless,
    /// Its budget is used up.
    Exhausted,
}

impl Supervisor {
    pub(super) fn new(failures: u32, preemptions: u32) -> Self {
        Self {
            failures_left: failures,
            preemptions_left: preemptions,
            restarts: BTreeMap::new(),
            due: BTreeMap::new(),
        }
    }

    /// A worker ended while the run was at work. `is_wanted`: the run has fewer than it is to have.
    pub(super) fn ended(&mut self, rank: u32, status: ExitStatus, is_wanted: bool) -> Fate {
        if !is_wanted {
            return Fate::NotWanted;
        }
        let left = match status.code() {
            // It left, or would have, had there been time.
            Some(0 | TERMINATED) => &mut self.preemptions_left,
            code if may_go_better(code) => &mut self.failures_left,
            _ => return Fate::Hopeless,
        };
        let Some(fewer) = left.checked_sub(1) else {
            return Fate::Exhausted;
        };
        *left = fewer;
        let restarts = self.restarts.entry(rank).or_default();
        let pause = match *restarts {
            0 => Duration::ZERO,
            times => PAUSE.saturating_mul(1 << (times - 1).min(8)),
        };
        *restarts += 1;
        let pause = pause.min(LONGEST_PAUSE);
        self.start(rank, pause);
        Fate::Again(pause)
    }

    /// Starts a worker after a pause.
    pub(super) fn start(&mut self, rank: u32, pause: Duration) {
        self.due.insert(rank, Instant::now() + pause);
    }

    /// Workers that wait for their start.
    pub(super) fn waiting(&self) -> usize {
        self.due.len()
    }

    pub(super) fn is_waiting(&self, rank: u32) -> bool {
        self.due.contains_key(&rank)
    }

    /// Waits for the time of one, takes it off the list, and says how often it was started before.
    /// Pending while there is none; cancel safe.
    pub(super) async fn next(&mut self) -> (u32, u32) {
        let Some((rank, due)) = self.due.iter().min_by_key(|(_, due)| **due) else {
            return std::future::pending().await;
        };
        let rank = *rank;
        tokio::time::sleep_until(*due).await;
        self.due.remove(&rank);
        (rank, self.restarts.get(&rank).copied().unwrap_or(0).max(1))
    }

    /// Nobody is started any more.
    pub(super) fn rest(&mut self) {
        self.due.clear();
    }
}

/// Whether another process may fare better than one that ended with this code, or by a signal.
fn may_go_better(code: Option<i32>) -> bool {
    let known = code.and_then(|code| u32::try_from(code).ok());
    match known.map(ExitCode::from_code) {
        None => true,
        Some(exit) => matches!(
            exit,
            ExitCode::Internal | ExitCode::Environment | ExitCode::RunFailed | ExitCode::Storage
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn code(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[tokio::test]
    async fn restarts_come_at_once_then_slower_until_the_budget_is_used_up() {
        let mut supervisor = Supervisor::new(7, 0);
        let killed = ExitStatus::from_raw(9);
        let again = |pause| Fate::Again(pause);
        assert_eq!(supervisor.ended(1, killed, true), again(Duration::ZERO));
        assert_eq!(supervisor.next().await, (1, 1));
        assert_eq!(supervisor.waiting(), 0);
        for pause in [PAUSE, PAUSE * 2, PAUSE * 4, PAUSE * 8, PAUSE * 16] {
            assert_eq!(supervisor.ended(1, killed, true), again(pause));
        }
        assert_eq!(supervisor.ended(1, killed, true), again(LONGEST_PAUSE));
        assert_eq!(supervisor.ended(1, killed, true), Fate::Exhausted);
        assert!(supervisor.is_waiting(1));
        supervisor.rest();
        assert_eq!(supervisor.waiting(), 0);
    }

    #[test]
    fn failures_and_preemptions_are_counted_apart() {
        let mut supervisor = Supervisor::new(1, 2);
        for left in [0, TERMINATED] {
            let fate = supervisor.ended(0, code(left), true);
            assert!(matches!(fate, Fate::Again(_)));
        }
        assert_eq!(supervisor.ended(0, code(0), true), Fate::Exhausted);
        assert!(matches!(supervisor.ended(0, code(1), true), Fate::Again(_)));
        assert_eq!(supervisor.ended(0, code(1), true), Fate::Exhausted);
    }

    #[test]
    fn what_would_fail_again_or_is_not_wanted_is_left() {
        let mut supervisor = Supervisor::new(9, 9);
        for hopeless in [2, 3, 4, 8, 130] {
            assert_eq!(supervisor.ended(0, code(hopeless), true), Fate::Hopeless);
        }
        assert_eq!(supervisor.ended(0, code(1), false), Fate::NotWanted);
    }
}
