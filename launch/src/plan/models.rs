//! The published models that a job starts from, as far as their folders can be read.

use std::time::Duration;

use mks2_dataset::pretrained::base::Base;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, Pretrained, Stage};
use serde::Serialize;

/// A plan is quick: a store that does not answer in this time is left alone.
const LIMIT: Duration = Duration::from_secs(10);

/// The models of a `pretrained` stage.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ModelFacts {
    pub(super) stage: String,
    pub(super) decoder: String,
    pub(super) vision: String,
    /// Why `[model]` could not be held against them; absent: it says what they are.
    pub(super) problem: Option<String>,
}

/// Looks at the models of every stage that takes some; their weights are not read.
pub(super) async fn look_at(job: &Job) -> Vec<ModelFacts> {
    let mut facts = Vec::new();
    for stage in &job.stages {
        if let Some(models) = &stage.pretrained {
            facts.push(one(job, stage, models).await);
        }
    }
    facts
}

async fn one(job: &Job, stage: &Stage, models: &Pretrained) -> ModelFacts {
    let problem = match tokio::time::timeout(LIMIT, Base::open(job, models)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(Failure::from(error).why),
        Err(_) => Some(format!("no answer within {} s", LIMIT.as_secs())),
    };
    ModelFacts {
        stage: stage.name.clone(),
        decoder: mks2_dataset::store::shown(&models.decoder),
        vision: mks2_dataset::store::shown(&models.vision),
        problem,
    }
}
