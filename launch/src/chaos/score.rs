//! The score of a run under chaos, held against a quiet run of the same job. Pure.
//!
//! Goodput is useful steps over possible ones. Useful is a step that counts, once. Possible is what
//! the workers that were alive could have done meanwhile: for every stretch of the scored time, its
//! seconds over the seconds that a step of that stage takes with that many workers in the quiet run.
//! A worker is alive while its process runs and is neither stopped nor cut off: what a new process
//! needs to start, to prepare and to come in counts against the goodput.
//!
//! On a machine whose speed drifts between the two runs that says more of the machine than of them.
//! So the same is held against the undisturbed steps of the run itself, too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mks2_coordinator::journal::Entry;
use mks2_coordinator::ledger::Course;
use serde::Serialize;

use super::capacity::{Measurement, Rates, calm_steps, own_step_seconds};
use super::outcome::{Outcome, median_and_p99, outcome};
use super::story::{Commit, Curve, Injected, Note, Story, overlap};

/// The outcome of a run under chaos.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Score {
    /// Useful over possible.
    pub(super) goodput: f64,
    /// The same, where possible is what the run's own undisturbed steps around each moment say; none
    /// without such steps.
    pub(super) goodput_at_own_rate: Option<f64>,
    pub(super) scored_seconds: f64,
    pub(super) steps_useful: u64,
    pub(super) steps_possible: f64,
    /// Workers that were alive, on the average.
    pub(super) workers_alive: f64,
    /// Possible steps that were not made, by what happened meanwhile, as shares of the possible.
    pub(super) lost_to: BTreeMap<&'static str, f64>,
    /// By kind of fault.
    pub(super) faults: BTreeMap<&'static str, Kind>,
    /// Processes that ended though nothing had been done to them.
    pub(super) ended_by_itself: Vec<String>,
    /// Whole steps that were computed again.
    pub(super) steps_again: u64,
    /// Lanes of steps in progress that others had to take over from lost workers: at most so many
    /// were computed again.
    pub(super) lanes_again: u64,
    pub(super) rows_lost: u64,
    pub(super) rows_doubled: u64,
    pub(super) bits: Bits,
    /// What the quiet run measured.
    pub(super) rates: Vec<Measurement>,
    pub(super) outcomes: Vec<Outcome>,
}

/// What was held against the quiet run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Bits {
    /// Losses and gradient norms of so many steps.
    pub(super) steps_compared: u64,
    /// Weights of so many checkpoints.
    pub(super) checkpoints_compared: u64,
    /// Steps whose numbers, or checkpoints whose weights, are others.
    pub(super) different: u64,
}

/// Faults of one kind; times in seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Kind {
    pub(super) count: u64,
    /// So many of them made the others go on without a worker.
    pub(super) lost: u64,
    /// So many took place while the coordinator was away; the times leave them out.
    pub(super) headless: u64,
    pub(super) noticed: Option<Times>,
    pub(super) recovered: Option<Times>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Times {
    pub(super) median_seconds: f64,
    pub(super) p99_seconds: f64,
}

impl Score {
    /// Nothing lost, nothing doubled, the same bits.
    pub(super) fn is_clean(&self) -> bool {
        self.rows_lost == 0 && self.rows_doubled == 0 && self.bits.different == 0
    }
}

/// Scores a run.
pub(super) fn score(chaos: &Story, quiet: &Story, course: &Course) -> Score {
    let rates = Rates::measure(quiet);
    let outcomes: Vec<_> = chaos
        .injected
        .iter()
        .map(|injected| outcome(injected, chaos))
        .collect();
    let calm = calm_steps(chaos);
    let quiet_rate = |stage: &str, workers, _: Duration| rates.step_seconds(stage, workers);
    let own_rate = |stage: &str, workers, at| own_step_seconds(&calm, stage, workers, at);
    let at_own_rate = work(chaos, &rates, &own_rate);
    let work = work(chaos, &rates, &quiet_rate);
    let shares = work
        .lost_to
        .iter()
        .map(|(cause, steps)| (*cause, steps / work.possible));
    let rows = |steps: &dyn Fn(u64) -> u64| -> u64 {
        let last = chaos.lines.last_key_value().map_or(0, |(step, _)| *step);
        let batch = |step| course.leg_of(step).map_or(0, |leg| leg.batch);
        (1..=last).map(|step| steps(step) * batch(step)).sum()
    };
    let times = |step: u64| u64::from(chaos.lines.get(&step).copied().unwrap_or(0));
    Score {
        goodput: work.useful as f64 / work.possible,
        goodput_at_own_rate: (at_own_rate.possible > 0.0)
            .then(|| at_own_rate.useful as f64 / at_own_rate.possible),
        scored_seconds: work.seconds,
        steps_useful: work.useful,
        steps_possible: work.possible,
        workers_alive: work.worker_seconds / work.seconds,
        lost_to: shares.collect(),
        faults: kinds(&outcomes),
        ended_by_itself: chaos.by_itself.clone(),
        steps_again: steps_again(chaos),
        lanes_again: lanes_again(&chaos.notes),
        rows_lost: rows(&|step| u64::from(times(step) == 0)),
        rows_doubled: rows(&|step| times(step).saturating_sub(1)),
        bits: bits(chaos, quiet),
        rates: rates.table(),
        outcomes,
    }
}

/// Seconds of a step of a stage with so many workers, at a time.
type Rate<'a> = dyn Fn(&str, u32, Duration) -> Option<f64> + 'a;

/// What was done, and what could have been.
#[derive(Clone, Debug, Default)]
struct Work {
    seconds: f64,
    worker_seconds: f64,
    useful: u64,
    possible: f64,
    /// Possible steps that were not made.
    lost_to: BTreeMap<&'static str, f64>,
}

/// Adds up the stretches between commits, from the first behind the beginning of a scored time to
/// the one in which it ends. Those are left out of which the quiet run knows nothing.
fn work(chaos: &Story, quiet: &Rates, rate: &Rate<'_>) -> Work {
    let (alive, causes) = (chaos.alive(), Causes::of(chaos));
    let mut work = Work::default();
    let is_scored = |pair: &&[Commit]| chaos.is_scored(pair[0].at);
    for pair in chaos.commits.windows(2).filter(is_scored) {
        let [before, commit] = pair else { continue };
        let found = possible(before, commit, &alive, (quiet, rate));
        let Some((possible, worker_seconds)) = found else {
            continue;
        };
        work.seconds += (commit.at - before.at).as_secs_f64();
        work.worker_seconds += worker_seconds;
        work.useful += 1;
        work.possible += possible;
        let cause = causes.of_stretch(before, commit);
        *work.lost_to.entry(cause).or_default() += possible - 1.0;
    }
    work
}

/// Steps that were possible between two commits, and the seconds of all workers that were alive.
fn possible(
    before: &Commit,
    commit: &Commit,
    alive: &Curve,
    (quiet, rate): (&Rates, &Rate<'_>),
) -> Option<(f64, f64)> {
    let (mut possible, mut worker_seconds) = (0.0, 0.0);
    for (workers, seconds) in alive.stretches(before.at, commit.at) {
        let each = match before.stage == commit.stage {
            true => rate(&commit.stage, workers, commit.at)?,
            false => quiet.border_seconds(&commit.stage)?,
        };
        worker_seconds += f64::from(workers) * seconds;
        if workers > 0 {
            possible += seconds / each;
        }
    }
    Some((possible, worker_seconds))
}

/// What happened when.
struct Causes<'a> {
    story: &'a Story,
    starts: Vec<(Duration, Duration)>,
}

impl<'a> Causes<'a> {
    fn of(story: &'a Story) -> Self {
        let starts = story.starts();
        Self { story, starts }
    }

    /// The first of these that took place between two commits.
    fn of_stretch(&self, before: &Commit, commit: &Commit) -> &'static str {
        let span = (before.at, commit.at);
        let within = |at: Duration| at > span.0 && at <= span.1;
        let notes = self.story.notes.iter().filter(|note| within(note.at));
        for note in notes.clone() {
            if let Entry::GenerationFormed { lost, .. } = &note.entry
                && let Some(id) = lost.first()
            {
                return self.cause_of_loss(id.as_str(), note.at);
            }
        }
        for note in notes {
            match &note.entry {
                Entry::GenerationFormed { joined, .. } if !joined.is_empty() => {
                    return "newcomers that come in";
                }
                Entry::GenerationFormed { left, .. } if !left.is_empty() => {
                    return "leave and join";
                }
                Entry::GenerationFormed { .. } => return "cut from peers",
                _ => {}
            }
        }
        let touches = |injected: &&Injected| {
            let until = injected.over.unwrap_or(injected.at).max(injected.at);
            overlap(span, (injected.at, until + Duration::from_millis(1)))
        };
        if let Some(injected) = self.story.injected.iter().find(touches) {
            return injected.fault.kind();
        }
        if before.stage != commit.stage {
            return "borders of stages";
        }
        match self.starts.iter().any(|start| overlap(span, *start)) {
            true => "workers that start",
            false => "anything else",
        }
    }

    /// The last thing that was done to a worker before it was lost.
    fn cause_of_loss(&self, whom: &str, at: Duration) -> &'static str {
        let done = self.story.injected.iter().rev();
        let mut done = done.filter(|injected| injected.whom == whom && injected.at <= at);
        done.next()
            .map_or("losses without a cause", |injected| injected.fault.kind())
    }
}

fn kinds(outcomes: &[Outcome]) -> BTreeMap<&'static str, Kind> {
    let mut kinds: BTreeMap<&'static str, Kind> = BTreeMap::new();
    let names: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.kind).collect();
    for name in names {
        let of_kind = || outcomes.iter().filter(|outcome| outcome.kind == name);
        let count = |is: &dyn Fn(&Outcome) -> bool| of_kind().filter(|o| is(o)).count() as u64;
        let seen = || of_kind().filter(|o| !o.headless || name == "coordinator killed");
        let kind = Kind {
            count: count(&|_| true),
            lost: count(&|outcome| outcome.lost),
            headless: count(&|outcome| outcome.headless),
            noticed: times(seen().filter_map(|outcome| outcome.noticed_seconds)),
            recovered: times(seen().filter_map(|outcome| outcome.recovered_seconds)),
        };
        kinds.insert(name, kind);
    }
    kinds
}

fn times(seconds: impl Iterator<Item = f64>) -> Option<Times> {
    let seconds: Vec<f64> = seconds.collect();
    let (median_seconds, p99_seconds) = median_and_p99(&seconds)?;
    Some(Times {
        median_seconds,
        p99_seconds,
    })
}

/// Steps that counted already when a generation of none but new processes began behind them.
fn steps_again(chaos: &Story) -> u64 {
    let mut steps = 0;
    let mut before = BTreeSet::new();
    for note in &chaos.notes {
        let Entry::GenerationFormed {
            members,
            after_step,
            ..
        } = &note.entry
        else {
            continue;
        };
        let members: BTreeSet<u64> = members.iter().map(|member| member.incarnation.0).collect();
        if members.is_disjoint(&before) {
            let known = chaos.commits.iter().filter(|commit| commit.at <= note.at);
            let last = known.map(|commit| commit.step).max().unwrap_or(0);
            steps += last.saturating_sub(*after_step);
        }
        before = members;
    }
    steps
}

/// Lanes of the workers that were lost, in the generations before.
fn lanes_again(notes: &[Note]) -> u64 {
    let mut lanes = 0;
    let mut before: BTreeMap<String, u64> = BTreeMap::new();
    for note in notes {
        let Entry::GenerationFormed { members, lost, .. } = &note.entry else {
            continue;
        };
        let held = |id: &mks2_proto::ids::MemberId| before.get(id.as_str()).copied().unwrap_or(0);
        lanes += lost.iter().map(held).sum::<u64>();
        let members = members.iter();
        before = members
            .map(|member| (member.member.to_string(), member.lanes.len() as u64))
            .collect();
    }
    lanes
}

/// Holds everything that both runs have against each other.
fn bits(chaos: &Story, quiet: &Story) -> Bits {
    let known: BTreeMap<u64, &str> = quiet
        .commits
        .iter()
        .map(|commit| (commit.step, commit.bits.as_str()))
        .collect();
    let mut bits = Bits::default();
    let mut different: BTreeSet<u64> = chaos.again_otherwise.clone();
    for commit in &chaos.commits {
        if let Some(right) = known.get(&commit.step) {
            bits.steps_compared += 1;
            if commit.bits != *right {
                different.insert(commit.step);
            }
        }
    }
    for (step, digest) in &chaos.weights {
        if let Some(right) = quiet.weights.get(step) {
            bits.checkpoints_compared += 1;
            if digest != right {
                different.insert(*step);
            }
        }
    }
    bits.different = different.len() as u64;
    bits
}

#[cfg(test)]
mod tests;
