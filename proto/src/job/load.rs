//! Reading a job: file, environment and `--set`, merged with a fixed precedence.
//!
//! `--set key=value` > `MKS2__KEY=value` in the environment > job file > default.
//!
//! 1. the file becomes a tree whose nodes know their line ([`tree`]);
//! 2. environment and `--set` are laid over it ([`overlay`]);
//! 3. the tree is held against the schema of [`Job`], so that an unknown key or a wrong type is
//!    named with its place ([`schema`]);
//! 4. the tree becomes a [`Job`], defaults are filled in, and
//!    [`validate`](super::validate) checks the relations between values.
//!
//! A relative URL of a corpus, model, memory or task is relative to the folder of the job file, whatever the working
//! directory and wherever the value came from. The resolved job holds absolute ones.

mod overlay;
mod schema;
mod tree;

use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use self::{schema::Complaint, tree::Node};
use super::{Job, StageKind, validate};
use crate::env::SETTING_PREFIX;
use crate::failure::Failure;

/// What is laid over the job file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `key=value` texts of `--set`, in the order given; a later one wins.
    pub sets: Vec<String>,
    /// Environment variables that begin with [`SETTING_PREFIX`].
    pub variables: Vec<(String, String)>,
}

impl Overrides {
    /// `--set` texts together with the process's environment.
    #[must_use]
    pub fn from_environment(sets: Vec<String>) -> Self {
        let is_setting = |(name, _): &(String, String)| name.starts_with(SETTING_PREFIX);
        let mut variables: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(is_setting)
            .collect();
        variables.sort();
        Self { sets, variables }
    }
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

impl Origin {
    /// The place in words: `job.toml line 12`, `--set`, ...
    #[must_use]
    pub fn describe(&self, file: &str) -> String {
        match self {
            Self::File(line) => format!("{file} line {line}"),
            Self::Environment(name) => format!("environment variable {name}"),
            Self::Set => "--set".into(),
            Self::Default => "default".into(),
        }
    }
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
    /// Every value with its origin, in the order of the resolved file.
    pub origins: Vec<Setting>,
    /// The job as TOML: `config.resolved.toml`. Loading it gives the same job.
    pub toml: String,
}

/// Reads a job file, lays the environment and `--set` over it and checks the whole.
///
/// # Errors
/// [`ExitCode::Settings`](crate::failure::ExitCode::Settings), naming key, file and line.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Resolved, Failure> {
    let (resolved, file) = read(path, overrides)?;
    match validate::problems(&resolved.job).into_iter().next() {
        None => Ok(resolved),
        Some(problem) => Err(blame(problem, &resolved.origins, &file)),
    }
}

/// Everything that is wrong with a job, for `mks2 config check`; empty when it is fine.
///
/// # Errors
/// When the file cannot be read or is no TOML.
pub fn check(path: &Path, overrides: &Overrides) -> Result<Vec<Failure>, Failure> {
    let (file, base) = place(path)?;
    let text = text(path)?;
    let (tree, complaints) = merge(&text, &file, overrides)?;
    if !complaints.is_empty() {
        return Ok(complaints
            .into_iter()
            .map(|found| found.failure(&file))
            .collect());
    }
    let resolved = resolve(&tree, &file, Some(&base))?;
    let problems = validate::problems(&resolved.job);
    Ok(problems
        .into_iter()
        .map(|problem| blame(problem, &resolved.origins, &file))
        .collect())
}

/// Reads a resolved job, as a worker gets it from the coordinator.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Job, Failure> {
    let file = "config.resolved.toml";
    let (tree, complaints) = merge(text, file, &Overrides::default())?;
    if let Some(first) = complaints.into_iter().next() {
        return Err(first.failure(file));
    }
    let job = resolve(&tree, file, None)?.job;
    validate::validate(&job)?;
    Ok(job)
}

/// blake3 of what makes two jobs the same run: everything but when checkpoints and comparisons are
/// made, where corpora, pretrained models and memories lie, and which tasks are measured. What is in
/// corpora, models and memories is held against their own digests.
///
/// # Errors
/// When the job cannot be encoded.
pub fn digest(job: &Job) -> Result<String, Failure> {
    let mut same = job.clone();
    same.checkpoint = super::Checkpoint::default();
    same.audit = super::Audit::default();
    same.data.clear();
    for stage in &mut same.stages {
        if let Some(pretrained) = &mut stage.pretrained {
            *pretrained = super::Pretrained::default();
        }
        if let Some(attach) = &mut stage.attach {
            (attach.memory, attach.id) = (String::new(), None);
        }
    }
    for evaluate in same.stages.iter_mut().filter_map(|s| s.evaluate.as_mut()) {
        evaluate.tasks.clear();
    }
    let bytes = serde_json::to_vec(&same)
        .map_err(|error| Failure::internal("the job cannot be encoded", error.to_string()))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

/// The JSON schema of the job file.
#[must_use]
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(Job).to_value()
}

fn read(path: &Path, overrides: &Overrides) -> Result<(Resolved, String), Failure> {
    let (file, base) = place(path)?;
    let (tree, complaints) = merge(&text(path)?, &file, overrides)?;
    if let Some(first) = complaints.into_iter().next() {
        return Err(first.failure(&file));
    }
    Ok((resolve(&tree, &file, Some(&base))?, file))
}

/// The file's name in messages, and the folder to which its relative URLs belong.
fn place(path: &Path) -> Result<(String, PathBuf), Failure> {
    let file = path.display().to_string();
    let real = path
        .canonicalize()
        .map_err(|error| unreadable(path, error))?;
    let base = real
        .parent()
        .map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
    Ok((file, base))
}

fn text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: std::io::Error) -> Failure {
    let mut failure = Failure::io(format!("job file {} cannot be read", path.display()), error);
    failure.exit = crate::failure::ExitCode::Settings;
    failure
}

/// File, environment and `--set` as one tree, with all complaints of the schema about it.
fn merge(text: &str, file: &str, overrides: &Overrides) -> Result<(Node, Vec<Complaint>), Failure> {
    let schema = schema::Schema::of_job();
    let mut tree = tree::parse(text, file)?;
    for (name, value) in &overrides.variables {
        overlay::variable(&mut tree, &schema, name, value)?;
    }
    for set in &overrides.sets {
        overlay::set(&mut tree, &schema, set)?;
    }
    let complaints = schema.check(&tree);
    Ok((tree, complaints))
}

/// From a tree that fits the schema to the job, its origins and its TOML.
fn resolve(tree: &Node, file: &str, base: Option<&Path>) -> Result<Resolved, Failure> {
    let mut job: Job = tree
        .to_toml()
        .try_into()
        .map_err(|error: toml::de::Error| {
            Failure::settings(
                format!("{file} cannot be understood"),
                error.message().to_owned(),
                "compare the file with `mks2 config schema`",
            )
        })?;
    fill_in(&mut job);
    if let Some(base) = base {
        for corpus in job.data.values_mut() {
            corpus.url = absolute(&corpus.url, base);
        }
        for stage in &mut job.stages {
            if let Some(models) = &mut stage.pretrained {
                models.decoder = absolute(&models.decoder, base);
                models.vision = absolute(&models.vision, base);
                if let Some(url) = &mut models.q_former {
                    *url = absolute(url, base);
                }
            }
            if let Some(attach) = &mut stage.attach {
                attach.memory = absolute(&attach.memory, base);
            }
        }
        for evaluate in job
            .stages
            .iter_mut()
            .filter_map(|stage| stage.evaluate.as_mut())
        {
            for task in &mut evaluate.tasks {
                *task = absolute(task, base);
            }
        }
        let experts = job.stages.iter_mut();
        let experts = experts.filter_map(|stage| stage.experts.as_mut());
        for adapter in experts.filter_map(|settings| settings.adapter.as_mut()) {
            *adapter = absolute(adapter, base);
        }
    }
    let body = toml::to_string_pretty(&job).map_err(|error| {
        Failure::internal("the job cannot be written as TOML", error.to_string())
    })?;
    let origins = tree::settings(&tree::parse(&body, "the resolved job")?, tree);
    let toml = format!("# The job as it ran: every setting, defaults included.\n\n{body}");
    Ok(Resolved { job, origins, toml })
}

/// Gives each stage the table of its own kind, so that its defaults are visible.
fn fill_in(job: &mut Job) {
    for stage in &mut job.stages {
        match stage.kind {
            StageKind::Pretrained => {
                stage.pretrained.get_or_insert_default();
            }
            StageKind::Bootstrap => {
                stage.bootstrap.get_or_insert_default();
            }
            StageKind::Memory => {
                stage.memory.get_or_insert_default();
            }
            StageKind::Attach => {
                stage.attach.get_or_insert_default();
            }
            StageKind::Experts => {
                stage.experts.get_or_insert_default();
            }
            StageKind::Evaluate => {
                stage.evaluate.get_or_insert_default();
            }
        }
    }
}

/// A URL stays, a path becomes absolute, `.` and `..` are taken out of it.
fn absolute(url: &str, base: &Path) -> String {
    if url.is_empty() || url.contains("://") {
        return url.to_owned();
    }
    let mut clean = PathBuf::new();
    for part in base.join(url).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean.display().to_string()
}

/// A broken rule, with the place of the value at fault.
fn blame(problem: validate::Problem, origins: &[Setting], file: &str) -> Failure {
    let exact = origins.iter().find(|setting| setting.key == problem.key);
    let place = match exact.map(|setting| &setting.origin) {
        None => String::new(),
        Some(Origin::Default) => " (a default)".into(),
        Some(origin) => format!(" ({})", origin.describe(file)),
    };
    let value = exact
        .map(|setting| format!(" = {}", setting.value))
        .unwrap_or_default();
    Failure::settings(
        format!("{}{value} cannot be used{place}", problem.key),
        problem.why,
        problem.cure,
    )
}

#[cfg(test)]
mod tests;
