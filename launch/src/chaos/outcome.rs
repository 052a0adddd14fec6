//! What became of a fault: whether and when it was noticed, and when the next step counted. Pure.

use std::time::Duration;

use mks2_coordinator::journal::Entry;
use serde::Serialize;

use super::schedule::{Fault, Link};
use super::story::{Commit, Injected, Note, Story};

/// How long after its end a fault may still be noticed.
const LATE: Duration = Duration::from_secs(5);
/// The same without a coordinator: the next one awaits workers that may be alive.
const HEADLESS_LATE: Duration = Duration::from_secs(30);

/// What became of a fault; times in seconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) kind: &'static str,
    pub(super) whom: String,
    /// Scored time that had passed.
    pub(super) at_seconds: f64,
    /// The members went on without it.
    pub(super) lost: bool,
    /// The coordinator was away, so nobody could notice.
    pub(super) headless: bool,
    /// From the fault to the record of the next generation, or for a coordinator from the moment in
    /// which the next one is started to its record of office.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) noticed_seconds: Option<f64>,
    /// From there, or from the fault where nobody noticed it, until the next step is written down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recovered_seconds: Option<f64>,
}

/// What became of a fault, as far as it is known.
pub(super) fn outcome(injected: &Injected, story: &Story) -> Outcome {
    let noticed = noticed(injected, &story.notes);
    let since = noticed.map_or(injected.at, |note| note.at);
    // The news of a loss comes before the step that it interrupts.
    // What was made before is no recovery, though it may be written down later.
    let made = |commit: &Commit| match injected.fault {
        Fault::Coordinator { .. } => commit.seen,
        _ => commit.at,
    };
    let next = story.commits.iter().find(|commit| made(commit) > since);
    let lost = noticed.is_some_and(|note| is_lost(&note.entry, &injected.whom));
    let from = match injected.fault {
        Fault::Coordinator { away, .. } => injected.at + away,
        _ => injected.at,
    };
    let apart = |later: Duration, earlier: Duration| later.as_secs_f64() - earlier.as_secs_f64();
    Outcome {
        kind: injected.fault.kind(),
        whom: injected.whom.clone(),
        at_seconds: story.scored_until(injected.at).as_secs_f64(),
        lost,
        headless: injected.is_headless,
        noticed_seconds: noticed.map(|note| apart(note.at, from).max(0.0)),
        recovered_seconds: next.map(|commit| apart(commit.seen, since)),
    }
}

/// The record that answers a fault.
fn noticed<'a>(injected: &Injected, notes: &'a [Note]) -> Option<&'a Note> {
    let until = injected.over.map(|over| over + late(injected));
    let in_time =
        |note: &&Note| note.at >= injected.at && until.is_none_or(|until| note.at <= until);
    let answers = |note: &&Note| match (&injected.fault, &note.entry) {
        (Fault::Coordinator { .. }, entry) => matches!(entry, Entry::TermTaken),
        (Fault::Scale(_), Entry::GenerationFormed { left, .. }) => !left.is_empty(),
        (Fault::Cut(Link::Peers, ..), Entry::GenerationFormed { joined, left, .. }) => {
            joined.is_empty() && left.is_empty()
        }
        (_, entry) => is_lost(entry, &injected.whom),
    };
    notes.iter().filter(in_time).find(answers)
}

fn late(injected: &Injected) -> Duration {
    match injected.is_headless {
        true => HEADLESS_LATE,
        false => LATE,
    }
}

fn is_lost(entry: &Entry, whom: &str) -> bool {
    match entry {
        Entry::GenerationFormed { lost, .. } => lost.iter().any(|id| id.as_str() == whom),
        _ => false,
    }
}

impl Outcome {
    /// Whether nothing more is to be awaited, `now` since the fault.
    pub(super) fn is_settled(&self, injected: &Injected, now: Duration) -> bool {
        let is_late = injected
            .over
            .is_some_and(|over| now > over + late(injected));
        let is_noticed = self.noticed_seconds.is_some() || is_late;
        self.recovered_seconds.is_some() && is_noticed
    }

    /// In words, behind the fault's own.
    pub(super) fn words(&self) -> String {
        let seconds = |time: Option<f64>| time.map_or("never".into(), |t| format!("{t:.2} s"));
        let next = format!("next step after {}", seconds(self.recovered_seconds));
        match (self.noticed_seconds, self.kind) {
            (None, "kill") => format!("it took no part yet; {next}"),
            (None, _) => format!("nobody was lost; {next}"),
            (noticed, "coordinator killed") => {
                format!("in office after {}, {next}", seconds(noticed))
            }
            (noticed, _) => format!("noticed after {}, {next}", seconds(noticed)),
        }
    }
}

/// The middle one, and the one that 99 % do not exceed.
pub(super) fn median_and_p99(times: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = |share: f64| (share * sorted.len() as f64).ceil() as usize;
    let at = |share: f64| sorted.get(rank(share).saturating_sub(1)).copied();
    Some((at(0.5)?, at(0.99)?))
}

#[cfg(test)]
mod tests {
    use mks2_proto::ids::{Generation, MemberId};

    use super::*;

    fn note(millis: u64, lost: &[&str]) -> Note {
        let ids = lost.iter().map(|id| MemberId::new(id).expect("a name"));
        Note {
            at: Duration::from_millis(millis),
            entry: Entry::GenerationFormed {
                generation: Generation(2),
                members: Vec::new(),
                after_step: 0,
                lost: ids.collect(),
                left: Vec::new(),
                joined: Vec::new(),
            },
        }
    }

    fn commit(millis: u64) -> Commit {
        Commit {
            at: Duration::from_millis(millis),
            took: Duration::ZERO,
            seen: Duration::from_millis(millis),
            step: 1,
            stage: "a".into(),
            workers: 2,
            generation: 1,
            bits: String::new(),
        }
    }

    fn hit(fault: Fault, over: Option<u64>) -> Injected {
        Injected {
            at: Duration::from_millis(1000),
            over: over.map(Duration::from_millis),
            fault,
            whom: "worker-1".into(),
            is_headless: false,
        }
    }

    #[test]
    fn a_loss_is_noticed_by_its_record_and_healed_by_the_next_step() {
        let injected = hit(Fault::Kill, Some(1000));
        let story = Story {
            notes: vec![note(500, &["worker-1"]), note(1060, &["worker-1"])],
            commits: vec![commit(1020), commit(1400)],
            ..Story::default()
        };
        let outcome = outcome(&injected, &story);
        assert!(outcome.lost && outcome.is_settled(&injected, Duration::from_secs(2)));
        let close = |found: Option<f64>, right: f64| {
            assert!(found.is_some_and(|f| (f - right).abs() < 1e-9), "{found:?}");
        };
        close(outcome.noticed_seconds, 0.06);
        close(outcome.recovered_seconds, 0.34);
    }

    #[test]
    fn a_short_pause_loses_nobody() {
        let injected = hit(Fault::Stop(Duration::from_millis(400)), Some(1400));
        let story = Story {
            notes: vec![note(1200, &["worker-2"]), note(9000, &["worker-1"])],
            commits: vec![commit(1700)],
            ..Story::default()
        };
        let outcome = outcome(&injected, &story);
        assert!(!outcome.lost && outcome.noticed_seconds.is_none());
        assert!(!outcome.is_settled(&injected, Duration::from_secs(3)));
        assert!(outcome.is_settled(&injected, Duration::from_secs(7)));
    }

    #[test]
    fn the_median_and_the_worst_of_a_few() {
        let times: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(median_and_p99(&times), Some((100.0, 198.0)));
        assert_eq!(median_and_p99(&[3.0]), Some((3.0, 3.0)));
        assert_eq!(median_and_p99(&[]), None);
    }
}
