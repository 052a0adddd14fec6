//! Who is in: registration, streams, generations.

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
        if let Some(known) = self.member_mut(&registration.who) {
            known.introduce(registration);
            return vec![Action::Accept(ticket)];
        }
        let known = self.members.get(&id);
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
        if registration.generation > Generation(0) && !planted!(StaleWorkerAdmitted) {
            return Err(too_late(id));
        }
        if self.reunion.is_some() {
            return Err(self.not_now(&format!("{id} cannot join yet")));
        }
        let started = self.run.active().is_some();
        match known {
            Some(_) if started && !planted!(TwinAdmitted) => Err(taken(id)),
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
        member.detached = None;
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
                let stop = active.stop.clone();
                if !planted!(NotAnnouncedAgain) {
                    actions.push(Action::Announce(who.member.clone(), generation));
                }
                // The one who was told may have been another coordinator.
                let ask = |reason| Action::AskToStop(who.member.clone(), reason);
                actions.extend(stop.map(ask));
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
            self.form_generation(Vec::new(), "all workers are here".to_owned())
        } else {
            Vec::new()
        }
    }

    /// The next generation, of all members that have not finished: who they are, their ranks and
    /// lanes. Persisted, then announced.
    pub(super) fn form_generation(&mut self, lost: Vec<MemberId>, reason: String) -> Vec<Action> {
        let working = self.members.iter().filter(|(_, m)| m.finished.is_none());
        let ids: Vec<_> = working.map(|(id, _)| id.clone()).collect();
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
            stop: self.run.active().and_then(|active| active.stop.clone()),
            quarrel: None,
            after_step: self.step,
            lost,
            reason,
        };
        let announced = self.wire_generation(&active);
        self.run = Run::Active(active);
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
                lanes: share.lanes.clone(),
            })
        };
        v1::Generation {
            number: active.generation.0,
            members: active.assignment.iter().filter_map(member).collect(),
            after_step: active.after_step,
            lost: active.lost.iter().map(ToString::to_string).collect(),
            reason: active.reason.clone(),
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
