//! All that there is in a simulation, and the operator who starts again whatever has ended.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use mks2_proto::{
    failure::{ExitCode, Failure},
    ids::{Incarnation, MemberId},
    job::{Job, load},
    patience,
    v1::{self, Phase, RunState, report::Kind},
};

use super::{
    chance::Chance,
    checks::Checks,
    executor::{Executor, NodeId, OUTSIDE, now, sleep, sleep_until},
    mesh::Meshes,
    network::{Host, Network},
    office::{self, Numbers, Office},
    session::Session,
    store::Cloud,
    trace::Trace,
    trainer::{self, End},
    weather::{Act, Fault, OFFICES, What},
};
use crate::{
    ledger::Course,
    state::{Identity, Workers},
};

/// How often the operator looks.
const ROUND: Duration = Duration::from_millis(100);

thread_local! {
    static SAMPLE: Job = {
        let text = include_str!("../../../proto/src/job/sample.toml");
        load::parse(text).expect("a job")
    };
}

/// See the module.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) executor: Rc<Executor>,
    pub(super) network: Rc<Network>,
    pub(super) cloud: Arc<Cloud>,
    pub(super) meshes: Meshes,
    pub(super) job: Job,
    pub(super) course: Course,
    pub(super) workers: u32,
    /// How many of them the run wants, and whether it waits when none is left.
    pub(super) wanted: Workers,
    pub(super) returns: bool,
    /// Coordinators that can be reached.
    pub(super) offices: RefCell<BTreeMap<Host, Rc<Office>>>,
    pub(super) checks: RefCell<Checks>,
    pub(super) trace: RefCell<Trace>,
    /// Processes by host, and when the next one is due where there is none.
    processes: RefCell<BTreeMap<Host, NodeId>>,
    sessions: RefCell<BTreeMap<Host, Weak<Session>>>,
    due: RefCell<BTreeMap<Host, Duration>>,
    office_due: Cell<Duration>,
    stalls: RefCell<BTreeMap<Host, Duration>>,
    failing: RefCell<BTreeMap<Host, ()>>,
    forgetful: RefCell<BTreeMap<Host, ()>>,
    appointments: RefCell<Vec<(Host, Phase, Duration, Act)>>,
    stumble: Cell<Option<(Duration, Duration)>>,
    chance: RefCell<Chance>,
    numbers: Numbers,
    /// When a coordinator said that the job is done.
    pub(super) finished: Cell<Option<Duration>>,
}

impl World {
    pub(super) fn new(seed: u64, executor: Rc<Executor>, is_read: bool) -> Rc<Self> {
        let mut chance = Chance::new(seed, "world");
        let workers = u32::from(workers(seed));
        let job = job(&mut chance, workers);
        let checks = Checks::new(&Course::of(&job));
        let wanted = wanted(&mut chance, workers);
        let returns = chance.below(2) == 1;
        let world = Rc::new(Self {
            seed,
            executor,
            network: Network::new(seed),
            cloud: Cloud::new(seed),
            meshes: Meshes::default(),
            course: Course::of(&job),
            job,
            workers,
            wanted,
            returns,
            offices: RefCell::default(),
            checks: RefCell::new(checks),
            trace: RefCell::new(Trace::new(is_read)),
            processes: RefCell::default(),
            sessions: RefCell::default(),
            due: RefCell::default(),
            office_due: Cell::default(),
            stalls: RefCell::default(),
            failing: RefCell::default(),
            forgetful: RefCell::default(),
            appointments: RefCell::default(),
            stumble: Cell::default(),
            chance: RefCell::new(chance),
            numbers: Numbers::default(),
            finished: Cell::default(),
        });
        let watched = Rc::clone(&world);
        Cloud::watch(Some(Box::new(move |change| {
            let name = change.path.filename().unwrap_or_default();
            watched.note(name, &[change.writer.0, u64::from(change.bytes.is_some())]);
            watched.checks.borrow_mut().changed(change, &watched.cloud);
        })));
        world
    }

    pub(super) fn note(&self, what: &str, numbers: &[u64]) {
        self.trace.borrow_mut().note(what, numbers);
    }

    pub(super) fn violated(&self, rule: &str, words: String) {
        self.checks.borrow_mut().violated(rule, words);
    }

    /// Where workers look for a coordinator.
    pub(super) fn office_hosts(&self) -> [Host; 2] {
        OFFICES
    }

    /// Lets a stall or a failure of a worker happen, if one is due.
    pub(super) async fn mishap(&self, host: Host) -> Result<(), Failure> {
        let until = self.stalls.borrow_mut().remove(&host);
        if let Some(until) = until {
            sleep_until(until).await;
        }
        match self.failing.borrow_mut().remove(&host) {
            Some(()) => Err(Failure::internal("the device has failed", "")),
            None => Ok(()),
        }
    }

    /// Whether a worker's memory is to lose a bit now.
    pub(super) fn loses_a_bit(&self, host: Host) -> bool {
        self.forgetful.borrow_mut().remove(&host).is_some()
    }

    /// Starts and restarts processes.
    pub(super) async fn operate(self: Rc<Self>) {
        loop {
            if self.finished.get().is_none() {
                self.look_after_offices();
                (0..self.workers).for_each(|number| self.look_after_worker(number));
            }
            sleep(ROUND).await;
        }
    }

    fn look_after_offices(self: &Rc<Self>) {
        let is_up = |host: &Host| self.processes.borrow().contains_key(host);
        if !OFFICES.iter().any(is_up) && now() >= self.office_due.get() {
            let host = self.chance.borrow_mut().pick(&OFFICES);
            self.start_office(host);
        }
    }

    fn start_office(self: &Rc<Self>, host: Host) {
        let node = self.executor.node();
        self.processes.borrow_mut().insert(host, node);
        self.note("coordinator starts", &[node.0, host.0.into()]);
        let run = office::run(Rc::clone(self), node, host, self.numbers.next());
        self.executor.spawn(node, run);
        if let Some((after, time)) = self.stumble.take() {
            let world = Rc::clone(self);
            self.executor.spawn(OUTSIDE, async move {
                sleep(after).await;
                world.replace(host, time).await;
            });
        }
    }

    /// A coordinator stands still, and another one is started.
    async fn replace(self: &Rc<Self>, host: Host, time: Duration) {
        self.start_rival();
        self.pause(host, time).await;
    }

    fn look_after_worker(self: &Rc<Self>, number: u32) {
        let host = Host(number.to_le_bytes()[0]);
        let is_due = self.due.borrow().get(&host).is_none_or(|due| now() >= *due);
        if self.processes.borrow().contains_key(&host) || !is_due {
            return;
        }
        let node = self.executor.node();
        self.processes.borrow_mut().insert(host, node);
        let who = Identity {
            member: MemberId::new(&format!("worker-{number}")).expect("good"),
            incarnation: Incarnation(self.numbers.next()),
        };
        self.note("worker starts", &[node.0, number.into()]);
        let session = Session::new(self, node, host, who);
        let known = Rc::downgrade(&session);
        self.sessions.borrow_mut().insert(host, known);
        self.executor.spawn(node, work(session));
    }

    /// A process is gone.
    fn gone(&self, host: Host, node: NodeId) {
        let mut processes = self.processes.borrow_mut();
        if processes.get(&host) == Some(&node) {
            processes.remove(&host);
        }
        drop(processes);
        let is_it = |office: &Rc<Office>| office.node == node;
        let office = self.offices.borrow().get(&host).is_some_and(is_it);
        let office = office.then(|| self.offices.borrow_mut().remove(&host));
        let again = now() + self.chance.borrow_mut().millis(200, 2_000);
        match OFFICES.contains(&host) {
            true => self.office_due.set(again),
            false => drop(self.due.borrow_mut().insert(host, again)),
        }
        self.network.leave(node);
        self.executor.kill(node);
        drop(office);
    }

    pub(super) fn office_ended(&self, node: NodeId, host: Host, ended: Result<RunState, Failure>) {
        let code = match &ended {
            Ok(state) => *state as u64,
            Err(failure) => 1_000 + u64::from(failure.exit.code()),
        };
        self.note("coordinator ended", &[node.0, code]);
        if ended.is_ok_and(|state| state == RunState::Finished) {
            self.finished
                .set(Some(self.finished.get().unwrap_or(now())));
        }
        self.gone(host, node);
    }

    fn kill(&self, host: Host) {
        let node = self.processes.borrow().get(&host).copied();
        if let Some(node) = node {
            self.note("killed", &[node.0, host.0.into()]);
            self.gone(host, node);
        }
    }

    /// A worker's machine is wanted back.
    fn ask_to_leave(&self, host: Host) {
        let session = self.sessions.borrow().get(&host).and_then(Weak::upgrade);
        if let Some(session) = session {
            self.note("asked to leave", &[session.node.0, host.0.into()]);
            session.leave();
        }
    }

    /// The host of a coordinator that is up.
    fn office(&self) -> Option<Host> {
        let processes = self.processes.borrow();
        OFFICES
            .into_iter()
            .find(|host| processes.contains_key(host))
    }

    async fn pause(&self, host: Host, time: Duration) {
        let node = self.processes.borrow().get(&host).copied();
        if let Some(node) = node {
            self.note("paused", &[node.0, host.0.into()]);
            self.executor.pause(node);
            sleep(time).await;
            self.executor.resume(node);
            self.note("resumed", &[node.0, host.0.into()]);
        }
    }

    fn reset(&self, a: Host, b: Host) {
        self.network.reset(a, b);
        self.meshes.reset(&self.network, a, b);
    }

    fn start_rival(self: &Rc<Self>) {
        let is_up = |host: &Host| self.processes.borrow().contains_key(host);
        let free = OFFICES.into_iter().find(|host| !is_up(host));
        free.into_iter().for_each(|host| self.start_office(host));
    }

    /// A worker comes to a phase: keeps its appointment, if it has one there.
    pub(super) fn comes_to(self: &Rc<Self>, host: Host, phase: Phase) {
        let mut appointments = self.appointments.borrow_mut();
        let found = appointments
            .iter()
            .position(|a| (a.0, a.1) == (host, phase));
        let Some(found) = found else {
            return;
        };
        let (_, _, after, act) = appointments.swap_remove(found);
        drop(appointments);
        let world = Rc::clone(self);
        self.executor.spawn(OUTSIDE, async move {
            sleep(after).await;
            match act {
                Act::Kill => world.kill(host),
                Act::Pause(time) => world.pause(host, time).await,
                Act::Reset(other) => world.reset(host, other),
            }
        });
    }

    /// Everybody's place.
    fn hosts(&self) -> Vec<Host> {
        let workers = (0..self.workers).map(|number| Host(number.to_le_bytes()[0]));
        workers.chain(OFFICES).collect()
    }

    /// Something between a host and each of the others.
    async fn with_others<F: Future<Output = ()>>(
        &self,
        host: Host,
        happens: impl FnMut(Host) -> F,
    ) {
        let others = self.hosts().into_iter().filter(|other| *other != host);
        futures::future::join_all(others.map(happens)).await;
    }

    async fn suffer_on_the_way(&self, what: What) {
        match what {
            What::Cut(a, b, time) => self.network.cut(a, b, time).await,
            What::HalfCut(from, to, time) => self.network.cut_way(from, to, time).await,
            What::Isolate(host, time) => {
                self.with_others(host, |other| self.network.cut(host, other, time))
                    .await;
            }
            What::Mute(host, time) => {
                self.with_others(host, |other| self.network.cut_way(host, other, time))
                    .await;
            }
            What::Deafen(host, time) => {
                self.with_others(host, |other| self.network.cut_way(other, host, time))
                    .await;
            }
            What::Reset(a, b) => self.reset(a, b),
            What::SlowNetwork(time) => self.network.slow(time),
            _ => {}
        }
    }

    /// Lets a fault happen when its time has come.
    pub(super) async fn suffer(self: Rc<Self>, fault: Fault) {
        sleep_until(fault.at).await;
        self.note("fault", &[]);
        match fault.what {
            What::KillWorker(host) => self.kill(host),
            What::PauseWorker(host, time) => self.pause(host, time).await,
            What::StallWorker(host, time) => {
                self.stalls.borrow_mut().insert(host, now() + time);
            }
            What::FailWorker(host) => {
                self.failing.borrow_mut().insert(host, ());
            }
            What::LoseBit(host) => {
                self.forgetful.borrow_mut().insert(host, ());
            }
            What::Appointment(host, phase, after, act) => {
                let appointment = (host, phase, after, act);
                self.appointments.borrow_mut().push(appointment);
            }
            What::KillOffice => OFFICES.into_iter().for_each(|host| self.kill(host)),
            What::PauseOffice(time) => {
                if let Some(host) = self.office() {
                    self.pause(host, time).await;
                }
            }
            What::Rival => self.start_rival(),
            What::Stumble(after, time) => self.stumble.set(Some((after, time))),
            What::Replace(time) => {
                if let Some(host) = self.office() {
                    self.replace(host, time).await;
                }
            }
            What::Jump(by, wall) => {
                let processes = self.processes.borrow();
                let nodes = OFFICES.iter().filter_map(|host| processes.get(host));
                nodes.for_each(|node| self.executor.jump(*node, by, wall));
            }
            What::Store(trouble, time) => self.cloud.trouble(trouble, time),
            What::Leave(host) => self.ask_to_leave(host),
            What::Stop => {
                let offices = self.offices.borrow();
                offices.values().for_each(|office| office.stop());
            }
            What::KillAll => self.hosts().into_iter().for_each(|host| self.kill(host)),
            of_network => self.suffer_on_the_way(of_network).await,
        }
    }
}

/// How many workers a seed has.
pub(super) fn workers(seed: u64) -> u8 {
    Chance::new(seed, "workers").pick(&[1, 2, 2, 3, 3, 3, 4])
}

/// Either as many as there are, or a minimum and a maximum.
fn wanted(chance: &mut Chance, workers: u32) -> Workers {
    let all = Workers::exactly(workers);
    let min = 1 + u32::try_from(chance.below(workers.into())).unwrap_or_default();
    let start = min;
    match chance.below(2) {
        0 => all,
        _ => Workers { start, min, ..all },
    }
}

/// A job of three stages that train, of a size that chance chooses.
fn job(chance: &mut Chance, workers: u32) -> Job {
    // Reading it takes longer than many a seed.
    let mut job = SAMPLE.with(Job::clone);
    job.lanes = workers + u32::try_from(chance.below(4)).unwrap_or_default();
    job.checkpoint.every_steps = 2 + chance.below(3);
    job.audit.every_steps = 1 + chance.below(5);
    job.checkpoint.keep_last = u32::try_from(chance.below(3)).unwrap_or_default();
    for stage in job.stages.iter_mut().filter(|stage| stage.steps > 0) {
        stage.steps = 4 + chance.below(9);
    }
    job
}

/// A worker's process, from its start to its end: follows `worker/src/app.rs`.
async fn work(session: Rc<Session>) {
    let world = Rc::clone(&session.world);
    let node = session.node;
    world.executor.spawn(node, Rc::clone(&session).live());
    let mut outcome = trainer::run(&session).await;
    if outcome.is_err() && session.was_let_go() {
        outcome = Ok(End::LetGo);
    }
    let code = outcome
        .as_ref()
        .map_or_else(|failure| failure.exit.code(), |_| 0);
    world.note("worker ends", &[node.0, code.into()]);
    match outcome {
        Ok(End::LetGo) => {}
        Ok(end) => {
            let complete = end == End::Complete;
            let _over = session.report(Kind::Finished(v1::Finished { complete }));
        }
        Err(failure) if session.over().is_none() => {
            let told = session.report(Kind::Failed((&failure).into()));
            if told.is_ok() && failure.exit == ExitCode::RunFailed {
                session.wait_over(patience::CAUSE).await;
            }
        }
        Err(_) => {}
    }
    session.close();
    while !session.has_ended(patience::GOODBYE).await {
        if session.is_connected() || session.over().is_some() {
            break;
        }
    }
    let gone = Rc::clone(&world);
    world
        .executor
        .spawn(OUTSIDE, async move { gone.gone(session.host, node) });
}
