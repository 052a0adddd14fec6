//! `mks2 train`: a local run. The coordinator runs inside this process on the loopback; the
//! workers are children.
//!
//! ```text
//! job ─► checks ─► run directory, lock ─► coordinator ─► workers ─► follow ─► end ─► table
//! ```
//!
//! 1. Everything that can be refused is refused before a worker starts.
//! 2. One launcher per local run directory, by a lock that dies with the process.
//! 3. Workers are started on the main thread: the kernel kills them when it ends.
//! 4. The first cause in time is shown, and as soon as it is known: before anybody is waited for.
//!    The coordinator knows most causes; of a worker that died before it joined, exit code and log
//!    tell.
//! 5. No child outlives this function: terminate, grace, kill.

pub(crate) mod cause;
pub(crate) mod fleet;
mod lost;
mod prepare;
mod replace;
pub(crate) mod signals;
pub(crate) mod spawn;
mod supervise;

pub(crate) use prepare::{located, open_inputs, program_beside, used_corpora, worker_program};

use std::time::Duration;

use mks2_coordinator::contact::{Contact, Published};
use mks2_coordinator::journal::{self, Entry, Place};
use mks2_coordinator::{Coordinator, Outcome, Resume, Running};
use mks2_dataset::store;
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::ids::Incarnation;
use mks2_proto::v1::{CheckpointRef, RunState, StatusResponse};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cli::TrainArgs;
use crate::output::Output;
use crate::progress::Progress;
use crate::summary;
use crate::units::plural;
use fleet::{Exit, Fleet};
use lost::Lost;
use prepare::Prepared;
use replace::add_workers;
pub(crate) use signals::Signals;
use supervise::Supervisor;

/// How long workers may take to leave by themselves after a run has ended well.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same after a failure, when they have been told to end.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);
/// From the polite signal to the certain one.
const GRACE: Duration = Duration::from_secs(3);
/// How long workers may take to join the run.
const JOIN_LIMIT: Duration = Duration::from_secs(300);
/// How long the coordinator is given to tell a worker's own words before its log is read.
const LAST_WORDS: Duration = Duration::from_millis(700);
/// How long it may take to write down the end of a run, after a worker that ended well has told it.
const LAST_ENTRY: Duration = Duration::from_secs(10);
/// How long the process of a worker that was lost is given to end, so that its end can be told too.
const LAST_BREATH: Duration = Duration::from_millis(300);
/// How long the journal is given to end properly when the launcher ends the run.
const FAREWELL: Duration = Duration::from_secs(2);

/// Trains a job to its end.
///
/// # Errors
/// Everything that can go wrong with a run; see docs/cli.md.
pub(crate) async fn run(args: &TrainArgs, output: &Output) -> Result<(), Failure> {
    let prepared = prepare::prepare(args).await?;
    let mut signals = Signals::listen()?;
    let running = Coordinator::start(prepared.settings(args)).await;
    let running = running.map_err(|failure| located(failure, &prepared.run_url))?;
    if running.was_finished && args.resume == Resume::Auto {
        output.note("the job is done already: nothing is left to train");
        drop(running);
        return summary::print(&prepared.run_url, output.is_json(), output).await;
    }
    let _published = publish(&prepared, &running)?;
    greet(args, &prepared, &running, output);
    let status = running.watch.clone();
    let mut fleet = Fleet::start(&prepared.orders(args, &running, output))?;
    let follow = Follow {
        output,
        args,
        prepared: &prepared,
        running: &running,
    };
    let verdict = follow.until_over(&mut fleet, &mut signals).await;
    let outcome = match verdict {
        Err(failure) if failure.exit == ExitCode::Stopped => {
            abandon(running, &prepared, &mut fleet).await;
            Err(failure)
        }
        verdict => {
            follow.tell_cause(&verdict, &mut fleet).await;
            let patient = verdict.is_ok() && may_take_leave(&status.borrow());
            let patience = if patient { PATIENCE } else { SHORT_PATIENCE };
            end_workers(&mut fleet, &mut signals, patience).await;
            conclude(verdict, running, &fleet).await
        }
    };
    fleet.join().await;
    match outcome? {
        Outcome::Finished => summary::print(&prepared.run_url, output.is_json(), output).await,
        Outcome::Stopped => {
            let checkpoint = status.borrow().latest_checkpoint.clone();
            Err(stopped(args, &prepared, checkpoint.as_ref()))
        }
    }
}

/// Members of a run that ended well have something to finish; processes that never joined have
/// not.
fn may_take_leave(status: &StatusResponse) -> bool {
    status.state() != RunState::Failed && !status.members.is_empty()
}

/// A live run can be asked for its status from this machine: by its directory, or by the folder of
/// its logs when the directory is elsewhere.
fn publish(prepared: &Prepared, running: &Running) -> Result<Published, Failure> {
    let contact = Contact {
        endpoint: running.endpoint(),
        token: prepared.token.reveal().to_owned(),
        run_id: running.run_id.to_string(),
        pid: std::process::id(),
    };
    contact.publish(prepared.folder.as_deref().unwrap_or(&prepared.logs))
}

fn greet(args: &TrainArgs, prepared: &Prepared, running: &Running, output: &Output) {
    let job = &prepared.resolved.job;
    let workers = match args.workers.to_string().parse() {
        Ok(number) => plural(number, "worker"),
        Err(_) => format!("{} workers", args.workers),
    };
    let lanes = plural(job.lanes.into(), "lane");
    output.note(&format!(
        "run {} in {}",
        running.run_id,
        store::shown(&prepared.run_url)
    ));
    output.note(&format!(
        "{workers}, {lanes}, {}",
        plural(job.stages.len() as u64, "stage")
    ));
    if let Some(checkpoint) = &running.resumed_from {
        let place = format!("step {} (stage {})", checkpoint.step, checkpoint.stage);
        output.note(&format!("goes on from the checkpoint of {place}"));
    }
    if prepared.folder.is_none() {
        let logs = prepared.logs.display();
        output.note(&format!("logs of the workers: {logs}"));
        output.note(&format!(
            "coordinator: {}; follow it from this machine with: mks2 watch {logs}",
            running.endpoint()
        ));
    }
}

/// Follows a run while it goes on.
struct Follow<'a> {
    output: &'a Output,
    args: &'a TrainArgs,
    prepared: &'a Prepared,
    running: &'a Running,
}

impl Follow<'_> {
    /// Until the coordinator says that the run is over, or the launcher has a reason to end it.
    ///
    /// # Errors
    /// A worker that died before the run began, workers that never join, a second Ctrl-C.
    async fn until_over(&self, fleet: &mut Fleet, signals: &mut Signals) -> Result<(), Failure> {
        let mut progress = Progress::new(self.output);
        let verdict = self.listen(fleet, signals, &mut progress).await;
        progress.finish();
        verdict
    }

    async fn listen(
        &self,
        fleet: &mut Fleet,
        signals: &mut Signals,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let mut watch = self.running.watch.clone();
        let before = watch.borrow().generation;
        let late = Instant::now() + JOIN_LIMIT;
        let mut asked_to_stop = false;
        let mut lost = Lost::default();
        let mut supervisor = Supervisor::new(self.args.restarts, self.args.preemptions);
        let mut wanted = self.args.workers.max;
        loop {
            let status = watch.borrow_and_update().clone();
            progress.update(&status);
            lost.hear(&status, fleet);
            if is_over(&status) {
                return Ok(());
            }
            let has_begun = status.generation > before;
            let waits = !has_begun && status.state() == RunState::WaitingForMembers;
            if status.state() == RunState::Stopping {
                supervisor.rest();
            }
            if status.wanted_members > wanted {
                add_workers(status.wanted_members, fleet, &mut supervisor);
            }
            wanted = status.wanted_members;
            tokio::select! {
                biased;
                by = signals.next() => {
                    if asked_to_stop {
                        return Err(self.stopped_at_once());
                    }
                    asked_to_stop = true;
                    self.ask_to_stop(by).await;
                }
                rank = lost.is_due() => lost.end(rank, fleet),
                exit = fleet.next_exit() => {
                    lost.forget(exit.rank);
                    self.worker_ended(&exit, fleet, &mut watch, has_begun).await?;
                    if has_begun && !asked_to_stop {
                        self.replace(&exit, fleet, &mut supervisor, &mut watch).await?;
                    }
                }
                (rank, restarts) = supervisor.next() => {
                    fleet.start_one(rank, restarts)?;
                    let member = fleet.workers().get(rank as usize).map(|w| w.member.to_string());
                    let member = member.unwrap_or_default();
                    self.output.note(&format!("{member} is started again"));
                }
                changed = watch.changed() => if changed.is_err() {
                    return Ok(());
                },
                () = tokio::time::sleep_until(late), if waits => {
                    return Err(self.never_joined(&status));
                }
            }
        }
    }

    /// Shows why the run failed before anybody is waited for. A worker that was lost and is still
    /// there does not answer: it is killed at once.
    async fn tell_cause(&self, verdict: &Result<(), Failure>, fleet: &mut Fleet) {
        let status = self.running.watch.borrow().clone();
        match (verdict, status.failure) {
            (Err(failure), _) => self.output.failure(failure),
            (Ok(()), Some(told)) => {
                let failure = Failure::from(told);
                if let Some(rank) = cause::rank_of(&status.lost_member, fleet.workers()) {
                    fleet.ends_within(rank, LAST_BREATH).await;
                    fleet.kill_one(rank);
                }
                self.output.failure(&self.explained(failure, fleet));
            }
            (Ok(()), None) => {}
        }
    }

    /// With the corpus and the worker that it is about.
    fn explained(&self, failure: Failure, fleet: &Fleet) -> Failure {
        let failure = cause::with_corpus(failure, &self.prepared.resolved.job.data);
        cause::with_log(failure, fleet.workers())
    }

    async fn ask_to_stop(&self, by: &str) {
        self.output.note(&format!(
            "{by}: stopping at the next step boundary, with a checkpoint; once more stops at once"
        ));
        // The run may have ended in the meantime: then its end is what counts. And the store may not
        // take the wish: then a second one must be heard.
        if let Ok(Err(failure)) = tokio::time::timeout(FAREWELL, self.running.stop(by)).await {
            tracing::debug!(%failure, "the run could not be asked to stop");
        }
    }

    /// Tells the coordinator, which decides what the loss means. Before the run has begun, its
    /// own words about the worker are awaited for a moment, then the worker's log speaks.
    async fn worker_ended(
        &self,
        exit: &Exit,
        fleet: &Fleet,
        watch: &mut watch::Receiver<StatusResponse>,
        has_begun: bool,
    ) -> Result<(), Failure> {
        let Some(worker) = fleet.workers().get(exit.rank as usize) else {
            return Ok(());
        };
        let ending = cause::ending(exit.status);
        // A coordinator that hears nobody must not keep the next signal from being heard.
        let told = self.running.member_exited(&worker.member, &ending);
        let _late = tokio::time::timeout(FAREWELL, told).await;
        if has_begun || watch.borrow().state() != RunState::WaitingForMembers {
            if !exit.status.success() && worker.unprompted {
                let (member, log) = (&worker.member, worker.log.display());
                self.output.note(&format!("{member}: {ending} (log {log})"));
            }
            return Ok(());
        }
        let told = watch.wait_for(|status| status.state() != RunState::WaitingForMembers);
        match tokio::time::timeout(LAST_WORDS, told).await {
            Ok(_) => Ok(()),
            Err(_) => Err(cause::of_start(exit.rank, worker, exit.status)),
        }
    }

    fn never_joined(&self, status: &StatusResponse) -> Failure {
        Failure::run_failed(
            "the workers did not join the run",
            format!("after {} s: {}", JOIN_LIMIT.as_secs(), status.reason),
            format!("read their logs in {}", self.prepared.logs.display()),
        )
    }

    fn stopped_at_once(&self) -> Failure {
        Failure::stopped(
            "the run was stopped at once",
            "it was asked a second time; steps since the last checkpoint are computed again",
            resume_words(self.args, self.prepared),
        )
    }
}

fn is_over(status: &StatusResponse) -> bool {
    matches!(
        status.state(),
        RunState::Finished | RunState::Stopped | RunState::Failed
    )
}

/// Lets the workers leave, then makes them; another Ctrl-C kills them at once.
async fn end_workers(fleet: &mut Fleet, signals: &mut Signals, patience: Duration) {
    let in_a_hurry = tokio::select! {
        () = fleet.end(patience, GRACE) => false,
        _ = signals.next() => true,
    };
    if in_a_hurry {
        fleet.kill().await;
    }
}

/// Ends a run at once: coordinator and workers as by a loss of power, and then one record in the
/// journal which says that it was wanted. Without the record the run counts as interrupted.
async fn abandon(running: Running, prepared: &Prepared, fleet: &mut Fleet) {
    let step = running.watch.borrow().step;
    drop(running);
    fleet.kill().await;
    let record = async {
        let (store, root) = store::open(&prepared.run_url)?;
        let replayed = journal::replay(Place { store, root }).await?;
        let writer = Incarnation::random()
            .map_err(|error| Failure::internal("there is no randomness", error.to_string()))?;
        let mut journal = replayed.take_term(writer).await?;
        journal.append(Entry::RunStopped { step }).await?;
        Ok::<(), Failure>(())
    };
    if let Ok(Err(failure)) = tokio::time::timeout(FAREWELL, record).await {
        tracing::debug!(%failure, "the stop is not in the journal");
    }
}

/// The coordinator's word on the end, unless the launcher has its own.
async fn conclude(
    verdict: Result<(), Failure>,
    running: Running,
    fleet: &Fleet,
) -> Result<Outcome, Failure> {
    match verdict {
        Ok(()) => running
            .join()
            .await
            .map_err(|failure| cause::with_log(failure, fleet.workers())),
        Err(failure) => {
            // So that the journal ends properly; the launcher's reason is the one to show.
            let goodbye = async {
                if running.stop(&failure.what).await.is_ok() {
                    let _ = running.join().await;
                }
            };
            let _ = tokio::time::timeout(FAREWELL, goodbye).await;
            Err(failure)
        }
    }
}

fn stopped(args: &TrainArgs, prepared: &Prepared, checkpoint: Option<&CheckpointRef>) -> Failure {
    let why = match checkpoint {
        Some(at) => format!(
            "on request; it is safe at the checkpoint of step {}",
            at.step
        ),
        None => "on request, before the first checkpoint".into(),
    };
    Failure::stopped("the run was stopped", why, resume_words(args, prepared))
}

/// The command that goes on.
fn resume_words(args: &TrainArgs, prepared: &Prepared) -> String {
    let mut words = vec![
        "mks2 train".to_owned(),
        quoted(&args.job.job.display().to_string()),
    ];
    words.push(format!(
        "--run {}",
        quoted(args.run.as_deref().unwrap_or(&prepared.run_url))
    ));
    words.push(format!("--workers {}", args.workers));
    words.extend(
        args.job
            .sets
            .iter()
            .map(|set| format!("--set {}", quoted(set))),
    );
    format!("go on with: {}", words.join(" "))
}

/// For a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell_when_they_need_it() {
        assert_eq!(quoted("runs/a-1"), "runs/a-1");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn the_three_ends_are_over() {
        let over = |state: RunState| {
            is_over(&StatusResponse {
                state: state.into(),
                ..StatusResponse::default()
            })
        };
        assert!(over(RunState::Failed) && over(RunState::Stopped) && over(RunState::Finished));
        assert!(!over(RunState::Stopping) && !over(RunState::WaitingForMembers));
    }
}
