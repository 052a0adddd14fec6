//! What the loss of a member means: the others go on without it, in the next generation.
//!
//! A loss is noticed by a broken stream, by silence, by the launcher that saw a process end, or by
//! peers whose collectives fail. Peers may be wrong: of two that cannot reach each other either may
//! be to blame, or the network between them. So a complaint waits for the fate of the one who is
//! blamed; if nothing happens to it, the same members connect anew, and only if that brings no step
//! further the one who has trouble with most of the others has to go.

use std::time::Duration;

use mks2_proto::{failure::Failure, ids::MemberId, v1};

use super::{
    Abortion, Action, Identity, Machine, Member, StreamId,
    run::{Quarrel, Run},
};

/// Notices that a status shows.
pub(crate) const NOTICES: usize = 16;

impl Machine {
    /// A stream broke. Its member has a moment to open another one: its machine may have stood still,
    /// or the network.
    pub(super) fn detach(
        &mut self,
        now: Duration,
        stream: StreamId,
        who: &Identity,
        how: String,
    ) -> Vec<Action> {
        if let Some(actions) = self.candidate_detached(stream, who, &how) {
            return actions;
        }
        let waits = self.run.active().is_none();
        let Some(member) = self.member_mut(who).filter(|m| m.stream == Some(stream)) else {
            return Vec::new();
        };
        member.stream = None;
        if waits {
            return self.lose(&who.member, &how);
        }
        member.detached = Some((now, how));
        self.lose_the_detached(now)
    }

    /// A candidate's stream broke.
    fn candidate_detached(
        &mut self,
        stream: StreamId,
        who: &Identity,
        how: &str,
    ) -> Option<Vec<Action>> {
        let candidate = self.candidate_mut(who)?;
        let is_present = candidate.member.stream == Some(stream);
        Some(match is_present {
            true => self.drop_candidate(&who.member, how),
            false => Vec::new(),
        })
    }

    /// Those without a stream are lost when the moment is over, or at once when a peer blames them.
    /// Where most streams broke it was something between them and the coordinator: then only those
    /// are lost whom peers miss too, and the others are as those that fell silent.
    fn lose_the_detached(&mut self, now: Duration) -> Vec<Action> {
        if now < self.lenient_until {
            return Vec::new();
        }
        let grace = self.config.limits.detached;
        let quarrel = self.run.active().and_then(|active| active.quarrel.as_ref());
        let is_blamed = |id: &MemberId| quarrel.is_some_and(|quarrel| quarrel.blames(id));
        let is_late =
            |since: Duration| now >= self.streams_broke_until && now.saturating_sub(since) >= grace;
        let detached = self.members.iter().filter_map(|(id, member)| {
            let (since, how) = member.detached.as_ref()?;
            Some((id, *since, how))
        });
        let mut lost: Vec<_> = detached
            .filter(|(id, since, _)| is_late(*since) || is_blamed(id))
            .map(|(id, _, how)| (id.clone(), how.clone()))
            .collect();
        if !lost.is_empty() && self.broke_most_streams(now) && !planted!(BlamedWhenCutOff) {
            lost.retain(|(id, _)| is_blamed(id));
            self.streams_broke_until = now + self.config.limits.leniency;
        }
        self.lose_all(lost)
    }

    /// The coordinator itself stood still, or its machine: nobody could be heard meanwhile, and
    /// members may have given their streams up.
    pub(super) fn forgive_pauses(&mut self, now: Duration) {
        let pause = now.saturating_sub(self.last_event);
        self.last_event = now;
        if pause > self.config.limits.silence / 2 {
            let candidates = self.candidates.values_mut();
            let candidates = candidates.map(|candidate| &mut candidate.member);
            for member in self.members.values_mut().chain(candidates) {
                // Never earlier: one that is awaited has until the end of the reunion.
                member.heard = (member.heard + pause).min(now).max(member.heard);
                member.moved = (member.moved + pause).min(now).max(member.moved);
            }
            if let Some(until) = &mut self.cut_off {
                *until += pause;
            }
            let active = self.run.active_mut();
            if let Some(quarrel) = active.and_then(|active| active.quarrel.as_mut()) {
                quarrel.since += pause;
            }
            let leniency = now + self.config.limits.leniency;
            self.lenient_until = leniency.max(self.lenient_until + pause);
        }
    }

    pub(super) fn exited(&mut self, member: &MemberId, how: &str) -> Vec<Action> {
        match self.members.get_mut(member) {
            Some(known) => {
                known.stream = None;
                self.lose(member, how)
            }
            None => self.drop_candidate(member, how),
        }
    }

    /// A member is gone. Before the start it is waited for again. Later the others go on in the
    /// next generation. When there are none, the run begins again from its latest checkpoint with
    /// those that come, or fails where nobody will.
    pub(super) fn lose(&mut self, id: &MemberId, how: &str) -> Vec<Action> {
        self.lose_after(Vec::new(), id, how)
    }

    /// The same, where others were taken out just before.
    fn lose_after(&mut self, before: Vec<MemberId>, id: &MemberId, how: &str) -> Vec<Action> {
        if self.run.is_over() {
            return Vec::new();
        }
        if self.run.active().is_none() {
            // Its stream ends, so that it knows, and comes again if it is alive.
            let stream = self.members.remove(id).and_then(|member| member.stream);
            let stream = stream.filter(|_| !planted!(ForgottenInSilence));
            return stream.map(Action::Close).into_iter().collect();
        }
        if self
            .members
            .get(id)
            .is_none_or(|member| member.finished.is_some())
        {
            return Vec::new();
        }
        let failure = self.loss(id, how);
        self.close_account(id);
        let mut others = self.members.iter().filter(|(other, _)| *other != id);
        let knows = |(_, other): (_, &Member)| other.knows() || other.finished.is_some();
        if !others.clone().any(knows) {
            let may_wait = self
                .run
                .active()
                .is_some_and(|active| active.stop.is_none());
            return match self.config.returns && may_wait {
                true => self.lose_the_last(id, &failure),
                false => self.fail(failure, Some(id.clone())),
            };
        }
        let done = others.all(|(_, other)| other.finished.is_some());
        self.members_lost += 1;
        self.notice(&failure, self.process_of(id));
        let farewell = self.dismiss(id, &failure);
        let mut actions = if done {
            self.conclude()
        } else {
            let mut reason = format!("{}: {}", failure.what, failure.why);
            if !before.is_empty() {
                reason = format!("{} more and {reason}", before.len());
            }
            self.form_generation([before, vec![id.clone()]].concat(), reason)
        };
        actions.extend(farewell);
        actions
    }

    /// Nobody is left who knows the state of training.
    fn lose_the_last(&mut self, id: &MemberId, failure: &Failure) -> Vec<Action> {
        self.members_lost += 1;
        self.notice(failure, self.process_of(id));
        let farewell = self.dismiss(id, failure);
        let mut actions = self.begin_again("all others were lost");
        actions.extend(farewell);
        actions
    }

    /// Waits for new members, from the latest checkpoint (P10). Whoever is there is let go, to come
    /// again: candidates have prepared to be told the state by others.
    pub(super) fn begin_again(&mut self, why: &str) -> Vec<Action> {
        let members = std::mem::take(&mut self.members).into_iter();
        let candidates = std::mem::take(&mut self.candidates).into_iter();
        let candidates = candidates.map(|(id, candidate)| (id, candidate.member));
        let reason = format!("{why}; the run begins again from its latest checkpoint");
        let all = members.chain(candidates);
        let (there, adrift): (Vec<_>, Vec<_>) = all.partition(|(_, m)| m.stream.is_some());
        let adrift = adrift.into_iter();
        self.adrift
            .extend(adrift.map(|(id, member)| (id, member.incarnation)));
        let there = there.into_iter();
        let actions = there
            .map(|(id, _)| Action::LetGo(id, reason.clone()))
            .collect();
        self.assignment.clear();
        // What those still save that were let go before belongs to the steps that are void now.
        self.departed.clear();
        self.run = Run::Waiting;
        self.cut_off = None;
        if !planted!(OldBeginning) {
            // Those who are gone may have committed some, and let others go.
            self.beginning.clone_from(&self.checkpoints);
        }
        self.books.rewound();
        self.step = self.beginning.latest().map_or(0, |latest| latest.step);
        self.stage = None;
        self.quarrelled_at = None;
        actions
    }

    /// Takes a member out; one that still listens is told why.
    pub(super) fn dismiss(&mut self, id: &MemberId, failure: &Failure) -> Vec<Action> {
        if planted!(LostMemberKept) {
            return Vec::new();
        }
        let stream = self.members.remove(id).and_then(|member| member.stream);
        stream.map_or_else(Vec::new, |stream| {
            let abortion = Abortion {
                failure: failure.clone(),
                lost: Some(id.clone()),
            };
            vec![Action::Dismiss(id.clone(), abortion), Action::Close(stream)]
        })
    }

    pub(super) fn loss(&self, id: &MemberId, how: &str) -> Failure {
        let rank = self
            .run
            .active()
            .and_then(|active| active.rank_of(id))
            .unwrap_or_default();
        let (place, doing) = self
            .members
            .get(id)
            .map_or_else(Default::default, |member| {
                let process = match member.pid {
                    // Known from the journal alone.
                    0 => String::new(),
                    pid => format!(", process {pid}"),
                };
                let place = format!(" on {}{process}", member.host);
                (place, member.doing(self.generation))
            });
        Failure::run_failed(
            format!("{id} was lost (rank {rank}{place})"),
            format!("{how}; it was last {doing}"),
            self.resume_words(),
        )
    }

    pub(super) fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = self.end_of_reunion(now);
        actions.extend(self.lose_the_detached(now));
        actions.extend(self.lose_the_silent(now));
        actions.extend(self.drop_silent_candidates(now));
        actions.extend(self.form_if_complete(now));
        actions.extend(self.end_of_grace(now));
        actions.extend(self.look_for_stalls(now));
        actions
    }

    /// How long nothing was heard of a member that could have been.
    pub(super) fn silence(&self, now: Duration, member: &Member) -> Duration {
        now.saturating_sub(member.heard.max(self.told_by))
    }

    /// Nothing was heard of it for longer than there can be a reason for.
    pub(super) fn is_late(&self, now: Duration, member: &Member) -> bool {
        self.silence(now, member) > self.config.limits.silence
    }

    fn lose_the_silent(&mut self, now: Duration) -> Vec<Action> {
        if self.is_cut_off(now) {
            return Vec::new();
        }
        let lenient_until = self.lenient_until.max(self.streams_broke_until);
        let silent: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.finished.is_none() && self.is_late(now, member))
            .filter(|(_, member)| member.stream.is_some() || now >= lenient_until)
            .map(|(id, member)| (id.clone(), self.silence(now, member)))
            .collect();
        let how = |silence: Duration| {
            format!("nothing was heard of it for {:.1} s", silence.as_secs_f64())
        };
        let silent = silent.into_iter().map(|(id, silence)| (id, how(silence)));
        self.lose_all(silent.collect())
    }

    /// Several are gone at the same moment, with their machine for example: one generation follows.
    fn lose_all(&mut self, mut lost: Vec<(MemberId, String)>) -> Vec<Action> {
        if self.run.active().is_none() {
            let one_by_one = lost.into_iter();
            return one_by_one
                .flat_map(|(id, how)| self.lose(&id, &how))
                .collect();
        }
        let at_work = |id: &MemberId| self.members.get(id).is_some_and(|m| m.finished.is_none());
        lost.retain(|(id, _)| at_work(id));
        let Some((last, how)) = lost.pop() else {
            return Vec::new();
        };
        let (mut farewells, mut before) = (Vec::new(), Vec::new());
        for (id, how) in lost {
            let failure = self.loss(&id, &how);
            self.close_account(&id);
            self.members_lost += 1;
            self.notice(&failure, self.process_of(&id));
            farewells.extend(self.dismiss(&id, &failure));
            before.push(id);
        }
        let mut actions = self.lose_after(before, &last, &how);
        actions.extend(farewells);
        actions
    }

    /// A collective failed on a peer. News of an earlier generation is no news.
    pub(super) fn peer_lost(
        &mut self,
        now: Duration,
        who: &Identity,
        report: v1::PeerLost,
    ) -> Vec<Action> {
        let blamed = MemberId::new(&report.member_id).ok();
        if let Some(active) = self.run.active_mut().filter(|active| active.held.is_none()) {
            let quarrel = active.quarrel.get_or_insert_with(|| Quarrel {
                since: now,
                complaints: Default::default(),
            });
            let complaint = (blamed, report.why);
            quarrel.complaints.insert(who.member.clone(), complaint);
        }
        self.lose_the_detached(now)
    }

    /// Nothing happened to those who are blamed. While the coordinator itself is cut off it knows too
    /// little to judge: those whom it hears may be cut off with it.
    fn end_of_grace(&mut self, now: Duration) -> Vec<Action> {
        let active = self.run.active().filter(|_| self.cut_off.is_none());
        let Some(active) = active else {
            return Vec::new();
        };
        let Some(quarrel) = active
            .quarrel
            .as_ref()
            .filter(|q| now.saturating_sub(q.since) >= self.config.limits.complaint_grace)
        else {
            return Vec::new();
        };
        let why = quarrel.words();
        let at_work = |id: &MemberId| self.members.get(id).is_some_and(|m| m.finished.is_none());
        let blamed = quarrel.most_blamed(active).filter(at_work);
        let again = self.quarrelled_at.replace(self.step) == Some(self.step);
        match blamed {
            Some(blamed) if again => {
                let how = format!("others cannot reach it: {why}");
                self.lose(&blamed, &how)
            }
            // Whoever has finished is gone, and no reason to give up.
            None if again && self.members.values().all(|m| m.finished.is_none()) => {
                let failure = Failure::run_failed(
                    "the workers cannot work together",
                    why,
                    self.resume_words(),
                );
                self.fail(failure, None)
            }
            _ => {
                let failure = Failure::run_failed("the workers connect anew", &why, "");
                self.notice(&failure, None);
                self.form_generation(Vec::new(), format!("the workers connect anew: {why}"))
            }
        }
    }

    /// A member, as a notice of its loss names it.
    pub(super) fn process_of(&self, id: &MemberId) -> Option<(MemberId, u32)> {
        let member = self.members.get(id)?;
        Some((id.clone(), member.pid))
    }

    /// Tells people what went wrong while the run goes on; of a loss also who, and which process.
    pub(super) fn notice(&mut self, failure: &Failure, lost: Option<(MemberId, u32)>) {
        self.noticed += 1;
        self.notices.push_back(v1::Notice {
            number: self.noticed,
            step: self.step,
            what: failure.what.clone(),
            why: failure.why.clone(),
            lost_pid: lost.as_ref().map(|(_, pid)| *pid).unwrap_or_default(),
            lost_member: lost.map(|(id, _)| id.to_string()).unwrap_or_default(),
        });
        while self.notices.len() > NOTICES {
            self.notices.pop_front();
        }
    }

    /// All members that are left have finished.
    pub(super) fn conclude(&mut self) -> Vec<Action> {
        let complete = self
            .members
            .values()
            .all(|member| member.finished == Some(true));
        let stop = self.run.active().and_then(|active| active.stop.clone());
        let step = self.step;
        let (end, entry) = if complete {
            (Run::Finished, crate::journal::Entry::RunFinished { step })
        } else {
            let reason = stop.unwrap_or_else(|| "the workers stopped".to_owned());
            let end = Run::Stopped { reason };
            (
                end,
                crate::journal::Entry::RunStopped {
                    step: step.max(self.measured),
                },
            )
        };
        self.run = end;
        vec![Action::Persist(entry)]
    }
}
