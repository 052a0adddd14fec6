//! `mks2 plan`: what a job would do, worked out from the job file alone (and the corpora's
//! manifests, if they are there). Nothing is trained; no tensor library is needed.

mod corpora;
mod memory;
mod view;

use mks2_coordinator::assign;
use mks2_proto::failure::Failure;
use mks2_proto::ids::MemberId;
use mks2_proto::job::load;
use mks2_proto::job::{Experts, Job, Reduction, Stage, StageKind};
use mks2_proto::params::{StageCost, stage_cost};
use serde::Serialize;

use crate::cli::PlanArgs;
use crate::output::Output;
use corpora::{CorpusFacts, look_at};
use memory::Memory;

/// Bytes of one trained parameter in a checkpoint: weight and both moments, fp32.
const CHECKPOINT_BYTES: u64 = 12;

/// Everything that can be said before a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    job: String,
    workers: u32,
    lanes: u32,
    /// Lanes of each worker, by rank.
    lanes_per_worker: Vec<u32>,
    device: String,
    threads: u32,
    reduction: Reduction,
    total_steps: u64,
    stages: Vec<StagePlan>,
    corpora: Vec<CorpusFacts>,
}

/// What one stage would do.
#[derive(Clone, Debug, Serialize)]
struct StagePlan {
    name: String,
    kind: StageKind,
    steps: u64,
    batch_size: u32,
    /// Samples of a lane in a step.
    microbatch: u32,
    samples: u64,
    sources: Vec<SourcePlan>,
    parameters: Vec<ModulePlan>,
    trained_parameters: u64,
    frozen_parameters: u64,
    /// Tokens of a sample through the language model, soft tokens included.
    tokens_per_sample: u64,
    flops_per_token: u64,
    flops_per_image: u64,
    flops_per_step: u64,
    /// Bytes of one worker, by kind.
    memory: Memory,
    checkpoint_bytes: u64,
}

/// Parameters of a module in a stage.
#[derive(Clone, Debug, Serialize)]
struct ModulePlan {
    module: String,
    parameters: u64,
    trained: bool,
}

/// A corpus in a stage.
#[derive(Clone, Debug, Serialize)]
struct SourcePlan {
    corpus: String,
    share: f64,
    /// Passes over the corpus in the stage; absent: it is not imported.
    epochs: Option<f64>,
    /// Bytes that a pass reads.
    bytes_per_epoch: Option<u64>,
}

/// Prints the plan of a job.
///
/// # Errors
/// A wrong job, or more workers than lanes (exit 3).
pub(crate) async fn run(args: &PlanArgs, output: &Output) -> Result<(), Failure> {
    let job = load::load(&args.job.job, &args.job.overrides())?.job;
    let corpora = look_at(&job).await;
    let plan = make(&job, args.workers, corpora)?;
    if args.json {
        let text = serde_json::to_string_pretty(&plan)
            .map_err(|error| Failure::internal("the plan has no JSON", error.to_string()))?;
        output.result(&text);
    } else {
        output.result(&view::render(&plan));
    }
    Ok(())
}

/// The plan of a job for so many workers.
fn make(job: &Job, workers: u32, corpora: Vec<CorpusFacts>) -> Result<Plan, Failure> {
    let lanes_per_worker = deal(job.lanes, workers)?;
    let stages = job
        .stages
        .iter()
        .map(|stage| stage_plan(job, stage, &corpora))
        .collect();
    Ok(Plan {
        job: job.name.clone(),
        workers,
        lanes: job.lanes,
        lanes_per_worker,
        device: job.device.clone(),
        threads: job.threads,
        reduction: job.reduction,
        total_steps: job.stages.iter().map(|stage| stage.steps).sum(),
        stages,
        corpora,
    })
}

/// Lanes of each rank, as the coordinator would deal them.
fn deal(lanes: u32, workers: u32) -> Result<Vec<u32>, Failure> {
    let names: Result<Vec<MemberId>, _> = (0..workers)
        .map(|rank| MemberId::new(&format!("worker-{rank}")))
        .collect();
    let names =
        names.map_err(|error| Failure::internal("a worker has no name", error.to_string()))?;
    let shares = assign::deal(lanes, &names, &[]).map_err(|error| {
        Failure::settings(
            format!("{workers} workers are too many for this job"),
            error.to_string(),
            format!("use --workers {lanes} or fewer, or set lanes to {workers} or more"),
        )
    })?;
    Ok(shares
        .into_iter()
        .map(|share| u32::try_from(share.lanes.len()).unwrap_or(u32::MAX))
        .collect())
}

fn stage_plan(job: &Job, stage: &Stage, corpora: &[CorpusFacts]) -> StagePlan {
    let cost = stage_cost(&job.model, job.tokenizer.vocab_size, stage);
    let microbatch = stage.batch_size / job.lanes.max(1);
    let (tokens, images) = per_sample(job, stage);
    let per_sample = tokens * cost.flops_per_token + images * cost.flops_per_image;
    let trained = cost.trained();
    StagePlan {
        name: stage.name.clone(),
        kind: stage.kind,
        steps: stage.steps,
        batch_size: stage.batch_size,
        microbatch,
        samples: stage.steps * u64::from(stage.batch_size),
        sources: sources(stage, corpora),
        parameters: modules(&cost),
        trained_parameters: trained,
        frozen_parameters: cost.frozen(),
        tokens_per_sample: tokens,
        flops_per_token: cost.flops_per_token,
        flops_per_image: cost.flops_per_image,
        flops_per_step: per_sample * u64::from(stage.batch_size),
        memory: Memory::estimate(job, stage, &cost, microbatch, tokens),
        checkpoint_bytes: trained * CHECKPOINT_BYTES,
    }
}

fn modules(cost: &StageCost) -> Vec<ModulePlan> {
    let plan = |count: &mks2_proto::params::ModuleCount| ModulePlan {
        module: count.module.clone(),
        parameters: count.parameters,
        trained: count.trained,
    };
    cost.modules.iter().map(plan).collect()
}

/// Tokens through the language model and pictures through the encoder, per sample. A memory
/// stage runs a caption behind its soft tokens, and a retrieval text alone.
fn per_sample(job: &Job, stage: &Stage) -> (u64, u64) {
    let text = u64::from(job.model.decoder.max_text_tokens);
    let soft = patches(job);
    match stage.kind {
        StageKind::Bootstrap => (text, 1),
        StageKind::Memory => (soft + 2 * text, 1),
        StageKind::Experts if stage.experts.as_ref().is_some_and(|e: &Experts| e.pictures) => {
            (soft + text, 1)
        }
        StageKind::Experts => (text, 0),
        StageKind::Pretrained | StageKind::Attach => (0, 0),
        StageKind::Evaluate => (text, 1),
    }
}

/// Soft tokens of a picture.
fn patches(job: &Job) -> u64 {
    let vision = &job.model.vision;
    u64::from(vision.image_size / vision.patch_size.max(1)).pow(2)
}

fn sources(stage: &Stage, corpora: &[CorpusFacts]) -> Vec<SourcePlan> {
    let total: f64 = stage.data.iter().map(|source| source.weight).sum();
    let samples = stage.steps as f64 * f64::from(stage.batch_size);
    let plan = |source: &mks2_proto::job::Source| {
        let facts = corpora.iter().find(|facts| facts.name == source.corpus);
        let share = source.weight / total;
        let rows = facts.and_then(|facts| facts.rows).filter(|rows| *rows > 0);
        SourcePlan {
            corpus: source.corpus.clone(),
            share,
            epochs: rows.map(|rows| samples * share / rows as f64),
            bytes_per_epoch: facts.and_then(|facts| facts.bytes),
        }
    };
    stage.data.iter().map(plan).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Job {
        load::parse(include_str!("../../proto/src/job/sample.toml")).expect("a job")
    }

    #[test]
    fn lanes_are_dealt_as_the_coordinator_would() {
        assert_eq!(deal(8, 3).expect("enough"), [3, 3, 2]);
        assert_eq!(deal(8, 9).expect_err("too many").exit.code(), 3);
    }

    #[test]
    fn a_plan_counts_batches_parameters_and_passes() {
        let facts = CorpusFacts {
            name: "emoji".into(),
            url: "x".into(),
            rows: Some(160),
            bytes: Some(1000),
            problem: None,
        };
        let plan = make(&sample(), 2, vec![facts]).expect("fits");
        assert_eq!(plan.total_steps, 90);
        let memory = &plan.stages[1];
        assert_eq!((memory.microbatch, memory.samples), (4, 480));
        assert_eq!(memory.tokens_per_sample, 16 + 32);
        assert_eq!(memory.sources[0].epochs, Some(3.0));
        assert_eq!(memory.checkpoint_bytes, memory.trained_parameters * 12);
        assert!(memory.trained_parameters > 0 && memory.frozen_parameters > 0);
        let evaluate = &plan.stages[3];
        assert_eq!(
            (evaluate.trained_parameters, evaluate.checkpoint_bytes),
            (0, 0)
        );
    }

    #[test]
    fn a_plan_can_be_read() {
        let text = view::render(&make(&sample(), 2, Vec::new()).expect("fits"));
        for words in ["2 workers", "4 lanes", "memory", "with-memory", "decoder"] {
            assert!(text.contains(words), "{words} in\n{text}");
        }
    }
}
