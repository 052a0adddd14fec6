//! The decisions of the coordinator, as a pure state machine: an event and the time go in,
//! ordered actions come out. No clock, no file, no socket, no randomness in here.

mod accounts;
mod announcement;
mod checkpoints;
mod corruption;
mod cut_off;
mod event;
mod leaving;
mod member;
mod membership;
mod newcomers;
mod progress;
mod recovery;
mod reunion;
mod run;
mod stalls;
mod view;
mod workers;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use mks2_proto::{
    failure::Failure,
    ids::{Generation, Incarnation, MemberId, RunId, Term},
    job::OnCorruption,
    v1,
};

pub use checkpoints::{Checkpoint, Checkpoints, Place};
pub use event::{
    Abortion, Action, Beat, Event, Identity, Limits, Refused, Registration, StreamId, Ticket,
    Welcome,
};
use member::Member;
use newcomers::Candidate;
pub(crate) use recovery::NOTICES;
use run::Run;
pub use workers::Workers;

use crate::{
    assign::Assignment,
    books::Books,
    journal::{Entry, Working},
};

/// So few members that nothing about them takes time, and how much more each of the others takes.
const FEW: usize = 64;
const EFFORT: Duration = Duration::from_micros(50);
/// Nobody waits longer for what is shown; and how much more reluctantly it is told to the log.
const MOST_EFFORT: Duration = Duration::from_secs(1);
const RELUCTANCE: u32 = 20;

/// What the machine knows from the start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The run.
    pub run_id: RunId,
    /// The job's name.
    pub job_name: String,
    /// URL of the run directory, as shown.
    pub run_url: String,
    /// The job's device, shown for members that do not name theirs.
    pub device: String,
    /// The coordinator's term.
    pub term: Term,
    /// Lanes of the job.
    pub lanes: u32,
    /// How many members the run has.
    pub workers: Workers,
    /// Somebody starts new workers in the place of those that end: when none is left, they are
    /// waited for.
    pub returns: bool,
    /// What follows when members' copies of the state differ.
    pub on_corruption: OnCorruption,
    /// Steps of all stages.
    pub total_steps: u64,
    /// How many checkpoints inside stages stay.
    pub keep_last: usize,
    /// The last generation of earlier terms.
    pub last_generation: Generation,
    /// The checkpoints that are there; the run starts from the latest.
    pub checkpoints: Checkpoints,
    /// A generation of an earlier term whose members may be alive, and the last step of which
    /// metrics were written. They keep working, and are awaited.
    pub restored: Option<(Working, u64)>,
    /// Where the run's time has gone in earlier terms.
    pub books: Books,
    /// When things are late.
    pub limits: Limits,
}

/// The state machine of one run.
///
/// | from | what happens | to |
/// |---|---|---|
/// | (start) | a generation of an earlier term was at work | active, in that generation |
/// | (start) | otherwise | waiting |
/// | active | none of an earlier term's members comes back in time | waiting |
/// | active | some of them do not come back | as if they were lost |
/// | waiting | the last expected member opens its stream | active, in the first generation |
/// | waiting | somebody asks to stop | stopped |
/// | waiting | a member fails by itself | failed, with its words |
/// | active | somebody asks to stop | active, stopping at the next step border |
/// | active | a member is lost: its stream breaks, it is silent too long, its process ends | active, in the next generation, of the others |
/// | active | most members are silent together | as if the coordinator had been out of reach: those that are not back in time are lost |
/// | active | fewer members are left than the run's minimum | active, holding: the next generation forms when there are enough |
/// | active | the only member is lost, and others may come | waiting, from the latest checkpoint |
/// | active | the only member is lost | failed, naming it |
/// | active | a candidate is ready, or a member is to leave | active, in the next generation after a step border |
/// | active | all members are to leave | active, stopping at the next step border |
/// | active | a member fails by its own trouble | as if it were lost |
/// | active | a member fails by what would hit all | failed, with its words |
/// | active | the others wait for a member for too long | as if it were lost |
/// | active | the members' copies of the state differ, and others may come | waiting, from the latest checkpoint that is known to be right |
/// | active | the same, where the job prefers to go on without the odd one | as if it were lost |
/// | active | the same, and nobody will come | failed, naming it |
/// | active | members complain of each other, and nothing happens to any | active, in the next generation, of the same |
/// | active | they complain again before a step was committed | as if the most blamed were lost |
/// | active | all members have finished, the job done | finished |
/// | active | all members have finished, some before the end | stopped |
/// | any but the last three | the run directory cannot be written | failed |
///
/// Stopped, finished and failed are the ends.
///
/// Invariants, checked after each event in debug builds:
/// 1. a generation has its members' lanes dealt completely, and its number only grows;
/// 2. a member's committed step only grows, and none is ahead of the run;
/// 3. the members of an active run that have not finished are those of its generation; while it
///    holds, some of them.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    run: Run,
    members: BTreeMap<MemberId, Member>,
    candidates: BTreeMap<MemberId, Candidate>,
    /// Processes that were let go.
    departed: BTreeMap<MemberId, Incarnation>,
    /// Processes that were welcomed before the run began again, and have opened no stream since: what
    /// they were told is void.
    adrift: BTreeMap<MemberId, Incarnation>,
    /// How many members the run is to have.
    wanted: u32,
    /// When somebody opened a stream last.
    arrived: Duration,
    generation: Generation,
    assignment: Assignment,
    checkpoints: Checkpoints,
    /// The same when the run began to wait for members.
    beginning: Checkpoints,
    step: u64,
    stage: Option<v1::StageChanged>,
    metrics: Option<v1::StepMetrics>,
    explained: String,
    /// The last step of which metrics were taken.
    measured: u64,
    /// The step at which members last connected anew for their complaints.
    quarrelled_at: Option<u64>,
    /// What people should hear of, the latest few, and how many there were.
    notices: VecDeque<v1::Notice>,
    noticed: u64,
    members_lost: u64,
    members_joined: u64,
    members_left: u64,
    /// Generations that were formed since a step was committed, and that step.
    fruitless: (u64, u32),
    checkpoints_skipped: u64,
    /// Steps whose manifests are being written, and who else waits for them.
    writing: BTreeMap<u64, Vec<Ticket>>,
    /// Until when members of an earlier term are awaited.
    reunion: Option<Duration>,
    /// Until when the members are awaited that fell silent together, if they did.
    cut_off: Option<Duration>,
    /// Who holds the others up, in words.
    stalled: Option<String>,
    /// Where the run's time has gone, and how many places it has had workers for.
    books: Books,
    places: u32,
    /// Something happened that may let the members change, or the reason for the state.
    is_unsettled: bool,
    /// The reason is not put into words again before: it takes time when there are many members.
    explain_after: Duration,
    /// How often all members were looked at for what people or they themselves are told.
    #[cfg(test)]
    pub(crate) looks: std::cell::Cell<u64>,
    /// The time of the last event, and until when nobody is blamed for a broken stream.
    last_event: Duration,
    lenient_until: Duration,
    /// Until then those without a stream are awaited, since most streams broke together, unless
    /// their peers miss them too.
    streams_broke_until: Duration,
    /// When all members of a large generation may have been told of it. Before that the way to and
    /// from them is full, and nobody is silent.
    told_by: Duration,
}

impl Machine {
    /// A run that waits for its members, or awaits those of an earlier term.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut machine = Self::waiting(config);
        machine.restore();
        machine
    }

    fn waiting(config: Config) -> Self {
        let step = config
            .checkpoints
            .latest()
            .map_or(0, |checkpoint| checkpoint.step);
        Self {
            run: Run::Waiting,
            members: BTreeMap::new(),
            candidates: BTreeMap::new(),
            departed: BTreeMap::new(),
            adrift: BTreeMap::new(),
            wanted: config.workers.max,
            arrived: Duration::ZERO,
            generation: if planted!(GenerationReused) {
                Generation(0)
            } else {
                config.last_generation
            },
            assignment: Assignment::new(),
            checkpoints: config.checkpoints.clone(),
            beginning: config.checkpoints.clone(),
            step,
            stage: None,
            metrics: None,
            explained: String::new(),
            measured: step,
            quarrelled_at: None,
            notices: VecDeque::new(),
            noticed: 0,
            members_lost: 0,
            members_joined: 0,
            members_left: 0,
            fruitless: (step, 0),
            checkpoints_skipped: 0,
            writing: BTreeMap::new(),
            reunion: None,
            is_unsettled: true,
            explain_after: Duration::ZERO,
            #[cfg(test)]
            looks: std::cell::Cell::default(),
            cut_off: None,
            last_event: Duration::ZERO,
            lenient_until: Duration::ZERO,
            streams_broke_until: Duration::ZERO,
            told_by: Duration::ZERO,
            stalled: None,
            books: Self::books_of_earlier_terms(&config),
            places: config.workers.start,
            config,
        }
    }

    /// Takes an event at a time (since the coordinator's start) and says what to do, in order.
    pub fn apply(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let noticed = self.noticed;
        self.count_vacancies(now);
        self.is_unsettled |= !event.is_routine();
        self.forgive_pauses(now);
        let mut actions = match event {
            Event::Register(ticket, registration) => self.register(now, ticket, registration),
            Event::Attach(ticket, stream, who) => self.attach(now, ticket, stream, &who),
            Event::Detach(stream, who, how) => self.detach(now, stream, &who, how),
            Event::Exited(member, how) => self.exited(&member, &how),
            Event::Report(who, generation, kind) => self.report(now, &who, generation, kind),
            Event::Beats(beats) => {
                for beat in beats {
                    self.beat(now, beat.heard, &beat.who, beat.generation, beat.said);
                }
                Vec::new()
            }
            Event::Commit(ticket, who, generation, checkpoint) => {
                self.commit(ticket, &who, generation, checkpoint)
            }
            Event::ManifestWritten(ticket, checkpoint) => self.committed(ticket, checkpoint),
            Event::ManifestFailed(ticket, step, failure) => {
                self.manifest_failed(ticket, step, failure)
            }
            Event::Stop(ticket, reason) => self.stop(ticket, reason),
            Event::Drain(ticket, member, reason) => self.drain(ticket, &member, &reason),
            Event::Scale(ticket, workers) => self.scale(ticket, workers),
            Event::Broken(failure) => {
                self.broken(failure);
                Vec::new()
            }
            Event::Tick => self.tick(now),
        };
        if self.is_unsettled || !actions.is_empty() {
            actions.extend(self.settle(now, noticed));
        }
        debug_assert_eq!(self.broken_invariant(), None);
        actions
    }

    /// What follows for the members from what has happened, and what people are told of it. It looks
    /// at all members.
    fn settle(&mut self, now: Duration, noticed: u64) -> Vec<Action> {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
        let mut actions = self.seek_change();
        actions.extend(self.turn_candidates_away());
        let news = self.notices.iter().filter(|notice| notice.number > noticed);
        actions.extend(news.map(|notice| Action::Tell(notice.what.clone(), notice.why.clone())));
        self.is_unsettled = false;
        // Where there are many members it is said now and then; the next tick comes here too.
        if now >= self.explain_after || self.is_over() {
            self.explain_after = now + (RELUCTANCE * self.effort()).min(MOST_EFFORT);
            actions.extend(self.explain());
        }
        actions
    }

    /// The reason for the state, where it is another one than before.
    fn explain(&mut self) -> Option<Action> {
        let reason = self.reason();
        if reason == self.explained {
            return None;
        }
        self.explained.clone_from(&reason);
        Some(Action::Explain(reason))
    }

    /// How long to be quiet about what takes as much time as there are members; nothing where they
    /// are few.
    pub(crate) fn effort(&self) -> Duration {
        let many = self.size().saturating_sub(FEW);
        let effort = EFFORT.saturating_mul(u32::try_from(many).unwrap_or(u32::MAX));
        effort.min(MOST_EFFORT)
    }

    /// Members and candidates.
    pub(crate) fn size(&self) -> usize {
        self.members.len() + self.candidates.len()
    }

    /// The state of the run.
    pub(crate) fn state(&self) -> v1::RunState {
        self.run.wire()
    }

    /// The run has reached one of its ends.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.run.is_over()
    }

    /// Why the run failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match &self.run {
            Run::Failed(abortion) => Some(&abortion.failure),
            _ => None,
        }
    }

    /// Number of the present generation; 0 before the first.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Ends the run by a failure and tells everybody who has a stream.
    fn fail(&mut self, failure: Failure, lost: Option<MemberId>) -> Vec<Action> {
        let abortion = Abortion { failure, lost };
        let mut actions: Vec<_> = self
            .attached()
            .filter(|member| Some(*member) != abortion.lost.as_ref())
            .map(|member| Action::Abort(member.clone(), abortion.clone()))
            .collect();
        actions.push(Action::Persist(Entry::failed(&abortion)));
        self.run = Run::Failed(abortion);
        actions
    }

    /// The journal is lost, perhaps to a successor: nothing may be decided any more. Nobody is told
    /// to end, since the members look for the successor.
    fn broken(&mut self, failure: Failure) {
        if !self.run.is_over() {
            let lost = None;
            self.run = Run::Failed(Abortion { failure, lost });
        }
    }

    fn attached(&self) -> impl Iterator<Item = &MemberId> {
        self.members
            .iter()
            .filter(|(_, m)| m.stream.is_some())
            .map(|(id, _)| id)
    }

    /// What to tell a user whose run ended too early.
    fn resume_words(&self) -> String {
        match self.checkpoints.latest() {
            Some(checkpoint) => format!(
                "start the same command again: it resumes from the checkpoint at step {} (stage {})",
                checkpoint.step, checkpoint.stage
            ),
            None => "start the same command again: it begins anew, since no checkpoint was \
                     committed yet"
                .to_owned(),
        }
    }

    fn broken_invariant(&self) -> Option<&'static str> {
        let active = self.run.active()?;
        let covered: usize = active.assignment.iter().map(|s| s.lanes.len()).sum();
        if covered != self.config.lanes as usize || active.generation != self.generation {
            return Some("1: the generation does not cover the lanes");
        }
        if self
            .members
            .values()
            .any(|member| member.committed > self.step)
        {
            return Some("2: a member is ahead of the run");
        }
        let stranger = self
            .members
            .iter()
            .any(|(id, member)| member.finished.is_none() && active.rank_of(id).is_none());
        let ghost = active
            .assignment
            .iter()
            .any(|share| !self.members.contains_key(&share.member));
        let ghost = ghost && active.held.is_none();
        (stranger || ghost).then_some("3: members and generation differ")
    }
}

/// A refusal with its words.
fn refused(reason: v1::RefusalReason, failure: Failure) -> Refused {
    Refused { reason, failure }
}

#[cfg(test)]
mod tests;
