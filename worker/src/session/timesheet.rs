//! Where this worker's time goes, moment by moment: which activity the present one belongs to
//! follows from what the trainer does and from the circumstances.
//!
//! | the trainer | in general | behind the loss of a peer |
//! |---|---|---|
//! | starts, for the first time | restart | restart |
//! | prepares another stage, computes, updates | useful | recovery |
//! | loads | data | recovery |
//! | gathers, votes, compares copies | straggler | recovery |
//! | reduces | useful, but for its wait at the door | recovery |
//! | saves | checkpoint; coordinator while there is none | the same |
//! | evaluates | evaluation | evaluation |
//! | regroups | restart: somebody comes or goes | recovery |
//! | regroups without a coordinator | coordinator | coordinator |
//! | regroups with too few members | restart | restart |
//!
//! What was begun when a peer is lost belongs to the recovery from the moment on at which it was
//! begun: that is the time in which the loss was not noticed.

use std::time::Instant;

use mks2_proto::goodput::{Activity, TimeSpent};
use mks2_proto::v1::Phase;

/// An account that is open.
#[derive(Debug)]
pub(super) struct Timesheet {
    booked: TimeSpent,
    /// What was not booked yet began then; none before the account was opened.
    since: Option<Instant>,
    phase: Phase,
    /// What the trainer waits for, where its phase does not say.
    awaited: Option<Activity>,
    /// An evaluation is under way, which loads and gathers, too.
    evaluates: bool,
    /// A step was begun in this process.
    has_begun: bool,
    /// A peer was lost, and the step in which it was lost is not committed.
    recovers: bool,
    /// There is no coordinator.
    is_orphan: bool,
    /// The run waits for more members.
    is_held: bool,
}

impl Default for Timesheet {
    fn default() -> Self {
        Self {
            booked: TimeSpent::ZERO,
            since: None,
            phase: Phase::Starting,
            awaited: None,
            evaluates: false,
            has_begun: false,
            recovers: false,
            is_orphan: false,
            is_held: false,
        }
    }
}

impl Timesheet {
    /// Opens the account, once.
    pub(super) fn open(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// The account at a moment.
    pub(super) fn at(&self, now: Instant) -> TimeSpent {
        let mut spent = self.booked;
        spent.add(self.activity(), self.unbooked(now));
        spent
    }

    /// The trainer does something else.
    pub(super) fn enter(&mut self, now: Instant, phase: Phase) {
        self.book(now);
        self.phase = phase;
        self.awaited = None;
        self.has_begun |= phase == Phase::Loading;
        self.evaluates = match phase {
            Phase::Evaluating => true,
            Phase::Loading | Phase::Gathering => self.evaluates,
            _ => false,
        };
        // Other work than that in which the peer was lost.
        self.recovers &= !matches!(phase, Phase::Starting | Phase::Evaluating);
    }

    /// What the trainer does from now on is waiting for this.
    pub(super) fn wait_for(&mut self, now: Instant, activity: Activity) {
        self.book(now);
        self.awaited = Some(activity);
    }

    /// So much of what the trainer has done since it entered its phase was waiting for others.
    pub(super) fn waited(&mut self, now: Instant, micros: u64) {
        self.book(now);
        if self.activity() == Activity::Useful {
            let (from, to) = (Activity::Useful, Activity::Straggler);
            self.booked.shift(from, to, micros);
        }
    }

    /// A collective has failed with a lost peer.
    pub(super) fn set_back(&mut self, now: Instant) {
        self.recovers = true;
        self.awaited = None;
        self.book(now);
    }

    /// A step was committed.
    pub(super) fn committed(&mut self, now: Instant) {
        self.book(now);
        self.recovers = false;
    }

    pub(super) fn set_orphan(&mut self, now: Instant, is_orphan: bool) {
        self.book(now);
        self.is_orphan = is_orphan;
    }

    pub(super) fn set_held(&mut self, now: Instant, is_held: bool) {
        self.book(now);
        self.is_held = is_held;
    }

    fn book(&mut self, now: Instant) {
        let micros = self.unbooked(now);
        self.booked.add(self.activity(), micros);
        if self.since.is_some() {
            self.since = Some(now);
        }
    }

    fn unbooked(&self, now: Instant) -> u64 {
        let since = self.since.map(|since| now.saturating_duration_since(since));
        let micros = since.map(|open| open.as_micros()).unwrap_or_default();
        u64::try_from(micros).unwrap_or(u64::MAX)
    }

    fn activity(&self) -> Activity {
        if let Some(awaited) = self.awaited {
            return awaited;
        }
        match self.phase {
            Phase::Unspecified | Phase::Starting if !self.has_begun => Activity::Restart,
            _ if self.evaluates => Activity::Evaluation,
            Phase::Evaluating => Activity::Evaluation,
            Phase::Checkpointing | Phase::Regrouping if self.is_orphan => Activity::Coordinator,
            Phase::Checkpointing => Activity::Checkpoint,
            Phase::Regrouping if self.is_held => Activity::Restart,
            _ if self.recovers => Activity::Recovery,
            Phase::Regrouping => Activity::Restart,
            Phase::Loading => Activity::Data,
            Phase::Gathering | Phase::Voting | Phase::Auditing => Activity::Straggler,
            Phase::Unspecified
            | Phase::Starting
            | Phase::Computing
            | Phase::Reducing
            | Phase::Updating => Activity::Useful,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A timesheet and a clock that goes by hand.
    struct Day {
        sheet: Timesheet,
        now: Instant,
    }

    impl Day {
        fn begin() -> Self {
            let mut sheet = Timesheet::default();
            let now = Instant::now();
            sheet.open(now);
            Self { sheet, now }
        }

        /// Does something for some milliseconds.
        fn spend(&mut self, phase: Phase, ms: u64) {
            self.sheet.enter(self.now, phase);
            self.pass(ms);
        }

        fn pass(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
        }

        /// Milliseconds by activity, of those that took any.
        fn spent(&self) -> Vec<(&'static str, u64)> {
            let spent = self.sheet.at(self.now);
            let all = Activity::ALL.map(|one| (one.name(), spent.of(one) / 1000));
            all.into_iter().filter(|(_, ms)| *ms > 0).collect()
        }

        fn step(&mut self) {
            for phase in [
                Phase::Loading,
                Phase::Gathering,
                Phase::Computing,
                Phase::Reducing,
                Phase::Voting,
                Phase::Updating,
            ] {
                self.spend(phase, 10);
            }
            self.sheet.committed(self.now);
        }
    }

    #[test]
    fn a_quiet_step_is_useful_but_for_its_waits() {
        let mut day = Day::begin();
        day.pass(500);
        day.step();
        let expected = [
            ("useful", 30),
            ("data", 10),
            ("straggler", 20),
            ("restart", 500),
        ];
        assert_eq!(day.spent(), expected);
    }

    #[test]
    fn the_wait_at_the_door_of_a_reduction_is_for_stragglers() {
        let mut day = Day::begin();
        day.spend(Phase::Loading, 0);
        day.spend(Phase::Reducing, 50);
        day.sheet.waited(day.now, 40_000);
        assert_eq!(day.spent(), [("useful", 10), ("straggler", 40)]);
    }

    #[test]
    fn what_a_lost_peer_costs_is_recovery_up_to_the_commit() {
        let mut day = Day::begin();
        day.step();
        day.spend(Phase::Reducing, 800);
        day.sheet.set_back(day.now);
        day.spend(Phase::Regrouping, 50);
        day.spend(Phase::Loading, 5);
        day.spend(Phase::Computing, 100);
        day.spend(Phase::Reducing, 10);
        day.sheet.waited(day.now, 9_000);
        day.spend(Phase::Updating, 5);
        day.sheet.committed(day.now);
        assert!(
            day.spent().contains(&("recovery", 970)),
            "{:?}",
            day.spent()
        );
        let useful = day.sheet.at(day.now).of(Activity::Useful);
        day.step();
        assert_eq!(day.sheet.at(day.now).of(Activity::Useful), useful + 30_000);
    }

    #[test]
    fn regrouping_costs_what_makes_it_take_its_time() {
        let mut day = Day::begin();
        day.spend(Phase::Loading, 0);
        day.spend(Phase::Regrouping, 10);
        day.sheet.set_back(day.now);
        day.sheet.set_orphan(day.now, true);
        day.pass(300);
        day.sheet.set_orphan(day.now, false);
        day.sheet.set_held(day.now, true);
        day.pass(2000);
        day.sheet.set_held(day.now, false);
        day.pass(7);
        let expected = [("recovery", 17), ("coordinator", 300), ("restart", 2000)];
        assert_eq!(day.spent(), expected);
    }

    #[test]
    fn other_stages_are_prepared_and_ends_are_awaited() {
        let mut day = Day::begin();
        day.step();
        day.spend(Phase::Voting, 0);
        day.sheet.wait_for(day.now, Activity::Checkpoint);
        day.pass(40);
        day.spend(Phase::Starting, 90);
        day.spend(Phase::Evaluating, 70);
        let spent = day.spent();
        for expected in [("useful", 120), ("checkpoint", 40), ("evaluation", 70)] {
            assert!(spent.contains(&expected), "{spent:?}");
        }
        let total = day.sheet.at(day.now).total();
        assert_eq!(total, 60_000 + 40_000 + 90_000 + 70_000, "all of the time");
    }
}
