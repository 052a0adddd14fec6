//! What the records add up to: which generation committed when, which checkpoints count, how it
//! ended. Only the present run counts; what an earlier job left in the directory is void.

use std::collections::{BTreeMap, BTreeSet};

use mks2_proto::ids::{Generation, MemberId, Term};

use super::{Chain, Course, Violation, chain};
use crate::{
    journal::{Ending, Entry, GenerationMember, History, Record},
    state::Checkpoint,
};

const REPORT: &str = "the records are whole, so a coordinator wrote this: report it with the \
     folder journal/";

/// A generation as its record tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formed {
    /// Number of its record.
    pub record: u64,
    /// The coordinator's term.
    pub term: Term,
    /// Its number.
    pub generation: Generation,
    /// Its members in the order of ranks.
    pub members: Vec<GenerationMember>,
    /// Members of the generation before that were lost.
    pub lost: Vec<MemberId>,
    /// Steps that were committed when it was formed: it commits later ones.
    pub after_step: u64,
    /// The run was created or taken back just before it: what earlier ones computed after that
    /// step is void. Otherwise their last news may arrive later than its record.
    pub goes_back: bool,
}

/// A checkpoint that was committed and not rewound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The record that let it go, by the retention policy.
    pub released_by: Option<u64>,
}

/// The sum of the records of the present run.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// What a coordinator would go on from.
    pub history: History,
    /// Generations in their order.
    pub generations: Vec<Formed>,
    /// All checkpoints by step, those that were let go among them.
    pub checkpoints: BTreeMap<u64, Committed>,
    /// The last step, if the run was stopped or finished.
    pub ended_at: Option<u64>,
    /// The run was created or taken back to this step and no generation is formed yet: later steps
    /// are void and may not be cut off yet.
    pub void_after: Option<u64>,
    /// Terms in which somebody was in office.
    pub terms: u64,
}

impl Timeline {
    /// The record of a generation.
    #[must_use]
    pub fn generation(&self, number: Generation) -> Option<&Formed> {
        let known = |formed: &&Formed| formed.generation == number;
        self.generations.iter().find(known)
    }

    /// The checkpoints that are there.
    pub fn kept(&self) -> impl Iterator<Item = &Checkpoint> {
        let kept = self.checkpoints.values();
        kept.filter(|committed| committed.released_by.is_none())
            .map(|committed| &committed.checkpoint)
    }

    /// The first checkpoint that contains a step, and whether it was let go since.
    #[must_use]
    pub fn first_with(&self, step: u64) -> Option<&Committed> {
        self.checkpoints
            .range(step..)
            .next()
            .map(|(_, found)| found)
    }

    /// Step of the latest checkpoint: what a run that begins again goes on from.
    #[must_use]
    pub fn safe_step(&self) -> u64 {
        let latest = self.history.checkpoints.latest();
        latest.map_or(0, |latest| latest.step)
    }

    /// The generation that a record forms, behind those that are known.
    fn formed(&self, record: &Record) -> Option<Formed> {
        let Entry::GenerationFormed {
            generation,
            members,
            after_step,
            lost,
            ..
        } = &record.entry
        else {
            return None;
        };
        Some(Formed {
            record: record.number,
            term: record.term,
            generation: *generation,
            members: members.clone(),
            lost: lost.clone(),
            // The record of an older program does not tell; the checkpoint is a lower bound.
            after_step: self.safe_step().max(*after_step),
            goes_back: self.void_after.is_some(),
        })
    }

    pub(super) fn read(chain: &Chain, course: &Course, violations: &mut Vec<Violation>) -> Self {
        let creates = |record: &Record| matches!(record.entry, Entry::RunCreated { .. });
        let own = chain.records.iter().rposition(creates);
        let mut reader = Reader {
            course,
            is_whole: chain.is_whole,
            timeline: Self::default(),
            violations,
        };
        for (at, record) in chain.records.iter().enumerate() {
            reader.record(record, own.is_some_and(|own| at >= own));
        }
        let works = |record: &&Record| !matches!(record.entry, Entry::TermTaken);
        let first = chain.records.iter().find(works);
        if let Some(first) = first.filter(|_| own.is_none() && chain.is_whole) {
            reader.object(first.number, "it stands there before any run".to_owned());
        }
        reader.finals();
        reader.timeline
    }
}

struct Reader<'a> {
    course: &'a Course,
    is_whole: bool,
    timeline: Timeline,
    violations: &'a mut Vec<Violation>,
}

impl Reader<'_> {
    fn object(&mut self, record: u64, what: String) {
        self.violations
            .push(Violation::new(chain::path(record), what, REPORT));
    }

    /// Judges a record by what came before it, and adds it. `is_own`: it belongs to the present
    /// run, so that the job is known.
    fn record(&mut self, record: &Record, is_own: bool) {
        // Behind a damaged record nothing is certain that depends on it.
        if self.is_whole {
            let objection = self.timeline.history.objection(record);
            let objections = objection
                .map(|reason| format!("record {} cannot follow: {reason}", record.number))
                .into_iter()
                .chain(self.objections(record, is_own));
            for what in objections.collect::<Vec<_>>() {
                self.object(record.number, what);
            }
        } else if let Entry::GenerationFormed { members, .. } = &record.entry
            && let Some(what) = self.undealt(members, is_own)
        {
            self.object(record.number, what);
        }
        self.fold(record);
    }

    fn objections(&self, record: &Record, is_own: bool) -> Vec<String> {
        let history = &self.timeline.history;
        match &record.entry {
            Entry::GenerationFormed {
                generation,
                members,
                lost,
                left,
                ..
            } => {
                let uneven = self
                    .undealt(members, is_own)
                    .map(|what| format!("generation {generation}: {what}"));
                let gone = lost.iter().chain(left);
                uneven.into_iter().chain(self.stranger(gone)).collect()
            }
            Entry::CheckpointCommitted {
                checkpoint,
                released,
            } => {
                let mut found = self.misplaced(checkpoint, is_own);
                let kept: BTreeSet<u64> = history.checkpoints.steps().collect();
                let free = |step: &u64| {
                    history
                        .checkpoints
                        .at(*step)
                        .is_some_and(|old| !old.is_final)
                };
                if let Some(step) = released.iter().find(|step| !free(step)) {
                    let why = match kept.contains(step) {
                        true => "the last one of a stage",
                        false => "not there",
                    };
                    found.push(format!(
                        "it lets the checkpoint at step {step} go, which is {why}"
                    ));
                }
                found
            }
            Entry::RunRewound {
                to_step,
                dropped,
                lost,
            } => {
                let later = history.checkpoints.after(*to_step);
                let later: Vec<u64> = later.iter().map(|later| later.step).collect();
                let known = *to_step == 0 || history.checkpoints.at(*to_step).is_some();
                let fits = known && &later == dropped;
                (!fits)
                    .then(|| format!("it goes back to step {to_step} and drops {dropped:?}, where {later:?} stand behind it"))
                    .into_iter()
                    .chain(self.stranger(lost.iter()))
                    .collect()
            }
            Entry::RunFinished { step } if is_own => self.unfinished(*step),
            _ => Vec::new(),
        }
    }

    /// Why the lanes are not dealt to exactly one member each.
    fn undealt(&self, members: &[GenerationMember], is_own: bool) -> Option<String> {
        let dealt = || {
            members
                .iter()
                .flat_map(|member| member.lanes.iter().copied())
        };
        // The lanes of another job that was here before are not known.
        let lanes = match is_own {
            true => self.course.lanes as usize,
            false => dealt().count(),
        };
        let names: BTreeSet<_> = members.iter().map(|member| &member.member).collect();
        if names.len() < members.len() {
            return Some("a member stands in it twice".to_owned());
        }
        if let Some(member) = members.iter().find(|member| member.lanes.is_empty()) {
            return Some(format!("{} holds no lane", member.member));
        }
        let mut holders = vec![0_u32; lanes];
        for lane in dealt() {
            match holders.get_mut(lane as usize) {
                Some(count) => *count += 1,
                None => return Some(format!("it deals lane {lane}, and the job has {lanes}")),
            }
        }
        let lane = holders.iter().position(|count| *count != 1)?;
        Some(match holders[lane] {
            0 => format!("nobody holds lane {lane}"),
            count => format!("lane {lane} is dealt {count} times"),
        })
    }

    /// Members that are said to be gone were there.
    fn stranger<'m>(&self, mut gone: impl Iterator<Item = &'m MemberId>) -> Option<String> {
        let before = self.timeline.generations.last();
        let was_there = |id: &MemberId| {
            before.is_some_and(|before| before.members.iter().any(|m| &m.member == id))
        };
        let stranger = gone.find(|id| !was_there(id))?;
        Some(format!(
            "it says that {stranger} has left or was lost, who was not in the generation before it"
        ))
    }

    fn misplaced(&self, checkpoint: &Checkpoint, is_own: bool) -> Vec<String> {
        let step = checkpoint.step;
        let latest = self.timeline.history.checkpoints.latest();
        let mut found = Vec::new();
        if let Some(latest) = latest.filter(|latest| latest.step >= step) {
            found.push(format!(
                "it commits a checkpoint at step {step} behind one at step {}",
                latest.step
            ));
        }
        let leg = self.course.leg_of(step);
        let fits = leg.is_some_and(|leg| {
            leg.name == checkpoint.stage && (leg.last_step() == step) == checkpoint.is_final
        });
        if is_own && !fits {
            found.push(format!(
                "it commits a checkpoint at step {step} as {} of stage '{}', which is not the \
                 job's course",
                match checkpoint.is_final {
                    true => "the last one",
                    false => "one inside",
                },
                checkpoint.stage
            ));
        }
        found
    }

    fn unfinished(&self, step: u64) -> Vec<String> {
        let total = self.course.total_steps();
        let latest = self.timeline.safe_step();
        let mut found = Vec::new();
        if step != total {
            found.push(format!(
                "it says that the run finished at step {step}, and the job has {total}"
            ));
        }
        if latest != total {
            found.push(format!(
                "it says that the run finished, and the latest checkpoint is of step {latest} of \
                 {total}"
            ));
        }
        found
    }

    /// Every stage that the run is done with has its last checkpoint.
    fn finals(&mut self) {
        let checkpoints = &self.timeline.history.checkpoints;
        let reached = self.timeline.safe_step();
        let lacks = |leg: &&super::Leg| {
            leg.steps > 0
                && leg.last_step() <= reached
                && checkpoints
                    .at(leg.last_step())
                    .is_none_or(|last| !last.is_final)
        };
        if let Some(leg) = self
            .course
            .legs
            .iter()
            .find(lacks)
            .filter(|_| self.is_whole)
        {
            self.violations.push(Violation::new(
                "journal",
                format!(
                    "the run has a checkpoint at step {reached}, and none for the end of stage \
                     '{}' at step {}",
                    leg.name,
                    leg.last_step()
                ),
                REPORT,
            ));
        }
    }

    fn fold(&mut self, record: &Record) {
        let timeline = &mut self.timeline;
        timeline.history.fold(record);
        match &record.entry {
            Entry::TermTaken => timeline.terms += 1,
            Entry::RunCreated { .. } => {
                timeline.generations.clear();
                timeline.checkpoints.clear();
                timeline.void_after = Some(0);
            }
            Entry::GenerationFormed { .. } => {
                let formed = timeline.formed(record);
                timeline.generations.extend(formed);
                timeline.void_after = None;
            }
            Entry::CheckpointCommitted {
                checkpoint,
                released,
            } => {
                let committed = Committed {
                    checkpoint: checkpoint.clone(),
                    released_by: None,
                };
                timeline.checkpoints.insert(checkpoint.step, committed);
                for step in released {
                    if let Some(old) = timeline.checkpoints.get_mut(step) {
                        old.released_by = Some(record.number);
                    }
                }
            }
            Entry::RunRewound { to_step, .. } => {
                timeline.checkpoints.retain(|step, _| step <= to_step);
                timeline.void_after = Some(timeline.safe_step());
            }
            Entry::RunStopped { step } | Entry::RunFinished { step } => {
                timeline.ended_at = Some(*step);
            }
            Entry::StopRequested { .. } | Entry::RunFailed { .. } => {}
        }
        let has_ended = matches!(
            timeline.history.ending,
            Some(Ending::Stopped | Ending::Finished)
        );
        if !has_ended {
            timeline.ended_at = None;
        }
    }
}
