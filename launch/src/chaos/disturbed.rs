//! The run under chaos: does what the schedule says to the processes of a run, keeps it supplied with
//! workers, and writes down what becomes of it.

mod inflict;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use mks2_coordinator::journal::Entry;
use mks2_proto::failure::Failure;

use super::cluster::{Cluster, Ended};
use super::observe::{Observer, load};
use super::outcome::outcome;
use super::schedule::{Link, Planned};
use super::setup::Setup;
use super::story::{Life, Story};
use crate::output::Output;
use crate::train::cause;
use crate::train::fleet::Exit;
use crate::train::signals::Signals;
use crate::units::clock;

/// How often it is looked at what the run writes.
const LOOK: Duration = Duration::from_millis(10);
/// Steps of all workers together before the chaos begins.
const WARM_UP: usize = 5;
/// A run in which no step counts for so long stands still.
const STANDSTILL: Duration = Duration::from_secs(180);
/// A worker may end by itself for so long after it was hindered: it was told that it is lost.
const AFTERMATH: Duration = Duration::from_secs(20);
/// No run is worth more starts of processes that end by themselves.
const MOST_BY_ITSELF: usize = 60;
/// How a worker ends that the run has no room for.
const REFUSED: i32 = 3;

/// Where the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// All workers come together.
    Gathering,
    Chaos {
        until: Duration,
    },
    /// Nothing happens any more; the next checkpoint is awaited.
    Calm {
        since: Duration,
    },
    Stopping,
    Over,
}

/// Something to do at a time. The numbers of faults are places in the story.
#[derive(Clone, Copy, Debug)]
enum Act {
    Inject(Planned),
    Continue(u32, usize),
    Heal(u32, Link, usize),
    Succeed { moves: bool, fault: usize },
    Grow(usize),
}

/// A run under chaos. It takes place in sections, each with processes of its own.
pub(super) struct Disturbed<'a> {
    setup: &'a Setup,
    folder: PathBuf,
    observer: Observer,
    story: Story,
    output: &'a Output,
    plan: &'a [Planned],
    /// Faults of which nothing more is awaited.
    told: BTreeSet<usize>,
}

/// A section of it, from the start of its processes to their end.
struct Section<'d, 'a> {
    run: &'d mut Disturbed<'a>,
    cluster: Cluster<'a>,
    /// Its part of the time in which faults are made.
    times: Range<Duration>,
    started: Duration,
    phase: Phase,
    due: Vec<(Duration, Act)>,
    places: Vec<Place>,
    /// Since when there is no coordinator.
    headless: Option<Duration>,
    /// The run is to have one worker fewer.
    is_smaller: bool,
}

/// A worker's place.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Somebody killed it, and it has not ended yet.
    killed: bool,
    /// Hindrances that are not over.
    hindered: u32,
    /// When the last one was over.
    freed: Option<Duration>,
    /// Nobody is to be started here.
    vacant: bool,
    restarts: u32,
}

impl<'a> Disturbed<'a> {
    /// A run that has not begun.
    pub(super) fn new(
        setup: &'a Setup,
        folder: PathBuf,
        plan: &'a [Planned],
        output: &'a Output,
    ) -> Self {
        Self {
            setup,
            observer: Observer::new(&folder),
            folder,
            story: Story::default(),
            output,
            plan,
            told: BTreeSet::new(),
        }
    }

    /// Runs, or goes on, with the faults of a part of the plan's time, and then undisturbed to the next
    /// checkpoint.
    ///
    /// # Errors
    /// Programs or ports are missing, the run fails or stands still, Ctrl-C.
    pub(super) async fn section(
        &mut self,
        times: Range<Duration>,
        signals: &mut Signals,
    ) -> Result<&Story, Failure> {
        let setup = self.setup;
        let cluster = Cluster::start(setup, &self.folder).await?;
        let started = self.observer.now();
        for place in 0..setup.workers {
            self.story.lives.push((started, name(place), Life::Up));
        }
        let mut section = Section {
            run: self,
            cluster,
            times,
            started,
            phase: Phase::Gathering,
            due: Vec::new(),
            places: vec![Place::default(); setup.workers as usize],
            headless: None,
            is_smaller: false,
        };
        let ended = section.until_over(signals).await;
        section.cluster.end(ended.is_ok()).await;
        ended?;
        self.story.all_down(self.observer.now());
        self.observer.look(&mut self.story)?;
        Ok(&self.story)
    }

    /// Whether all steps of the job are done.
    pub(super) fn is_done(&self) -> bool {
        let last = self.story.commits.last();
        last.is_some_and(|last| last.step >= self.setup.course.total_steps())
    }

    /// What was seen of all sections.
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub(super) fn finish(mut self) -> Result<Story, Failure> {
        self.observer.finish(&mut self.story)?;
        Ok(self.story)
    }
}

fn name(place: u32) -> String {
    format!("worker-{place}")
}

impl Section<'_, '_> {
    async fn until_over(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        while self.phase != Phase::Over {
            self.run.observer.look(&mut self.run.story)?;
            self.tell();
            self.advance().await?;
            while let Some(act) = self.next_due() {
                self.act(act).await?;
            }
            tokio::select! {
                ended = self.cluster.next_end() => match ended {
                    Ended::Worker(exit) => self.worker_ended(&exit)?,
                    Ended::Coordinator(status) => self.coordinator_ended(status).await?,
                },
                by = signals.next() => return Err(stopped(by)),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.run.observer.now()
    }

    fn next_due(&mut self) -> Option<Act> {
        let now = self.now();
        let due = self
            .due
            .iter()
            .enumerate()
            .filter(|(_, (at, _))| *at <= now);
        let (first, _) = due.min_by_key(|(_, (at, _))| *at)?;
        Some(self.due.swap_remove(first).1)
    }

    /// Goes on to the next phase when it is time.
    async fn advance(&mut self) -> Result<(), Failure> {
        let (now, is_done) = (self.now(), self.run.is_done());
        let last = self.run.story.commits.last();
        let last = last.map_or(self.started, |last| last.at.max(self.started));
        let since_step = now.saturating_sub(last);
        match self.phase {
            Phase::Gathering if self.is_warm() => self.begin(now),
            Phase::Chaos { until } if is_done || now >= until => self.end_chaos(now, is_done),
            Phase::Calm { since } if self.due.is_empty() && self.has_checkpoint_after(since) => {
                self.stop().await;
            }
            _ if since_step > STANDSTILL && !is_done => return Err(self.stands_still(since_step)),
            _ => {}
        }
        Ok(())
    }

    /// Asks the run to stop. Without a coordinator it is asked later.
    async fn stop(&mut self) {
        if self.cluster.has_coordinator() && self.cluster.stop().await.is_ok() {
            self.phase = Phase::Stopping;
        }
    }

    fn is_warm(&self) -> bool {
        let all = |workers: u32| workers == self.run.setup.workers;
        let commits = self.run.story.commits.iter().rev();
        let of_section = commits.take_while(|commit| commit.at >= self.started);
        of_section.filter(|commit| all(commit.workers)).count() >= WARM_UP
    }

    fn begin(&mut self, now: Duration) {
        let Range { start, end } = self.times;
        let until = now + end.saturating_sub(start);
        self.phase = Phase::Chaos { until };
        if self.run.story.scored.is_empty() {
            self.run.story.load[0] = load();
        }
        self.run.story.scored.push((now, until));
        let plan = self.run.plan.iter();
        let plan = plan.filter(|planned| self.times.contains(&planned.at));
        self.due
            .extend(plan.map(|planned| (now + planned.at - start, Act::Inject(*planned))));
    }

    fn end_chaos(&mut self, now: Duration, is_done: bool) {
        self.due.retain(|(_, act)| !matches!(act, Act::Inject(_)));
        self.phase = Phase::Calm { since: now };
        if let Some((_, until)) = self.run.story.scored.last_mut() {
            *until = now;
        }
        self.run.story.load[1] = load();
        let last = self.run.story.commits.last();
        self.run.output.note(&match (is_done, last) {
            (true, _) => "all steps of the job are done: no more faults".to_owned(),
            (false, Some(last)) => format!(
                "no more faults at step {}: the run goes on undisturbed to its next checkpoint",
                last.step
            ),
            (false, None) => "no more faults".to_owned(),
        });
    }

    fn has_checkpoint_after(&self, since: Duration) -> bool {
        let mut later = self.run.story.notes.iter().filter(|note| note.at > since);
        later.any(|note| matches!(note.entry, Entry::CheckpointCommitted { .. }))
    }

    /// A worker's process has ended: another one takes its place, unless it was let go.
    fn worker_ended(&mut self, exit: &Exit) -> Result<(), Failure> {
        let now = self.now();
        let place = exit.rank;
        self.run.story.lives.push((now, name(place), Life::Down));
        let mark = *self.mark(place);
        let is_ending = matches!(self.phase, Phase::Stopping | Phase::Over);
        // While the run is to be smaller it may also refuse one that was about to come.
        let was_refused = self.is_smaller && exit.status.code() == Some(REFUSED);
        let was_let_go = exit.status.success() || was_refused;
        let is_aftermath =
            mark.hindered > 0 || mark.freed.is_some_and(|freed| now < freed + AFTERMATH);
        if !(mark.killed || is_aftermath || was_let_go || is_ending) {
            self.ended_by_itself(exit)?;
        }
        if is_ending || (was_let_go && self.run.is_done()) {
            return Ok(());
        }
        if was_let_go && self.is_smaller {
            self.mark(place).vacant = true;
            return Ok(());
        }
        // Whatever was in the way of the last one is not in the way of the next.
        for link in [Link::Coordinator, Link::Peers] {
            self.cluster.heal(place, link);
        }
        self.cluster.start_worker(place, mark.restarts + 1)?;
        self.came(place);
        Ok(())
    }

    fn ended_by_itself(&mut self, exit: &Exit) -> Result<(), Failure> {
        let (whom, how) = (name(exit.rank), cause::ending(exit.status));
        let at = clock(self.run.story.scored_until(self.now()));
        self.run.output.warning(
            &format!("{at}  {whom} ended though nothing was done to it"),
            &how,
        );
        self.run.story.by_itself.push(format!("{at} {whom}: {how}"));
        if self.run.story.by_itself.len() > MOST_BY_ITSELF {
            let log = self.cluster.fleet.workers().get(exit.rank as usize);
            let log = log.map_or_else(String::new, |worker| worker.log.display().to_string());
            return Err(Failure::run_failed(
                "workers end by themselves again and again",
                format!("{whom}: {how}"),
                format!("read its log: {log}"),
            ));
        }
        Ok(())
    }

    /// The coordinator ended by itself: with the run, or it was not meant to.
    async fn coordinator_ended(&mut self, status: Option<ExitStatus>) -> Result<(), Failure> {
        let code = status.and_then(|status| status.code());
        if matches!(code, Some(0 | 130)) {
            self.phase = Phase::Over;
            return Ok(());
        }
        let failed = |note: &super::story::Note| matches!(note.entry, Entry::RunFailed { .. });
        let failure = cause::of_coordinator(&self.cluster.coordinator_log(), status);
        self.run.observer.look(&mut self.run.story)?;
        if self.run.story.notes.last().is_some_and(failed) {
            return Err(failure);
        }
        self.run.output.warning(&failure.what, &failure.why);
        self.run
            .story
            .by_itself
            .push(format!("the coordinator: {}", failure.why));
        self.cluster.start_coordinator(false).await
    }

    /// One line for each fault of which everything is known.
    fn tell(&mut self) {
        let (now, story) = (self.now(), &self.run.story);
        for (number, injected) in story.injected.iter().enumerate() {
            if self.run.told.contains(&number) {
                continue;
            }
            let found = outcome(injected, story);
            if found.is_settled(injected, now) {
                let at = clock(story.scored_until(injected.at));
                let what = injected.fault.words(&injected.whom);
                self.run
                    .output
                    .note(&format!("{at}  {what}: {}", found.words()));
                self.run.told.insert(number);
            }
        }
    }

    fn stands_still(&self, time: Duration) -> Failure {
        let last = self.run.story.injected.last();
        let last = last.map(|injected| injected.fault.words(&injected.whom));
        Failure::run_failed(
            "the run stands still",
            format!(
                "no step counted for {} s; the last thing that happened to it: {}",
                time.as_secs(),
                last.unwrap_or_else(|| "nothing".to_owned())
            ),
            format!(
                "read the logs beside {}, and report them with the seed",
                self.cluster.coordinator_log().display()
            ),
        )
    }
}

fn stopped(by: &str) -> Failure {
    Failure::stopped(
        "the chaos was stopped",
        format!("{by}; nothing is scored"),
        "start it again with another --out, or remove the folder",
    )
}
