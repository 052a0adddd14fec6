//! Whom the others wait for (P12): named within two seconds, given up after a limit.
//!
//! A member that is lost says nothing. One that stalls goes on beating: its loader hangs, its store
//! does not answer, its device does not return. What tells it from the others is that they wait for
//! it, in a collective that it has not reached; or that it has reached, and whose share they miss.

use std::{collections::BTreeMap, time::Duration};

use mks2_proto::{ids::MemberId, v1::Phase};

use super::{Action, Machine, member::Member};

/// How long others wait before it is worth a word.
const WORTH_A_WORD: Duration = Duration::from_millis(1500);
/// How long a member has waited for another one when it says so.
const TOLD_AFTER: Duration = Duration::from_millis(300);
/// The same, as a multiple of a usual step: some have more lanes than others.
const USUAL_STEPS: f64 = 3.0;

impl Machine {
    /// Names whoever holds the others up, and gives it up after the limit.
    pub(super) fn look_for_stalls(&mut self, now: Duration) -> Vec<Action> {
        if self.cut_off.is_some() {
            // What they said last is old.
            self.stalled = None;
            return Vec::new();
        }
        let found = self.held_up_by(now);
        self.stalled = found.as_ref().map(|(id, _)| self.stall_words(id));
        let limit = self.config.limits.stall.max(self.patience());
        match found {
            Some((id, since)) if since >= limit && !self.is_saving(&id) => {
                let how = format!("the others waited {} s for it", since.as_secs());
                self.lose(&id, &how)
            }
            _ => Vec::new(),
        }
    }

    /// A large checkpoint takes its time, and another member would need as long.
    fn is_saving(&self, id: &MemberId) -> bool {
        let member = self.members.get(id);
        member.is_some_and(|member| member.phase == Phase::Checkpointing)
    }

    /// The member that the others wait for, and for how long it has not moved.
    fn held_up_by(&self, now: Duration) -> Option<(MemberId, Duration)> {
        let active = self.run.active().filter(|active| active.held.is_none())?;
        let still = |member: &Member| now.saturating_sub(member.moved);
        let patience = self.patience();
        let has_waited = |member: &Member| waits(member.phase) && still(member) > patience;
        // This is asked with every tick, and members may be many.
        if !self.members.values().any(has_waited) {
            return None;
        }
        let at_work: Vec<_> = self
            .members
            .iter()
            .filter(|(id, member)| member.finished.is_none() && active.rank_of(id).is_some())
            .collect();
        if !at_work.iter().any(|(_, member)| has_waited(member)) {
            return None;
        }
        let furthest = at_work.iter().map(|(_, member)| member.progress()).max()?;
        let behind = at_work
            .iter()
            .filter(|(_, m)| !waits(m.phase) || m.progress() < furthest)
            .filter(|(_, m)| still(m) > patience);
        if let Some((id, member)) = behind.max_by_key(|(_, member)| still(member)) {
            return Some(((*id).clone(), still(member)));
        }
        // It may have waited itself until a moment ago.
        let (rank, since) = most_missed(&at_work)?;
        let missed = active.member_of(rank)?;
        let (id, member) = at_work.iter().find(|(id, _)| *id == missed)?;
        let time = still(member).min(now.saturating_sub(since) + TOLD_AFTER);
        (time > patience).then(|| ((*id).clone(), time))
    }

    fn patience(&self) -> Duration {
        let usual = self.metrics.as_ref().map_or(0.0, |m| m.step_seconds);
        let usual = Duration::try_from_secs_f64(usual * USUAL_STEPS).unwrap_or_default();
        usual.max(WORTH_A_WORD)
    }

    fn stall_words(&self, id: &MemberId) -> String {
        let rank = self.run.active().and_then(|active| active.rank_of(id));
        let (host, doing) = self
            .members
            .get(id)
            .map_or_else(Default::default, |member| {
                (member.host.clone(), member.doing(self.generation))
            });
        format!(
            "the others wait for {id} (rank {} on {host}), which is {doing}",
            rank.unwrap_or_default()
        )
    }
}

/// The rank that most of the others miss in a collective that all have reached, and since when.
fn most_missed(at_work: &[(&MemberId, &Member)]) -> Option<(u32, Duration)> {
    let mut votes: BTreeMap<u32, Vec<Duration>> = BTreeMap::new();
    for (rank, since) in at_work.iter().filter_map(|(_, member)| member.waits_for) {
        votes.entry(rank).or_default().push(since);
    }
    let most = votes.into_iter().max_by_key(|(_, times)| times.len());
    most.and_then(|(rank, times)| Some((rank, times.into_iter().min()?)))
}

/// In these phases a member needs all others.
fn waits(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Gathering | Phase::Reducing | Phase::Voting | Phase::Regrouping | Phase::Auditing
    )
}
