//! What the trainer's thread and the session's thread share.

use std::{
    net::SocketAddr,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mks2_proto::{
    dial::Client,
    failure::Failure,
    goodput::TimeSpent,
    v1::{self, Phase},
};

use super::timesheet::Timesheet;
use super::{Assignment, Call, Invitation};
use crate::collectives::AbortFlag;

/// What is told to the trainer.
#[derive(Debug, Default)]
struct News {
    /// What the coordinator said when this worker registered last.
    welcome: v1::RegisterResponse,
    /// The latest generation.
    assignment: Option<Assignment>,
    /// The run, or the session, is over.
    over: Option<Failure>,
    stop_reason: Option<String>,
    /// The latest invitation.
    invitation: Option<Invitation>,
    /// It is over since this worker was let go.
    is_let_go: bool,
    /// The coordinator that is connected now, if one is.
    client: Option<Client>,
}

/// Shared state; every method may be called from any thread.
#[derive(Debug)]
pub(super) struct Shared {
    phase: AtomicI32,
    collective: AtomicU64,
    step: AtomicU64,
    /// The generation that the trainer works in.
    generation: AtomicU64,
    stop: AtomicBool,
    regroup: AtomicBool,
    timesheet: Mutex<Timesheet>,
    news: Mutex<News>,
    changed: Condvar,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            phase: AtomicI32::new(Phase::Starting as i32),
            collective: AtomicU64::new(0),
            step: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            regroup: AtomicBool::new(false),
            timesheet: Mutex::default(),
            news: Mutex::default(),
            changed: Condvar::new(),
        }
    }
}

impl Shared {
    pub(super) fn set_phase(&self, phase: Phase, collective: u64) {
        self.phase.store(phase as i32, Ordering::Relaxed);
        self.collective.store(collective, Ordering::Relaxed);
        self.timesheet().enter(Instant::now(), phase);
    }

    /// The account of this worker's time.
    pub(super) fn timesheet(&self) -> MutexGuard<'_, Timesheet> {
        let locked = self.timesheet.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn spent(&self) -> TimeSpent {
        self.timesheet().at(Instant::now())
    }

    pub(super) fn set_step(&self, step: u64) {
        self.step.fetch_max(step, Ordering::Relaxed);
    }

    pub(super) fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    pub(super) fn heartbeat(&self) -> v1::Heartbeat {
        let news = self.lock();
        let assignment = news.assignment.as_ref();
        v1::Heartbeat {
            waits_for: assignment.and_then(|assignment| assignment.abort.waits_for()),
            step: self.step.load(Ordering::Relaxed),
            phase: self.phase.load(Ordering::Relaxed),
            collective: self.collective.load(Ordering::Relaxed),
            spent: None,
        }
    }

    pub(super) fn heartbeat_with_account(&self) -> v1::Heartbeat {
        v1::Heartbeat {
            spent: Some(self.spent().into()),
            ..self.heartbeat()
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn regroup_requested(&self) -> bool {
        self.regroup.load(Ordering::Acquire)
    }

    pub(super) fn was_let_go(&self) -> bool {
        self.lock().is_let_go
    }

    pub(super) fn welcome(&self) -> v1::RegisterResponse {
        self.lock().welcome.clone()
    }

    /// Registered: where to begin counts until this worker takes part.
    pub(super) fn welcomed(&self, welcome: v1::RegisterResponse) {
        self.timesheet().open(Instant::now());
        let mut news = self.lock();
        if news.assignment.is_none() {
            news.welcome = welcome;
        }
    }

    pub(super) fn client(&self) -> Option<Client> {
        self.lock().client.clone()
    }

    pub(super) fn set_client(&self, client: Option<Client>) {
        let is_orphan = client.is_none();
        self.timesheet().set_orphan(Instant::now(), is_orphan);
        self.lock().client = client;
    }

    pub(super) fn over(&self) -> Option<Failure> {
        self.lock().over.clone()
    }

    /// A generation was announced: the one before is over.
    pub(super) fn assign(&self, assignment: Assignment) {
        let reason = assignment.reason.clone();
        let mut news = self.lock();
        // A new coordinator announces the generation that it found.
        if news
            .assignment
            .as_ref()
            .is_some_and(|known| known.generation >= assignment.generation)
        {
            return;
        }
        let before = news.assignment.replace(assignment);
        // The change that was asked for has come, or has to be asked for again.
        self.regroup.store(false, Ordering::Release);
        drop(news);
        self.timesheet().set_held(Instant::now(), false);
        if let Some(before) = before {
            before.abort.abort(reason);
        }
        self.changed.notify_all();
    }

    /// The generation is to end behind the step that the workers agree on.
    pub(super) fn ask_to_regroup(&self) {
        self.regroup.store(true, Ordering::Release);
    }

    /// The generation is over, and the next one may be long in coming.
    pub(super) fn hold(&self, reason: &str) {
        self.timesheet().set_held(Instant::now(), true);
        if let Some(assignment) = &self.lock().assignment {
            assignment.abort.abort(reason);
        }
    }

    /// The run works on a stage: to be prepared by a worker that comes to it.
    pub(super) fn invite(&self, invitation: v1::Invitation) {
        let mut news = self.lock();
        let number = news.invitation.as_ref().map_or(0, |before| before.number) + 1;
        news.invitation = Some(Invitation {
            number,
            stage: invitation.stage,
            finished: invitation.finished_stages,
        });
        drop(news);
        self.changed.notify_all();
    }

    /// Others have this worker's lanes.
    pub(super) fn let_go(&self, reason: &str) {
        self.lock().is_let_go = true;
        self.end(Failure::stopped(
            "this worker was let go",
            reason,
            "nothing: the run goes on without it",
        ));
    }

    pub(super) fn ask_to_stop(&self, reason: String) {
        self.stop.store(true, Ordering::Release);
        self.lock().stop_reason.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Nothing more will come; the first reason stays. Collectives give up at once.
    pub(super) fn end(&self, failure: Failure) {
        let reason = failure.what.clone();
        let mut news = self.lock();
        news.over.get_or_insert(failure);
        if let Some(assignment) = &news.assignment {
            assignment.abort.abort(reason);
        }
        drop(news);
        self.changed.notify_all();
    }

    pub(super) fn wait_generation(&self, after: u64) -> Result<Assignment, Failure> {
        let mut news = self.lock();
        loop {
            if let Some(failure) = &news.over {
                return Err(failure.clone());
            }
            if let Some(next) = news.assignment.as_ref().filter(|a| a.generation > after) {
                self.generation.store(next.generation, Ordering::Release);
                return Ok(next.clone());
            }
            news = self.wait(news);
        }
    }

    pub(super) fn wait_invitation(&self, after: u64) -> Result<Invitation, Failure> {
        let mut news = self.lock();
        loop {
            if let Some(failure) = &news.over {
                return Err(failure.clone());
            }
            if let Some(next) = news.invitation.as_ref().filter(|i| i.number > after) {
                return Ok(next.clone());
            }
            news = self.wait(news);
        }
    }

    pub(super) fn wait_call(&self, invited: u64) -> Result<Call, Failure> {
        let mut news = self.lock();
        loop {
            if let Some(failure) = &news.over {
                return Err(failure.clone());
            }
            if let Some(first) = &news.assignment {
                self.generation.store(first.generation, Ordering::Release);
                return Ok(Call::Generation(first.clone()));
            }
            if news.invitation.as_ref().is_some_and(|i| i.number > invited) {
                return Ok(Call::Invitation);
            }
            if let Some(reason) = &news.stop_reason {
                return Err(stopped_before_start(reason));
            }
            news = self.wait(news);
        }
    }

    fn wait<'a>(&self, news: MutexGuard<'a, News>) -> MutexGuard<'a, News> {
        let woken = self.changed.wait(news);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end, at most so long.
    pub(super) fn wait_over(&self, patience: Duration) -> Option<Failure> {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), patience, |n| n.over.is_none());
        let (news, _) = waited.unwrap_or_else(PoisonError::into_inner);
        news.over.clone()
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stopped_before_start(reason: &str) -> Failure {
    Failure::stopped(
        "the run stopped before its first step",
        reason,
        "start the same command again to go on",
    )
}

/// This member's place in an announced generation.
pub(super) fn assignment(
    generation: &v1::Generation,
    member_id: &str,
) -> Result<Assignment, Failure> {
    let mine = generation
        .members
        .iter()
        .find(|member| member.member_id == member_id);
    let mine = mine.ok_or_else(|| malformed("this worker is not in the generation"))?;
    let in_order = (0..)
        .zip(&generation.members)
        .all(|(rank, member): (u32, _)| member.rank == rank);
    if !in_order {
        return Err(malformed("the generation's ranks have gaps"));
    }
    let address = |member: &v1::Member| {
        let parsed: Result<SocketAddr, _> = member.data_address.parse();
        parsed.map_err(|_| {
            let (id, text) = (&member.member_id, &member.data_address);
            malformed(&format!(
                "the data address of {id} is '{text}', not IP:PORT"
            ))
        })
    };
    Ok(Assignment {
        generation: generation.number,
        rank: mine.rank,
        world: u32::try_from(generation.members.len()).unwrap_or(u32::MAX),
        lanes: mine.lanes.clone(),
        members: generation
            .members
            .iter()
            .map(|member| member.member_id.clone())
            .collect(),
        addresses: generation
            .members
            .iter()
            .map(address)
            .collect::<Result<_, _>>()?,
        reason: generation.reason.clone(),
        abort: AbortFlag::new(),
    })
}

fn malformed(why: &str) -> Failure {
    Failure::environment(
        "the coordinator's message cannot be used",
        why,
        "use the same version of mks2 and mks2-worker everywhere",
    )
}
