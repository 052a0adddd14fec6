//! The task that owns the state machine: it takes commands, lets the machine decide and carries
//! the actions out in their order, each after the one before it is durable.
//!
//! Storage may be slow. While the [scribe](crate::scribe) writes, actions wait in the outbox and
//! the driver goes on listening, so that a slow store never makes a worker look dead. Only aborts and
//! answers to those who come back overtake the outbox.

mod board;
mod handle;
mod show;
mod streams;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mks2_proto::{
    dial,
    failure::Failure,
    ids::{MemberId, Term},
    v1::{self, directive::Kind},
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

pub(crate) use board::Board;
pub(crate) use handle::{Answer, Command, Directives, Handle, Voice, Yes};
use streams::Streams;

use crate::{
    clock::{self, Pulse},
    metrics,
    scribe::{Done, Task},
    state::{Abortion, Action, Event, Limits, Machine, Refused, StreamId, Ticket},
};

/// Commands that may wait before callers do.
pub(crate) const COMMANDS: usize = 256;
/// Actions that may wait for the store before the driver stops taking commands. Lines of metrics do not
/// count: workers go on with their steps while the store does not answer, for hours if need be.
const MAX_OUTBOX: usize = 4096;
/// How often a coordinator that has nothing to write looks whether another one is in office.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the end of a run waits for the members to leave.
const LINGER: Duration = Duration::from_secs(3);

/// Something to do when its turn comes.
enum Effect {
    Do(Action),
    Publish(Box<v1::StatusResponse>),
}

/// Somebody waits for an answer.
struct Pending {
    reply: oneshot::Sender<Answer>,
    manifest: Option<Bytes>,
    stream: Option<StreamId>,
}

/// The ends of the driver's channels that it keeps.
pub(crate) struct Wiring {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) tasks: mpsc::Sender<Task>,
    pub(crate) done: mpsc::Receiver<Done>,
    pub(crate) status: watch::Sender<v1::StatusResponse>,
    pub(crate) board: Arc<Board>,
}

/// The owner of the state.
pub(crate) struct Driver {
    machine: Machine,
    term: Term,
    limits: Limits,
    wiring: Wiring,
    started: Instant,
    outbox: VecDeque<Effect>,
    /// Lines of metrics in it.
    lines: usize,
    /// The scribe is at work.
    busy: bool,
    /// When it had its last task.
    wrote: Instant,
    /// The journal is lost: nothing may be written any more.
    broken: bool,
    run_id: String,
    /// When the status was taken last, and whether something was decided since.
    shown: Duration,
    is_stale: bool,
    /// The generation that was announced last, as it goes over the wire.
    announced: Option<(Arc<v1::Generation>, Bytes)>,
    tickets: u64,
    pending: BTreeMap<Ticket, Pending>,
    streams: Streams,
}

impl Driver {
    pub(crate) fn new(machine: Machine, term: Term, limits: Limits, wiring: Wiring) -> Self {
        let run_id = wiring.status.borrow().run_id.clone();
        Self {
            run_id,
            shown: Duration::ZERO,
            is_stale: true,
            announced: None,
            machine,
            term,
            limits,
            wiring,
            started: clock::now(),
            outbox: VecDeque::new(),
            lines: 0,
            busy: false,
            wrote: clock::now(),
            broken: false,
            tickets: 0,
            pending: BTreeMap::new(),
            streams: Streams::default(),
        }
    }

    /// Runs until the run is over and everybody has left, or nobody holds a handle.
    pub(crate) async fn run(mut self) -> Result<v1::RunState, Failure> {
        let mut pulse = Pulse::new(self.limits.tick);
        let mut over_since = None;
        loop {
            self.carry_out().await;
            if self.may_leave(&mut over_since) {
                break;
            }
            let waiting = self.outbox.len() - self.lines;
            let listening = waiting < MAX_OUTBOX + self.machine.size();
            tokio::select! {
                biased;
                done = self.wiring.done.recv(), if !self.broken => match done {
                    Some(done) => self.written(done),
                    None => self.lose_journal(scribe_gone()),
                },
                command = self.wiring.commands.recv(), if listening => match command {
                    Some(command) => {
                        self.hear();
                        self.take(command);
                    }
                    None => break,
                },
                () = pulse.beat(), if listening => {
                    self.hear();
                    self.apply(Event::Tick);
                    self.show_slow_store();
                    self.look_around().await;
                }
            }
        }
        match self.machine.failure() {
            Some(failure) => Err(failure.clone()),
            None => Ok(self.machine.state()),
        }
    }

    /// The run is over, everything is written, and the members have left or had time to.
    fn may_leave(&self, over_since: &mut Option<Instant>) -> bool {
        if !self.machine.is_over() || self.busy || !self.outbox.is_empty() {
            return false;
        }
        let since = *over_since.get_or_insert_with(clock::now);
        self.streams.is_empty() || clock::since(since) >= LINGER
    }

    /// Looks at the board of heartbeats.
    fn hear(&mut self) {
        let beats = self.wiring.board.take(self.started);
        if !beats.is_empty() {
            self.apply(Event::Beats(beats));
        }
    }

    fn apply(&mut self, event: Event) {
        let now = clock::since(self.started);
        self.is_stale |= !matches!(event, Event::Beats(_) | Event::Tick);
        // Whoever comes back is not heard before it is answered, and learns nothing by that which has
        // to be recorded before.
        let comes_back = matches!(event, Event::Register(..) | Event::Attach(..));
        for action in self.machine.apply(now, event) {
            self.is_stale = true;
            match action {
                Action::Abort(member, abortion) => self.abort(&member, &abortion),
                Action::Accept(ticket) if comes_back => self.answer(ticket, Ok(Yes::default())),
                Action::Refuse(ticket, refused) => {
                    self.forget_stream(ticket);
                    self.outbox
                        .push_back(Effect::Do(Action::Refuse(ticket, refused)));
                }
                other => {
                    self.lines += usize::from(matches!(other, Action::Measure { .. }));
                    self.outbox.push_back(Effect::Do(other));
                }
            }
        }
        self.show(now);
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Register(registration, reply) => {
                let ticket = self.expect(reply, None);
                self.apply(Event::Register(ticket, registration));
            }
            Command::Attach {
                stream,
                who,
                directives,
                reply,
            } => {
                let ticket = self.expect(reply, None);
                self.pending.entry(ticket).and_modify(|pending| {
                    pending.stream = Some(stream);
                });
                self.streams.insert(stream, who.member.clone(), directives);
                self.apply(Event::Attach(ticket, stream, who));
            }
            Command::Detach(stream, who, how) => {
                self.streams.remove(stream);
                self.apply(Event::Detach(stream, who, how));
            }
            Command::Exited(member, how) => self.apply(Event::Exited(member, how)),
            Command::Report(who, generation, kind) => {
                self.apply(Event::Report(who, generation, kind));
            }
            Command::Commit {
                who,
                generation,
                checkpoint,
                manifest,
                reply,
            } => {
                let ticket = self.expect(reply, Some(manifest));
                self.apply(Event::Commit(ticket, who, generation, checkpoint));
            }
            Command::Stop(reason, reply) => {
                let ticket = self.expect(reply, None);
                self.apply(Event::Stop(ticket, reason));
            }
            Command::Drain(member, reason, reply) => {
                let ticket = self.expect(reply, None);
                self.apply(Event::Drain(ticket, member, reason));
            }
            Command::Scale(workers, reply) => {
                let ticket = self.expect(reply, None);
                self.apply(Event::Scale(ticket, workers));
            }
        }
    }

    fn expect(&mut self, reply: oneshot::Sender<Answer>, manifest: Option<Bytes>) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let pending = Pending {
            reply,
            manifest,
            stream: None,
        };
        self.pending.insert(ticket, pending);
        ticket
    }

    /// A stream that is refused is nobody's: directives belong to the one that was there before.
    fn forget_stream(&mut self, ticket: Ticket) {
        let pending = self.pending.get(&ticket);
        if let Some(stream) = pending.and_then(|pending| pending.stream) {
            self.streams.remove(stream);
        }
    }

    fn written(&mut self, done: Done) {
        self.busy = false;
        match done {
            Done::Fine => {}
            Done::Manifest(ticket, checkpoint, Ok(())) => {
                self.apply(Event::ManifestWritten(ticket, checkpoint));
            }
            Done::Manifest(ticket, checkpoint, Err(failure)) => {
                tracing::error!(step = checkpoint.step, why = %failure.why, "checkpoint skipped");
                self.apply(Event::ManifestFailed(ticket, checkpoint.step, failure));
            }
            Done::Broken(failure) => self.lose_journal(failure),
        }
    }

    /// What was decided but not recorded never happened: it is not carried out.
    fn lose_journal(&mut self, failure: Failure) {
        tracing::error!(what = %failure.what, why = %failure.why, "the journal is lost");
        self.broken = true;
        self.outbox.clear();
        self.lines = 0;
        self.pending.clear();
        self.streams.clear();
        self.apply(Event::Broken(failure));
    }

    /// One that decides nothing would never learn that it was replaced, and its members would wait
    /// with it.
    async fn look_around(&mut self) {
        // A status is new with every tick, and no reason not to look.
        let to_do = |effect: &Effect| matches!(effect, Effect::Do(_));
        let is_idle = !self.busy && !self.broken && !self.outbox.iter().any(to_do);
        let is_idle = is_idle && !planted!(NeverLooked);
        if is_idle && !self.machine.is_over() && clock::since(self.wrote) >= LOOK_EVERY {
            self.order(Task::Look).await;
        }
    }

    /// Gives the scribe a task.
    async fn order(&mut self, task: Task) {
        self.wrote = clock::now();
        self.busy = !self.broken && self.wiring.tasks.send(task).await.is_ok();
    }

    /// Carries actions out until one has to wait for the store.
    async fn carry_out(&mut self) {
        while !self.busy {
            let Some(effect) = self.outbox.pop_front() else {
                return;
            };
            match effect {
                Effect::Publish(status) => {
                    self.publish(*status);
                }
                Effect::Do(action) => {
                    self.lines -= usize::from(matches!(action, Action::Measure { .. }));
                    if let Some(task) = self.perform(action) {
                        self.order(task).await;
                        self.busy &= !planted!(AnnouncedBeforeRecorded);
                    }
                }
            }
        }
    }

    /// Does what can be done at once, and returns what the scribe has to write.
    fn perform(&mut self, action: Action) -> Option<Task> {
        match action {
            Action::Persist(entry) => {
                return Some(Task::Record(entry, self.machine.books().clone()));
            }
            Action::WriteManifest(ticket, checkpoint) => {
                let manifest = self
                    .pending
                    .get_mut(&ticket)
                    .and_then(|p| p.manifest.take());
                return Some(Task::Manifest(ticket, checkpoint, manifest?));
            }
            Action::Measure {
                generation,
                step,
                metrics,
            } => {
                return metrics::line(step, generation, &metrics, self.machine.goodput())
                    .ok()
                    .map(Task::Line);
            }
            Action::Accept(ticket) => self.answer(ticket, Ok(Yes::default())),
            Action::Welcome(ticket, welcome) => {
                let yes = Yes {
                    welcome,
                    ..Yes::default()
                };
                self.answer(ticket, Ok(yes));
            }
            Action::Committed(ticket, released) => {
                let yes = Yes {
                    released,
                    ..Yes::default()
                };
                self.answer(ticket, Ok(yes));
            }
            Action::Refuse(ticket, refused) => self.answer(ticket, Err(refused)),
            Action::Close(stream) => self.streams.remove(stream),
            Action::Tell(what, why) => tracing::info!(run = self.run_id, why, "{what}"),
            Action::Explain(reason) => tracing::info!(run = self.run_id, "{reason}"),
            other => self.direct(other),
        }
        None
    }

    /// Tells a member something.
    fn direct(&mut self, action: Action) {
        let (member, kind) = match action {
            Action::Announce(member, generation) => {
                (member, Kind::Generation(self.encoded(&generation)))
            }
            Action::AskToStop(member, reason) => (member, Kind::Stop(v1::StopRequested { reason })),
            Action::Invite(member, invitation) => (member, Kind::Invitation(invitation)),
            Action::AskToRegroup(member, reason) => (member, Kind::Regroup(v1::Regroup { reason })),
            Action::Hold(member, reason) => (member, Kind::Hold(v1::Hold { reason })),
            Action::LetGo(member, reason) => (member, Kind::Leave(v1::Leave { reason })),
            Action::Reject(member, refused) => (member, Kind::Refused(self.wire_refusal(refused))),
            Action::Abort(member, abortion) | Action::Dismiss(member, abortion) => {
                return self.abort(&member, &abortion);
            }
            _ => return,
        };
        self.send(&member, kind);
    }

    /// A generation for the wire: all its members share the bytes.
    fn encoded(&mut self, generation: &Arc<v1::Generation>) -> Bytes {
        match &self.announced {
            Some((known, bytes)) if Arc::ptr_eq(known, generation) => bytes.clone(),
            _ => {
                let bytes = dial::encoded(generation);
                self.announced = Some((Arc::clone(generation), bytes.clone()));
                bytes
            }
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        if let Some(pending) = self.pending.remove(&ticket) {
            // A caller that went away needs no answer.
            let _gone = pending.reply.send(answer);
        }
    }

    fn abort(&mut self, member: &MemberId, abortion: &Abortion) {
        let abort = v1::Abort {
            reason: format!("{}: {}", abortion.failure.what, abortion.failure.why),
            member_id: abortion
                .lost
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            failure: Some((&abortion.failure).into()),
        };
        self.send(member, Kind::Abort(abort));
    }

    /// Puts a directive into the member's newest stream. A member that does not drain its stream
    /// loses it: its directives must not pile up.
    fn send(&mut self, member: &MemberId, kind: Kind) {
        let directive = v1::Directive {
            term: self.term.0,
            kind: Some(kind),
        };
        let Some((stream, directives)) = self.streams.newest(member) else {
            return;
        };
        if directives.try_send(Box::new(Ok(directive))).is_err() {
            tracing::warn!(%member, "a member does not take its directives");
            self.streams.remove(stream);
        }
    }

    fn wire_refusal(&self, refused: Refused) -> v1::Refusal {
        v1::Refusal {
            reason: refused.reason.into(),
            term: self.term.0,
            generation: self.machine.generation().0,
            failure: Some((&refused.failure).into()),
        }
    }
}

fn scribe_gone() -> Failure {
    Failure::internal(
        "the coordinator stops",
        "the task that writes the journal has ended",
    )
}

/// A refusal as a gRPC status.
pub(crate) fn refusal_status(refused: &Refused, status: &v1::StatusResponse) -> Status {
    dial::status(&v1::Refusal {
        reason: refused.reason.into(),
        term: status.term,
        generation: status.generation,
        failure: Some((&refused.failure).into()),
    })
}

#[cfg(test)]
mod tests;
