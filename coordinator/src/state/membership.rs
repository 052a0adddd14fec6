//! Who is in: registration, streams, generations.

use std::{sync::Arc, time::Duration};

use mks2_proto::{
    dial::PROTOCOL,
    failure::Failure,
    ids::{Generation, MemberId},
    v1::RefusalReason,
};

use super::{
    Action, Identity, Machine, Member, Refused, Registration, StreamId, Ticket, Welcome,
    announcement::telling,
    refused,
    run::{Active, Held, Run, ranks},
};
use crate::assign::{Share, deal};

/// Why members are asked to meet at a border.
pub(super) const CHANGE: &str = "the workers are to change";

impl Machine {
    pub(super) fn register(
        &mut self,
        now: Duration,
        ticket: Ticket,
        registration: Registration,
    ) -> Vec<Action> {
        if let Err(refused) = self.admit(&registration) {
            if refused.reason == RefusalReason::Reunion {
                self.replaced(now, &registration.who);
            }
            return vec![Action::Refuse(ticket, refused)];
        }
        let id = registration.who.member.clone();
        let welcome = Action::Welcome(ticket, self.welcome(false));
        // One that trains needs no beginning.
        let welcome_back = match registration.generation > Generation(0) {
            true => Action::Accept(ticket),
            false => welcome.clone(),
        };
        if let Some(known) = self.member_mut(&registration.who) {
            let is_news = known.introduce(registration);
            if let Some(active) = self.run.active_mut().filter(|_| is_news) {
                active.announced = None;
            }
            return vec![welcome_back];
        }
        if self.run.active().is_some() {
            let mut actions = self.lose(&id, "a new process has come in its place");
            actions.extend(self.come(now, ticket, registration));
            return actions;
        }
        let known = self.members.get(&id);
        let replaced = known.and_then(|member| member.stream);
        let member = Member::new(registration, now, self.step);
        self.members.insert(id, member);
        let close = replaced.map(Action::Close).into_iter();
        close.chain([welcome]).collect()
    }

    /// A new process, after the end of the one before it: the last one's end changes the run.
    fn come(&mut self, now: Duration, ticket: Ticket, registration: Registration) -> Vec<Action> {
        match &self.run {
            Run::Active(_) => self.register_candidate(now, ticket, registration),
            _ => self.register(now, ticket, registration),
        }
    }

    /// What a process is told when it registers.
    pub(super) fn welcome(&self, is_candidate: bool) -> Welcome {
        if is_candidate {
            // It begins where the others are, not at a checkpoint that may be let go meanwhile.
            return Welcome {
                is_candidate,
                ..Welcome::default()
            };
        }
        Welcome {
            is_candidate,
            resume_from: self.beginning.latest().cloned(),
            finished: self.beginning.finished_stages().cloned().collect(),
        }
    }

    /// Whether a process may become a member now.
    fn admit(&self, registration: &Registration) -> Result<(), Refused> {
        let id = &registration.who.member;
        let known = self.members.get(id);
        if registration.protocol != PROTOCOL {
            return Err(other_protocol(id, registration.protocol));
        }
        if registration
            .run_id
            .as_ref()
            .is_some_and(|run| run != &self.config.run_id)
        {
            return Err(self.other_run(registration));
        }
        if self.run.is_over() {
            return Err(self.run_over(&format!("{id} cannot join")));
        }
        if known.is_some_and(|known| known.incarnation == registration.who.incarnation) {
            return Ok(());
        }
        if registration.generation > Generation(0) && !planted!(StaleWorkerAdmitted) {
            return Err(too_late(id));
        }
        if self.reunion.is_some() {
            return Err(self.not_now(&format!("{id} cannot join yet")));
        }
        let started = self.run.active().is_some();
        match known {
            // One whose stream broke has ended, if another process has its name.
            Some(known) if started && known.stream.is_some() => Err(taken(id)),
            Some(_) => Ok(()),
            None => self.room_for(id, started),
        }
    }

    fn room_for(&self, id: &MemberId, started: bool) -> Result<(), Refused> {
        let twin = self.candidates.get(id);
        if twin.is_some_and(|twin| started && twin.member.stream.is_some()) {
            return Err(taken(id));
        }
        let candidates = self.candidates.keys().filter(|other| *other != id).count();
        let members = match started {
            true => self.staying() + candidates,
            false => self.members.len(),
        };
        if members >= self.config.lanes as usize {
            let lanes = self.config.lanes;
            return Err(refused(
                RefusalReason::MoreWorkersThanLanes,
                Failure::settings(
                    format!("{id} cannot join: there are more workers than lanes"),
                    format!("the job has {lanes} lanes, and each worker holds at least one"),
                    format!("start at most {lanes} workers, or give the job more lanes"),
                ),
            ));
        }
        let wanted = self.wanted;
        if members >= wanted as usize {
            return Err(refused(
                RefusalReason::RunFull,
                Failure::settings(
                    format!("{id} cannot join: the run has all its workers"),
                    format!("it is to have {wanted}"),
                    format!("make room for it: mks2 scale {}", wanted + 1),
                ),
            ));
        }
        Ok(())
    }

    pub(super) fn attach(
        &mut self,
        now: Duration,
        ticket: Ticket,
        stream: StreamId,
        who: &Identity,
    ) -> Vec<Action> {
        if self.run.is_over() {
            let refused = self.run_over(&format!("{} cannot take part", who.member));
            return vec![Action::Refuse(ticket, refused)];
        }
        if self.adrift.get(&who.member) == Some(&who.incarnation) {
            // It may have registered since, by a request that was long under way, and not know it.
            self.adrift.remove(&who.member);
            return vec![Action::Refuse(ticket, begun_again(&who.member))];
        }
        if let Some(actions) = self.candidate_attached(now, ticket, stream, who) {
            return actions;
        }
        let Some(member) = self.member_mut(who) else {
            return vec![Action::Refuse(ticket, self.unknown(who))];
        };
        member.heard = now;
        member.detached = None;
        let mut actions: Vec<_> = member
            .stream
            .replace(stream)
            .map(Action::Close)
            .into_iter()
            .collect();
        actions.push(Action::Accept(ticket));
        let generation = self.announced();
        match self.run.active() {
            Some(active) => {
                let (stop, held) = (active.stop.clone(), active.held.clone());
                // One that is over is not announced again: its members are others by now.
                let generation = generation.filter(|_| held.is_none());
                if let Some(generation) = generation.filter(|_| !planted!(NotAnnouncedAgain)) {
                    actions.push(Action::Announce(who.member.clone(), generation));
                }
                // The one who was told may have been another coordinator.
                let ask = |reason| Action::AskToStop(who.member.clone(), reason);
                actions.extend(stop.map(ask));
                if active.is_asked && held.is_none() && active.stop.is_none() {
                    let reason = CHANGE.to_owned();
                    actions.push(Action::AskToRegroup(who.member.clone(), reason));
                }
                let hold = |held: Held| Action::Hold(who.member.clone(), held.reason);
                actions.extend(held.map(hold));
            }
            None => {
                self.arrived = now;
                actions.extend(self.form_if_complete(now));
            }
        }
        actions
    }

    /// The first generation, as soon as everybody is here; of those who are enough, when the others
    /// do not come in time.
    pub(super) fn form_if_complete(&mut self, now: Duration) -> Vec<Action> {
        let waited = now.saturating_sub(self.arrived) >= self.config.limits.gathering;
        let all = self.members.len() >= self.wanted as usize;
        // Whoever comes asks, so nobody is counted before it may matter.
        if !matches!(self.run, Run::Waiting) || !(all || waited) {
            return Vec::new();
        }
        let here = self.attached().count();
        if here < self.members.len() {
            return Vec::new();
        }
        if all || (waited && here >= self.needed()) {
            self.form_generation(Vec::new(), "all workers are here".to_owned())
        } else {
            Vec::new()
        }
    }

    /// How many have to be here before the run begins; after it has begun once, fewer.
    pub(super) fn needed(&self) -> usize {
        let has_begun = self.generation > self.config.last_generation;
        let workers = self.config.workers;
        (if has_begun {
            workers.min
        } else {
            workers.start
        }) as usize
    }

    /// The next generation, of all members that have not finished: who they are, their ranks and
    /// lanes. Persisted, then announced.
    ///
    /// Those who would leave are let go with it, and candidates that are ready come in. Where too few
    /// are left it does not form yet, and the others wait.
    pub(super) fn form_generation(&mut self, lost: Vec<MemberId>, reason: String) -> Vec<Action> {
        if let Some(failure) = self.too_often(&reason) {
            return self.fail(failure, None);
        }
        let leaving = self.let_go();
        let mut held = Held {
            lost,
            left: leaving.iter().map(|(id, _)| id.clone()).collect(),
            reason,
        };
        if let Some(before) = self.run.active_mut().and_then(|a| a.held.take()) {
            held.lost.splice(0..0, before.lost);
            held.left.splice(0..0, before.left);
        }
        let release = leaving.into_iter();
        let release = release.map(|(id, why)| Action::LetGo(id, why)).collect();
        let actions = match self.has_too_few() {
            true => self.hold(held),
            false => self.form(held),
        };
        [actions, release].concat()
    }

    /// Fewer are here than the run's minimum, where that matters.
    fn has_too_few(&self) -> bool {
        self.may_hold() && self.next_members() < self.config.workers.min as usize
    }

    /// How many members the next generation has. Those who would leave stay where nobody else knows
    /// the state of training.
    pub(super) fn next_members(&self) -> usize {
        let working = self.members.values().filter(|m| m.finished.is_none());
        let ready = self.ready().len();
        working.count() - self.leavers(ready > 0).len() + ready
    }

    /// Who asked it to stop does not wait for others, and when some have finished little is left.
    pub(super) fn may_hold(&self) -> bool {
        let active = self.run.active();
        let is_at_work = |m: &Member| m.finished.is_none() || planted!(HeldAtTheEnd);
        let nobody_has_finished = self.members.values().all(is_at_work);
        active.is_some_and(|active| active.stop.is_none()) && nobody_has_finished
    }

    /// The generation is over, and the next one waits for more members.
    fn hold(&mut self, mut held: Held) -> Vec<Action> {
        if self.stage.is_none() {
            // Nobody has begun, so nobody could tell a newcomer anything: all begin together.
            return self.begin_again("there are too few workers to begin");
        }
        let (here, min) = (self.staying(), self.config.workers.min);
        held.reason = format!("{}: {here} of at least {min} workers are left", held.reason);
        let reason = held.reason.clone();
        if let Some(active) = self.run.active_mut() {
            active.quarrel = None;
            active.held = Some(held);
        }
        self.attached()
            .map(|id| Action::Hold(id.clone(), reason.clone()))
            .collect()
    }

    fn form(&mut self, held: Held) -> Vec<Action> {
        let is_first = self.assignment.is_empty();
        let mut joined = self.take_in();
        // A newcomer may have the name of one that was lost, not its place.
        let is_old = |share: &Share| !joined.contains(&share.member) || planted!(NamesakeInPlace);
        self.assignment.retain(is_old);
        let working = self.members.iter().filter(|(_, m)| m.finished.is_none());
        let ids: Vec<_> = working.map(|(id, _)| id.clone()).collect();
        if is_first {
            joined.clear();
        }
        let assignment = match deal(self.config.lanes, &ids, &self.assignment) {
            Ok(assignment) => assignment,
            Err(error) => {
                let failure = Failure::settings(
                    "the run cannot start",
                    error.to_string(),
                    "start fewer workers, or give the job more lanes",
                );
                return self.fail(failure, None);
            }
        };
        self.generation = Generation(self.generation.0 + 1);
        self.count_places(assignment.len());
        self.assignment.clone_from(&assignment);
        let telling = telling(assignment.len());
        if !telling.is_zero() {
            self.told_by = self.last_event + telling;
        }
        let mut active = Active {
            generation: self.generation,
            ranks: ranks(&assignment),
            assignment,
            announced: None,
            stop: self.run.active().and_then(|active| active.stop.clone()),
            quarrel: None,
            after_step: self.step,
            lost: held.lost,
            left: held.left,
            joined,
            reason: held.reason,
            is_asked: false,
            held: None,
        };
        let announced = Arc::new(self.wire_generation(&active));
        active.announced = Some(Arc::clone(&announced));
        let record = self.record_of(&active);
        self.run = Run::Active(Box::new(active));
        let persist = Action::Persist(record);
        let announce = ids
            .into_iter()
            .map(|id| Action::Announce(id, Arc::clone(&announced)));
        std::iter::once(persist).chain(announce).collect()
    }

    /// Generation after generation without a step: something is wrong that another one does not cure.
    fn too_often(&mut self, reason: &str) -> Option<Failure> {
        let (step, times) = self.fruitless;
        let times = if step == self.step { times + 1 } else { 1 };
        self.fruitless = (self.step, times);
        let limit = self.config.limits.fruitless;
        (times > limit).then(|| {
            Failure::run_failed(
                format!("the run makes no progress: {limit} generations brought no step"),
                format!("the last one ended like this: {reason}"),
                self.resume_words(),
            )
        })
    }

    /// The member, if this process of it is the one that counts.
    pub(super) fn member_mut(&mut self, who: &Identity) -> Option<&mut Member> {
        let member = self.members.get_mut(&who.member);
        member.filter(|member| member.incarnation == who.incarnation)
    }

    pub(super) fn unknown(&self, who: &Identity) -> Refused {
        let id = &who.member;
        match self.members.contains_key(id) {
            true => taken(id),
            false => refused(
                RefusalReason::UnknownMember,
                Failure::run_failed(
                    format!("{id} is no member of the run"),
                    "it has not registered, or was silent for too long before the start",
                    "start the worker again",
                ),
            ),
        }
    }

    pub(super) fn run_over(&self, what: &str) -> Refused {
        let failure = Failure::run_failed(what, self.reason(), self.resume_words());
        refused(RefusalReason::RunOver, failure)
    }

    fn other_run(&self, registration: &Registration) -> Refused {
        let meant = registration
            .run_id
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        refused(
            RefusalReason::WrongRun,
            Failure::settings(
                format!("{} cannot join", registration.who.member),
                format!(
                    "this is the run {}, it means the run {meant}",
                    self.config.run_id
                ),
                "check MKS2_RUN_ID and MKS2_COORDINATOR",
            ),
        )
    }
}

/// For one whose welcome speaks of what is lost: a new one comes with its next registration.
fn begun_again(id: &MemberId) -> Refused {
    let failure = Failure::run_failed(
        format!("{id} cannot take part yet"),
        "the run has begun again since it registered",
        "it tries again by itself",
    );
    refused(RefusalReason::Reunion, failure)
}

/// A process that worked in a generation which does not count it as a member any more may be steps
/// ahead of those that have taken its place, or behind.
fn too_late(id: &MemberId) -> Refused {
    let failure = Failure::run_failed(
        format!("{id} cannot come back"),
        "the run went on without it",
        "start a new process in its place",
    );
    refused(RefusalReason::UnknownMember, failure)
}

fn taken(id: &MemberId) -> Refused {
    refused(
        RefusalReason::MemberTaken,
        Failure::settings(
            format!("{id} cannot join"),
            "another process of that name takes part in the run",
            "give each worker its own MKS2_MEMBER_ID; to replace one, stop the run first",
        ),
    )
}

fn other_protocol(id: &MemberId, theirs: u32) -> Refused {
    refused(
        RefusalReason::Protocol,
        Failure::environment(
            format!("{id} cannot join"),
            format!("it speaks version {theirs} of the wire protocol, the coordinator {PROTOCOL}"),
            "use the same version of mks2 and mks2-worker everywhere",
        ),
    )
}
