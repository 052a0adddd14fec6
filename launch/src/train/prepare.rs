//! Everything before the first process starts: job, corpora, the worker's program, the run
//! directory and its lock. What can be refused is refused here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mks2_coordinator::lock::{self, RunLock};
use mks2_coordinator::{Limits, Running, Settings};
use mks2_dataset::memory::attach;
use mks2_dataset::pretrained::adapter::Adapter;
use mks2_dataset::pretrained::base::Base;
use mks2_dataset::reader::Corpus;
use mks2_dataset::{store, task};
use mks2_proto::env;
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::ids::Token;
use mks2_proto::job::load::{self, Resolved};
use mks2_proto::job::{Evaluate, Job, StageKind};
use tempfile::TempDir;

use super::fleet::Orders;
use crate::cli::TrainArgs;
use crate::eval::read_tasks;
use crate::output::Output;

/// A run that can start.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) resolved: Resolved,
    /// The run directory: an absolute path or a URL.
    pub(crate) run_url: String,
    /// The run directory, if it is on this machine.
    pub(crate) folder: Option<PathBuf>,
    /// Where the workers' logs go: `<run>/logs`, or a temporary folder for a remote run.
    pub(crate) logs: PathBuf,
    pub(crate) token: Token,
    program: PathBuf,
    corpora: BTreeMap<String, String>,
    _lock: Option<RunLock>,
}

/// Checks and takes everything that a run needs.
///
/// # Errors
/// Job (exit 3), corpora (4), run directory (5, or 6 when it is in use), the worker's program (6).
pub(crate) async fn prepare(args: &TrainArgs) -> Result<Prepared, Failure> {
    let resolved = load::load(&args.job.job, &args.job.overrides())?;
    args.workers.check(resolved.job.lanes)?;
    let program = worker_program()?;
    let corpora = open_inputs(&resolved.job).await?;
    let named = args
        .run
        .clone()
        .unwrap_or_else(|| default_run(&resolved.job));
    let folder = store::local_path(&named);
    let folder = folder.as_deref().map(lock::make_folder).transpose()?;
    let lock = folder.as_deref().map(RunLock::take).transpose()?;
    let run_url = folder
        .as_ref()
        .map_or(named, |folder| folder.display().to_string());
    let logs = logs_folder(folder.as_deref())?;
    let token = Token::random()
        .map_err(|error| Failure::internal("there is no randomness", error.to_string()))?;
    Ok(Prepared {
        resolved,
        run_url,
        folder,
        logs,
        token,
        program,
        corpora,
        _lock: lock,
    })
}

impl Prepared {
    /// What the coordinator is started with.
    pub(crate) fn settings(&self, args: &TrainArgs) -> Settings {
        Settings {
            bind: args.listen,
            run_url: self.run_url.clone(),
            job: self.resolved.job.clone(),
            job_toml: self.resolved.toml.clone(),
            corpora: self.corpora.clone(),
            workers: args.workers,
            returns: args.restarts > 0,
            token: self.token.clone(),
            resume: args.resume,
            reunite: false,
            limits: Limits {
                stall: Duration::from_secs(args.stall_limit.into()),
                ..Limits::default()
            },
        }
    }

    /// What the workers are started with.
    pub(crate) fn orders(&self, args: &TrainArgs, running: &Running, output: &Output) -> Orders {
        Orders {
            program: self.program.clone(),
            coordinator: running.endpoint(),
            token: self.token.reveal().to_owned(),
            run_id: running.run_id.to_string(),
            workers: args.workers.max,
            logs: self.logs.clone(),
            log_format: if output.is_json() { "json" } else { "text" },
        }
    }
}

/// Trouble with storage names the run directory whose trouble it is.
pub(crate) fn located(mut failure: Failure, run_url: &str) -> Failure {
    let run = store::shown(run_url);
    if failure.exit == ExitCode::Storage && !failure.what.contains(&run) {
        failure.what = format!("run directory {run}: {}", failure.what);
    }
    failure
}

/// `runs/NAME`, with the job's name as far as a folder may look like it.
fn default_run(job: &Job) -> String {
    let plain = |c: char| {
        if c.is_alphanumeric() || c == '-' || c == '_' {
            c
        } else {
            '-'
        }
    };
    format!(
        "runs/{}",
        job.name.trim().chars().map(plain).collect::<String>()
    )
}

/// `MKS2_WORKER`, else `mks2-worker` beside this program.
pub(crate) fn worker_program() -> Result<PathBuf, Failure> {
    let cure = "build it with `cargo build -p mks2-worker`, or name it in MKS2_WORKER";
    if let Some(named) = std::env::var_os(env::WORKER).filter(|name| !name.is_empty()) {
        let path = PathBuf::from(named);
        return if path.is_file() {
            Ok(path)
        } else {
            let what = format!("the worker's program {} is not there", path.display());
            Err(Failure::environment(
                what,
                format!("{} names it", env::WORKER),
                cure,
            ))
        };
    }
    program_beside("mks2-worker", cure)
}

/// A program of this project, which lies beside this one.
///
/// # Errors
/// It is not there (exit 6); `cure` says what to do then.
pub(crate) fn program_beside(name: &str, cure: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .map_err(|error| {
            Failure::internal("this program does not know where it is", error.to_string())
        })?;
    let beside = own.with_file_name(name);
    if beside.is_file() {
        return Ok(beside);
    }
    Err(Failure::environment(
        format!("the program {name} is not there"),
        format!(
            "it is looked for beside this program, at {}",
            beside.display()
        ),
        cure,
    ))
}

/// Names of the corpora that the stages use.
pub(crate) fn used_corpora(job: &Job) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for stage in &job.stages {
        names.extend(stage.data.iter().map(|source| source.corpus.as_str()));
        let evaluate = stage
            .evaluate
            .as_ref()
            .filter(|_| stage.kind == StageKind::Evaluate);
        if let Some(settings) = evaluate {
            let named = [
                &settings.corpus,
                &settings.questions,
                &settings.train_questions,
            ];
            names.extend(named.into_iter().flatten().map(String::as_str));
        }
    }
    names
}

/// Opens each corpus that is used, whose digest ties the run to it, and looks whether pretrained models,
/// memories and adapters are what the job says of them, and tasks can be measured.
///
/// # Errors
/// The first corpus that is not there or not whole (exit 4), the first model, memory or adapter that is not
/// (exit 8) or is another than the job says (exit 3), the first task that cannot be read (exit 3, or 4 for
/// its data).
pub(crate) async fn open_inputs(job: &Job) -> Result<BTreeMap<String, String>, Failure> {
    let mut digests = BTreeMap::new();
    for name in used_corpora(job) {
        let Some(corpus) = job.data.get(name) else {
            continue;
        };
        let opened = Corpus::open(&corpus.url).await?;
        digests.insert(name.to_owned(), opened.manifest().digest());
    }
    for stage in &job.stages {
        if let Some(models) = &stage.pretrained {
            Base::open(job, models).await?;
        }
        if stage.attach.is_some() {
            attach::open(job, stage).await?;
        }
    }
    for settings in job.stages.iter().filter_map(|s| s.evaluate.as_ref()) {
        check_tasks(settings).await?;
    }
    for settings in job.stages.iter().filter_map(|stage| stage.experts.as_ref()) {
        if let Some(adapter) = &settings.adapter {
            Adapter::open(adapter, &job.model, settings).await?;
        }
    }
    Ok(digests)
}

/// Reads the tasks of an evaluation, long before they are measured.
async fn check_tasks(settings: &Evaluate) -> Result<(), Failure> {
    for task in read_tasks(&settings.tasks).await? {
        if matches!(task.settings, task::Settings::Retrieval(_)) && settings.memory.is_none() {
            return Err(Failure::settings(
                format!("task '{}' cannot be measured by this job", task.name),
                "only a memory stage can search, and the evaluate stage names none",
                "set memory to a memory stage of the job, or take the task out",
            ));
        }
    }
    Ok(())
}

fn logs_folder(run: Option<&Path>) -> Result<PathBuf, Failure> {
    let Some(run) = run else {
        let kept = TempDir::with_prefix("mks2-logs-").map(TempDir::keep);
        return kept
            .map_err(|error| Failure::io("a temporary folder for logs cannot be made", error));
    };
    let logs = run.join("logs");
    std::fs::create_dir_all(&logs).map_err(|error| {
        Failure::io(
            format!("the folder {} cannot be made", logs.display()),
            error,
        )
    })?;
    Ok(logs)
}
