//! The worker's side of the control plane.
//!
//! ```text
//! trainer thread ── set_phase, step_committed ... ──► Session ──► session thread ── gRPC ──► coordinator
//!      ▲                                                               │
//!      └── AbortFlag, stop_requested, wait_generation ◄────────────────┘
//! ```
//!
//! 1. The session lives on a thread of its own, so that a busy trainer never looks dead; its
//!    heartbeats carry what the trainer said last.
//! 2. Each generation has a flag that its collectives poll. The next generation raises it, and so
//!    does the end of the run: a blocked trainer gives up at once.
//! 3. Without its coordinator a worker goes on, and looks for it or its successor for a while. What
//!    it has to say waits; the last steps that it told are told again, since their news may have
//!    died with the coordinator.
//! 4. Each report carries the generation in which it was written.

mod failures;
mod farewell;
mod link;
mod mail;
mod mishap;
mod shared;
mod timesheet;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, mpsc::Receiver as StdReceiver},
    time::{Duration, Instant},
};

use mks2_proto::{
    dial,
    env::WorkerEnv,
    failure::{ExitCode, Failure},
    goodput::{Activity, TimeSpent},
    patience,
    retelling::Labelled,
    telemetry,
    v1::{self, CheckpointRef, Phase, StepMetrics, report::Kind},
};
use tokio::sync::mpsc::{self, error::TrySendError};
use tonic::Status;
use tracing::debug;

use crate::audit::Difference;
use crate::collectives::AbortFlag;
use crate::replica::Flip;
use failures::{closed, congested, thread_died};
use link::Link;
use mishap::Mishaps;
use shared::Shared;

/// Reports that may wait for the network.
const REPORTS: usize = 256;
/// How long a report may wait for a place among them.
const REPORT_PATIENCE: Duration = Duration::from_secs(10);

/// This worker's place in a generation.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The generation.
    pub generation: u64,
    /// This worker's place.
    pub rank: u32,
    /// Workers in the generation.
    pub world: u32,
    /// Lanes that this worker holds, ascending.
    pub lanes: Vec<u32>,
    /// Names of all workers, by rank.
    pub members: Vec<String>,
    /// Where their data planes listen, by rank.
    pub addresses: Vec<SocketAddr>,
    /// Why there is this generation.
    pub reason: String,
    /// Raised when the generation is over.
    pub abort: AbortFlag,
}

/// What a worker that comes to a run at work is to prepare.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// Its number, from 1: a later one replaces it.
    pub number: u64,
    /// The stage that the run works on.
    pub stage: String,
    /// Last checkpoints of the stages before it.
    pub finished: Vec<CheckpointRef>,
}

/// What a worker that has prepared a stage is called to.
#[derive(Clone, Debug)]
pub enum Call {
    /// To take part.
    Generation(Assignment),
    /// To prepare another stage.
    Invitation,
}

/// A worker's membership in a run.
#[derive(Debug)]
pub struct Session {
    member_id: String,
    incarnation: u64,
    shared: Arc<Shared>,
    mishaps: Mishaps,
    reports: Mutex<Option<mpsc::Sender<Labelled>>>,
    ended: Mutex<StdReceiver<()>>,
}

impl Session {
    /// Registers with the coordinator that the environment names, trying again while it cannot
    /// be reached, and opens the stream. The environment may name several addresses of it,
    /// separated by commas: they are tried in turn, now and whenever it is lost. `data_address` is
    /// where this worker's data plane listens.
    ///
    /// # Errors
    /// When the coordinator refuses this worker, or cannot be reached for half a minute.
    pub async fn connect(env: &WorkerEnv, data_address: SocketAddr) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::default());
        let mishaps = Mishaps::read(&env.member_id)?;
        let (reports, outgoing) = mpsc::channel(REPORTS);
        let link = Link::new(env, data_address, Arc::clone(&shared))?;
        let incarnation = link.incarnation();
        let (joined, ended) = link::spawn(link, outgoing, reports.downgrade())?;
        joined.await.map_err(|_| thread_died())??;
        let account = Arc::clone(&shared);
        telemetry::observe_time(move || account.spent());
        Ok(Self {
            member_id: env.member_id.clone(),
            incarnation,
            shared,
            mishaps,
            reports: Mutex::new(Some(reports)),
            ended: Mutex::new(ended),
        })
    }

    /// What the coordinator said at the registration: the job, the run directory, where to start.
    /// A worker that is in no generation yet may have registered with several: the last one counts.
    #[must_use]
    pub fn welcome(&self) -> v1::RegisterResponse {
        self.shared.welcome()
    }

    /// Waits for the first generation after number `after` that this worker is a part of. Blocks:
    /// not for asynchronous code. From then on its reports speak of that generation.
    ///
    /// # Errors
    /// When the run ends.
    pub fn wait_generation(&self, after: u64) -> Result<Assignment, Failure> {
        self.shared.wait_generation(after)
    }

    /// Waits for the first invitation after number `after`. Blocks.
    ///
    /// # Errors
    /// When the run ends.
    pub fn wait_invitation(&self, after: u64) -> Result<Invitation, Failure> {
        self.shared.wait_invitation(after)
    }

    /// Waits for a first generation, or for another invitation than number `invited`. Blocks.
    ///
    /// # Errors
    /// When the run ends, or stops before all workers are there.
    pub fn wait_call(&self, invited: u64) -> Result<Call, Failure> {
        self.shared.wait_call(invited)
    }

    /// Reports that this worker has prepared the stage to which it was invited.
    ///
    /// # Errors
    /// When the run is over.
    pub fn ready(&self, stage: &str) -> Result<(), Failure> {
        let stage = stage.to_owned();
        self.report(Kind::Ready(v1::Ready { stage }))
    }

    /// Reports that this worker has the state of training behind a step.
    ///
    /// # Errors
    /// When the run is over.
    pub fn entered(&self, step: u64) -> Result<(), Failure> {
        self.shared.set_step(step);
        // In its turn, before anything that says more of later steps.
        self.report(Kind::Heartbeat(self.shared.heartbeat()))
    }

    /// Reports that all members of `generation` have agreed to let it end behind a step.
    ///
    /// # Errors
    /// When the run is over.
    pub fn at_border(&self, generation: u64, step: u64) -> Result<(), Failure> {
        self.send((generation, Kind::AtBorder(v1::AtBorder { step })))
    }

    /// Reports that a collective of `generation` failed, and the peer that seems to be to blame.
    ///
    /// # Errors
    /// When the run is over.
    pub fn peer_lost(&self, generation: u64, member: &str, why: &str) -> Result<(), Failure> {
        let lost = v1::PeerLost {
            member_id: member.to_owned(),
            why: why.to_owned(),
        };
        self.send((generation, Kind::PeerLost(lost)))
    }

    /// Reports that the members of `generation` do not hold the same state, and the names of those
    /// that differ from most others.
    ///
    /// # Errors
    /// When the run is over.
    pub fn replicas_differ(
        &self,
        generation: u64,
        difference: &Difference,
        member_ids: Vec<String>,
    ) -> Result<(), Failure> {
        let found = v1::ReplicasDiffer {
            step: difference.step,
            agreed_step: difference.agreed_step,
            member_ids,
        };
        self.send((generation, Kind::ReplicasDiffer(found)))
    }

    /// The bit that a test has ordered to be flipped, once.
    #[must_use]
    pub fn ordered_flip(&self) -> Option<Flip> {
        self.mishaps.ordered_flip()
    }

    /// The same of a connection that broke. Does not wait: the trainer says it again when it needs
    /// the connection.
    pub fn link_broke(&self, generation: u64, member: &str, why: &str) {
        let lost = v1::PeerLost {
            member_id: member.to_owned(),
            why: format!("{member}: {why}"),
        };
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reports) = reports.as_ref() {
            let _full = reports.try_send((generation, Kind::PeerLost(lost)));
        }
    }

    /// Reports that a checkpoint inside a stage could not be saved.
    ///
    /// # Errors
    /// When the run is over.
    pub fn checkpoint_skipped(&self, step: u64, failure: &Failure) -> Result<(), Failure> {
        self.report(Kind::CheckpointSkipped(v1::CheckpointSkipped {
            step,
            failure: Some(failure.into()),
        }))
    }

    /// Whether somebody asked the run to stop. Workers agree on the step in their vote: not all
    /// of them hear it at the same moment.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.shared.stop_requested()
    }

    /// Whether the workers are to change. Like stopping, they agree on the step in their vote.
    #[must_use]
    pub fn regroup_requested(&self) -> bool {
        self.shared.regroup_requested()
    }

    /// Whether the coordinator has let this worker go: others have its lanes.
    #[must_use]
    pub fn was_let_go(&self) -> bool {
        self.shared.was_let_go()
    }

    /// Why the run is over for this worker, once it is.
    #[must_use]
    pub fn aborted(&self) -> Option<Failure> {
        self.shared.over()
    }

    /// Says what the trainer does; heartbeats repeat it. `collective` is the number of the
    /// collective operation under way, 0 for none. Costs less than a microsecond.
    pub fn set_phase(&self, phase: Phase, collective: u64) {
        self.shared.set_phase(phase, collective);
        let is_asked = || self.shared.regroup_requested();
        self.mishaps.at(phase, self.shared.step() + 1, is_asked);
    }

    /// Says what the trainer waits for until its next phase, where the phase does not tell.
    pub fn wait_for(&self, activity: Activity) {
        let now = Instant::now();
        self.shared.timesheet().wait_for(now, activity);
    }

    /// Says how long the trainer has waited for others within its present phase.
    pub fn waited(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.shared.timesheet().waited(Instant::now(), micros);
    }

    /// Says that a collective has failed with a lost peer.
    pub fn set_back(&self) {
        self.shared.timesheet().set_back(Instant::now());
    }

    /// Where this worker's time has gone since it registered first.
    #[must_use]
    pub fn spent(&self) -> TimeSpent {
        self.shared.spent()
    }

    /// Reports a step, counted from 1 over all stages, that was committed in a generation; rank 0
    /// adds the metrics. Steps may be told again.
    ///
    /// # Errors
    /// When the run is over.
    pub fn step_committed(
        &self,
        generation: u64,
        step: u64,
        metrics: Option<StepMetrics>,
    ) -> Result<(), Failure> {
        // Steps that are told again are behind this worker.
        if step > self.shared.step() {
            self.shared.timesheet().committed(Instant::now());
        }
        self.shared.set_step(step);
        let committed = v1::StepCommitted { step, metrics };
        self.send((generation, Kind::StepCommitted(committed)))
    }

    /// Reports that a stage begins; steps are counted over all stages.
    ///
    /// # Errors
    /// When the run is over.
    pub fn stage_changed(
        &self,
        stage: &str,
        first_step: u64,
        last_step: u64,
    ) -> Result<(), Failure> {
        let stage = stage.to_owned();
        self.report(Kind::StageChanged(v1::StageChanged {
            stage,
            first_step,
            last_step,
        }))
    }

    /// Makes a checkpoint whose parts are stored the run's latest one. Returns those that the
    /// retention policy has let go. While there is no coordinator it tries again: a commit that is
    /// there already does no harm.
    ///
    /// # Errors
    /// When the coordinator refuses it, or cannot write the manifest; the checkpoint does not
    /// count then, and training may go on.
    pub async fn commit_checkpoint(
        &self,
        checkpoint: CheckpointRef,
        manifest: Vec<u8>,
    ) -> Result<Vec<CheckpointRef>, Failure> {
        let request = v1::CommitCheckpointRequest {
            member_id: self.member_id.clone(),
            incarnation: self.incarnation,
            generation: self.shared.generation(),
            checkpoint: Some(checkpoint),
            manifest,
        };
        let began = Instant::now();
        let orphanage = Duration::from_millis(self.welcome().orphanage_ms.into());
        loop {
            let status = match self.shared.client() {
                Some(mut client) => match client.commit_checkpoint(request.clone()).await {
                    Ok(answer) => return Ok(answer.into_inner().released),
                    Err(status) => status,
                },
                None => Status::unavailable("the coordinator is out of reach"),
            };
            if !dial::is_transient(&status) || began.elapsed() > orphanage {
                return Err(dial::failure(&status));
            }
            if let Some(over) = self.shared.over() {
                return Err(over);
            }
            tokio::time::sleep(patience::COMMIT_RETRY).await;
        }
    }

    /// Reports the end of this worker's part, the job done (`complete`) or stopped on request,
    /// and closes the session.
    ///
    /// # Errors
    /// When the run was over before.
    pub fn finished(&self, complete: bool) -> Result<(), Failure> {
        // The last word on its time.
        let beat = self.shared.heartbeat_with_account();
        let reported = self
            .report(Kind::Heartbeat(beat))
            .and_then(|()| self.report(Kind::Finished(v1::Finished { complete })));
        self.close();
        reported
    }

    /// This worker was let go and has done what it had begun: closes the session.
    pub fn left(&self) {
        self.close();
    }

    /// Reports a failure, closes the session, and returns the failure to show: the cause, if the
    /// coordinator knows it, else the one given.
    #[must_use]
    pub fn failed(&self, failure: Failure) -> Failure {
        let shown = match self.shared.over() {
            Some(cause) => cause,
            None => self.report_failure(failure),
        };
        self.close();
        shown
    }

    fn report_failure(&self, failure: Failure) -> Failure {
        if self.report(Kind::Failed((&failure).into())).is_err() {
            return self.shared.over().unwrap_or(failure);
        }
        let may_be_later = failure.exit == ExitCode::RunFailed;
        let cause = if may_be_later {
            self.shared.wait_over(patience::CAUSE)
        } else {
            None
        };
        cause.unwrap_or(failure)
    }

    fn report(&self, kind: Kind) -> Result<(), Failure> {
        self.send((self.shared.generation(), kind))
    }

    /// Gives a report to the session thread.
    fn send(&self, report: Labelled) -> Result<(), Failure> {
        let sender = self
            .reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let (mut report, began) = (report, Instant::now());
        loop {
            if let Some(failure) = self.shared.over() {
                return Err(failure);
            }
            let Some(sender) = &sender else {
                return Err(closed());
            };
            match sender.try_send(report) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => {
                    return Err(self.shared.over().unwrap_or_else(closed));
                }
                Err(TrySendError::Full(back)) if began.elapsed() < REPORT_PATIENCE => report = back,
                Err(TrySendError::Full(_)) => return Err(congested()),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the stream in an orderly way: the last report is taken before the process ends.
    fn close(&self) {
        let reports = self
            .reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if reports.is_none() {
            return;
        }
        drop(reports);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while ended.recv_timeout(patience::GOODBYE).is_err() {
            // The last report waits for a coordinator, as long as one is looked for.
            if self.shared.client().is_some() || self.shared.over().is_some() {
                debug!("the session did not end in time");
                return;
            }
        }
    }
}
