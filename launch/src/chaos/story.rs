//! What was seen of a run: what was done to it, and what it wrote. Times are counted from the start
//! of its first process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mks2_coordinator::journal::Entry;

use super::schedule::Fault;

/// A step that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    /// When it was made, as far as can be told.
    pub(super) at: Duration,
    /// How long it took by its worker's clock, without what lies between two steps.
    pub(super) took: Duration,
    /// When the coordinator had written it down.
    pub(super) seen: Duration,
    pub(super) step: u64,
    pub(super) stage: String,
    /// Members of the generation that committed it.
    pub(super) workers: u32,
    pub(super) generation: u64,
    /// Losses and norm of the gradient as they were written: where any weight differs, they do.
    pub(super) bits: String,
}

/// A record of the journal, by its writer's clock.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) at: Duration,
    pub(super) entry: Entry,
}

/// A fault that took place.
#[derive(Clone, Debug)]
pub(super) struct Injected {
    pub(super) at: Duration,
    /// When it was over: a stopped worker went on, a connection was healed, a coordinator listened.
    pub(super) over: Option<Duration>,
    pub(super) fault: Fault,
    /// The worker; empty where it is none.
    pub(super) whom: String,
    /// The coordinator was away at that time, so nobody could notice.
    pub(super) is_headless: bool,
}

/// A change in the life of a worker's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// A process was started.
    Up,
    /// It ended.
    Down,
    /// It was stopped, or cut off.
    Hindered,
    /// No longer.
    Free,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Story {
    /// The first time of every step, in the order of their arrival.
    pub(super) commits: Vec<Commit>,
    pub(super) notes: Vec<Note>,
    pub(super) injected: Vec<Injected>,
    pub(super) lives: Vec<(Duration, String, Life)>,
    /// Times without a coordinator.
    pub(super) headless: Vec<(Duration, Duration)>,
    /// Steps that were computed again and came out otherwise.
    pub(super) again_otherwise: BTreeSet<u64>,
    /// Digest of the weights in each checkpoint, by step.
    pub(super) weights: BTreeMap<u64, String>,
    /// Lines of each step that are there at the end.
    pub(super) lines: BTreeMap<u64, u32>,
    /// Processes that ended though nothing had been done to them.
    pub(super) by_itself: Vec<String>,
    /// The times that are scored, one behind the other.
    pub(super) scored: Vec<(Duration, Duration)>,
    /// When it was seen last.
    pub(super) ended: Duration,
    /// Load of the machine (one minute) at the beginning and at the end.
    pub(super) load: [f64; 2],
}

/// A number that changes with time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Curve(Vec<(Duration, u32)>);

impl Curve {
    /// The stretches between two times, with their lengths in seconds.
    pub(super) fn stretches(&self, from: Duration, to: Duration) -> Vec<(u32, f64)> {
        let mut stretches = Vec::new();
        let (mut since, mut value) = (from, 0);
        for (at, next) in &self.0 {
            if *at >= to {
                break;
            }
            if *at > since {
                stretches.push((value, (*at - since).as_secs_f64()));
                since = *at;
            }
            value = *next;
        }
        if to > since {
            stretches.push((value, (to - since).as_secs_f64()));
        }
        stretches
    }
}

impl Story {
    /// Scored time that had passed at a moment.
    pub(super) fn scored_until(&self, at: Duration) -> Duration {
        let passed = |(from, to): &(Duration, Duration)| at.min(*to).saturating_sub(*from);
        self.scored.iter().map(passed).sum()
    }

    pub(super) fn is_scored(&self, at: Duration) -> bool {
        self.scored
            .iter()
            .any(|(from, to)| (*from..*to).contains(&at))
    }

    /// All processes have ended.
    pub(super) fn all_down(&mut self, now: Duration) {
        let mut last = BTreeMap::new();
        for (_, whom, life) in &self.lives {
            if matches!(life, Life::Up | Life::Down) {
                last.insert(whom.clone(), *life);
            }
        }
        let up = last.into_iter().filter(|(_, life)| *life == Life::Up);
        self.lives
            .extend(up.map(|(whom, _)| (now, whom, Life::Down)));
        self.ended = now;
    }

    /// How many workers were alive: their processes ran, and were neither stopped nor cut off.
    pub(super) fn alive(&self) -> Curve {
        let (mut up, mut hindered) = (BTreeSet::new(), BTreeMap::<&str, u32>::new());
        let mut curve = Vec::new();
        for (at, whom, life) in &self.lives {
            let whom = whom.as_str();
            match life {
                Life::Up => {
                    // Whatever was wrong was wrong with the one before.
                    hindered.remove(whom);
                    up.insert(whom);
                }
                Life::Down => {
                    up.remove(whom);
                }
                Life::Hindered => *hindered.entry(whom).or_default() += 1,
                Life::Free => {
                    if let Some(times) = hindered.get_mut(whom) {
                        *times = times.saturating_sub(1);
                    }
                }
            }
            let is_free = |whom: &&&str| hindered.get(**whom).is_none_or(|times| *times == 0);
            let alive = up.iter().filter(is_free).count();
            curve.push((*at, u32::try_from(alive).unwrap_or(u32::MAX)));
        }
        Curve(curve)
    }

    /// Times in which a worker's process ran and did not take part yet.
    pub(super) fn starts(&self) -> Vec<(Duration, Duration)> {
        let ups = self.lives.iter().filter(|(_, _, life)| *life == Life::Up);
        ups.map(|(at, whom, _)| (*at, self.took_part(*at, whom)))
            .collect()
    }

    /// When a process that was started then took part, or ended before.
    fn took_part(&self, from: Duration, whom: &str) -> Duration {
        let down = self
            .lives
            .iter()
            .find(|(at, who, life)| *at > from && who == whom && *life == Life::Down);
        let joined = self.notes.iter().find(|note| match &note.entry {
            Entry::GenerationFormed { members, lost, .. } => {
                let is_in = |member| member == whom;
                let is_back = members.iter().any(|m| is_in(m.member.as_str()));
                // The record that tells the end of the one before has no place for the new one.
                note.at > from && is_back && !lost.iter().any(|id| is_in(id.as_str()))
            }
            _ => false,
        });
        let ends = [down.map(|(at, ..)| *at), joined.map(|note| note.at)];
        ends.into_iter().flatten().min().unwrap_or(self.ended)
    }
}

/// Whether two stretches of time touch.
pub(super) fn overlap(a: (Duration, Duration), b: (Duration, Duration)) -> bool {
    a.0 < b.1 && b.0 < a.1
}
