//! What must hold, looked at after every change of the store, every announcement and every step.
//!
//! The journal is judged by the rules that ship ([`History::objection`]), and at the end the books of
//! the run by the ledger that ships.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use mks2_proto::v1;
use object_store::path::Path;

use super::{
    chance::fold_number,
    damage::Damage,
    executor::now,
    office::{ROOT, Seats, seats},
    saver::Manifest,
    store::{Change, Cloud},
};
use crate::{
    journal::{Entry, History, Record},
    ledger::Course,
    state::{Checkpoint, Identity},
};

/// How long it may take until a member is let go: a reunion and some steps.
const LEAVING: Duration = Duration::from_secs(6);

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) rule: String,
    pub(super) words: String,
    pub(super) at: Duration,
}

/// Everything that has to be remembered for it.
#[derive(Default)]
pub(super) struct Checks {
    pub(super) violation: Option<Violation>,
    /// All that goes wrong is that the coordinator is cut off for a moment.
    pub(super) is_gentle: bool,
    /// All that goes wrong is that coordinators die and workers are asked to leave.
    pub(super) is_orderly: bool,
    would_leave: BTreeSet<u64>,
    lanes: u32,
    history: History,
    number: u64,
    last: String,
    seats: BTreeMap<u64, Seats>,
    /// The weights that were found after each step, and those that there should be, which are the
    /// same whoever computes them.
    weights: BTreeMap<u64, u64>,
    truth: BTreeMap<u64, u64>,
    damage: Damage,
    /// Checkpoints that ever counted, with their parts, and those that hold damage.
    parts: BTreeMap<u64, String>,
    damaged: BTreeSet<u64>,
}

impl Checks {
    pub(super) fn new(course: &Course) -> Self {
        Self {
            lanes: course.lanes,
            truth: truth(course),
            ..Self::default()
        }
    }

    pub(super) fn violated(&mut self, rule: &str, words: impl Into<String>) {
        self.violation.get_or_insert(Violation {
            rule: rule.to_owned(),
            words: words.into(),
            at: now(),
        });
    }

    /// Steps that were applied somewhere.
    pub(super) fn steps(&self) -> u64 {
        self.weights.len() as u64
    }

    /// A member applied a step.
    pub(super) fn applied(&mut self, who: &Identity, step: u64, weights: u64) {
        self.weights.insert(step, weights);
        self.damage.applied(who.incarnation.0);
        let is_right = self.truth.get(&step) == Some(&weights);
        // What a damaged copy computes is in all of them until they are compared.
        if !is_right && !self.damage.was_there() {
            let words = format!("{} has others after step {step}", who.member);
            self.violated(
                "the weights after a step are the same on every worker",
                words,
            );
        }
    }

    /// A member was told of a generation.
    pub(super) fn announced(&mut self, who: &Identity, term: u64, generation: &v1::Generation) {
        let number = generation.number;
        match self.seats.get(&number) {
            Some(known) if *known == seats(generation) => {}
            Some(_) => self.violated(
                "one generation at a time",
                format!(
                    "{} heard of another generation {number} in term {term}",
                    who.member
                ),
            ),
            None => self.violated(
                "a generation is announced once it is on record",
                format!("{} heard of generation {number} in term {term}", who.member),
            ),
        }
    }

    /// A member was asked to leave.
    pub(super) fn would_leave(&mut self, who: &Identity) {
        self.would_leave.insert(who.incarnation.0);
    }

    /// A member goes on though its coordinator could have known for so long that it would leave.
    pub(super) fn works_on(&mut self, who: &Identity, since: Duration) {
        let seats = self.seats.values().next_back();
        let mut seats = seats.into_iter().flatten();
        let somebody_stays = seats.any(|seat| !self.would_leave.contains(&seat.0));
        if self.is_orderly && somebody_stays && now() > since + LEAVING {
            let words = format!("{} could have been let go since {since:?}", who.member);
            self.violated("a worker that is asked to leave is let go", words);
        }
    }

    /// A member's memory has lost a bit.
    pub(super) fn damaged(&mut self, who: &Identity) {
        self.damage.happened(who.incarnation.0);
    }

    /// A member has seen that the copies differ.
    pub(super) fn found(&mut self, who: &Identity) {
        self.damage.found(who.incarnation.0);
    }

    /// A member was told that its checkpoint counts.
    pub(super) fn acknowledged(&mut self, who: &Identity, step: u64) {
        if !self.parts.contains_key(&step) {
            let words = format!("{} heard so of step {step}", who.member);
            self.violated("a commit is answered once it is on record", words);
        }
    }

    /// A member found nothing to begin with. One that nobody counts on any more does no harm.
    pub(super) fn missed(&mut self, who: &Identity, path: &Path) {
        let latest = self.seats.last_key_value();
        let counts =
            latest.is_some_and(|(_, seats)| seats.iter().any(|s| s.0 == who.incarnation.0));
        if counts {
            let words = format!("{path} is not there for {}", who.member);
            self.violated("a worker can load what it begins with", words);
        }
    }

    /// An object was written or deleted.
    pub(super) fn changed(&mut self, change: &Change<'_>, cloud: &Cloud) {
        let root = format!("{ROOT}/");
        let Some(name) = change.path.as_ref().strip_prefix(&root) else {
            return;
        };
        let is_record = |name: &&str| !name.starts_with("snapshot");
        if let Some(name) = name.strip_prefix("journal/").filter(is_record) {
            return self.recorded(name, change.bytes, cloud);
        }
        if change.bytes.is_some() {
            return;
        }
        let counts = |kept: Checkpoint| {
            kept.manifest_path == name || self.parts.get(&kept.step).is_some_and(|p| p == name)
        };
        if self.history.checkpoints.after(0).into_iter().any(counts) {
            self.violated("what counts is not deleted", name);
        }
    }

    fn recorded(&mut self, name: &str, bytes: Option<&Bytes>, cloud: &Cloud) {
        const RULE: &str = "the journal is one chain of records that never change";
        let number = name
            .strip_suffix(".json")
            .and_then(|text| text.parse().ok());
        let due = self.number + 1;
        if number != Some(due) {
            return self.violated(RULE, format!("{name} was written, where {due} was due"));
        }
        let record = bytes.and_then(|bytes| serde_json::from_slice::<Record>(bytes).ok());
        let Some(record) = record else {
            return self.violated(RULE, format!("{name} is no record"));
        };
        if record.number != due || record.previous != self.last {
            return self.violated(RULE, format!("{name} does not continue the one before"));
        }
        if let Some(objection) = self.history.objection(&record) {
            return self.violated(RULE, format!("{name} cannot follow: {objection}"));
        }
        self.judge(&record.entry, cloud);
        self.history.fold(&record);
        (self.number, self.last) = (record.number, record.digest);
    }

    /// No process that had a seat in the latest generation has one now: all were lost at once, and the
    /// run began again.
    fn all_are_gone(&self, seats: &Seats) -> bool {
        let has_seat = |process: u64| seats.iter().any(|seat| seat.0 == process);
        let before = self.seats.values().next_back();
        before.is_some_and(|before| before.iter().all(|seat| !has_seat(seat.0)))
    }

    /// Whether the latest checkpoint holds damage that nobody has found yet.
    fn begins_with_damage(&self) -> bool {
        let latest = self.history.checkpoints.latest();
        latest.is_some_and(|latest| self.damaged.contains(&latest.step))
    }

    fn judge(&mut self, entry: &Entry, cloud: &Cloud) {
        match entry {
            Entry::GenerationFormed {
                generation,
                members,
                lost,
                ..
            } => {
                let seat = members.iter().map(|m| (m.incarnation.0, m.lanes.clone()));
                let seats: Seats = seat.collect();
                let mut lanes: Vec<u32> = seats.iter().flat_map(|seat| seat.1.clone()).collect();
                lanes.sort_unstable();
                if !lanes.iter().copied().eq(0..self.lanes) {
                    let words = format!("generation {generation} deals {lanes:?}");
                    self.violated("a generation deals every lane once", words);
                }
                self.damage.formed(&seats, self.begins_with_damage());
                if self.is_gentle && (!lost.is_empty() || self.all_are_gone(&seats)) {
                    let words = format!("{lost:?}, in generation {generation}");
                    self.violated(
                        "a coordinator that is cut off for a moment loses nobody",
                        words,
                    );
                }
                self.seats.insert(generation.0, seats);
            }
            Entry::RunRewound { to_step, .. } => {
                if self.damaged.contains(to_step) && !self.damage.is_hidden() {
                    let words = format!("that of step {to_step} holds other weights");
                    self.violated("a run goes back to a checkpoint that is right", words);
                }
                self.damage.taken_back();
            }
            Entry::CheckpointCommitted { checkpoint, .. } => self.counted(checkpoint, cloud),
            Entry::RunFinished { step } if self.weights.len() as u64 != *step => {
                let words = format!("after {} of {step} steps", self.weights.len());
                self.violated("a run finishes with its last step", words);
            }
            _ => {}
        }
    }

    /// A checkpoint that counts is whole.
    fn counted(&mut self, checkpoint: &Checkpoint, cloud: &Cloud) {
        const RULE: &str = "a checkpoint counts once it is whole";
        let step = checkpoint.step;
        let manifest = peek(cloud, &checkpoint.manifest_path);
        let parsed = manifest
            .as_ref()
            .and_then(|bytes| serde_json::from_slice::<Manifest>(bytes).ok());
        let Some(parsed) = parsed else {
            return self.violated(RULE, format!("that of step {step} has no manifest"));
        };
        let part = peek(cloud, &parsed.part);
        if part.as_deref() != Some(&parsed.weights.to_le_bytes()[..]) {
            return self.violated(RULE, format!("that of step {step} lacks a part"));
        }
        if self.truth.get(&step) == Some(&parsed.weights) {
            self.damaged.remove(&step);
        } else if checkpoint.uncompared || self.damage.is_hidden() {
            self.damaged.insert(step);
        } else {
            return self.violated(RULE, format!("that of step {step} holds other weights"));
        }
        self.parts.insert(step, parsed.part);
    }
}

/// The weights after each step: what `trainer` computes.
fn truth(course: &Course) -> BTreeMap<u64, u64> {
    let (mut weights, mut truth) = (0, BTreeMap::new());
    for (number, leg) in (0..).zip(&course.legs) {
        weights = fold_number(weights, number);
        for step in leg.before + 1..=leg.last_step() {
            let of_step = fold_number(weights, step);
            let lanes = (0..course.lanes).map(|lane| fold_number(of_step, lane.into()));
            weights = fold_number(weights, lanes.fold(0, u64::wrapping_add));
            truth.insert(step, weights);
        }
    }
    truth
}

fn peek(cloud: &Cloud, path: &str) -> Option<Bytes> {
    cloud.peek(&Path::from(format!("{ROOT}/{path}")))
}
