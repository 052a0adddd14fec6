//! What the state machine hears and what it wants done.

use std::{sync::Arc, time::Duration};

use mks2_proto::{
    failure::Failure,
    ids::{Generation, Incarnation, MemberId, RunId},
    v1,
};

use super::Checkpoint;
use crate::journal::Entry;

/// Who waits for an answer. The driver maps it to a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One stream of a member: a newer one of the same process replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A process of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The member.
    pub member: MemberId,
    /// The process.
    pub incarnation: Incarnation,
}

/// What a worker tells of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Who.
    pub who: Identity,
    /// The run that it means; none: whichever this is.
    pub run_id: Option<RunId>,
    /// The generation that it works in; 0 for a new process.
    pub generation: Generation,
    /// Version of its wire protocol.
    pub protocol: u32,
    /// Its machine.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Where its data plane listens.
    pub data_address: String,
    /// Its device.
    pub device: String,
}

/// A heartbeat that a member sent, under a generation, and when it came.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Whose it is.
    pub who: Arc<Identity>,
    /// The generation that it speaks of.
    pub generation: Generation,
    /// What it says.
    pub said: v1::Heartbeat,
    /// When it came: before now.
    pub heard: Duration,
}

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker asks to become a member.
    Register(Ticket, Registration),
    /// It opened its stream.
    Attach(Ticket, StreamId, Identity),
    /// The stream broke or was closed; the words say how.
    Detach(StreamId, Identity, String),
    /// The launcher saw the process end; the words say how.
    Exited(MemberId, String),
    /// It said something, under a generation.
    Report(Identity, Generation, v1::report::Kind),
    /// Heartbeats that have come since the last ones, of each stream the newest.
    Beats(Vec<Beat>),
    /// It asks to make a checkpoint the latest; its parts are stored.
    Commit(Ticket, Identity, Generation, Checkpoint),
    /// The manifest that [`Action::WriteManifest`] asked for is there.
    ManifestWritten(Ticket, Checkpoint),
    /// The one of this step could not be written; the checkpoint is skipped.
    ManifestFailed(Ticket, u64, Failure),
    /// Somebody asks the run to stop.
    Stop(Ticket, String),
    /// Somebody asks for a member to be let go; the words say why.
    Drain(Ticket, MemberId, String),
    /// Somebody asks for another number of members.
    Scale(Ticket, u32),
    /// The run directory cannot be written any more, or another coordinator has taken the run.
    Broken(Failure),
    /// Time has passed.
    Tick,
}

impl Event {
    /// It comes all the time, from every member, and hardly ever lets anybody come or go.
    pub(super) fn is_routine(&self) -> bool {
        use v1::report::Kind::StepCommitted;
        matches!(self, Self::Beats(_) | Self::Report(_, _, StepCommitted(_)))
    }
}

/// What a process is told when it registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    /// The run is at work: the process is to wait for an invitation.
    pub is_candidate: bool,
    /// The checkpoint to start from.
    pub resume_from: Option<Checkpoint>,
    /// Last checkpoints of the stages that are finished.
    pub finished: Vec<Checkpoint>,
}

/// A typed "no".
#[derive(Clone, Debug)]
pub struct Refused {
    /// For programs.
    pub reason: v1::RefusalReason,
    /// For people.
    pub failure: Failure,
}

/// Why a generation is over.
#[derive(Clone, Debug)]
pub struct Abortion {
    /// The three lines.
    pub failure: Failure,
    /// The member that was lost, if that is why.
    pub lost: Option<MemberId>,
}

/// One effect. Actions are carried out in their order, each only after the one before it
/// succeeded. [`Action::Abort`] overtakes, and [`Action::Accept`] of a stream or of a process that is
/// known, since they promise nothing.
#[derive(Clone, Debug)]
pub enum Action {
    /// Append to the journal.
    Persist(Entry),
    /// Create the manifest of the commit with this ticket, then tell.
    WriteManifest(Ticket, Checkpoint),
    /// Append a line to the metrics.
    Measure {
        /// The generation that committed it.
        generation: Generation,
        /// Steps since the beginning of the run.
        step: u64,
        /// The rest.
        metrics: Box<v1::StepMetrics>,
    },
    /// The answer is yes.
    Accept(Ticket),
    /// The same for a registration.
    Welcome(Ticket, Welcome),
    /// The commit is done; these checkpoints may go.
    Committed(Ticket, Vec<Checkpoint>),
    /// The answer is no.
    Refuse(Ticket, Refused),
    /// Tell a member about the generation.
    Announce(MemberId, Arc<v1::Generation>),
    /// Tell a member to stop at the next step border.
    AskToStop(MemberId, String),
    /// Tell a candidate what to prepare.
    Invite(MemberId, v1::Invitation),
    /// Tell a member that its generation is to end at a step border.
    AskToRegroup(MemberId, String),
    /// Tell a member that its generation is over and the next one waits for others.
    Hold(MemberId, String),
    /// Tell a member that it may leave.
    LetGo(MemberId, String),
    /// Tell a member that its report was not accepted.
    Reject(MemberId, Refused),
    /// Tell a member that the generation is over.
    Abort(MemberId, Abortion),
    /// The same for one that the others go on without, once that is on record.
    Dismiss(MemberId, Abortion),
    /// Forget a stream: a newer one has replaced it, or its member is lost.
    Close(StreamId),
    /// The reason for the state has changed: worth a line in the log.
    Explain(String),
    /// Something went wrong and the run goes on: the same, in what and why.
    Tell(String, String),
}

/// Workers of a run that is not yet a large one.
const LARGE: u32 = 1000;

/// When things are late.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Workers send a sign of life this often.
    pub heartbeat_interval: Duration,
    /// A worker that is silent for longer is lost.
    pub silence: Duration,
    /// How long a member may be without a stream.
    pub detached: Duration,
    /// How long nobody is blamed for a broken stream after the coordinator itself stood still or most
    /// streams broke, and a candidate for the stream that it has not opened yet.
    pub leniency: Duration,
    /// How long the coordinator waits for its members when it hears of few of them at once: then it
    /// is the coordinator that is cut off, and they go on without it.
    pub cut_off: Duration,
    /// How long a worker's complaint about another one waits for that other's own fate.
    pub complaint_grace: Duration,
    /// How long the others wait for a member that is alive and does not move.
    pub stall: Duration,
    /// How long those who are enough wait for more of their kind before the run starts.
    pub gathering: Duration,
    /// How many generations in a row may form without a step in between.
    pub fruitless: u32,
    /// How long a new coordinator waits for the members of the one before.
    pub reunion: Duration,
    /// How long members look for a coordinator that they have lost, while they go on.
    pub orphanage: Duration,
    /// The coordinator's own pulse. If it pauses for much longer (the machine slept), nobody
    /// else is blamed for that time.
    pub tick: Duration,
}

impl Limits {
    /// How often the workers of a run of this size send a sign of life: large runs half as often,
    /// so that four of them still fit into the silence that makes somebody lost.
    #[must_use]
    pub fn heartbeat_interval_of(&self, workers: u32) -> Duration {
        let usual = self.heartbeat_interval;
        match workers > LARGE {
            true => (2 * usual).min(self.silence / 4).max(usual),
            false => usual,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            silence: Duration::from_millis(800),
            detached: Duration::from_millis(200),
            leniency: Duration::from_secs(3),
            cut_off: Duration::from_secs(6),
            complaint_grace: Duration::from_millis(200),
            stall: Duration::from_secs(600),
            gathering: Duration::from_secs(3),
            fruitless: 32,
            reunion: Duration::from_secs(15),
            orphanage: Duration::from_secs(300),
            tick: Duration::from_millis(50),
        }
    }
}
