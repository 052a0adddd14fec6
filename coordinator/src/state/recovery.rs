//! What the loss of a member means: the others go on without it, in the next generation.
//!
//! A loss is noticed by a broken stream, by silence, by the launcher that saw a process end, or by
//! peers whose collectives fail. Peers may be wrong: of two that cannot reach each other either may
//! be to blame, or the network between them. So a complaint waits for the fate of the one who is
//! blamed; if nothing happens to it, the same members connect anew, and only if that brings no step
//! further the one who is blamed most has to go.

use std::time::Duration;

use mks2_proto::{failure::Failure, ids::MemberId, v1};

use super::{
    Abortion, Action, Identity, Machine, StreamId,
    run::{Quarrel, Run},
};

/// Notices that a status shows.
const NOTICES: usize = 16;

impl Machine {
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

    /// A member is gone. Before the start it is waited for again. Later the others go on in the
    /// next generation; the run fails when there are none.
    pub(super) fn lose(&mut self, id: &MemberId, how: &str) -> Vec<Action> {
        if self.run.is_over() {
            return Vec::new();
        }
        if self.run.active().is_none() {
            self.members.remove(id);
            return Vec::new();
        }
        if self
            .members
            .get(id)
            .is_none_or(|member| member.finished.is_some())
        {
            return Vec::new();
        }
        let failure = self.loss(id, how);
        let mut others = self.members.iter().filter(|(other, _)| *other != id);
        if others.clone().next().is_none() {
            return self.fail(failure, Some(id.clone()));
        }
        let done = others.all(|(_, other)| other.finished.is_some());
        let mut actions = self.dismiss(id, &failure);
        self.members_lost += 1;
        self.notice(&failure, Some(id.clone()));
        if done {
            actions.extend(self.conclude());
        } else {
            let reason = format!("{}: {}", failure.what, failure.why);
            actions.extend(self.form_generation(vec![id.clone()], reason));
        }
        actions
    }

    /// Takes a member out; one that still listens is told why.
    fn dismiss(&mut self, id: &MemberId, failure: &Failure) -> Vec<Action> {
        let stream = self.members.remove(id).and_then(|member| member.stream);
        stream.map_or_else(Vec::new, |stream| {
            let abortion = Abortion {
                failure: failure.clone(),
                lost: Some(id.clone()),
            };
            vec![Action::Abort(id.clone(), abortion), Action::Close(stream)]
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
        let pause = now.saturating_sub(self.last_tick);
        self.last_tick = now;
        if pause > self.config.limits.silence / 2 {
            // The coordinator itself stood still: nobody could be heard meanwhile.
            for member in self.members.values_mut() {
                member.heard = (member.heard + pause).min(now);
            }
        }
        let mut actions = self.end_of_reunion(now);
        actions.extend(self.lose_the_silent(now));
        actions.extend(self.end_of_grace(now));
        actions.extend(self.look_for_stalls(now));
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
            let how = format!("nothing was heard of it for {:.1} s", silence.as_secs_f64());
            actions.extend(self.lose(&id, &how));
        }
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
        if let Some(active) = self.run.active_mut() {
            let quarrel = active.quarrel.get_or_insert_with(|| Quarrel {
                since: now,
                complaints: Default::default(),
            });
            let complaint = (blamed, report.why);
            quarrel.complaints.insert(who.member.clone(), complaint);
        }
        Vec::new()
    }

    /// Nothing happened to those who are blamed.
    fn end_of_grace(&mut self, now: Duration) -> Vec<Action> {
        let Some(active) = self.run.active() else {
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
        let blamed = quarrel.most_blamed(active);
        let again = self.quarrelled_at.replace(self.step) == Some(self.step);
        match blamed {
            Some(blamed) if again => {
                let how = format!("others cannot reach it: {why}");
                self.lose(&blamed, &how)
            }
            None if again => {
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

    /// Tells people what went wrong while the run goes on.
    pub(super) fn notice(&mut self, failure: &Failure, lost: Option<MemberId>) {
        self.noticed += 1;
        self.notices.push_back(v1::Notice {
            number: self.noticed,
            step: self.step,
            what: failure.what.clone(),
            why: failure.why.clone(),
            lost_member: lost.map(|id| id.to_string()).unwrap_or_default(),
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
            (end, crate::journal::Entry::RunStopped { step })
        };
        self.run = end;
        vec![Action::Persist(entry)]
    }
}
