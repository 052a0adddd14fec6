//! Members whose copies of the state of training are not alike: memory that has lost a bit, or a
//! device that computes wrongly.
//!
//! Every member of the generation has seen the same digests and says the same; the first report
//! counts. What the damaged copy has computed since all were alike is in everybody's weights by
//! now, and in the checkpoints that were saved since. So the run goes back to the latest one before which
//! all copies were compared; or, where the job prefers that, the odd one alone is lost, and a new one gets
//! the others' state.

use mks2_proto::{
    failure::Failure,
    ids::MemberId,
    job::OnCorruption,
    v1::{RefusalReason, ReplicasDiffer},
};

use super::{Action, Machine, Member, Refused, refused};
use crate::journal::Entry;

impl Machine {
    /// The members' copies of the state differ. That stays true when their generation is over, for
    /// another reason: processes that have come since the run began again were not in it.
    pub(super) fn replicas_differ(&mut self, found: ReplicasDiffer) -> Vec<Action> {
        let working = |id: &MemberId| {
            let member = self.members.get(id);
            member.is_some_and(|member| member.finished.is_none())
        };
        let named = found.member_ids.iter();
        let named = named.filter_map(|id| MemberId::new(id).ok());
        let odd: Vec<_> = named.filter(working).collect();
        if self.run.active().is_none() {
            return Vec::new();
        }
        let evicts = self.config.on_corruption == OnCorruption::Evict || planted!(NotTakenBack);
        if evicts && !found.member_ids.is_empty() {
            // Where all say it, the others go on without it already.
            let how = difference(&found);
            return odd.iter().flat_map(|id| self.lose(id, &how)).collect();
        }
        self.take_back(&odd, &found)
    }

    /// The run goes back to its latest checkpoint of which it is known that it is right, with new
    /// processes.
    fn take_back(&mut self, odd: &[MemberId], found: &ReplicasDiffer) -> Vec<Action> {
        let how = difference(found);
        let to_step = self.right_step();
        let (dropped, refusals) = self.drop_after(to_step);
        let active = self.run.active();
        if !self.config.returns || active.is_none_or(|active| active.stop.is_some()) {
            let failed = self.fail(self.irreparable(odd, &how), None);
            return match dropped.is_empty() {
                true => [refusals, failed].concat(),
                false => [refusals, rewound(to_step, dropped, &[]), failed].concat(),
            };
        }
        let mut farewells = Vec::new();
        for id in odd {
            let failure = self.loss(id, &how);
            self.members_lost += 1;
            self.notice(&failure, self.process_of(id));
            farewells.extend(self.dismiss(id, &failure));
        }
        let (what, why) = (
            match to_step {
                0 => "the run goes back to its beginning".to_owned(),
                step => format!("the run goes back to its checkpoint at step {step}"),
            },
            match found.member_ids.is_empty() {
                true => format!("{how}; nobody can say which copy is right"),
                false => format!(
                    "what {} computed since step {} may be in all copies",
                    found.member_ids.join(", "),
                    found.agreed_step
                ),
            },
        );
        self.notice(&Failure::run_failed(what, why, ""), None);
        // What was measured since is void, and measured anew.
        self.measured = to_step;
        self.metrics = None;
        self.books.unsaved();
        let others = self.begin_again("the workers' copies of the state differed");
        [refusals, rewound(to_step, dropped, odd), farewells, others].concat()
    }

    /// Takes out the checkpoints after a step, and says which they are. Those that are being written
    /// do not count either, and whoever waits for them is told.
    fn drop_after(&mut self, step: u64) -> (Vec<u64>, Vec<Action>) {
        let later = self.checkpoints.after(step);
        let dropped: Vec<_> = later.iter().map(|void| void.step).collect();
        self.checkpoints.remove(&dropped);
        let writing = std::mem::take(&mut self.writing);
        let refusals = writing.into_iter().flat_map(|(step, waiting)| {
            let waiting = waiting.into_iter();
            waiting.map(move |ticket| Action::Refuse(ticket, void(step)))
        });
        (dropped, refusals.collect())
    }

    fn right_step(&self) -> u64 {
        let right = match planted!(BackToLatest) {
            true => self.checkpoints.latest(),
            false => self.checkpoints.latest_compared(),
        };
        right.map_or(0, |right| right.step)
    }

    /// Nobody starts new processes, or the run is about to stop.
    fn irreparable(&self, odd: &[MemberId], how: &str) -> Failure {
        let place = |id: &MemberId| {
            let member = self.members.get(id);
            let host = member.map_or("", |member: &Member| member.host.as_str());
            format!("{id} on {host}")
        };
        let who: Vec<_> = odd.iter().map(place).collect();
        let what = match who.is_empty() {
            true => "the workers hold different states of training".to_owned(),
            false => format!(
                "{} holds another state of training than the others",
                who.join(", ")
            ),
        };
        let whose = if who.is_empty() { "their" } else { "its" };
        let cure = format!("test {whose} memory; {}", self.resume_words());
        Failure::run_failed(what, how, cure)
    }
}

/// Why a checkpoint does not count that was being written when the copies were found to differ.
pub(super) fn void(step: u64) -> Refused {
    let failure = Failure::checkpoint(
        format!("the checkpoint at step {step} is not committed"),
        "the workers' copies of the state differ, and it may hold the damage",
        "nothing: the run goes back to an earlier one",
    );
    refused(RefusalReason::StaleGeneration, failure)
}

fn rewound(to_step: u64, dropped: Vec<u64>, odd: &[MemberId]) -> Vec<Action> {
    vec![Action::Persist(Entry::RunRewound {
        to_step,
        dropped,
        lost: odd.to_vec(),
    })]
}

fn difference(found: &ReplicasDiffer) -> String {
    let whose = match found.member_ids.is_empty() {
        true => "the copies of the state of training differ",
        false => "its copy of the state of training differs from those of most others",
    };
    format!(
        "{whose} after step {}; all were alike after step {}",
        found.step, found.agreed_step
    )
}
