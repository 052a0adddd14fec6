//! Who is in: registration, streams, silence, generations.

use std::time::Duration;

use mks2_proto::{
    dial::PROTOCOL,
    failure::Failure,
    ids::{Generation, MemberId},
    v1::{self, RefusalReason},
};

use super::{
    Action, Identity, Machine, Member, Refused, Registration, StreamId, Ticket, refused,
    run::{Active, Run},
};
use crate::{assign::deal, journal::Entry};

impl Machine {
    pub(super) fn register(
        &mut self,
        now: Duration,
        ticket: Ticket,
        registration: Registration,
    ) -> Vec<Action> {
        if let Err(refused) = self.admit(&registration) {
            return vec![Action::Refuse(ticket, refused)];
        }
        let id = registration.who.member.clone();
        let known = self.members.get(&id);
        if known.is_some_and(|m| m.incarnation == registration.who.incarnation) {
            return vec![Action::Accept(ticket)];
        }
        let replaced = known.and_then(|member| member.stream);
        let member = Member::new(registration, now, self.step);
        self.members.insert(id, member);
        replaced
            .map(Action::Close)
            .into_iter()
            .chain([Action::Accept(ticket)])
            .collect()
    }

    /// Whether a process may become a member now.
    fn admit(&self, registration: &Registration) -> Result<(), Refused> {
        let id = &registration.who.member;
        let known = self.members.get(id).map(|member| member.incarnation);
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
        if known == Some(registration.who.incarnation) {
            return Ok(());
        }
        let started = self.run.active().is_some();
        match known {
            Some(_) if started => Err(taken(id)),
            Some(_) => Ok(()),
            None => self.room_for(id, started),
        }
    }

    fn room_for(&self, id: &MemberId, started: bool) -> Result<(), Refused> {
        let members = self.members.len();
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
        if started || members >= self.config.expected as usize {
            let expected = self.config.expected;
            return Err(refused(
                RefusalReason::RunFull,
                Failure::settings(
                    format!("{id} cannot join: the run has all its workers"),
                    format!("it was started for {expected} and nobody can join later"),
                    format!(
                        "stop the run and start it again with --workers {}",
                        expected + 1
                    ),
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
        let Some(member) = self.member_mut(who) else {
            return vec![Action::Refuse(ticket, self.unknown(who))];
        };
        member.heard = now;
        let mut actions: Vec<_> = member
            .stream
            .replace(stream)
            .map(Action::Close)
            .into_iter()
            .collect();
        actions.push(Action::Accept(ticket));
        match self.run.active() {
            Some(active) => {
                let generation = self.wire_generation(active);
                actions.push(Action::Announce(who.member.clone(), generation));
            }
            None => actions.extend(self.form_if_complete()),
        }
        actions
    }

    /// The first generation, as soon as everybody is here.
    fn form_if_complete(&mut self) -> Vec<Action> {
        let complete = self.attached().count() == self.config.expected as usize
            && self.members.len() == self.config.expected as usize;
        if complete {
            self.form_generation()
        } else {
            Vec::new()
        }
    }

    /// The next generation, of all members: who they are, their ranks and lanes. Persisted, then
    /// announced.
    fn form_generation(&mut self) -> Vec<Action> {
        let ids: Vec<_> = self.members.keys().cloned().collect();
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
        self.assignment.clone_from(&assignment);
        let active = Active {
            generation: self.generation,
            assignment,
        };
        let announced = self.wire_generation(&active);
        self.run = Run::Running(active);
        let persist = Action::Persist(Entry::generation(&announced));
        let announce = ids
            .into_iter()
            .map(|id| Action::Announce(id, announced.clone()));
        std::iter::once(persist).chain(announce).collect()
    }

    fn wire_generation(&self, active: &Active) -> v1::Generation {
        let member = |share: &crate::assign::Share| {
            let known = self.members.get(&share.member)?;
            Some(v1::Member {
                member_id: share.member.to_string(),
                incarnation: known.incarnation.0,
                rank: share.rank.0,
                data_address: known.data_address.clone(),
                host: known.host.clone(),
                lanes: share.lanes.clone().collect(),
            })
        };
        v1::Generation {
            number: active.generation.0,
            members: active.assignment.iter().filter_map(member).collect(),
        }
    }

    pub(super) fn detach(&mut self, stream: StreamId, who: &Identity, how: &str) -> Vec<Action> {
        let Some(member) = self.member_mut(who).filter(|m| m.stream == Some(stream)) else {
            return Vec::new();
        };
        member.stream = None;
        self.lose(&who.member, how)
    }

    pub(super) fn exited(&mut self, member: &MemberId, how: &str) -> Vec<Action> {
        match self.members.get_mut(member) {
            Some(known) => {
                known.stream = None;
                self.lose(member, how)
            }
            None => Vec::new(),
        }
    }

    /// A member is gone. Before the start it is waited for again; later the run ends, unless the
    /// member had finished.
    fn lose(&mut self, id: &MemberId, how: &str) -> Vec<Action> {
        if self.run.is_over() {
            return Vec::new();
        }
        if self.run.active().is_none() {
            self.members.remove(id);
            return Vec::new();
        }
        let complained =
            matches!(&self.run, Run::Ailing { complainants, .. } if complainants.contains(id));
        let gone = self
            .members
            .get(id)
            .is_none_or(|member| member.finished.is_some());
        if complained || gone {
            return Vec::new();
        }
        let failure = self.loss(id, how);
        self.fail(failure, Some(id.clone()))
    }

    fn loss(&self, id: &MemberId, how: &str) -> Failure {
        let rank = self
            .run
            .active()
            .and_then(|active| active.rank_of(id))
            .unwrap_or_default();
        let (place, doing) = self
            .members
            .get(id)
            .map_or_else(Default::default, |member| {
                let place = format!(" on {}, process {}", member.host, member.pid);
                (place, member.doing(self.generation))
            });
        Failure::run_failed(
            format!("{id} was lost (rank {rank}{place})"),
            format!("{how}; it was last {doing}"),
            self.resume_words(),
        )
    }

    pub(super) fn tick(&mut self, now: Duration) -> Vec<Action> {
        let pause = now.saturating_sub(self.last_tick);
        self.last_tick = now;
        if pause > self.config.limits.tick * 10 {
            // The coordinator itself stood still: nobody could be heard meanwhile.
            for member in self.members.values_mut() {
                member.heard = (member.heard + pause).min(now);
            }
        }
        let mut actions = self.lose_the_silent(now);
        actions.extend(self.end_of_grace(now));
        actions
    }

    fn lose_the_silent(&mut self, now: Duration) -> Vec<Action> {
        let limit = self.config.limits.silence;
        let silent: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.finished.is_none())
            .map(|(id, member)| (id.clone(), now.saturating_sub(member.heard)))
            .filter(|(_, silence)| *silence > limit)
            .collect();
        let mut actions = Vec::new();
        for (id, silence) in silent {
            let stream = self
                .members
                .get_mut(&id)
                .and_then(|member| member.stream.take());
            actions.extend(stream.map(Action::Close));
            let how = format!("nothing was heard of it for {:.1} s", silence.as_secs_f64());
            actions.extend(self.lose(&id, &how));
        }
        actions
    }

    fn end_of_grace(&mut self, now: Duration) -> Vec<Action> {
        match &self.run {
            Run::Ailing {
                complaint, since, ..
            } if now.saturating_sub(*since) >= self.config.limits.complaint_grace => {
                let failure = complaint.clone();
                self.fail(failure, None)
            }
            _ => Vec::new(),
        }
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
