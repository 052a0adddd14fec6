//! A new coordinator and the members of the one before: they go on with their step, and find it.
//!
//! The journal knows the generation at work, not how far it has come; its members tell that when
//! they are back. Who is not back in time is lost. If nobody is, they died with the coordinator,
//! and the run waits for new members, from the latest checkpoint.

use std::time::Duration;

use mks2_proto::failure::Failure;

use super::{
    Action, Identity, Machine, Refused,
    member::Member,
    refused,
    run::{Active, Run, ranks},
};
use crate::{assign::Share, journal::Working};
use mks2_proto::{ids::Rank, v1::RefusalReason};

impl Machine {
    /// Takes up the generation of an earlier term.
    pub(super) fn restore(&mut self) {
        let Some((working, measured)) = self.config.restored.clone() else {
            return;
        };
        let until = self.config.limits.reunion;
        let Working {
            generation,
            members,
            after_step,
            stop,
        } = working;
        self.generation = generation;
        self.step = self.step.max(after_step);
        self.measured = measured;
        self.assignment = (0..)
            .map(Rank)
            .zip(&members)
            .map(|(rank, member)| Share {
                member: member.member.clone(),
                rank,
                lanes: member.lanes.clone(),
            })
            .collect();
        let step = self.step;
        self.members = members
            .into_iter()
            .map(|known| (known.member.clone(), Member::restored(known, until, step)))
            .collect();
        self.reunion = Some(until);
        self.run = Run::Active(Box::new(Active {
            generation,
            assignment: self.assignment.clone(),
            ranks: ranks(&self.assignment),
            announced: None,
            stop,
            quarrel: None,
            after_step,
            lost: Vec::new(),
            left: Vec::new(),
            joined: Vec::new(),
            is_asked: false,
            held: None,
            reason: "the coordinator was replaced".to_owned(),
        }));
    }

    /// Strangers have to wait until it is known who is back.
    pub(super) fn not_now(&self, what: &str) -> Refused {
        let failure = Failure::run_failed(
            what,
            "a new coordinator waits for the workers of the one before",
            "it tries again by itself",
        );
        refused(RefusalReason::Reunion, failure)
    }

    /// One that is awaited has ended, if another process has its name: as if its stream had broken
    /// now. The others do not wait for it until the reunion ends.
    pub(super) fn replaced(&mut self, now: Duration, by: &Identity) {
        let awaited = self.members.get_mut(&by.member);
        let Some(awaited) = awaited.filter(|awaited| awaited.stream.is_none()) else {
            return;
        };
        if awaited.incarnation != by.incarnation {
            let how = "a new process has come in its place".to_owned();
            awaited.detached.get_or_insert((now, how));
        }
    }

    /// A record that counts steps must not be there before their lines.
    pub(super) fn not_yet_told(&self, what: &str) -> Refused {
        let why = format!(
            "the coordinator has heard of {} steps until now",
            self.measured
        );
        let failure = Failure::run_failed(what, why, "it tries again by itself");
        refused(RefusalReason::Reunion, failure)
    }

    /// The reunion ends when all are back, or it is late.
    pub(super) fn end_of_reunion(&mut self, now: Duration) -> Vec<Action> {
        let Some(until) = self.reunion else {
            return Vec::new();
        };
        let absent = |member: &Member| member.stream.is_none() && member.finished.is_none();
        let missing: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| absent(member))
            .map(|(id, _)| id.clone())
            .collect();
        if !missing.is_empty() && now < until {
            return Vec::new();
        }
        self.reunion = None;
        if missing.is_empty() {
            return Vec::new();
        }
        let late = format!("it did not come back within {:.1} s", until.as_secs_f64());
        if missing.len() == self.members.len() {
            return self.wait_for_others(missing.len(), &late);
        }
        for id in &missing {
            let failure = self.loss(id, &late);
            self.members_lost += 1;
            self.notice(&failure, self.process_of(id));
            self.members.remove(id);
        }
        if self
            .members
            .values()
            .all(|member| member.finished.is_some())
        {
            return self.conclude();
        }
        self.form_generation(missing, "some workers did not come back".to_owned())
    }

    /// Nobody is left of the earlier term.
    fn wait_for_others(&mut self, number: usize, late: &str) -> Vec<Action> {
        let what = format!("the workers of the coordinator before are gone ({number})");
        self.notice(&Failure::run_failed(what, late, ""), None);
        self.begin_again("nobody came back")
    }
}
