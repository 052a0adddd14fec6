//! The environment contract: every variable that passes between the launcher, the coordinator
//! and a worker, in one list.
//!
//! A launcher of another kind (Slurm, Kubernetes, a shell script) sets [`COORDINATOR`],
//! [`TOKEN`], [`RUN_ID`] and [`MEMBER_ID`] and starts `mks2-worker`; nothing else is needed.
//! torchrun's words are understood where the meaning is the same.

use std::time::Duration;

use crate::failure::Failure;

/// Endpoint of the coordinator: `http://HOST:PORT`.
pub const COORDINATOR: &str = "MKS2_COORDINATOR";
/// The run's token, sent as `authorization: Bearer TOKEN`.
pub const TOKEN: &str = "MKS2_TOKEN";
/// The run that the worker joins; without it whichever the coordinator has.
pub const RUN_ID: &str = "MKS2_RUN_ID";
/// The worker's name, unique in the run: `worker-0`. Without it: `worker-RANK`.
pub const MEMBER_ID: &str = "MKS2_MEMBER_ID";
/// Where the worker's data plane listens; `127.0.0.1:0` without it. Other machines must be able
/// to reach it, so a run over several machines sets it to an address of the machine.
pub const DATA_ADDRESS: &str = "MKS2_DATA_ADDRESS";
/// Where the other workers reach the data plane, when that is not where it listens: behind a
/// forwarded port, for example. Port 0 stands for the port on which it listens.
pub const DATA_ADVERTISE: &str = "MKS2_DATA_ADVERTISE";
/// Place of the worker among all, from 0. Only a hint: the coordinator gives the rank.
pub const RANK: &str = "RANK";
/// Place of the worker on its machine, from 0. Picks the GPU when the job says `cuda`.
pub const LOCAL_RANK: &str = "LOCAL_RANK";
/// Workers that were started. Only a hint, as `RANK`.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// Workers that were started on this machine.
pub const LOCAL_WORLD_SIZE: &str = "LOCAL_WORLD_SIZE";
/// `text` or `json`: the form of logs on the standard error stream.
pub const LOG_FORMAT: &str = "MKS2_LOG_FORMAT";
/// Filter of the logs: `info`, `debug`, `mks2_worker=trace`, ...
pub const LOG: &str = "MKS2_LOG";
/// The worker's program, for `mks2 train`; else it is looked for beside `mks2`.
pub const WORKER: &str = "MKS2_WORKER";
/// cuBLAS' own variable, which a worker on a GPU needs for the exact reduction: with the value of
/// [`CUBLAS_WORKSPACE_VALUE`] it gives the same bits at each call.
pub const CUBLAS_WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";
/// Eight buffers of 4 MiB, as NVIDIA's documentation of cuBLAS advises for reproducible results.
pub const CUBLAS_WORKSPACE_VALUE: &str = ":4096:8";
/// How often the launcher has started this worker again.
pub const RESTARTS: &str = "MKS2_RESTARTS";
/// Seconds from SIGTERM to the end of a worker that could not leave before.
pub const GRACE: &str = "MKS2_GRACE";
/// Kubernetes gives 30 s: a little less.
const USUAL_GRACE: Duration = Duration::from_secs(25);
/// Seconds without an answer of the store after which a checkpoint is given up; 120 without it.
pub const UPLOAD_LIMIT: &str = "MKS2_UPLOAD_LIMIT";
/// Folder in which files of models from other machines are kept; empty: none is. Without it
/// `mks2/models` in the user's cache.
pub const MODEL_CACHE: &str = "MKS2_MODEL_CACHE";
/// Beginning of the variables that set a key of the job file: `MKS2__STAGE__MEMORY__STEPS=5`.
pub const SETTING_PREFIX: &str = "MKS2__";

/// The list, with what each is for: `(name, meaning)`.
pub const ALL: [(&str, &str); 19] = [
    (COORDINATOR, "endpoint of the coordinator, http://HOST:PORT"),
    (TOKEN, "the run's token"),
    (
        RUN_ID,
        "the run that the worker joins; else the coordinator's",
    ),
    (
        MEMBER_ID,
        "the worker's name, unique in the run; else worker-RANK",
    ),
    (
        DATA_ADDRESS,
        "where the worker's data plane listens; else 127.0.0.1:0",
    ),
    (
        DATA_ADVERTISE,
        "where others reach its data plane; else where it listens",
    ),
    (RANK, "place of the worker among all (a hint)"),
    (
        LOCAL_RANK,
        "place of the worker on its machine; picks the GPU",
    ),
    (WORLD_SIZE, "workers that were started (a hint)"),
    (
        LOCAL_WORLD_SIZE,
        "workers that were started on this machine",
    ),
    (LOG_FORMAT, "form of the logs: text or json"),
    (
        LOG,
        "filter of the logs, for example info or mks2_worker=debug",
    ),
    (WORKER, "path of the mks2-worker program, for mks2 train"),
    (
        CUBLAS_WORKSPACE,
        "cuBLAS' workspace, fixed so that a GPU repeats its bits",
    ),
    (
        GRACE,
        "seconds that a worker has to leave after SIGTERM; else 25",
    ),
    (RESTARTS, "how often this worker was started again (a hint)"),
    (
        UPLOAD_LIMIT,
        "seconds without the store's answer that end an upload; else 120",
    ),
    (
        MODEL_CACHE,
        "where files of models from other machines are kept; else in the user's cache",
    ),
    (
        SETTING_PREFIX,
        "prefix of variables that set a key of the job file",
    ),
];

/// What a worker learns from its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEnv {
    /// Endpoint of the coordinator: `http://HOST:PORT`.
    pub coordinator: String,
    /// The run's token.
    pub token: String,
    /// The run to join; empty: the coordinator's.
    pub run_id: String,
    /// The worker's own name, unique in the run.
    pub member_id: String,
    /// Where its data plane listens: `HOST:PORT`, port 0 for any.
    pub data_address: String,
    /// Where others reach it; empty: where it listens.
    pub data_advertise: String,
    /// Place among all workers at the start, from 0; a hint.
    pub rank: u32,
    /// Place on its machine, from 0.
    pub local_rank: u32,
    /// Workers started; a hint.
    pub world_size: u32,
    /// Workers started on this machine.
    pub local_world_size: u32,
}

impl WorkerEnv {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// [`ExitCode::Usage`](crate::failure::ExitCode::Usage) when a variable is missing or wrong.
    pub fn read() -> Result<Self, Failure> {
        Self::read_from(|name| std::env::var(name).ok())
    }

    /// Reads any environment; the process's own is read once, at the edge.
    ///
    /// # Errors
    /// As [`WorkerEnv::read`].
    pub fn read_from(get: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let needed = |name: &str| {
            get(name)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| missing(name))
        };
        let rank = number(&get, RANK, 0)?;
        let world_size = number(&get, WORLD_SIZE, rank.saturating_add(1))?;
        Ok(Self {
            coordinator: needed(COORDINATOR)?,
            token: needed(TOKEN)?,
            run_id: get(RUN_ID).unwrap_or_default(),
            member_id: get(MEMBER_ID).unwrap_or_else(|| format!("worker-{rank}")),
            data_address: get(DATA_ADDRESS).unwrap_or_else(|| "127.0.0.1:0".into()),
            data_advertise: get(DATA_ADVERTISE).unwrap_or_default(),
            rank,
            local_rank: number(&get, LOCAL_RANK, 0)?,
            world_size,
            local_world_size: number(&get, LOCAL_WORLD_SIZE, world_size)?,
        })
    }

    /// The variables that a launcher sets for a worker; [`WorkerEnv::read`] gives the same back.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            (COORDINATOR, self.coordinator.clone()),
            (TOKEN, self.token.clone()),
            (RUN_ID, self.run_id.clone()),
            (MEMBER_ID, self.member_id.clone()),
            (DATA_ADDRESS, self.data_address.clone()),
            (DATA_ADVERTISE, self.data_advertise.clone()),
            (RANK, self.rank.to_string()),
            (LOCAL_RANK, self.local_rank.to_string()),
            (WORLD_SIZE, self.world_size.to_string()),
            (LOCAL_WORLD_SIZE, self.local_world_size.to_string()),
            (CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_VALUE.to_owned()),
        ]
    }
}

/// How long an upload waits for the store, where the environment says it.
///
/// # Errors
/// [`ExitCode::Usage`](crate::failure::ExitCode::Usage) when it is no number of seconds.
pub fn upload_limit() -> Result<Option<Duration>, Failure> {
    let get = |name: &str| std::env::var(name).ok();
    let seconds = number(get, UPLOAD_LIMIT, 0)?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds.into())))
}

/// How long a process that is asked to end may take: [`GRACE`] in seconds, or 25.
#[must_use]
pub fn grace() -> Duration {
    let grace = std::env::var(GRACE).ok();
    let grace = grace.and_then(|seconds| seconds.parse().ok());
    grace.map_or(USUAL_GRACE, Duration::from_secs)
}

fn missing(name: &str) -> Failure {
    let meaning = ALL
        .iter()
        .find(|(known, _)| *known == name)
        .map_or("", |(_, meaning)| meaning);
    Failure::usage(
        format!("{name} is not set"),
        format!("a worker is started by a launcher, which tells it {meaning}"),
        "start workers with `mks2 train`, or set the variables listed in docs/configuration.md",
    )
}

fn number(get: impl Fn(&str) -> Option<String>, name: &str, default: u32) -> Result<u32, Failure> {
    let Some(text) = get(name) else {
        return Ok(default);
    };
    text.trim().parse().map_err(|_| {
        Failure::usage(
            format!("{name} is '{text}'"),
            "it must be a whole number, 0 or larger",
            format!("set {name} to a number, or leave it out"),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn example() -> WorkerEnv {
        WorkerEnv {
            coordinator: "http://127.0.0.1:4000".into(),
            token: "secret".into(),
            run_id: "run-1".into(),
            member_id: "worker-1".into(),
            data_address: "127.0.0.1:0".into(),
            data_advertise: "10.0.0.5:0".into(),
            rank: 1,
            local_rank: 1,
            world_size: 2,
            local_world_size: 2,
        }
    }

    #[test]
    fn what_the_launcher_sets_is_what_the_worker_reads() {
        let variables: HashMap<_, _> = example().variables().into_iter().collect();
        let read = WorkerEnv::read_from(|name| variables.get(name).cloned());
        assert_eq!(read.expect("complete"), example());
    }

    #[test]
    fn a_missing_variable_is_named() {
        let failure = WorkerEnv::read_from(|_| None).expect_err("nothing is set");
        assert!(failure.what.contains(COORDINATOR), "{failure}");
    }

    #[test]
    fn a_rank_that_is_no_number_is_refused() {
        let failure = WorkerEnv::read_from(|name| (name == RANK).then(|| "first".to_owned()))
            .expect_err("not a number");
        assert!(failure.what.contains("RANK is 'first'"), "{failure}");
    }
}
