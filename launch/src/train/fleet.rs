//! The workers of a run, as children: start them, hear of each end once, terminate, wait, kill.
//!
//! Each child has one task that owns it. The task listens for [`Order`]s, so a signal can only
//! go to a child that was not waited for yet, and sends the exit to one channel. Terminating
//! begins the end and never waits for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use mks2_proto::env::{self, WorkerEnv};
use mks2_proto::failure::Failure;
use mks2_proto::ids::MemberId;
use mks2_proto::telemetry;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::spawn::{self, SpawnError};

/// What the workers are told.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// The worker's program.
    pub(crate) program: PathBuf,
    /// Endpoint of the coordinator.
    pub(crate) coordinator: String,
    /// The run's token.
    pub(crate) token: String,
    /// The run.
    pub(crate) run_id: String,
    /// How many.
    pub(crate) workers: u32,
    /// Folder of the logs; it exists.
    pub(crate) logs: PathBuf,
    /// `text` or `json`.
    pub(crate) log_format: &'static str,
}

/// What is to become of the children.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Order {
    /// They work, but for those of these ranks, which are killed, or stand still.
    Run {
        doomed: BTreeSet<u32>,
        stopped: BTreeSet<u32>,
    },
    Terminate,
    Kill,
}

/// How one worker is started, where it is not like all others.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// The program that becomes the worker.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Its variables, over those that it inherits.
    pub(crate) variables: Vec<(String, String)>,
}

/// The end of a child.
#[derive(Clone, Debug)]
pub(crate) struct Exit {
    /// Which worker, from 0.
    pub(crate) rank: u32,
    /// How it ended.
    pub(crate) status: ExitStatus,
}

/// A worker and its log.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) member: MemberId,
    pub(crate) pid: u32,
    pub(crate) log: PathBuf,
    /// Length of the log before this start: earlier starts are not this one's story.
    pub(crate) log_start: u64,
    pub(crate) exit: Option<ExitStatus>,
    /// It ended before the launcher told it to.
    pub(crate) unprompted: bool,
}

/// All workers of this launcher.
#[derive(Debug)]
pub(crate) struct Fleet {
    orders: Orders,
    workers: Vec<Worker>,
    order: watch::Sender<Order>,
    report: mpsc::Sender<Exit>,
    exits: mpsc::Receiver<Exit>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Starts all workers. Must run on the main thread: see [`spawn::start`].
    ///
    /// # Errors
    /// The program or a log cannot be opened; workers that had started are killed.
    pub(crate) fn start(orders: &Orders) -> Result<Self, Failure> {
        let mut fleet = Self::empty(orders);
        for rank in 0..orders.workers {
            fleet.start_one(rank, 0)?;
        }
        Ok(fleet)
    }

    /// None yet.
    pub(crate) fn empty(orders: &Orders) -> Self {
        let (order, _) = watch::channel(Order::Run {
            doomed: BTreeSet::new(),
            stopped: BTreeSet::new(),
        });
        let (report, exits) = mpsc::channel(orders.workers.max(1) as usize);
        Self {
            orders: orders.clone(),
            workers: Vec::new(),
            order,
            report,
            exits,
            tasks: JoinSet::new(),
        }
    }

    /// Starts a worker that has ended before, or one more behind the last. Must run on the main
    /// thread.
    ///
    /// # Errors
    /// As [`Fleet::start`].
    pub(crate) fn start_one(&mut self, rank: u32, restarts: u32) -> Result<(), Failure> {
        self.start_by(rank, &self.usual(rank, restarts))
    }

    /// How a worker is started, unless there is a reason for another way.
    pub(crate) fn usual(&self, rank: u32, restarts: u32) -> Start {
        let mut variables = variables(&self.orders, rank, &name(rank));
        variables.push((env::RESTARTS.to_owned(), restarts.to_string()));
        Start {
            program: self.orders.program.clone(),
            arguments: Vec::new(),
            variables,
        }
    }

    /// As [`Fleet::start_one`], by another command.
    ///
    /// # Errors
    /// As [`Fleet::start`].
    pub(crate) fn start_by(&mut self, rank: u32, how: &Start) -> Result<(), Failure> {
        self.order.send_if_modified(|order| match order {
            Order::Run { doomed, stopped } => {
                let was_doomed = doomed.remove(&rank);
                stopped.remove(&rank) || was_doomed
            }
            _ => false,
        });
        let (worker, child) = start_one(&self.orders, rank, how)?;
        match self.workers.get_mut(rank as usize) {
            Some(before) => *before = worker,
            None => self.workers.push(worker),
        }
        let (orders, report) = (self.order.subscribe(), self.report.clone());
        self.tasks.spawn(mind(rank, child, orders, report));
        Ok(())
    }

    pub(crate) fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// The next end of a child; each is told once. Pending for ever when all have been told.
    pub(crate) async fn next_exit(&mut self) -> Exit {
        match self.exits.recv().await {
            Some(exit) => {
                let unprompted = match &*self.order.borrow() {
                    Order::Run { doomed, .. } => !doomed.contains(&exit.rank),
                    Order::Terminate | Order::Kill => false,
                };
                if let Some(worker) = self.workers.get_mut(exit.rank as usize) {
                    worker.exit = Some(exit.status);
                    worker.unprompted = unprompted;
                }
                exit
            }
            None => std::future::pending().await,
        }
    }

    /// Kills one worker, which does not answer, if it has not ended by itself.
    pub(crate) fn kill_one(&self, rank: u32) {
        let ended = self
            .workers
            .get(rank as usize)
            .is_none_or(|w| w.exit.is_some());
        self.order.send_if_modified(|order| match order {
            Order::Run { doomed, .. } if !ended => doomed.insert(rank),
            _ => false,
        });
    }

    /// Lets one worker stand still (SIGSTOP).
    pub(crate) fn stop_one(&self, rank: u32) {
        self.order.send_if_modified(|order| match order {
            Order::Run { stopped, .. } => stopped.insert(rank),
            _ => false,
        });
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn continue_one(&self, rank: u32) {
        self.order.send_if_modified(|order| match order {
            Order::Run { stopped, .. } => stopped.remove(&rank),
            _ => false,
        });
    }

    /// Waits until a worker has ended, for so long at most.
    pub(crate) async fn ends_within(&mut self, rank: u32, limit: Duration) {
        let ended = async {
            while self
                .workers
                .get(rank as usize)
                .is_some_and(|worker| worker.exit.is_none())
            {
                self.next_exit().await;
            }
        };
        // Either way the worker's own state tells.
        let _ = tokio::time::timeout(limit, ended).await;
    }

    /// Workers that have not ended.
    pub(crate) fn alive(&self) -> usize {
        self.workers.iter().filter(|w| w.exit.is_none()).count()
    }

    pub(crate) fn all_ended(&self) -> bool {
        self.workers.iter().all(|worker| worker.exit.is_some())
    }

    /// Waits until all have ended; after `patience` they are terminated, after `grace` killed.
    pub(crate) async fn end(&mut self, patience: Duration, grace: Duration) {
        if self.all_end_within(patience).await {
            return;
        }
        self.order.send_replace(Order::Terminate);
        if !self.all_end_within(grace).await {
            self.kill().await;
        }
    }

    /// Kills all at once.
    pub(crate) async fn kill(&mut self) {
        self.order.send_replace(Order::Kill);
        self.all_end_within(Duration::from_secs(5)).await;
    }

    async fn all_end_within(&mut self, limit: Duration) -> bool {
        let all = async {
            while !self.all_ended() {
                self.next_exit().await;
            }
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }

    /// Awaits the tasks of the children, which have ended.
    pub(crate) async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The name of a worker.
fn name(rank: u32) -> String {
    format!("worker-{rank}")
}

fn start_one(orders: &Orders, rank: u32, how: &Start) -> Result<(Worker, Child), Failure> {
    let name = name(rank);
    let member = MemberId::new(&name)
        .map_err(|error| Failure::internal("a worker has no name", error.to_string()))?;
    let log = orders.logs.join(format!("{name}.log"));
    let log_start = std::fs::metadata(&log).map_or(0, |meta| meta.len());
    let child = spawn::start(&how.program, &how.arguments, &how.variables, &log);
    let child = child.map_err(|error| not_started(error, &how.program, &log))?;
    Ok((
        Worker {
            member,
            pid: child.id().unwrap_or_default(),
            log,
            log_start,
            exit: None,
            unprompted: false,
        },
        child,
    ))
}

fn variables(orders: &Orders, rank: u32, member: &str) -> Vec<(String, String)> {
    let contract = WorkerEnv {
        coordinator: orders.coordinator.clone(),
        token: orders.token.clone(),
        run_id: orders.run_id.clone(),
        member_id: member.to_owned(),
        data_address: "127.0.0.1:0".into(),
        data_advertise: String::new(),
        rank,
        local_rank: rank,
        world_size: orders.workers,
        local_world_size: orders.workers,
    };
    let mut variables: Vec<(String, String)> = contract
        .variables()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    variables.push((env::LOG_FORMAT.to_owned(), orders.log_format.to_owned()));
    variables.extend(telemetry::child_environment(&tracing::Span::current()));
    variables
}

fn not_started(error: SpawnError, program: &Path, log: &Path) -> Failure {
    match error {
        SpawnError::Log(error) => Failure::io(
            format!("the log {} cannot be written", log.display()),
            error,
        ),
        SpawnError::Program(error) => Failure::environment(
            format!(
                "the worker's program {} cannot be started",
                program.display()
            ),
            error.to_string(),
            "build it with `cargo build -p mks2-worker`, or name another one in MKS2_WORKER",
        )
        .with_source(error),
    }
}

/// Owns a child until its end.
async fn mind(
    rank: u32,
    mut child: Child,
    mut orders: watch::Receiver<Order>,
    exits: mpsc::Sender<Exit>,
) {
    let mut stands = false;
    let status = loop {
        tokio::select! {
            ended = child.wait() => break ended,
            changed = orders.changed() => {
                // The fleet is gone: so is the reason to live.
                let order = match changed {
                    Ok(()) => orders.borrow_and_update().clone(),
                    Err(_) => Order::Kill,
                };
                obey(rank, &child, &order, &mut stands);
                if changed.is_err() {
                    break child.wait().await;
                }
            }
        }
    };
    if let Ok(status) = status {
        // Nobody listens any more when the fleet is gone.
        let _ = exits.send(Exit { rank, status }).await;
    }
}

/// `stands`: whether the child was stopped before.
fn obey(rank: u32, child: &Child, order: &Order, stands: &mut bool) {
    let Some(pid) = child.id() else { return };
    match order {
        Order::Run { doomed, .. } if doomed.contains(&rank) => {
            spawn::signal(pid, libc::SIGKILL);
        }
        Order::Run { stopped, .. } => {
            let stands_now = stopped.contains(&rank);
            match (*stands, stands_now) {
                (false, true) => spawn::signal(pid, libc::SIGSTOP),
                (true, false) => spawn::signal(pid, libc::SIGCONT),
                _ => {}
            }
            *stands = stands_now;
        }
        Order::Terminate => spawn::signal(pid, libc::SIGTERM),
        Order::Kill => spawn::signal(pid, libc::SIGKILL),
    }
}
