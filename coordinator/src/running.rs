//! A coordinator inside another program: `mks2 train` embeds one, `mks2-coordinator` is little
//! else.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use mks2_dataset::store;
use mks2_proto::{
    FILE_DESCRIPTOR_SET,
    dial::MAX_MESSAGE_BYTES,
    failure::Failure,
    ids::{Incarnation, MemberId, RunId, Term, Token},
    job::Job,
    v1::{self, coordinator_server::CoordinatorServer},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    driver::{Board, COMMANDS, Command, Driver, Handle, Wiring},
    rundir::{Claim, Resume, RunDir},
    scribe::{Done, Scribe, Task},
    service::{Doorkeeper, Gate, Service},
    state::{Config, Limits, Machine, Workers},
};

/// How long the end waits for open connections.
pub(crate) const GOODBYE: Duration = Duration::from_secs(2);

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen; port 0 takes any free one.
    pub bind: SocketAddr,
    /// The run directory: a path or any object store URL.
    pub run_url: String,
    /// The job.
    pub job: Job,
    /// The same, resolved, as every worker gets it.
    pub job_toml: String,
    /// Digests of the corpora's manifests by name; a resumed run must find the same. May be
    /// empty: then nothing is compared.
    pub corpora: BTreeMap<String, String>,
    /// How many workers the run has.
    pub workers: Workers,
    /// Somebody starts new workers in the place of those that end: when none is left, they are
    /// waited for.
    pub returns: bool,
    /// The run's secret.
    pub token: Token,
    /// What to do with a run that is there already.
    pub resume: Resume,
    /// Workers of an earlier coordinator may be alive and are awaited. Not where they are this
    /// process's own children: they died with their parent.
    pub reunite: bool,
    /// When things are late.
    pub limits: Limits,
}

/// How a run ended, unless it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The job is done.
    Finished,
    /// It stopped on request, with a checkpoint.
    Stopped,
}

/// The control plane of one run.
#[derive(Clone, Copy, Debug)]
pub struct Coordinator;

/// A coordinator at work. Dropped, it ends at once, without telling anybody.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// The run.
    pub run_id: RunId,
    /// The coordinator's term.
    pub term: Term,
    /// The checkpoint from which the run goes on.
    pub resumed_from: Option<v1::CheckpointRef>,
    /// An earlier term had finished the job.
    pub was_finished: bool,
    /// The status, now and whenever it changes.
    pub watch: watch::Receiver<v1::StatusResponse>,
    handle: Handle,
    tasks: JoinSet<Ended>,
    streams: TaskTracker,
    goodbye: CancellationToken,
}

/// What each task says at its end.
#[derive(Debug)]
enum Ended {
    Driver(Box<Result<v1::RunState, Failure>>),
    Scribe,
    Server(Result<(), tonic::transport::Error>),
}

impl Coordinator {
    /// Takes the run directory over and listens for workers.
    ///
    /// # Errors
    /// More workers than lanes (exit 3), a taken port (6), a run directory of another job (8) or
    /// one that is in use (2), storage (5).
    pub async fn start(settings: Settings) -> Result<Running, Failure> {
        settings.workers.check(settings.job.lanes)?;
        let listener = bind(settings.bind).await?;
        let address = listener
            .local_addr()
            .map_err(|error| Failure::io("the coordinator cannot listen", error))?;
        let writer = Incarnation::random()
            .map_err(|error| Failure::io("the system's randomness cannot be read", error))?;
        let rundir = RunDir::open(&Claim {
            run_url: &settings.run_url,
            job: &settings.job,
            job_toml: &settings.job_toml,
            corpora: &settings.corpora,
            resume: settings.resume,
            reunite: settings.reunite,
            writer,
        })
        .await?;
        Ok(launch(&settings, listener, address, rundir))
    }
}

/// A coordinator's parts, put together and not yet at work.
pub(crate) struct Parts {
    pub(crate) driver: Driver,
    pub(crate) scribe: Scribe,
    /// What the driver wants written, and what the scribe answers.
    pub(crate) tasks: mpsc::Receiver<Task>,
    pub(crate) done: mpsc::Sender<Done>,
    pub(crate) handle: Handle,
    pub(crate) welcome: v1::RegisterResponse,
}

/// The state machine on top of a run directory, with who drives it and who writes for it.
pub(crate) fn assemble(settings: &Settings, rundir: RunDir) -> Parts {
    let term = rundir.journal.term();
    let machine = Machine::new(config(settings, &rundir));
    let welcome = welcome(settings, &rundir);
    let (status, watch) = watch::channel(machine.status(Duration::ZERO));
    let (commands, incoming) = mpsc::channel(COMMANDS);
    let board = Arc::new(Board::default());
    let (tasks_in, tasks) = mpsc::channel(1);
    let (done, done_out) = mpsc::channel(1);
    let wiring = Wiring {
        commands: incoming,
        tasks: tasks_in,
        done: done_out,
        status,
        board: Arc::clone(&board),
    };
    let scribe = Scribe {
        place: rundir.place,
        journal: rundir.journal,
        metrics: rundir.metrics,
        metrics_failed: false,
    };
    Parts {
        driver: Driver::new(machine, term, settings.limits, wiring),
        scribe,
        tasks,
        done,
        handle: Handle::new(commands, watch, board),
        welcome,
    }
}

/// Starts the three tasks.
fn launch(
    settings: &Settings,
    listener: TcpListener,
    address: SocketAddr,
    rundir: RunDir,
) -> Running {
    let (term, run_id) = (rundir.journal.term(), rundir.run_id.clone());
    let was_finished = rundir.was_finished;
    let latest = rundir.journal.history().checkpoints.latest();
    let resumed_from = latest.cloned().map(Into::into);
    let Parts {
        driver,
        scribe,
        tasks: tasks_out,
        done: done_in,
        handle,
        welcome,
    } = assemble(settings, rundir);
    let (streams, goodbye) = (TaskTracker::new(), CancellationToken::new());
    let service = Service {
        handle: handle.clone(),
        welcome: Arc::new(welcome),
        gate: Gate::default(),
        tasks: streams.clone(),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { Ended::Driver(Box::new(driver.run().await)) });
    tasks.spawn(async move {
        scribe.run(tasks_out, done_in).await;
        Ended::Scribe
    });
    let served = serve(listener, service, settings.token.clone(), goodbye.clone());
    tasks.spawn(async move { Ended::Server(served.await) });
    tracing::info!(%address, %run_id, term = term.0, "coordinator listens");
    Running {
        address,
        run_id,
        term,
        resumed_from,
        was_finished,
        watch: handle.status(),
        handle,
        tasks,
        streams,
        goodbye,
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let (why, cure) = match error.kind() {
            std::io::ErrorKind::AddrInUse => (
                "another program listens there".to_owned(),
                "choose another port, or port 0 for any free one",
            ),
            std::io::ErrorKind::PermissionDenied => (
                "this user may not listen there".to_owned(),
                "choose a port above 1023, or port 0 for any free one",
            ),
            std::io::ErrorKind::AddrNotAvailable => (
                "this machine has no such address".to_owned(),
                "choose an address of this machine, or 127.0.0.1",
            ),
            _ => (error.to_string().to_lowercase(), "choose another address"),
        };
        Failure::environment(
            format!("the coordinator cannot listen on {address}"),
            why,
            cure,
        )
        .with_source(error)
    })
}

fn config(settings: &Settings, rundir: &RunDir) -> Config {
    let history = rundir.journal.history();
    Config {
        run_id: rundir.run_id.clone(),
        job_name: settings.job.name.clone(),
        run_url: store::shown(&settings.run_url),
        device: settings.job.device.clone(),
        term: rundir.journal.term(),
        lanes: settings.job.lanes,
        workers: settings.workers,
        returns: settings.returns,
        on_corruption: settings.job.audit.on_corruption,
        total_steps: settings.job.stages.iter().map(|stage| stage.steps).sum(),
        keep_last: settings.job.checkpoint.keep_last as usize,
        last_generation: history.generation,
        checkpoints: history.checkpoints.clone(),
        restored: rundir.restored.clone(),
        books: history.books.clone(),
        limits: settings.limits,
    }
}

fn welcome(settings: &Settings, rundir: &RunDir) -> v1::RegisterResponse {
    let ms = |limit: Duration| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    let limits = &settings.limits;
    let interval = limits.heartbeat_interval_of(settings.workers.max);
    v1::RegisterResponse {
        term: rundir.journal.term().0,
        run_id: rundir.run_id.to_string(),
        job_toml: settings.job_toml.clone(),
        run_url: settings.run_url.clone(),
        heartbeat_interval_ms: ms(interval),
        silence_limit_ms: ms(settings.limits.silence),
        orphanage_ms: ms(settings.limits.orphanage),
        // The rest depends on where the run stands when somebody registers.
        ..v1::RegisterResponse::default()
    }
}

/// gRPC until goodbye: the coordinator behind the token, health and reflection for everybody.
async fn serve(
    listener: TcpListener,
    service: Service,
    token: Token,
    goodbye: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let coordinator = CoordinatorServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let guarded = InterceptedService::new(coordinator, Doorkeeper { token });
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<CoordinatorServer<Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .concurrency_limit_per_connection(64);
    let mut router = server.add_service(health_service).add_service(guarded);
    // The descriptors are compiled in; a test proves that reflection answers.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => router = router.add_service(v1).add_service(v1alpha),
        _ => tracing::error!("gRPC reflection is not available"),
    }
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    router
        .serve_with_incoming_shutdown(incoming, goodbye.cancelled_owned())
        .await
}

impl Running {
    /// `http://HOST:PORT`, for [`MKS2_COORDINATOR`](mks2_proto::env::COORDINATOR).
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Asks the run to stop at the next step border, with a checkpoint. Asking twice does no
    /// harm.
    ///
    /// # Errors
    /// When the run is over and the coordinator has ended.
    pub async fn stop(&self, reason: &str) -> Result<(), Failure> {
        let answer = self
            .handle
            .ask(|reply| Command::Stop(reason.to_owned(), reply))
            .await;
        answer.map(drop).map_err(|refused| refused.failure)
    }

    /// Sets how many workers the run is to have.
    ///
    /// # Errors
    /// When it cannot have so many.
    pub async fn scale(&self, workers: u32) -> Result<(), Failure> {
        let answer = self
            .handle
            .ask(|reply| Command::Scale(workers, reply))
            .await;
        answer.map(drop).map_err(|refused| refused.failure)
    }

    /// Tells that the process of a member was seen to end, and how: "it was killed by signal 9".
    /// The first news of an end is the one that is shown.
    pub async fn member_exited(&self, member: &MemberId, how: &str) {
        self.handle
            .tell(Command::Exited(member.clone(), how.to_owned()))
            .await;
    }

    /// Waits until the run is over, everything is written and everybody has left.
    ///
    /// # Errors
    /// Why the run failed.
    pub async fn join(mut self) -> Result<Outcome, Failure> {
        let outcome = self.driver_ended().await;
        self.goodbye.cancel();
        self.streams.close();
        let rest = async {
            while self.tasks.join_next().await.is_some() {}
            self.streams.wait().await;
        };
        if tokio::time::timeout(GOODBYE, rest).await.is_err() {
            tracing::debug!("some connections were still open at the end");
        }
        self.tasks.shutdown().await;
        outcome
    }

    /// Waits for the driver; the others must not end before it.
    async fn driver_ended(&mut self) -> Result<Outcome, Failure> {
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(Ended::Driver(result)) => {
                    return (*result).map(|state| match state {
                        v1::RunState::Finished => Outcome::Finished,
                        _ => Outcome::Stopped,
                    });
                }
                Ok(Ended::Scribe) => {}
                Ok(Ended::Server(result)) => return Err(server_ended(result)),
                Err(error) => return Err(task_failed(&error)),
            }
        }
        Err(Failure::internal(
            "the coordinator ended",
            "its tasks are gone",
        ))
    }
}

fn server_ended(result: Result<(), tonic::transport::Error>) -> Failure {
    let why = result
        .err()
        .map_or("its server stopped".to_owned(), |error| error.to_string());
    Failure::environment(
        "the coordinator ended",
        why,
        "start the run again: it resumes",
    )
}

fn task_failed(error: &JoinError) -> Failure {
    Failure::internal(
        "the coordinator ended",
        format!("one of its tasks failed: {error}"),
    )
}
