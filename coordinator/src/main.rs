//! `mks2-coordinator`: the control plane of one run as a program of its own, for workers on
//! several machines. Local runs embed the same coordinator in `mks2 train`.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use mks2_coordinator::{
    Coordinator, Limits, Outcome, Resume, Running, Settings, Workers,
    contact::{Contact, Published},
    lock::{self, RunLock},
};
use mks2_dataset::{reader::Corpus, store};
use mks2_proto::{
    env,
    failure::Failure,
    ids::Token,
    job::{
        Job,
        load::{Overrides, load},
    },
    telemetry,
};
use tokio::signal::unix::{SignalKind, signal};

/// Coordinates one run: members, lanes, checkpoints, journal.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// The job file.
    #[arg(long, value_name = "FILE")]
    job: PathBuf,
    /// The run directory: a path or any object store URL.
    #[arg(long, value_name = "URL")]
    run: String,
    /// Where to listen; port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Workers: N, or MIN:MAX. With N the run starts once all of them are here and continues while
    /// one is left; with MIN:MAX it waits whenever there are fewer than MIN.
    #[arg(long, value_name = "N|MIN:MAX")]
    workers: Workers,
    /// What to do when the run directory holds a run: continue from the latest checkpoint (auto),
    /// refuse (never), or continue from a step.
    #[arg(long, value_name = "auto|never|STEP", default_value = "auto")]
    resume: Resume,
    /// How long the others wait for a worker that is alive but makes no progress.
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    stall_limit: u32,
    /// How long a coordinator that takes over waits for the workers of its predecessor.
    #[arg(long, value_name = "SECONDS", default_value = "15")]
    reunion: u32,
    /// Set a key of the job file; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// File with the run's token; without it, MKS2_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Form of the logs on standard error.
    #[arg(long, value_name = "FORM", default_value = "text", value_parser = ["text", "json"], env = env::LOG_FORMAT)]
    log_format: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped) => mks2_proto::failure::ExitCode::Stopped.into(),
        Err(failure) => {
            // Nothing can be done if standard error is closed.
            let _closed = writeln!(std::io::stderr(), "{failure}");
            failure.exit.into()
        }
    }
}

fn run(arguments: &Arguments) -> Result<Outcome, Failure> {
    // Fails when a provider is installed already, which is as good.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // At most two threads: on one core a second one would only get in the way.
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the coordinator cannot start", error))?;
    runtime.block_on(async {
        let guard = telemetry::init(&telemetry::Options {
            service: "mks2-coordinator",
            log_format: log_format(&arguments.log_format),
            no_color: !std::io::stderr().is_terminal(),
            ..telemetry::Options::default()
        })?;
        let outcome = coordinate(arguments).await;
        drop(guard);
        outcome
    })
}

fn log_format(name: &str) -> telemetry::LogFormat {
    match name {
        "json" => telemetry::LogFormat::Json,
        _ => telemetry::LogFormat::Text,
    }
}

async fn coordinate(arguments: &Arguments) -> Result<Outcome, Failure> {
    let overrides = Overrides {
        sets: arguments.sets.clone(),
        variables: std::env::vars()
            .filter(|(name, _)| name.starts_with(env::SETTING_PREFIX))
            .collect(),
    };
    let resolved = load(&arguments.job, &overrides)?;
    let folder = store::local_path(&arguments.run);
    let folder = folder.as_deref().map(lock::make_folder).transpose()?;
    let _lock = folder.as_deref().map(RunLock::take).transpose()?;
    let token = token(arguments.token_file.as_deref())?;
    let settings = Settings {
        bind: arguments.listen,
        run_url: arguments.run.clone(),
        corpora: corpora(&resolved.job).await?,
        job: resolved.job,
        job_toml: resolved.toml,
        workers: arguments.workers,
        returns: true,
        token: token.clone(),
        resume: arguments.resume,
        reunite: true,
        limits: Limits {
            stall: Duration::from_secs(arguments.stall_limit.into()),
            reunion: Duration::from_secs(arguments.reunion.into()),
            ..Limits::default()
        },
    };
    let running = Coordinator::start(settings).await?;
    let _published = folder
        .map(|folder| publish(&folder, &running, &token))
        .transpose()?;
    announce(&running);
    until_over(running).await
}

/// For `mks2 status RUN` and `mks2 watch RUN` on this machine.
fn publish(folder: &Path, running: &Running, token: &Token) -> Result<Published, Failure> {
    let contact = Contact {
        endpoint: running.endpoint(),
        token: token.reveal().to_owned(),
        run_id: running.run_id.to_string(),
        pid: std::process::id(),
    };
    contact.publish(folder)
}

/// One line on standard output for whoever started us: the address and the run.
fn announce(running: &Running) {
    let line = serde_json::json!({ "endpoint": running.endpoint(), "run_id": running.run_id });
    // Nobody has to listen.
    let _closed = writeln!(std::io::stdout(), "{line}");
}

/// SIGTERM and Ctrl-C ask the run to stop with a checkpoint; a second one ends at once.
async fn until_over(running: Running) -> Result<Outcome, Failure> {
    let signals = |kind| {
        signal(kind).map_err(|error| Failure::io("signal handlers cannot be installed", error))
    };
    let (mut terminate, mut interrupt) = (
        signals(SignalKind::terminate())?,
        signals(SignalKind::interrupt())?,
    );
    let mut watch = running.watch.clone();
    let asked_by = tokio::select! {
        _ = terminate.recv() => Some("the coordinator was asked to end"),
        _ = interrupt.recv() => Some("Ctrl-C"),
        _ = watch.wait_for(|status| is_over(status.state())) => None,
    };
    // To record the wish takes as long as the store wants.
    let ended = async {
        if let Some(reason) = asked_by {
            running.stop(reason).await?;
        }
        running.join().await
    };
    tokio::select! {
        outcome = ended => outcome,
        _ = terminate.recv() => Err(impatient()),
        _ = interrupt.recv() => Err(impatient()),
    }
}

fn is_over(state: mks2_proto::v1::RunState) -> bool {
    use mks2_proto::v1::RunState;
    matches!(
        state,
        RunState::Stopped | RunState::Finished | RunState::Failed
    )
}

fn impatient() -> Failure {
    Failure::stopped(
        "the coordinator ended before the run did",
        "it was asked to end a second time",
        "the same command resumes from the latest checkpoint",
    )
}

/// The token from a file or the environment; never from the command line, which others can see.
fn token(file: Option<&Path>) -> Result<Token, Failure> {
    let text = match file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::io(format!("{} cannot be read", path.display()), error))?,
        None => std::env::var(env::TOKEN).unwrap_or_default(),
    };
    Token::new(text.trim()).map_err(|error| {
        Failure::usage(
            "the run has no token",
            error.to_string(),
            "put one into MKS2_TOKEN or --token-file, the same for coordinator and workers",
        )
    })
}

/// Digests of the job's corpora: a resumed run must find the same ones.
async fn corpora(job: &Job) -> Result<BTreeMap<String, String>, Failure> {
    let mut digests = BTreeMap::new();
    for (name, corpus) in &job.data {
        let corpus = Corpus::open(&corpus.url).await?;
        digests.insert(name.clone(), corpus.manifest().digest());
    }
    Ok(digests)
}
