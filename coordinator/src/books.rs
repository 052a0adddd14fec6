//! The accounts of all workers of a run, and what the run makes of them: pure.
//!
//! Each process says where its time has gone since it registered. The books keep that by worker, over
//! all processes of its name, add the time in which a place was empty, and turn the useful time of
//! steps that have to be computed again into recovery. Every record of the journal carries them, so
//! that they outlive a coordinator.

use std::{collections::BTreeMap, time::Duration};

use mks2_proto::{
    goodput::{Activity, TimeSpent},
    ids::{Incarnation, MemberId},
};
use serde::{Deserialize, Serialize};

/// Where the time of a run has gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// By worker.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    workers: BTreeMap<MemberId, Account>,
    /// Microseconds in which a place was empty, over all places.
    #[serde(default)]
    vacant_us: u64,
    /// Useful time up to the latest checkpoint, over all workers.
    #[serde(default)]
    saved_us: u64,
    /// The same up to the latest checkpoint that is known to be right. Records of older programs lack
    /// it, and have to keep their bytes.
    #[serde(default, skip_serializing_if = "is_nothing")]
    right_us: u64,
    /// Useful time of steps that were computed in vain.
    #[serde(default)]
    void_us: u64,
}

/// One worker's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    /// Of its processes before the present one.
    #[serde(default)]
    earlier: TimeSpent,
    /// The present one, or the last.
    incarnation: Incarnation,
    /// What that one has said last.
    present: TimeSpent,
}

fn is_nothing(micros: &u64) -> bool {
    *micros == 0
}

impl Books {
    /// Nothing is in them.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A process says where its time has gone so far.
    pub fn note(&mut self, member: &MemberId, incarnation: Incarnation, spent: TimeSpent) {
        let account = self.workers.entry(member.clone());
        let account = account.or_insert_with(|| Account {
            earlier: TimeSpent::ZERO,
            incarnation,
            present: TimeSpent::ZERO,
        });
        if account.incarnation != incarnation {
            account.earlier += account.present;
            account.incarnation = incarnation;
            account.present = spent;
        } else if spent.total() >= account.present.total() {
            // Messages may be told again, and late.
            account.present = spent;
        }
    }

    /// So many places were empty for a while.
    pub fn vacant(&mut self, places: usize, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let micros = micros.saturating_mul(places as u64);
        self.vacant_us = self.vacant_us.saturating_add(micros);
    }

    /// A checkpoint counts, known to be right or not: what was useful so far stays so.
    pub fn saved(&mut self, is_right: bool) {
        self.saved_us = self.raw().of(Activity::Useful);
        if is_right {
            self.right_us = self.saved_us;
        }
    }

    /// The checkpoints after the latest one that is known to be right are void.
    pub fn unsaved(&mut self) {
        self.saved_us = self.right_us;
    }

    /// The run goes back to its latest checkpoint.
    pub fn rewound(&mut self) {
        let useful = self.raw().of(Activity::Useful);
        let lost = useful.saturating_sub(self.saved_us);
        self.void_us = self.void_us.saturating_add(lost);
        (self.saved_us, self.right_us) = (useful, useful);
    }

    /// The time of the whole run: of all workers, and of places that nobody had.
    #[must_use]
    pub fn run(&self) -> TimeSpent {
        let mut run = self.raw();
        run.shift(Activity::Useful, Activity::Recovery, self.void_us);
        run.add(Activity::Restart, self.vacant_us);
        run
    }

    /// The time of one worker.
    #[must_use]
    pub fn of(&self, member: &MemberId) -> TimeSpent {
        let account = self.workers.get(member);
        account.map_or(TimeSpent::ZERO, Account::total)
    }

    /// The time of each worker.
    pub fn workers(&self) -> impl Iterator<Item = (&MemberId, TimeSpent)> {
        let accounts = self.workers.iter();
        accounts.map(|(member, account)| (member, account.total()))
    }

    fn raw(&self) -> TimeSpent {
        self.workers.values().map(Account::total).sum()
    }
}

impl Account {
    fn total(&self) -> TimeSpent {
        [self.earlier, self.present].into_iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn member(name: &str) -> MemberId {
        MemberId::new(name).expect("a name")
    }

    fn spent(useful: u64, restart: u64) -> TimeSpent {
        let mut spent = TimeSpent::ZERO;
        spent.add(Activity::Useful, useful * SECOND);
        spent.add(Activity::Restart, restart * SECOND);
        spent
    }

    #[test]
    fn a_worker_is_all_its_processes_and_the_run_all_its_places() {
        let (mut books, zero) = (Books::default(), member("worker-0"));
        books.note(&zero, Incarnation(1), spent(3, 1));
        books.note(&zero, Incarnation(1), spent(5, 1));
        books.note(&zero, Incarnation(1), spent(4, 1));
        books.note(&zero, Incarnation(2), spent(2, 2));
        books.note(&member("worker-1"), Incarnation(3), spent(8, 1));
        books.vacant(2, Duration::from_secs(3));
        assert_eq!(books.of(&zero), spent(7, 3));
        assert_eq!(books.run(), spent(15, 3 + 1 + 6));
        assert_eq!(books.workers().count(), 2);
    }

    #[test]
    fn steps_that_are_computed_again_were_not_useful() {
        let (mut books, zero) = (Books::default(), member("worker-0"));
        books.note(&zero, Incarnation(1), spent(10, 0));
        books.saved(true);
        books.note(&zero, Incarnation(1), spent(12, 0));
        books.saved(false);
        books.note(&zero, Incarnation(1), spent(14, 0));
        books.unsaved();
        books.rewound();
        books.rewound();
        let run = books.run();
        assert_eq!(run.of(Activity::Useful), 10 * SECOND);
        assert_eq!(run.of(Activity::Recovery), 4 * SECOND);
        books.note(&zero, Incarnation(2), spent(6, 0));
        assert_eq!(books.run().of(Activity::Useful), 16 * SECOND);
        assert_eq!(books.run().total(), 20 * SECOND);
    }

    #[test]
    fn the_journal_keeps_them() {
        let mut books = Books::default();
        assert!(books.is_empty());
        books.note(&member("worker-0"), Incarnation(1), spent(3, 1));
        books.vacant(1, Duration::from_secs(2));
        let json = serde_json::to_string(&books).expect("JSON");
        assert_eq!(serde_json::from_str::<Books>(&json).ok(), Some(books));
        // Digests of records are of their bytes.
        let older = r#"{"vacant_us":2,"saved_us":5,"void_us":0}"#;
        let read: Books = serde_json::from_str(older).expect("books");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), older);
    }
}
