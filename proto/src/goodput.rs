//! Where the time of a run goes: how much of it is useful, and what for the rest is waited.
//!
//! A worker's account begins when it registers with the run, and every moment of it belongs to one
//! [`Activity`], so that an account adds up to the wall time. The coordinator adds the accounts of
//! all processes up, and the time in which a place was empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::v1;

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// Computing, exchanging and applying the gradients of steps that count; preparing a stage.
    Useful,
    /// Waiting for samples.
    Data,
    /// Waiting in a collective for workers that come later, whatever keeps them.
    Straggler,
    /// From the loss of a peer to the commit of the step in which it was lost, and steps that had
    /// to be computed again.
    Recovery,
    /// Waiting for a checkpoint.
    Checkpoint,
    /// Waiting for a coordinator.
    Coordinator,
    /// Processes that start, waiting for them, letting them in, and places that nobody has.
    Restart,
    /// Evaluating.
    Evaluation,
}

impl Activity {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Useful,
        Self::Data,
        Self::Straggler,
        Self::Recovery,
        Self::Checkpoint,
        Self::Coordinator,
        Self::Restart,
        Self::Evaluation,
    ];

    /// In one word, as in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Useful => "useful",
            Self::Data => "data",
            Self::Straggler => "straggler",
            Self::Recovery => "recovery",
            Self::Checkpoint => "checkpoint",
            Self::Coordinator => "coordinator",
            Self::Restart => "restart",
            Self::Evaluation => "evaluation",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// Time by activity, in microseconds. As JSON an object of those that are not zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    into = "BTreeMap<&'static str, u64>",
    try_from = "BTreeMap<String, u64>"
)]
pub struct TimeSpent([u64; 8]);

impl TimeSpent {
    /// Nothing yet.
    pub const ZERO: Self = Self([0; 8]);

    /// Microseconds of one activity.
    #[must_use]
    pub fn of(&self, activity: Activity) -> u64 {
        self.0[activity as usize]
    }

    /// Adds microseconds to one activity.
    pub fn add(&mut self, activity: Activity, micros: u64) {
        let spent = &mut self.0[activity as usize];
        *spent = spent.saturating_add(micros);
    }

    /// Moves at most so many microseconds from one activity to another.
    pub fn shift(&mut self, from: Activity, to: Activity, micros: u64) {
        let moved = micros.min(self.of(from));
        self.0[from as usize] -= moved;
        self.add(to, moved);
    }

    /// All activities together: the wall time.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0
            .iter()
            .fold(0, |sum, spent| sum.saturating_add(*spent))
    }

    /// An activity's part of the wall time, between 0 and 1; none of no time at all.
    #[must_use]
    pub fn share(&self, activity: Activity) -> Option<f64> {
        let total = self.total();
        (total > 0).then(|| self.of(activity) as f64 / total as f64)
    }
}

impl std::ops::AddAssign for TimeSpent {
    fn add_assign(&mut self, other: Self) {
        for activity in Activity::ALL {
            self.add(activity, other.of(activity));
        }
    }
}

impl std::iter::Sum for TimeSpent {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, |mut sum, one| {
            sum += one;
            sum
        })
    }
}

impl From<TimeSpent> for BTreeMap<&'static str, u64> {
    fn from(spent: TimeSpent) -> Self {
        let named = Activity::ALL.map(|activity| (activity.name(), spent.of(activity)));
        named
            .into_iter()
            .filter(|(_, micros)| *micros > 0)
            .collect()
    }
}

impl TryFrom<BTreeMap<String, u64>> for TimeSpent {
    type Error = String;

    fn try_from(named: BTreeMap<String, u64>) -> Result<Self, String> {
        let mut spent = Self::ZERO;
        for (name, micros) in named {
            let activity = Activity::named(&name);
            let activity = activity.ok_or_else(|| format!("'{name}' is no activity"))?;
            spent.add(activity, micros);
        }
        Ok(spent)
    }
}

impl From<v1::TimeSpent> for TimeSpent {
    fn from(wire: v1::TimeSpent) -> Self {
        Self([
            wire.useful_us,
            wire.data_us,
            wire.straggler_us,
            wire.recovery_us,
            wire.checkpoint_us,
            wire.coordinator_us,
            wire.restart_us,
            wire.evaluation_us,
        ])
    }
}

impl From<TimeSpent> for v1::TimeSpent {
    fn from(spent: TimeSpent) -> Self {
        Self {
            useful_us: spent.of(Activity::Useful),
            data_us: spent.of(Activity::Data),
            straggler_us: spent.of(Activity::Straggler),
            recovery_us: spent.of(Activity::Recovery),
            checkpoint_us: spent.of(Activity::Checkpoint),
            coordinator_us: spent.of(Activity::Coordinator),
            restart_us: spent.of(Activity::Restart),
            evaluation_us: spent.of(Activity::Evaluation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted() -> TimeSpent {
        let mut spent = TimeSpent::ZERO;
        for (micros, activity) in (1..).zip(Activity::ALL) {
            spent.add(activity, micros);
        }
        spent
    }

    #[test]
    fn accounts_survive_the_wire_and_the_journal() {
        let spent = counted();
        assert_eq!(TimeSpent::from(v1::TimeSpent::from(spent)), spent);
        let json = serde_json::to_string(&spent).expect("JSON");
        assert_eq!(serde_json::from_str::<TimeSpent>(&json).ok(), Some(spent));
        assert_eq!(
            serde_json::to_string(&TimeSpent::ZERO).ok().as_deref(),
            Some("{}")
        );
        assert!(serde_json::from_str::<TimeSpent>("{\"sleep\":1}").is_err());
    }

    #[test]
    fn shares_add_up_to_the_whole() {
        let mut spent = counted();
        let shares = Activity::ALL.map(|activity| spent.share(activity).expect("some time"));
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(TimeSpent::ZERO.share(Activity::Useful), None);
        spent.shift(Activity::Data, Activity::Recovery, 100);
        assert_eq!(spent.of(Activity::Data), 0);
        assert_eq!(spent.of(Activity::Recovery), 6);
        assert_eq!(spent.total(), counted().total());
    }
}
