//! The gRPC service: turns messages into commands for the driver, and answers into messages.

mod auth;
pub(crate) mod convert;
mod outgoing;
pub(crate) mod session;

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use mks2_proto::{
    ids::Generation,
    telemetry,
    v1::{self, coordinator_server::Coordinator},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span, info_span};

pub(crate) use auth::Doorkeeper;
pub(crate) use outgoing::Gate;

use crate::driver::{Command, Handle, refusal_status};

/// Directives that may wait for a member.
pub(crate) const DIRECTIVES: usize = 16;
/// The shortest interval between two messages of a watch.
const MIN_WATCH_INTERVAL: Duration = Duration::from_millis(50);

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service; each connection works on a clone.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) handle: Handle,
    /// What each member is told when it registers.
    pub(crate) welcome: Arc<v1::RegisterResponse>,
    /// Large directives on their way to all members.
    pub(crate) gate: Gate,
    /// Tasks of open streams, awaited at the end.
    pub(crate) tasks: TaskTracker,
}

impl Service {
    fn refuse(&self, refused: &crate::state::Refused) -> Status {
        refusal_status(refused, &self.handle.status().borrow())
    }
}

/// A span of the request, under the caller's.
fn span_of<T>(span: Span, request: &Request<T>) -> Span {
    telemetry::continue_from(&span, request.metadata());
    span
}

#[tonic::async_trait]
impl Coordinator for Service {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let span = span_of(info_span!("coordinator.register"), &request);
        async {
            let registration =
                convert::registration(request.into_inner()).map_err(|no| self.refuse(&no))?;
            tracing::info!(member = %registration.who.member, host = registration.host, "registering");
            let answer = self.handle.ask(|reply| Command::Register(registration, reply)).await;
            let yes = answer.map_err(|refused| self.refuse(&refused))?;
            Ok(Response::new(convert::welcome(&self.welcome, yes.welcome)))
        }
        .instrument(span)
        .await
    }

    type SessionStream = Boxed<v1::Directive>;

    async fn session(
        &self,
        request: Request<Streaming<v1::Report>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let span = span_of(info_span!("coordinator.session"), &request);
        let (directives, queue) = mpsc::channel(DIRECTIVES);
        let reports = request.into_inner();
        self.tasks
            .spawn(session::serve(self.clone(), span, reports, directives));
        let outgoing = outgoing::outgoing(queue, self.gate.clone());
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointResponse>, Status> {
        let span = span_of(info_span!("coordinator.commit_checkpoint"), &request);
        async {
            let request = request.into_inner();
            let generation = Generation(request.generation);
            let who = convert::identity(&request.member_id, request.incarnation);
            let parts = who.and_then(|who| Ok((who, convert::checkpoint(&request)?)));
            let (who, checkpoint) = parts.map_err(|no| self.refuse(&no))?;
            let manifest = Bytes::from(request.manifest);
            let commit = |reply| Command::Commit {
                who,
                generation,
                checkpoint,
                manifest,
                reply,
            };
            let yes = self
                .handle
                .ask(commit)
                .await
                .map_err(|refused| self.refuse(&refused))?;
            let released = yes.released.into_iter().map(Into::into).collect();
            Ok(Response::new(v1::CommitCheckpointResponse { released }))
        }
        .instrument(span)
        .await
    }

    async fn stop(
        &self,
        request: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopResponse>, Status> {
        let span = span_of(info_span!("coordinator.stop"), &request);
        async {
            let reason = convert::reason(request.into_inner().reason);
            let answer = self.handle.ask(|reply| Command::Stop(reason, reply)).await;
            answer.map_err(|refused| self.refuse(&refused))?;
            Ok(Response::new(v1::StopResponse {}))
        }
        .instrument(span)
        .await
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        let span = span_of(info_span!("coordinator.drain"), &request);
        async {
            let request = request.into_inner();
            let member = convert::member(&request.member_id).map_err(|no| self.refuse(&no))?;
            let reason = convert::reason(request.reason);
            let drain = |reply| Command::Drain(member, reason, reply);
            let answer = self.handle.ask(drain).await;
            answer.map_err(|refused| self.refuse(&refused))?;
            Ok(Response::new(v1::DrainResponse {}))
        }
        .instrument(span)
        .await
    }

    async fn scale(
        &self,
        request: Request<v1::ScaleRequest>,
    ) -> Result<Response<v1::ScaleResponse>, Status> {
        let span = span_of(info_span!("coordinator.scale"), &request);
        async {
            let workers = request.into_inner().workers;
            let answer = self
                .handle
                .ask(|reply| Command::Scale(workers, reply))
                .await;
            answer.map_err(|refused| self.refuse(&refused))?;
            Ok(Response::new(v1::ScaleResponse {}))
        }
        .instrument(span)
        .await
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let status = self.handle.status().borrow().clone();
        Ok(Response::new(status))
    }

    type WatchStream = Boxed<v1::StatusResponse>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let asked = Duration::from_millis(request.into_inner().min_interval_ms.into());
        let (sender, outgoing) = mpsc::channel(1);
        let interval = asked.max(MIN_WATCH_INTERVAL);
        self.tasks
            .spawn(watch(self.handle.status(), interval, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Sends the status now and whenever it changed, not more often than `interval`, and the last
/// one before the end.
async fn watch(
    mut status: tokio::sync::watch::Receiver<v1::StatusResponse>,
    interval: Duration,
    sender: mpsc::Sender<Result<v1::StatusResponse, Status>>,
) {
    loop {
        let current = status.borrow_and_update().clone();
        if sender.send(Ok(current)).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = sender.closed() => return,
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}
