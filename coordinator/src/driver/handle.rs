//! How services and the launcher talk to the driver.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use mks2_proto::{
    failure::Failure,
    ids::{Generation, MemberId},
    v1::{self, RefusalReason},
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::state::{Checkpoint, Identity, Refused, Registration, StreamId};

/// What a request gets; for commits the checkpoints that were let go, for registrations those that
/// the run begins with.
pub(crate) type Answer = Result<Vec<Checkpoint>, Refused>;
/// The way down to one member.
pub(crate) type Directives = mpsc::Sender<Result<v1::Directive, Status>>;

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
    Report(Identity, Generation, v1::report::Kind),
    Commit {
        who: Identity,
        generation: Generation,
        checkpoint: Checkpoint,
        manifest: Bytes,
        reply: oneshot::Sender<Answer>,
    },
    Stop(String, oneshot::Sender<Answer>),
}

/// A cheap way to the driver.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<v1::StatusResponse>,
    streams: Arc<AtomicU64>,
}

impl Handle {
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        status: watch::Receiver<v1::StatusResponse>,
    ) -> Self {
        Self {
            commands,
            status,
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
