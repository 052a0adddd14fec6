//! `report.json` and `report.html`, composed from what a run has left in its directory.
//!
//! A pure function of the run directory: it can be made again at any time, for a finished run or
//! for one under way. What is not there yet is left out.

mod chart;
mod curves;
mod evaluation;
mod html;
mod sources;
mod text;
mod time;

#[cfg(test)]
mod tests;

use mks2_proto::failure::Failure;
use mks2_proto::goodput::TimeSpent;
use mks2_proto::job::{Reduction, StageKind};
use serde::Serialize;
use serde_json::Value;

pub(crate) use sources::Sources;

use crate::goodput;

/// `report.json`: the numbers of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// blake3 of the evaluated model's trained parameters in name order, as fp32 little endian;
    /// of the last finished stage's where nothing was evaluated.
    pub(crate) weights_digest: Option<String>,
    /// The training stages that are finished, in their order.
    pub(crate) stages: Vec<StageReport>,
    /// What the `evaluate` stage has found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) evaluation: Option<Value>,
    /// How gradients were summed.
    pub(crate) reduction: Reduction,
    /// Workers of the last step.
    pub(crate) workers: u64,
    /// How often the run failed: records of a failure in its journal.
    pub(crate) failures: u64,
    /// How often everything was killed at work: terms that follow one without a word on its end
    /// which nobody had asked to stop.
    pub(crate) interruptions: u64,
    /// Seconds of the evaluation, where it is the last stage of a finished run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) evaluation_seconds: Option<f64>,
    /// Where the time went: `run` and `workers`, each with its seconds and the part of every
    /// activity in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) goodput: Option<Value>,
}

/// One finished training stage.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StageReport {
    /// Name.
    pub(crate) name: String,
    /// Steps.
    pub(crate) steps: u64,
    /// Seconds of its steps.
    pub(crate) seconds: f64,
    /// Loss of the last step.
    pub(crate) loss: Option<f64>,
    /// blake3 of what it trained.
    pub(crate) weights_digest: String,
}

/// Where the two files were written.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// The numbers.
    pub(crate) report: Report,
    /// Location of `report.html`.
    pub(crate) html: String,
    /// Where the run's time went.
    pub(crate) spent: TimeSpent,
}

/// Reads a run directory and writes `report.json` and `report.html` into it.
///
/// # Errors
/// When there is no run, or its directory can not be read or written.
pub(crate) async fn compose(run: &str) -> Result<Written, Failure> {
    let sources = Sources::read(run).await?;
    let report = report(&sources);
    let json = serde_json::to_vec_pretty(&report)
        .map_err(|e| Failure::internal("report.json cannot be written", e.to_string()))?;
    sources.write("report.json", json).await?;
    let html = html::page(&sources, &report);
    let location = sources.write("report.html", html.into_bytes()).await?;
    Ok(Written {
        report,
        html: location,
        spent: sources.past.books.run(),
    })
}

fn report(sources: &Sources) -> Report {
    let stages: Vec<StageReport> = sources.finished.iter().map(StageReport::from).collect();
    let evaluated = sources
        .evaluation
        .as_ref()
        .and_then(|found| found["weights_digest"].as_str());
    let last = stages.last().map(|stage| stage.weights_digest.clone());
    let last_stage = sources.job.stages.last();
    let evaluates_last = last_stage.is_some_and(|stage| stage.kind == StageKind::Evaluate);
    Report {
        weights_digest: evaluated.map(str::to_owned).or(last),
        stages,
        evaluation: sources.evaluation.as_ref().map(numbers),
        reduction: sources.job.reduction,
        workers: sources
            .metrics
            .last()
            .and_then(|line| line["workers"].as_u64())
            .unwrap_or(0),
        failures: sources.past.failures,
        interruptions: sources.past.interruptions,
        evaluation_seconds: evaluates_last
            .then_some(sources.past.last_seconds)
            .flatten(),
        goodput: goodput::of_run(&sources.past.books),
    }
}

impl From<&sources::FinishedStage> for StageReport {
    fn from(stage: &sources::FinishedStage) -> Self {
        Self {
            name: stage.stage.clone(),
            steps: stage.stage_step,
            seconds: stage.seconds,
            loss: stage.loss,
            weights_digest: stage.weights_digest.clone(),
        }
    }
}

/// The numbers of an evaluation, without pictures and single answers.
fn numbers(evaluation: &Value) -> Value {
    let mut numbers = serde_json::Map::new();
    for part in ["retrieval", "caption", "questions", "probes"] {
        if let Some(fields) = evaluation[part].as_object() {
            let shares = fields.iter().filter(|(_, value)| value.is_number());
            let shares = shares.map(|(name, value)| (name.clone(), value.clone()));
            numbers.insert(part.to_owned(), Value::Object(shares.collect()));
        }
    }
    if let Some(tasks) = evaluation["tasks"].as_array() {
        numbers.insert("tasks".to_owned(), tasks.iter().map(task).collect());
    }
    Value::Object(numbers)
}

/// A task without its settings.
fn task(task: &Value) -> Value {
    let kept = ["task", "stage", "digest", "measured", "metrics"];
    let kept = kept.map(|name| (name.to_owned(), task[name].clone()));
    Value::Object(kept.into_iter().collect())
}
