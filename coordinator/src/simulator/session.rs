//! A worker's side of the control plane: follows `worker/src/session` rule by rule.

mod calls;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use mks2_proto::{
    dial,
    failure::{ExitCode, Failure},
    ids::Generation,
    patience::{self, ATTEMPT, FIRST_RETRY, LAST_WORDS, LONGEST_RETRY},
    retelling::{Labelled, Reports},
    v1::{self, Phase, directive, report::Kind},
};

use super::{
    executor::{NodeId, Signal, now, sleep, within},
    mesh::Abort,
    network::Host,
    office::{Declined, Line, Office, Seats, address_of, limits, seats},
    world::World,
};
use crate::state::{Identity, Registration};

/// A worker's place in a generation.
#[derive(Clone)]
pub(super) struct Assignment {
    pub(super) generation: u64,
    pub(super) rank: usize,
    pub(super) lanes: Vec<u32>,
    pub(super) members: Vec<String>,
    pub(super) hosts: Vec<Host>,
    pub(super) seats: Seats,
    pub(super) abort: Abort,
}

/// What a worker that comes to a run at work is to prepare.
#[derive(Clone)]
pub(super) struct Invitation {
    pub(super) number: u64,
    pub(super) stage: String,
    pub(super) finished: Vec<v1::CheckpointRef>,
}

/// What a worker that has prepared a stage is called to.
pub(super) enum Call {
    Generation(Assignment),
    Invitation,
}

/// What the trainer and the session share.
pub(super) struct Session {
    pub(super) world: Rc<World>,
    pub(super) node: NodeId,
    pub(super) host: Host,
    pub(super) who: Identity,
    welcome: RefCell<Option<Rc<v1::RegisterResponse>>>,
    phase: Cell<(Phase, u64)>,
    step: Cell<u64>,
    generation: Cell<u64>,
    stop: Cell<bool>,
    regroup: Cell<bool>,
    is_let_go: Cell<bool>,
    invitation: RefCell<Option<Invitation>>,
    assignment: RefCell<Option<Assignment>>,
    over: RefCell<Option<Failure>>,
    office: RefCell<Option<Rc<Office>>>,
    mail: RefCell<Reports>,
    is_closed: Cell<bool>,
    /// When it was asked to leave, and when its stream was opened.
    asked_at: Cell<Option<Duration>>,
    attached_at: Cell<Duration>,
    has_ended: Cell<bool>,
    changed: Signal,
}

enum End {
    Done,
    Lost,
}

impl Session {
    pub(super) fn new(world: &Rc<World>, node: NodeId, host: Host, who: Identity) -> Rc<Self> {
        Rc::new(Self {
            world: Rc::clone(world),
            node,
            host,
            who,
            welcome: RefCell::default(),
            phase: Cell::new((Phase::Starting, 0)),
            step: Cell::default(),
            generation: Cell::default(),
            stop: Cell::default(),
            regroup: Cell::default(),
            is_let_go: Cell::default(),
            invitation: RefCell::default(),
            assignment: RefCell::default(),
            over: RefCell::default(),
            office: RefCell::default(),
            mail: RefCell::default(),
            is_closed: Cell::default(),
            asked_at: Cell::default(),
            attached_at: Cell::default(),
            has_ended: Cell::default(),
            changed: Signal::default(),
        })
    }

    // What the trainer calls.

    /// Where the run begins for this worker, as the coordinator said.
    pub(super) fn welcome(&self) -> Rc<v1::RegisterResponse> {
        self.welcome.borrow().clone().unwrap_or_default()
    }

    pub(super) fn regroup_requested(&self) -> bool {
        self.regroup.get()
    }

    pub(super) fn was_let_go(&self) -> bool {
        self.is_let_go.get()
    }

    pub(super) fn set_phase(&self, phase: Phase, collective: u64) {
        self.phase.set((phase, collective));
        self.world.comes_to(self.host, phase);
    }

    pub(super) fn stop_requested(&self) -> bool {
        self.stop.get()
    }

    pub(super) fn step_committed(
        &self,
        generation: u64,
        step: u64,
        metrics: Option<v1::StepMetrics>,
    ) -> Result<(), Failure> {
        self.step.set(self.step.get().max(step));
        let committed = v1::StepCommitted { step, metrics };
        self.send((generation, Kind::StepCommitted(committed)))
    }

    pub(super) fn peer_lost(
        &self,
        generation: u64,
        member: &str,
        why: &str,
    ) -> Result<(), Failure> {
        let lost = v1::PeerLost {
            member_id: member.to_owned(),
            why: why.to_owned(),
        };
        self.send((generation, Kind::PeerLost(lost)))
    }

    pub(super) fn replicas_differ(
        &self,
        generation: u64,
        found: v1::ReplicasDiffer,
    ) -> Result<(), Failure> {
        self.send((generation, Kind::ReplicasDiffer(found)))
    }

    pub(super) fn report(&self, kind: Kind) -> Result<(), Failure> {
        self.send((self.generation.get(), kind))
    }

    fn send(&self, report: Labelled) -> Result<(), Failure> {
        if let Some(over) = &*self.over.borrow() {
            return Err(over.clone());
        }
        self.mail.borrow_mut().push(report);
        self.changed.raise();
        Ok(())
    }

    /// The last report was given: the session ends once it is told.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.changed.raise();
    }

    /// Tries again while there is no coordinator: a commit that is there already does no harm.
    pub(super) async fn commit_checkpoint(
        &self,
        checkpoint: v1::CheckpointRef,
        manifest: Vec<u8>,
    ) -> Result<Vec<v1::CheckpointRef>, Failure> {
        let request = v1::CommitCheckpointRequest {
            member_id: self.who.member.to_string(),
            incarnation: self.who.incarnation.0,
            generation: self.generation.get(),
            checkpoint: Some(checkpoint),
            manifest,
        };
        let began = now();
        loop {
            let office = self.office.borrow().clone();
            let declined = match office {
                Some(office) => {
                    let who = self.who.clone();
                    match office.commit(self.host, request.clone(), who).await {
                        Ok(released) => return Ok(released),
                        Err(declined) => declined,
                    }
                }
                None => nobody(),
            };
            if !declined.again || now() - began > limits().orphanage {
                return Err(declined.failure);
            }
            if let Some(over) = &*self.over.borrow() {
                return Err(over.clone());
            }
            sleep(patience::COMMIT_RETRY).await;
        }
    }

    fn note(&self, what: &str, number: u64) {
        self.world.note(what, &[self.node.0, number]);
    }

    // The session's own task.

    pub(super) async fn live(self: Rc<Self>) {
        match self.join(patience::JOIN).await {
            Ok(line) => self.work(line).await,
            Err(failure) => self.end(failure),
        }
        self.has_ended.set(true);
        self.changed.raise();
    }

    /// Lives with a coordinator, and without one while it is looked for.
    async fn work(&self, mut line: Line) {
        loop {
            match self.exchange(&line).await {
                End::Done => return part(&line).await,
                End::Lost if self.over.borrow().is_some() => return,
                End::Lost => {}
            }
            self.note("loses its coordinator", 0);
            line.reports.tear();
            *self.office.borrow_mut() = None;
            match self.join(limits().orphanage).await {
                Ok(found) => line = found,
                Err(failure) => return self.end(failure),
            }
            self.mail.borrow_mut().tell_again();
        }
    }

    /// Registers and opens the stream, at one address after the other.
    async fn join(&self, patience: Duration) -> Result<Line, Failure> {
        let (began, mut wait) = (now(), FIRST_RETRY);
        let mut addresses = self.world.office_hosts().into_iter().cycle();
        loop {
            let address = addresses.next().unwrap_or(self.host);
            let attempt = within(ATTEMPT, self.attach(address)).await;
            let declined = match attempt.unwrap_or_else(|| Err(nobody())) {
                Ok(joined) => return Ok(joined),
                Err(declined) => declined,
            };
            if !declined.again || now() - began > patience {
                return Err(declined.failure);
            }
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_RETRY);
        }
    }

    async fn attach(&self, address: Host) -> Result<Line, Declined> {
        let office = self.world.offices.borrow().get(&address).cloned();
        let office = office.ok_or_else(nobody)?;
        let registration = Registration {
            who: self.who.clone(),
            run_id: None,
            generation: Generation(self.generation.get()),
            protocol: dial::PROTOCOL,
            host: format!("host-{}", self.host.0),
            pid: 1,
            data_address: address_of(self.who.incarnation),
            device: "cpu".into(),
        };
        let welcome = office.register(self.host, registration).await?;
        let line = office.open((self.host, self.node)).await?;
        line.reports.send(self.heartbeat());
        self.note("opens a stream", welcome.term);
        self.attached_at.set(now());
        let has_begun = self.generation.get() > 0 || planted!(FirstWelcomeKept);
        if !has_begun || self.welcome.borrow().is_none() {
            *self.welcome.borrow_mut() = Some(welcome);
        }
        *self.office.borrow_mut() = Some(office);
        Ok(line)
    }

    /// Passes reports up and directives down until one side ends.
    async fn exchange(&self, line: &Line) -> End {
        let mut last_beat = now();
        loop {
            let pulse = sleep(
                limits()
                    .heartbeat_interval
                    .saturating_sub(now() - last_beat),
            );
            let next = || self.next();
            let labelled = tokio::select! {
                biased;
                directive = line.directives.recv() => match directive {
                    Some(directive) => {
                        self.heed(directive);
                        continue;
                    }
                    None => return End::Lost,
                },
                labelled = self.changed.until(next) => match labelled {
                    Some(labelled) => Some(labelled),
                    None => return End::Done,
                },
                () = pulse => None,
            };
            let Some(labelled) = labelled else {
                last_beat = now();
                if !line.reports.send(self.heartbeat()) {
                    return End::Lost;
                }
                continue;
            };
            let sent = line.reports.send(self.labelled(labelled.clone()));
            self.handled(labelled, sent);
            if !sent {
                return End::Lost;
            }
        }
    }

    fn labelled(&self, (generation, kind): Labelled) -> v1::Report {
        v1::Report {
            member_id: self.who.member.to_string(),
            incarnation: self.who.incarnation.0,
            generation,
            kind: Some(kind),
        }
    }

    fn heartbeat(&self) -> v1::Report {
        let (phase, collective) = self.phase.get();
        let beat = v1::Heartbeat {
            step: self.step.get(),
            phase: phase.into(),
            collective,
            ..v1::Heartbeat::default()
        };
        self.labelled((self.generation.get(), Kind::Heartbeat(beat)))
    }

    fn heed(&self, directive: v1::Directive) {
        match directive.kind {
            Some(directive::Kind::Generation(announced)) => {
                let generation = dial::generation(&announced).expect("a generation");
                let mut checks = self.world.checks.borrow_mut();
                checks.announced(&self.who, directive.term, &generation);
                drop(checks);
                self.note("hears of a generation", generation.number);
                self.assign(&generation);
            }
            Some(directive::Kind::Stop(_)) => {
                self.stop.set(true);
                self.changed.raise();
            }
            Some(directive::Kind::Abort(abort)) => {
                self.end(abort.failure.map_or_else(ended, Failure::from));
            }
            Some(directive::Kind::Refused(refusal)) => {
                self.end(refusal.failure.map_or_else(ended, Failure::from));
            }
            Some(directive::Kind::Invitation(invitation)) => {
                let mut known = self.invitation.borrow_mut();
                let number = known.as_ref().map_or(0, |before| before.number) + 1;
                *known = Some(Invitation {
                    number,
                    stage: invitation.stage,
                    finished: invitation.finished_stages,
                });
                drop(known);
                self.changed.raise();
            }
            Some(directive::Kind::Regroup(_)) => self.regroup.set(true),
            Some(directive::Kind::Hold(_)) => {
                if let Some(assignment) = &*self.assignment.borrow() {
                    assignment.abort.raise();
                }
            }
            Some(directive::Kind::Leave(_)) => {
                self.is_let_go.set(true);
                self.end(Failure::stopped("let go", "", ""));
            }
            None => {}
        }
    }

    /// A generation was announced: the one before is over.
    fn assign(&self, generation: &v1::Generation) {
        let is_known = |known: &Assignment| known.generation >= generation.number;
        if self.assignment.borrow().as_ref().is_some_and(is_known) {
            return;
        }
        let id = self.who.member.as_str();
        let Some(rank) = generation.members.iter().position(|m| m.member_id == id) else {
            return self.end(Failure::environment("this worker is not in it", "", ""));
        };
        let host = |member: &v1::Member| {
            let number = member.host.strip_prefix("host-");
            Host(number.and_then(|text| text.parse().ok()).unwrap_or(u8::MAX))
        };
        let next = Assignment {
            generation: generation.number,
            rank,
            lanes: generation.members[rank].lanes.clone(),
            members: generation
                .members
                .iter()
                .map(|m| m.member_id.clone())
                .collect(),
            hosts: generation.members.iter().map(host).collect(),
            seats: seats(generation),
            abort: Abort::default(),
        };
        let before = self.assignment.borrow_mut().replace(next);
        self.regroup.set(false);
        if let Some(before) = before {
            before.abort.raise();
        }
        self.changed.raise();
    }

    /// Nothing more will come; the first reason stays.
    fn end(&self, failure: Failure) {
        self.note("is told its end", failure.exit.code().into());
        self.over.borrow_mut().get_or_insert(failure);
        if let Some(assignment) = &*self.assignment.borrow() {
            assignment.abort.raise();
        }
        self.changed.raise();
    }

    pub(super) fn over(&self) -> Option<Failure> {
        self.over.borrow().clone()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.office.borrow().is_some()
    }

    pub(super) async fn wait_over(&self, patience: Duration) {
        let look = || self.over.borrow().is_some().then_some(());
        within(patience, self.changed.until(look)).await;
    }

    /// Whether the session's task has ended, after so long at the latest.
    pub(super) async fn has_ended(&self, patience: Duration) -> bool {
        let look = || self.has_ended.get().then_some(());
        within(patience, self.changed.until(look)).await.is_some()
    }
}

/// Ends the stream in an orderly way.
async fn part(line: &Line) {
    line.reports.close();
    within(LAST_WORDS, async {
        while line.directives.recv().await.is_some() {}
    })
    .await;
}

fn nobody() -> Declined {
    Declined {
        failure: Failure::environment("the coordinator is out of reach", "nobody is there", ""),
        again: true,
    }
}

fn ended() -> Failure {
    Failure::new(ExitCode::RunFailed, "the run was ended", "", "")
}
