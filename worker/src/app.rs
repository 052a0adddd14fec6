//! One worker process, from its environment to its end.

use std::net::SocketAddr;
use std::sync::Arc;

use mks2_proto::env::{self, WorkerEnv};
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::job::{Reduction, load};
use mks2_proto::telemetry;
use tokio::runtime::Runtime;
use tracing::info_span;

use crate::checkpoint::CheckpointStore;
use crate::collectives::tcp::DataListener;
use crate::device;
use crate::dispatch::check_libtorch;
use crate::lineage::Lineage;
use crate::run::{End, Run, Start};
use crate::saver::Saver;
use crate::session::{Call, Session};
use crate::sources::open_corpora;
use crate::team::Team;

/// Threads for the network and storage; computing has its own thread.
const IO_THREADS: usize = 2;

/// Joins the run that the environment names and works in it until its end.
///
/// # Errors
/// What ended the run; the coordinator has been told.
pub fn work(env: &WorkerEnv) -> Result<End, Failure> {
    let span = info_span!("run", run_id = env.run_id, member = env.member_id);
    telemetry::continue_from_environment(&span);
    let _entered = span.entered();
    check_libtorch()?;
    let runtime = io_runtime()?;
    let mut listener = DataListener::bind(address_of(env::DATA_ADDRESS, &env.data_address)?)?;
    if !env.data_advertise.is_empty() {
        let advertised = address_of(env::DATA_ADVERTISE, &env.data_advertise)?;
        listener = listener.behind(advertised);
    }
    let session = runtime.block_on(Session::connect(env, listener.advertised()))?;
    let session = Arc::new(session);
    let outcome = joined(env, &runtime, &session, listener);
    let outcome = match outcome {
        Ok(End::LetGo) => {
            session.left();
            Ok(End::LetGo)
        }
        Ok(end) => session.finished(end == End::Complete).map(|()| end),
        Err(failure) => Err(session.failed(failure)),
    };
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}

pub(crate) fn io_runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .thread_name("io")
        .enable_all()
        .build()
        .map_err(|e| Failure::io("the threads for network and storage cannot be started", e))
}

fn address_of(name: &str, text: &str) -> Result<SocketAddr, Failure> {
    text.parse().map_err(|_| {
        Failure::new(
            ExitCode::Usage,
            format!("'{text}' is no address of the data plane"),
            format!("{name} must be an IP address and a port"),
            "use for example 10.0.0.5:0; port 0 lets the system choose",
        )
    })
}

/// Everything after the registration: whatever fails here is reported to the coordinator.
fn joined(
    env: &WorkerEnv,
    runtime: &Runtime,
    session: &Arc<Session>,
    listener: DataListener,
) -> Result<End, Failure> {
    let welcome = session.welcome();
    // First of all: the others' meshes may be waiting.
    listener.open(&welcome.run_id, &env.token)?;
    let job = load::parse(&welcome.job_toml)?;
    let device = device::choose(&job.device, env.local_rank)?;
    device::prepare(job.threads);
    if job.reduction == Reduction::Exact {
        device::repeat_bits(device)?;
    }
    let corpora = runtime.block_on(open_corpora(&job))?;
    let mut team = Team::outside(env, session, listener, device);
    let invitation = match session.wait_call(0) {
        Err(_) if session.was_let_go() => return Ok(End::LetGo),
        Err(failure) => return Err(failure),
        Ok(Call::Invitation) => Some(session.wait_invitation(0)?),
        Ok(Call::Generation(first)) => {
            team.join(first)?;
            None
        }
    };
    // Another coordinator may have said another beginning meanwhile.
    let welcome = session.welcome();
    let mut store = CheckpointStore::open(&welcome.run_url)?;
    if let Some(limit) = env::upload_limit()? {
        store = store.with_patience(limit);
    }
    let saver = Saver::new(store, Arc::clone(session), runtime.handle().clone());
    let mut run = Run {
        config_digest: load::digest(&job)?,
        job,
        session: Arc::clone(session),
        team,
        corpora,
        saver,
        run_url: welcome.run_url.clone(),
        device,
        runtime: runtime.handle().clone(),
        lineage: Lineage::default(),
        invitation,
    };
    let finished = welcome.finished_stages.clone();
    let ended = run.run(&Start {
        resume_from: welcome.resume_from.clone(),
        finished,
    });
    if ended.is_err() && session.was_let_go() {
        // What it was saving counts still.
        run.saver.settle()?;
        return Ok(End::LetGo);
    }
    ended
}
