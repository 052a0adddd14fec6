//! Who comes to a run at work (P9): first a candidate, then a member.
//!
//! ```text
//! register ─► candidate ─► Invitation(stage) ─► it prepares ─► Ready(stage)
//!                 ▲                                              │
//!                 └──────────── the stage has changed ───────────┤
//!                                                                ▼
//!           members vote to meet at a border (Regroup) ─► AtBorder ─► next generation, with it
//! ```
//!
//! Nobody waits for a candidate: it loads and builds everything but the state of training while the
//! others go on. A candidate that is lost costs nothing. Where the next generation forms for another
//! reason, those who are ready come in with it.

use std::time::Duration;

use mks2_proto::{
    failure::Failure,
    ids::MemberId,
    v1::{self, report::Kind},
};

use super::membership::CHANGE;
use super::{
    Abortion, Action, Identity, Machine, Registration, StreamId, Ticket, member::Member, run::Run,
};

/// A process that prepares to take part.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) member: Member,
    /// The stage that it has prepared.
    ready: Option<String>,
}

impl Machine {
    /// A new process, while the run is at work; there is room for it.
    pub(super) fn register_candidate(
        &mut self,
        now: Duration,
        ticket: Ticket,
        registration: Registration,
    ) -> Vec<Action> {
        let id = registration.who.member.clone();
        let same = |known: &&Candidate| known.member.incarnation == registration.who.incarnation;
        let before = self.candidates.get(&id).filter(same);
        let stream = before.and_then(|before| before.member.stream);
        let mut member = Member::new(registration, now, self.step);
        member.stream = stream;
        let candidate = Candidate {
            member,
            ready: None,
        };
        let replaced = self.candidates.insert(id, candidate);
        let other = replaced.and_then(|replaced| replaced.member.stream);
        let other = other.filter(|other| Some(*other) != stream);
        let welcome = Action::Welcome(ticket, self.welcome(true));
        other
            .map(Action::Close)
            .into_iter()
            .chain([welcome])
            .collect()
    }

    pub(super) fn candidate_mut(&mut self, who: &Identity) -> Option<&mut Candidate> {
        let candidate = self.candidates.get_mut(&who.member);
        candidate.filter(|candidate| candidate.member.incarnation == who.incarnation)
    }

    /// A candidate opened its stream.
    pub(super) fn candidate_attached(
        &mut self,
        now: Duration,
        ticket: Ticket,
        stream: StreamId,
        who: &Identity,
    ) -> Option<Vec<Action>> {
        let candidate = self.candidate_mut(who)?;
        candidate.member.heard = now;
        let replaced = candidate.member.stream.replace(stream);
        let actions = replaced.map(Action::Close).into_iter();
        let invite = self.invitation().map(|invitation| {
            let id = who.member.clone();
            Action::Invite(id, invitation)
        });
        Some(
            actions
                .chain([Action::Accept(ticket)])
                .chain(invite)
                .collect(),
        )
    }

    /// What a candidate has to prepare; nothing until it is known what the run works on.
    fn invitation(&self) -> Option<v1::Invitation> {
        let finished = self.checkpoints.finished_stages();
        Some(v1::Invitation {
            stage: self.stage.as_ref()?.stage.clone(),
            finished_stages: finished.cloned().map(Into::into).collect(),
        })
    }

    /// The run works on a stage from now on. What candidates have prepared for another one is of no
    /// use.
    pub(super) fn stage_changed(&mut self, stage: v1::StageChanged) -> Vec<Action> {
        let is_old = |known: &v1::StageChanged| known.first_step > stage.first_step;
        if self.stage.as_ref().is_some_and(is_old) {
            // Told again by one that is still behind the border.
            return Vec::new();
        }
        let known = self.stage.as_ref().map(|known| &known.stage);
        let is_news = known != Some(&stage.stage);
        self.stage = Some(stage);
        let Some(invitation) = self.invitation().filter(|_| is_news) else {
            return Vec::new();
        };
        for candidate in self.candidates.values_mut() {
            candidate.ready = None;
        }
        let attached = self.candidates.iter();
        attached
            .filter(|(_, candidate)| candidate.member.stream.is_some())
            .map(|(id, _)| Action::Invite(id.clone(), invitation.clone()))
            .collect()
    }

    /// Takes what a candidate says; none: it is none.
    pub(super) fn candidate_said(
        &mut self,
        now: Duration,
        who: &Identity,
        kind: &Kind,
    ) -> Option<Vec<Action>> {
        let candidate = self.candidate_mut(who)?;
        candidate.member.heard = now;
        match kind {
            Kind::Ready(ready) => candidate.ready = Some(ready.stage.clone()),
            Kind::Failed(failed) => {
                let failure = Failure::from(failed.clone());
                let how = format!("it failed: {}: {}", failure.what, failure.why);
                return Some(self.drop_candidate(&who.member, &how));
            }
            Kind::Leaving(leaving) => {
                let reason = leaving.reason.clone();
                self.candidates.remove(&who.member);
                return Some(vec![Action::LetGo(who.member.clone(), reason)]);
            }
            _ => {}
        }
        Some(Vec::new())
    }

    /// A candidate is gone, and nothing with it.
    pub(super) fn drop_candidate(&mut self, id: &MemberId, how: &str) -> Vec<Action> {
        let Some(candidate) = self.candidates.remove(id) else {
            return Vec::new();
        };
        let failure = Failure::run_failed(format!("{id} was lost before it took part"), how, "");
        self.notice(&failure, None);
        let stream = candidate.member.stream;
        stream.map(Action::Close).into_iter().collect()
    }

    /// Candidates that nothing was heard of for too long. One that has no stream yet may wait for the
    /// answer to its registration.
    pub(super) fn drop_silent_candidates(&mut self, now: Duration) -> Vec<Action> {
        let limits = self.config.limits;
        let limit = |member: &Member| match member.stream {
            Some(_) => limits.silence,
            None => limits.leniency,
        };
        let silent: Vec<_> = self
            .candidates
            .iter()
            .map(|(id, candidate)| (id, &candidate.member))
            .map(|(id, member)| (id, self.silence(now, member), limit(member)))
            .filter(|(_, silence, limit)| silence > limit)
            .map(|(id, silence, _)| (id.clone(), silence))
            .collect();
        let silent = silent.into_iter();
        silent
            .flat_map(|(id, silence)| {
                let how = format!("nothing was heard of it for {:.1} s", silence.as_secs_f64());
                self.drop_candidate(&id, &how)
            })
            .collect()
    }

    /// Those who have prepared the present stage and are connected, as many as there is room for.
    pub(super) fn ready(&self) -> Vec<MemberId> {
        // This is asked with every tick, and members may be many.
        if self.candidates.is_empty() {
            return Vec::new();
        }
        let stage = self.stage.as_ref().map(|stage| stage.stage.as_str());
        let is_ready = |candidate: &Candidate| {
            candidate.member.stream.is_some()
                && candidate.ready.is_some()
                && candidate.ready.as_deref() == stage
        };
        let mut ready: Vec<_> = self
            .candidates
            .iter()
            .filter(|(id, candidate)| is_ready(candidate) && !self.members.contains_key(*id))
            .map(|(id, _)| id.clone())
            .collect();
        ready.sort_by(|a, b| a.natural_key().cmp(&b.natural_key()));
        let there = self.members.values().filter(|m| m.finished.is_none());
        let kept = there.count() - self.leavers(!ready.is_empty()).len();
        let wanted = (self.wanted as usize).saturating_sub(self.staying());
        let lanes = (self.config.lanes as usize).saturating_sub(kept);
        ready.truncate(wanted.min(lanes));
        ready
    }

    /// Candidates that are ready become members of the generation that is about to form.
    pub(super) fn take_in(&mut self) -> Vec<MemberId> {
        let ready = self.ready();
        for id in &ready {
            if let Some(candidate) = self.candidates.remove(id) {
                let mut member = candidate.member;
                member.committed = self.step;
                member.is_blank = true;
                self.members.insert(id.clone(), member);
            }
        }
        self.members_joined += ready.len() as u64;
        ready
    }

    /// Changes of the members that wait for a border, or for enough members: asks for the border,
    /// or forms the generation.
    pub(super) fn seek_change(&mut self) -> Vec<Action> {
        let Some(active) = self.run.active() else {
            return Vec::new();
        };
        if let Some(reason) = self.all_leave() {
            return self.stop_for(reason);
        }
        let ready = self.ready().len();
        if active.held.is_some() {
            let enough = self.next_members() >= self.config.workers.min as usize;
            if enough || !self.may_hold() {
                return self.form_generation(Vec::new(), "enough workers are here".to_owned());
            }
            return Vec::new();
        }
        let is_wanted = ready > 0 || self.may_anybody_leave();
        if !is_wanted || active.is_asked || active.stop.is_some() || self.reunion.is_some() {
            return Vec::new();
        }
        if let Some(active) = self.run.active_mut() {
            active.is_asked = true;
        }
        self.attached()
            .map(|id| Action::AskToRegroup(id.clone(), CHANGE.to_owned()))
            .collect()
    }

    /// The generation has come to a border where it was asked to end.
    pub(super) fn at_border(&mut self, step: u64) -> Vec<Action> {
        if self.run.active().is_none_or(|active| active.held.is_some()) {
            return Vec::new();
        }
        self.step = self.step.max(step);
        self.form_generation(Vec::new(), "the workers change".to_owned())
    }

    /// The run is over: nobody takes part any more.
    pub(super) fn turn_candidates_away(&mut self) -> Vec<Action> {
        let over = matches!(
            self.run,
            Run::Stopped { .. } | Run::Finished | Run::Failed(_)
        );
        if !over || self.candidates.is_empty() {
            return Vec::new();
        }
        let failure = Failure::stopped(
            "the run ended before this worker took part",
            self.reason(),
            "nothing is left to do for it",
        );
        let abortion = Abortion {
            failure,
            lost: None,
        };
        let candidates = std::mem::take(&mut self.candidates).into_keys();
        candidates
            .map(|id| Action::Abort(id, abortion.clone()))
            .collect()
    }
}
