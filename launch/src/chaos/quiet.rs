//! The quiet run: the same job, processes and proxies, and nothing goes wrong. Its numbers of workers
//! change on purpose, at step borders, so that it is known how fast the job goes with each of those
//! that the run under chaos had.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
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

/// Which numbers of workers each stage is to be run with, beside all of them.
pub(super) type Itinerary = BTreeMap<String, Vec<u32>>;

/// The numbers of workers that a run had, by stage, largest first.
pub(super) fn itinerary(chaos: &Story, workers: u32) -> Itinerary {
    let alive = chaos.alive();
    let mut had: BTreeMap<&str, BTreeMap<u32, f64>> = BTreeMap::new();
    for pair in chaos.commits.windows(2) {
        let [before, commit] = pair else { continue };
        if !chaos.is_scored(before.at) {
            continue;
        }
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

/// The quiet run: a part before the run under chaos and one behind each section of it, so that a
/// machine that is faster at one time than at another has less of a say in the score.
pub(super) struct Quiet<'a> {
    setup: &'a Setup,
    folder: PathBuf,
    observer: Observer,
    story: Story,
    output: &'a Output,
}

/// How far a part of the quiet run goes.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// To a time, or to a step if that comes first.
    Time(Duration, u64),
    /// To the checkpoint of a step.
    Checkpoint(u64),
}

/// A part of the quiet run: from the start of its processes to their end.
struct Part<'q, 'a> {
    quiet: &'q mut Quiet<'a>,
    cluster: Cluster<'a>,
    itinerary: &'q Itinerary,
    /// The stage at work, and the numbers of workers that are still to come in it.
    stage: String,
    next: VecDeque<u32>,
    /// How many workers the run is to have now, and since which step.
    wanted: (u32, u64),
    until: Until,
    stopping: bool,
    vacant: Vec<bool>,
}

impl<'a> Quiet<'a> {
    /// A run that has not begun.
    pub(super) fn new(setup: &'a Setup, folder: PathBuf, output: &'a Output) -> Self {
        let observer = Observer::new(&folder);
        let mut story = Story::default();
        story.load[0] = load();
        Self {
            setup,
            folder,
            observer,
            story,
            output,
        }
    }

    /// Runs for so long before the chaos begins, at most half of the job.
    ///
    /// # Errors
    /// As for a run under chaos.
    pub(super) async fn before(
        &mut self,
        length: Duration,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let until = Until::Time(length, self.setup.course.total_steps() / 2);
        // Of what the run under chaos will have only this is known: one worker is away at a time.
        let fewer = vec![self.setup.workers - 1];
        let legs = self.setup.course.legs.iter();
        let itinerary = legs.map(|leg| (leg.name.clone(), fewer.clone())).collect();
        self.part(&itinerary, until, signals).await
    }

    /// Goes on until the checkpoint of a step is there.
    ///
    /// # Errors
    /// As for a run under chaos.
    pub(super) async fn follow(
        &mut self,
        itinerary: &Itinerary,
        step: u64,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let until = Until::Checkpoint(step);
        if self.is_beyond(until) {
            return Ok(());
        }
        self.part(itinerary, until, signals).await
    }

    /// What was seen of all parts.
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub(super) fn finish(mut self) -> Result<Story, Failure> {
        self.story.load[1] = load();
        self.observer.finish(&mut self.story)?;
        Ok(self.story)
    }

    /// Whether it has gone as far as that.
    fn is_beyond(&self, until: Until) -> bool {
        let story = &self.story;
        match until {
            Until::Time(at, step) => {
                let has_come = |commit: &Commit| commit.step >= step;
                self.observer.now() >= at || story.commits.last().is_some_and(has_come)
            }
            Until::Checkpoint(step) => story.notes.iter().any(|note| match &note.entry {
                Entry::CheckpointCommitted { checkpoint, .. } => checkpoint.step >= step,
                _ => false,
            }),
        }
    }

    async fn part(
        &mut self,
        itinerary: &Itinerary,
        until: Until,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let setup = self.setup;
        let cluster = Cluster::start(setup, &self.folder).await?;
        let mut part = Part {
            quiet: self,
            cluster,
            itinerary,
            stage: String::new(),
            next: VecDeque::new(),
            wanted: (setup.workers, 0),
            until,
            stopping: false,
            vacant: vec![false; setup.workers as usize],
        };
        for place in 0..setup.workers {
            part.came(place);
        }
        let ended = part.until_over(signals).await;
        part.cluster.end(ended.is_ok()).await;
        ended?;
        self.story.all_down(self.observer.now());
        // What was written last belongs to this part's time.
        self.observer.look(&mut self.story)
    }
}

impl Part<'_, '_> {
    async fn until_over(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        loop {
            self.quiet.observer.look(&mut self.quiet.story)?;
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
        if !self.stopping && self.quiet.is_beyond(self.until) {
            // It may have finished by itself; otherwise it is asked again.
            self.stopping = self.cluster.stop().await.is_ok();
        }
        let Some(last) = self.quiet.story.commits.last().cloned() else {
            return Ok(());
        };
        if last.stage != self.stage {
            self.stage.clone_from(&last.stage);
            let numbers = self.itinerary.get(&last.stage).cloned();
            self.next = numbers.unwrap_or_default().into();
            return self.want(self.quiet.setup.workers, last.step).await;
        }
        if self.has_measured(&last) && !self.stopping {
            match self.next.pop_front() {
                Some(number) => self.want(number, last.step).await?,
                None if self.wanted.0 < self.quiet.setup.workers => {
                    self.want(self.quiet.setup.workers, last.step).await?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Enough steps were made with the number of workers that is wanted now.
    fn has_measured(&self, last: &Commit) -> bool {
        let (workers, since) = self.wanted;
        let of_stage = self.quiet.setup.course.leg_of(last.step);
        let numbers = self.itinerary.get(&self.stage).map_or(0, Vec::len) as u64 + 1;
        let share = of_stage.map_or(0, |leg| leg.steps / (2 * numbers));
        let mut made = self.quiet.story.commits.iter().rev();
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
        for place in 0..self.quiet.setup.workers {
            let is_short = there(&self.vacant) < workers as usize;
            if is_short && std::mem::take(&mut self.vacant[place as usize]) {
                self.cluster.start_worker(place, 1)?;
                self.came(place);
            }
        }
        Ok(())
    }

    fn came(&mut self, place: u32) {
        let now = self.quiet.observer.now();
        let name = format!("worker-{place}");
        self.quiet.story.lives.push((now, name, Life::Up));
    }

    /// One that was let go leaves its place. One that ended by itself, on a machine that is too busy
    /// for example, is replaced: the bits do not depend on it, and steps meanwhile are not measured.
    fn worker_ended(&mut self, exit: &Exit) -> Result<(), Failure> {
        let now = self.quiet.observer.now();
        let name = format!("worker-{}", exit.rank);
        self.quiet.story.lives.push((now, name.clone(), Life::Down));
        if exit.status.success() || self.stopping {
            if let Some(vacant) = self.vacant.get_mut(exit.rank as usize) {
                *vacant = true;
            }
            return Ok(());
        }
        let how = cause::ending(exit.status);
        let worker = self.cluster.fleet.workers().get(exit.rank as usize);
        let log = worker.map_or_else(String::new, |w| w.log.display().to_string());
        self.quiet.story.by_itself.push(format!("{name}: {how}"));
        if self.quiet.story.by_itself.len() > MOST_BY_ITSELF {
            return Err(Failure::new(
                ExitCode::RunFailed,
                "the quiet run is not quiet",
                format!("workers end by themselves again and again; {name}: {how}"),
                format!("read its log: {log}; a machine that does less may help"),
            ));
        }
        self.quiet.output.warning(
            &format!("{name} of the quiet run ended by itself and is replaced"),
            &format!("{how} (log {log})"),
        );
        self.cluster.start_worker(exit.rank, 1)?;
        self.came(exit.rank);
        Ok(())
    }
}
