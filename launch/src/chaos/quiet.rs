//! The quiet run: the same job, processes and proxies, and nothing goes wrong. Its numbers of workers
//! change on purpose, at step borders, so that it is known how fast the job goes with each of those
//! that the run under chaos had.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use mks2_coordinator::journal::Entry;
use mks2_proto::failure::{ExitCode, Failure};

use super::cluster::{Cluster, Ended};
use super::observe::{Observer, load};
use super::setup::Setup;
use super::story::{Commit, Life, Story};
use crate::output::Output;
use crate::train::cause;
use crate::train::fleet::Exit;
use crate::train::signals::Signals;

const LOOK: Duration = Duration::from_millis(10);
/// Steps that are made with each number of workers, if the stage has as many.
const STEPS: u64 = 40;
/// A number of workers is measured if the run had it for this share of a stage's time.
const WORTH: f64 = 0.01;
/// No quiet run has more ends of processes than these.
const MOST_BY_ITSELF: usize = 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Which numbers of workers each stage is to be run with, beside all of them.
pub(super) type Itinerary = BTreeMap<String, Vec<u32>>;

/// The numbers of workers that a run had, by stage, largest first.
pub(super) fn itinerary(chaos: &Story, workers: u32) -> Itinerary {
    let alive = chaos.alive();
    let mut had: BTreeMap<&str, BTreeMap<u32, f64>> = BTreeMap::new();
    for pair in chaos.commits.windows(2) {
        let [before, commit] = pair else { continue };
        let of_stage = had.entry(&commit.stage).or_default();
        for (number, seconds) in alive.stretches(before.at, commit.at) {
            *of_stage.entry(number).or_default() += seconds;
        }
    }
    let worth = |of_stage: BTreeMap<u32, f64>| {
        let all: f64 = of_stage.values().sum();
        let some = of_stage.into_iter().rev();
        some.filter(|(number, seconds)| (1..workers).contains(number) && *seconds >= WORTH * all)
            .map(|(number, _)| number)
            .collect()
    };
    had.into_iter()
        .map(|(stage, of_stage)| (stage.to_owned(), worth(of_stage)))
        .collect()
}

struct Quiet<'a> {
    setup: &'a Setup,
    cluster: Cluster<'a>,
    observer: Observer,
    story: Story,
    output: &'a Output,
    itinerary: &'a Itinerary,
    /// The stage at work, and the numbers of workers that are still to come in it.
    stage: String,
    next: VecDeque<u32>,
    /// How many workers the run is to have now, and since which step.
    wanted: (u32, u64),
    until_step: u64,
    stopping: bool,
    vacant: Vec<bool>,
}

/// Runs the job quietly, until the checkpoint of a step is there.
///
/// # Errors
/// As for a run under chaos.
pub(super) async fn run(
    setup: &Setup,
    folder: &Path,
    (itinerary, until_step): (&Itinerary, u64),
    signals: &mut Signals,
    output: &Output,
) -> Result<Story, Failure> {
    output.note(&format!(
        "the quiet run, until step {until_step}, to compare with and to measure"
    ));
    let observer = Observer::new(folder);
    let cluster = Cluster::start(setup, folder).await?;
    let mut quiet = Quiet {
        setup,
        cluster,
        observer,
        story: Story::default(),
        output,
        itinerary,
        stage: String::new(),
        next: VecDeque::new(),
        wanted: (setup.workers, 0),
        until_step,
        stopping: false,
        vacant: vec![false; setup.workers as usize],
    };
    quiet.story.load[0] = load();
    for place in 0..setup.workers {
        quiet.came(place);
    }
    let ended = quiet.until_over(signals).await;
    let Quiet {
        cluster,
        mut observer,
        mut story,
        ..
    } = quiet;
    let patience = if ended.is_ok() {
        PATIENCE
    } else {
        Duration::ZERO
    };
    cluster.end(patience).await;
    ended?;
    story.load[1] = load();
    observer.finish(&mut story)?;
    story.ended = observer.now();
    Ok(story)
}

impl Quiet<'_> {
    async fn until_over(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        loop {
            self.observer.look(&mut self.story)?;
            self.advance().await?;
            tokio::select! {
                ended = self.cluster.next_end() => match ended {
                    Ended::Worker(exit) => self.worker_ended(&exit)?,
                    Ended::Coordinator(status) => {
                        return match status.and_then(|status| status.code()) {
                            Some(0 | 130) => Ok(()),
                            _ => Err(cause::of_coordinator(&self.cluster.coordinator_log(), status)),
                        };
                    }
                },
                by = signals.next() => {
                    return Err(Failure::stopped(
                        "the quiet run was stopped",
                        by,
                        "start the chaos again with another --out",
                    ));
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn advance(&mut self) -> Result<(), Failure> {
        let reached = self.story.notes.iter().any(|note| match &note.entry {
            Entry::CheckpointCommitted { checkpoint, .. } => checkpoint.step >= self.until_step,
            _ => false,
        });
        if reached && !self.stopping {
            self.stopping = true;
            // It may have finished by itself.
            let _finished = self.cluster.stop().await;
        }
        let Some(last) = self.story.commits.last().cloned() else {
            return Ok(());
        };
        if last.stage != self.stage {
            self.stage.clone_from(&last.stage);
            let numbers = self.itinerary.get(&last.stage).cloned();
            self.next = numbers.unwrap_or_default().into();
            return self.want(self.setup.workers, last.step).await;
        }
        if self.has_measured(&last) && !self.stopping {
            match self.next.pop_front() {
                Some(number) => self.want(number, last.step).await?,
                None if self.wanted.0 < self.setup.workers => {
                    self.want(self.setup.workers, last.step).await?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Enough steps were made with the number of workers that is wanted now.
    fn has_measured(&self, last: &Commit) -> bool {
        let (workers, since) = self.wanted;
        let of_stage = self.setup.course.leg_of(last.step);
        let numbers = self.itinerary.get(&self.stage).map_or(0, Vec::len) as u64 + 1;
        let share = of_stage.map_or(0, |leg| leg.steps / (2 * numbers));
        let mut made = self.story.commits.iter().rev();
        let made = made
            .by_ref()
            .take_while(|commit| commit.step > since)
            .filter(|commit| commit.workers == workers);
        made.count() as u64 >= STEPS.min(share).max(1)
    }

    async fn want(&mut self, workers: u32, step: u64) -> Result<(), Failure> {
        let before = self.wanted.0;
        self.wanted = (workers, step);
        if workers == before {
            return Ok(());
        }
        self.cluster.scale(workers).await?;
        let there = |vacant: &[bool]| vacant.iter().filter(|vacant| !**vacant).count();
        for place in 0..self.setup.workers {
            let is_short = there(&self.vacant) < workers as usize;
            if is_short && std::mem::take(&mut self.vacant[place as usize]) {
                self.cluster.start_worker(place, 1)?;
                self.came(place);
            }
        }
        Ok(())
    }

    fn came(&mut self, place: u32) {
        let now = self.observer.now();
        let name = format!("worker-{place}");
        self.story.lives.push((now, name, Life::Up));
    }

    /// One that was let go leaves its place. One that ended by itself, on a machine that is too busy
    /// for example, is replaced: the bits do not depend on it, and steps meanwhile are not measured.
    fn worker_ended(&mut self, exit: &Exit) -> Result<(), Failure> {
        let now = self.observer.now();
        let name = format!("worker-{}", exit.rank);
        self.story.lives.push((now, name.clone(), Life::Down));
        if exit.status.success() || self.stopping {
            if let Some(vacant) = self.vacant.get_mut(exit.rank as usize) {
                *vacant = true;
            }
            return Ok(());
        }
        let how = cause::ending(exit.status);
        let worker = self.cluster.fleet.workers().get(exit.rank as usize);
        let log = worker.map_or_else(String::new, |w| w.log.display().to_string());
        self.story.by_itself.push(format!("{name}: {how}"));
        if self.story.by_itself.len() > MOST_BY_ITSELF {
            return Err(Failure::new(
                ExitCode::RunFailed,
                "the quiet run is not quiet",
                format!("workers end by themselves again and again; {name}: {how}"),
                format!("read its log: {log}; a machine that does less may help"),
            ));
        }
        self.output.warning(
            &format!("{name} of the quiet run ended by itself and is replaced"),
            &format!("{how} (log {log})"),
        );
        self.cluster.start_worker(exit.rank, 1)?;
        self.came(exit.rank);
        Ok(())
    }
}
