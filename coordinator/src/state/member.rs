//! A member as the coordinator knows it.

use std::time::Duration;

use mks2_proto::{
    ids::{Generation, Incarnation},
    v1::{Heartbeat, Phase},
};

use super::{Registration, StreamId};
use crate::journal::GenerationMember;

/// A worker process that registered.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) incarnation: Incarnation,
    pub(crate) host: String,
    pub(crate) pid: u32,
    pub(crate) data_address: String,
    pub(crate) device: String,
    /// Its open stream.
    pub(crate) stream: Option<StreamId>,
    /// When and how its stream broke, while it has none.
    pub(crate) detached: Option<(Duration, String)>,
    /// Its last sign of life. For one that is awaited, the end of the reunion.
    pub(crate) heard: Duration,
    /// When it last said where its time has gone.
    pub(crate) accounted: Duration,
    /// The last step that it committed.
    pub(crate) committed: u64,
    pub(crate) phase: Phase,
    pub(crate) collective: u64,
    /// The rank whose share of it has not come, and when it said so first.
    pub(crate) waits_for: Option<(u32, Duration)>,
    /// When it was last seen to do something else than before.
    pub(crate) moved: Duration,
    /// How it ended: with the job done (true) or stopped on request.
    pub(crate) finished: Option<bool>,
    /// Why it is to leave, if it is.
    pub(crate) leaving: Option<String>,
    /// It came to a run at work and has not been told the state of training yet, as far as is known.
    pub(crate) is_blank: bool,
}

impl Member {
    pub(crate) fn new(registration: Registration, now: Duration, resumed_at: u64) -> Self {
        Self {
            incarnation: registration.who.incarnation,
            host: registration.host,
            pid: registration.pid,
            data_address: registration.data_address,
            device: registration.device,
            stream: None,
            detached: None,
            heard: now,
            accounted: now,
            committed: resumed_at,
            phase: Phase::Starting,
            collective: 0,
            waits_for: None,
            moved: now,
            finished: None,
            leaving: None,
            is_blank: false,
        }
    }

    /// One of an earlier term's generation, which is awaited until then.
    pub(crate) fn restored(known: GenerationMember, until: Duration, step: u64) -> Self {
        Self {
            incarnation: known.incarnation,
            host: known.host,
            pid: 0,
            data_address: known.data_address,
            device: String::new(),
            stream: None,
            detached: None,
            heard: until,
            accounted: until,
            committed: step,
            phase: Phase::Unspecified,
            collective: 0,
            waits_for: None,
            moved: until,
            finished: None,
            leaving: None,
            is_blank: false,
        }
    }

    /// It is back, or says again who it is; true: others know it by something else.
    pub(crate) fn introduce(&mut self, registration: Registration) -> bool {
        let before = (&self.host, &self.data_address);
        let is_news = before != (&registration.host, &registration.data_address);
        self.host = registration.host;
        self.pid = registration.pid;
        self.data_address = registration.data_address;
        self.device = registration.device;
        is_news
    }

    /// Takes over what a heartbeat says that has come a moment ago, if it speaks of the present
    /// generation.
    pub(crate) fn beat(&mut self, now: Duration, heard: Duration, beat: Heartbeat, current: bool) {
        // One that was awaited has until the end of the reunion: it is back now.
        let is_back = self.heard > now;
        self.heard = if is_back {
            heard
        } else {
            self.heard.max(heard)
        };
        // What it has committed stays so when the generation changes.
        self.committed = self.committed.max(beat.step);
        if !current {
            return;
        }
        let before = (self.phase, self.progress());
        self.phase = beat.phase();
        self.collective = beat.collective;
        let known = self
            .waits_for
            .filter(|(rank, _)| Some(*rank) == beat.waits_for);
        self.waits_for = known.or(beat.waits_for.map(|rank| (rank, now)));
        self.is_blank &= matches!(self.phase, Phase::Starting | Phase::Regrouping);
        if (self.phase, self.progress()) != before {
            self.moved = heard;
        }
    }

    /// Whether it works and is not about to leave.
    pub(crate) fn stays(&self) -> bool {
        self.finished.is_none() && self.leaving.is_none()
    }

    /// Whether it works and could tell a newcomer the state of training.
    pub(crate) fn knows(&self) -> bool {
        self.finished.is_none() && !self.is_blank
    }

    /// How far it is: steps, and collectives of the generation. Between two collectives it says
    /// none.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.committed, self.collective)
    }

    /// What it was doing last, in words.
    pub(crate) fn doing(&self, generation: Generation) -> String {
        let phase = match self.phase {
            Phase::Unspecified => "at work",
            Phase::Starting => "starting",
            Phase::Loading => "loading samples",
            Phase::Gathering => "gathering features",
            Phase::Computing => "computing",
            Phase::Reducing => "reducing gradients",
            Phase::Voting => "voting",
            Phase::Updating => "updating weights",
            Phase::Checkpointing => "writing a checkpoint",
            Phase::Evaluating => "evaluating",
            Phase::Regrouping => "joining a generation",
            Phase::Auditing => "comparing its copy of the state with the others'",
        };
        let collective = match self.collective {
            0 => String::new(),
            number => format!(" in collective {number}"),
        };
        format!(
            "{phase}{collective} after step {} of generation {generation}",
            self.committed
        )
    }
}
