//! How services and the launcher talk to the driver.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use mks2_proto::{
    failure::Failure,
    ids::{Generation, MemberId},
    v1::{self, RefusalReason, report::Kind},
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use super::board::{Board, Slot};
use crate::state::{Checkpoint, Identity, Refused, Registration, StreamId, Welcome};

/// What a request gets.
pub(crate) type Answer = Result<Yes, Refused>;

/// A "yes", with what belongs to it.
#[derive(Debug, Default)]
pub(crate) struct Yes {
    /// For commits: the checkpoints that were let go.
    pub(crate) released: Vec<Checkpoint>,
    /// For registrations.
    pub(crate) welcome: Welcome,
}

/// The way down to one member. Boxed, since a queue keeps places for more than there ever are.
pub(crate) type Directives = mpsc::Sender<Box<Result<v1::Directive, Status>>>;

/// Something for the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Register(Registration, oneshot::Sender<Answer>),
    Attach {
        stream: StreamId,
        who: Identity,
        directives: Directives,
        reply: oneshot::Sender<Answer>,
    },
    Detach(StreamId, Identity, String),
    Exited(MemberId, String),
    Report(Identity, Generation, Kind),
    Commit {
        who: Identity,
        generation: Generation,
        checkpoint: Checkpoint,
        manifest: Bytes,
        reply: oneshot::Sender<Answer>,
    },
    Stop(String, oneshot::Sender<Answer>),
    Drain(MemberId, String, oneshot::Sender<Answer>),
    Scale(u32, oneshot::Sender<Answer>),
}

/// A cheap way to the driver.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<v1::StatusResponse>,
    board: Arc<Board>,
    streams: Arc<AtomicU64>,
}

/// One stream's way to the driver.
#[derive(Debug)]
pub(crate) struct Voice {
    handle: Handle,
    slot: Arc<Slot>,
}

impl Handle {
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        status: watch::Receiver<v1::StatusResponse>,
        board: Arc<Board>,
    ) -> Self {
        Self {
            commands,
            status,
            board,
            streams: Arc::default(),
        }
    }

    /// The status, now and whenever it changes.
    pub(crate) fn status(&self) -> watch::Receiver<v1::StatusResponse> {
        self.status.clone()
    }

    pub(crate) fn new_stream(&self) -> StreamId {
        StreamId(self.streams.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<Answer>) -> Command,
    ) -> Answer {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_err() {
            return Err(gone());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Sends a command that has no answer; false: the coordinator has ended.
    pub(crate) async fn tell(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }
}

impl Voice {
    pub(crate) fn new(handle: &Handle, who: Identity) -> Self {
        Self {
            handle: handle.clone(),
            slot: Slot::new(who),
        }
    }

    /// Passes on what the member says; false: the coordinator has ended.
    pub(crate) async fn say(&self, generation: Generation, kind: Kind) -> bool {
        match kind {
            Kind::Heartbeat(said) => {
                self.handle.board.put(&self.slot, generation, said);
                !self.handle.commands.is_closed()
            }
            news => {
                let who = Identity::clone(self.slot.who());
                self.handle
                    .tell(Command::Report(who, generation, news))
                    .await
            }
        }
    }
}

fn gone() -> Refused {
    Refused {
        reason: RefusalReason::CoordinatorGone,
        failure: Failure::run_failed(
            "the coordinator has ended",
            "the run is over, or its directory cannot be written any more",
            "see the coordinator's log; the same command resumes from the latest checkpoint",
        ),
    }
}
