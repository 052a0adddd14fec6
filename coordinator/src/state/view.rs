//! What the machine shows: the status, and the reason for it in words.

use std::{collections::HashMap, time::Duration};

use mks2_proto::{ids::MemberId, v1};

use super::{
    Machine, Member,
    run::{Active, Run},
};
use crate::assign::Share;

/// Silence is shown in steps of this, so that a quiet run has a quiet status.
const SILENCE_STEP_MS: u64 = 500;
/// Names that a reason tells.
const MOST_NAMES: usize = 20;

impl Machine {
    /// The status at a time.
    #[must_use]
    pub fn status(&self, now: Duration) -> v1::StatusResponse {
        #[cfg(test)]
        self.looks.set(self.looks.get() + 1);
        v1::StatusResponse {
            run_id: self.config.run_id.to_string(),
            job_name: self.config.job_name.clone(),
            run_url: self.config.run_url.clone(),
            term: self.config.term.0,
            generation: self.generation.0,
            state: self.run.wire().into(),
            reason: self.reason(),
            step: self.step,
            total_steps: self.config.total_steps,
            stage: self.stage.clone(),
            metrics: self.metrics.clone(),
            members: self.member_statuses(now),
            latest_checkpoint: self.checkpoints.latest().cloned().map(Into::into),
            failure: self.failure().map(Into::into),
            expected_members: self.config.workers.start,
            lanes: self.config.lanes,
            finished_stages: self
                .checkpoints
                .finished_stages()
                .cloned()
                .map(Into::into)
                .collect(),
            notices: self.notices.iter().cloned().collect(),
            members_lost: self.members_lost,
            checkpoints_skipped: self.checkpoints_skipped,
            lost_member: self.lost_member(),
            stalled: self.stalled.clone().unwrap_or_default(),
            min_members: self.config.workers.min,
            wanted_members: self.wanted_now(),
            candidates: self.candidate_statuses(now),
            members_joined: self.members_joined,
            members_left: self.members_left,
            spent: Some(self.books.run().into()),
        }
    }

    fn lost_member(&self) -> String {
        let lost = match &self.run {
            Run::Failed(abortion) => abortion.lost.as_ref(),
            _ => None,
        };
        lost.map(ToString::to_string).unwrap_or_default()
    }

    fn member_statuses(&self, now: Duration) -> Vec<v1::MemberStatus> {
        let shares = self.assignment.iter();
        let shares: HashMap<_, _> = shares.map(|share| (&share.member, share)).collect();
        let mut members: Vec<_> = self
            .members
            .iter()
            .map(|(id, member)| self.member_status(id, member, shares.get(id).copied(), now))
            .collect();
        members.sort_by_key(|member| member.rank);
        members
    }

    /// Nobody is wanted any more once some have finished.
    pub(super) fn wanted_now(&self) -> u32 {
        let has_ended = |member: &Member| member.finished.is_some();
        match self.members.values().any(has_ended) {
            true => 0,
            false => self.wanted,
        }
    }

    fn candidate_statuses(&self, now: Duration) -> Vec<v1::MemberStatus> {
        let candidates = self.candidates.iter();
        candidates
            .map(|(id, candidate)| self.member_status(id, &candidate.member, None, now))
            .collect()
    }

    fn member_status(
        &self,
        id: &MemberId,
        member: &Member,
        share: Option<&Share>,
        now: Duration,
    ) -> v1::MemberStatus {
        v1::MemberStatus {
            member_id: id.to_string(),
            rank: share.map(|share| share.rank.0).unwrap_or_default(),
            host: member.host.clone(),
            device: self.device_of(&member.device),
            lanes: share.map(|share| share.lanes.clone()).unwrap_or_default(),
            step: member.committed,
            phase: member.phase.into(),
            collective: member.collective,
            silent_ms: in_steps(now.saturating_sub(member.heard)),
            connected: member.stream.is_some(),
            spent: Some(self.books.of(id).into()),
        }
    }

    fn device_of(&self, named: &str) -> String {
        if named.is_empty() {
            self.config.device.clone()
        } else {
            named.to_owned()
        }
    }

    /// Why the run is in its state: whom it waits for, who complains, what failed.
    #[must_use]
    pub fn reason(&self) -> String {
        match &self.run {
            Run::Waiting => self.waiting_for(),
            Run::Active(active) => self.at_work(active),
            Run::Stopped { reason } => format!("the run was stopped: {reason}"),
            Run::Finished => "the job is done".to_owned(),
            Run::Failed(abortion) => {
                format!("{}: {}", abortion.failure.what, abortion.failure.why)
            }
        }
    }

    fn at_work(&self, active: &Active) -> String {
        if self.reunion.is_some() {
            let (here, all) = (self.attached().count(), self.members.len());
            return format!(
                "a new coordinator waits for the workers of the one before: {here} of {all} are back"
            );
        }
        if let Some(held) = &active.held {
            return self.holding(&held.reason);
        }
        if let Some(quarrel) = &active.quarrel {
            return format!("workers cannot reach each other: {}", quarrel.words());
        }
        if let Some(words) = self.cut_off_words() {
            return words;
        }
        if let Some(stalled) = &self.stalled {
            return stalled.clone();
        }
        if let Some(reason) = &active.stop {
            return format!("the run stops at the next step boundary, with a checkpoint: {reason}");
        }
        let generation = active.generation;
        match active.workers() {
            1 => format!("1 worker is at work in generation {generation}"),
            more => format!("{more} workers are at work in generation {generation}"),
        }
    }

    fn holding(&self, reason: &str) -> String {
        let coming = listed(self.candidates.keys().map(MemberId::as_str));
        match coming.is_empty() {
            true => format!("the run waits for workers: {reason}"),
            false => format!("the run waits for workers: {reason}; joining: {coming}"),
        }
    }

    fn waiting_for(&self) -> String {
        let names = |connected: bool| {
            let all = self.members.iter();
            let some = all.filter(|(_, m)| m.stream.is_some() == connected);
            listed(some.map(|(id, _)| id.as_str()))
        };
        let (here, coming) = (self.attached().count(), names(false));
        let mut words = format!("waiting for workers: {here} of {} are here", self.needed());
        if here > 0 {
            words.push_str(&format!(" ({})", names(true)));
        }
        if !coming.is_empty() {
            words.push_str(&format!("; joining: {coming}"));
        }
        words
    }
}

/// Names, as many as somebody reads.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    match names.len().checked_sub(MOST_NAMES) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..MOST_NAMES].join(", ")),
    }
}

fn in_steps(silence: Duration) -> u64 {
    let ms = u64::try_from(silence.as_millis()).unwrap_or(u64::MAX);
    ms / SILENCE_STEP_MS * SILENCE_STEP_MS
}
