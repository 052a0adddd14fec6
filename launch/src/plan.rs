//! `mks2 plan`: what a job would do, worked out from the job file alone (and the corpora's
//! manifests and the models' folders, if they are there). Nothing is trained; no tensor library is
//! needed.

mod corpora;
mod gpus;
mod memory;
mod models;
mod view;

use mks2_coordinator::assign;
use mks2_proto::failure::Failure;
use mks2_proto::ids::MemberId;
use mks2_proto::job::load;
use mks2_proto::job::{Job, Reduction, Stage, StageKind};
use mks2_proto::params::{ModuleCount, module_counts, sample_cost};
use serde::Serialize;

use crate::cli::PlanArgs;
use crate::output::Output;
use corpora::CorpusFacts;
use gpus::Gpu;
use memory::Memory;
use models::ModelFacts;

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
    /// For a job on GPUs: on which of them each stage fits.
    gpus: Vec<Gpu>,
    corpora: Vec<CorpusFacts>,
    models: Vec<ModelFacts>,
}

/// What there is outside the job file.
#[derive(Default)]
struct Found {
    corpora: Vec<CorpusFacts>,
    models: Vec<ModelFacts>,
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
    /// Operations of forward and backward, as PyTorch counts them: a multiplication and an addition
    /// are two, and attention's products are included.
    flops_per_token: u64,
    /// The same of the visual encoder and the bridge.
    flops_per_image: u64,
    flops_per_step: u64,
    /// Bytes of the worker with most lanes, by kind.
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
    let found = Found {
        corpora: corpora::look_at(&job).await,
        models: models::look_at(&job).await,
    };
    let plan = make(&job, args.workers, found)?;
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
fn make(job: &Job, workers: u32, found: Found) -> Result<Plan, Failure> {
    let lanes_per_worker = deal(job.lanes, workers)?;
    let most_lanes = lanes_per_worker.iter().copied().max().unwrap_or(job.lanes);
    let plan = |stage| stage_plan(job, stage, &found.corpora, most_lanes);
    let stages: Vec<StagePlan> = job.stages.iter().map(plan).collect();
    let gpus = match job.device.starts_with("cuda") {
        true => gpus::table(&stages),
        false => Vec::new(),
    };
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
        gpus,
        corpora: found.corpora,
        models: found.models,
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

fn stage_plan(job: &Job, stage: &Stage, corpora: &[CorpusFacts], most_lanes: u32) -> StagePlan {
    let modules = module_counts(&job.model, job.tokenizer.vocab_size, stage);
    let cost = sample_cost(&job.model, job.tokenizer.vocab_size, stage);
    let memory = Memory::estimate(job, stage, &cost, most_lanes);
    let parameters = |is_trained| {
        let modules = modules.iter().filter(|m| m.trained == is_trained);
        modules.map(|module| module.parameters).sum()
    };
    let trained = parameters(true);
    StagePlan {
        name: stage.name.clone(),
        kind: stage.kind,
        steps: stage.steps,
        batch_size: stage.batch_size,
        microbatch: stage.batch_size / job.lanes.max(1),
        samples: stage.steps * u64::from(stage.batch_size),
        sources: sources(stage, corpora),
        trained_parameters: trained,
        frozen_parameters: parameters(false),
        tokens_per_sample: cost.tokens,
        flops_per_token: cost.flops_per_token(),
        flops_per_image: cost.image_flops,
        flops_per_step: cost.flops() * u64::from(stage.batch_size),
        memory,
        checkpoint_bytes: trained * CHECKPOINT_BYTES,
        parameters: modules.into_iter().map(ModulePlan::from).collect(),
    }
}

impl From<ModuleCount> for ModulePlan {
    fn from(count: ModuleCount) -> Self {
        Self {
            module: count.module,
            parameters: count.parameters,
            trained: count.trained,
        }
    }
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
    use mks2_proto::job::Precision;
    use mks2_proto::params::{numel, text_tower, trained_by};

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
        let found = Found {
            corpora: vec![facts],
            models: Vec::new(),
        };
        let plan = make(&sample(), 2, found).expect("fits");
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
        let text = view::render(&make(&sample(), 2, Found::default()).expect("fits"));
        for words in ["2 workers", "4 lanes", "memory", "with-memory", "decoder"] {
            assert!(text.contains(words), "{words} in\n{text}");
        }
    }

    #[test]
    fn memory_follows_parameters_lanes_and_the_kind_of_sum() {
        let mut job = sample();
        let memory = |job: &Job, workers| {
            let plan = make(job, workers, Found::default()).expect("fits");
            let stage = &plan.stages[1];
            let (trained, frozen) = (stage.trained_parameters, stage.frozen_parameters);
            (stage.memory, trained, frozen)
        };
        let (exact, trained, frozen) = memory(&job, 2);
        let text_tower = numel(&text_tower(&job.model, job.tokenizer.vocab_size));
        let resident = frozen + text_tower;
        assert_eq!((exact.frozen, exact.trained), (4 * resident, 4 * trained));
        // A copy for the checkpoint of the larger stage before.
        let bootstrap = numel(&trained_by(
            &job.model,
            job.tokenizer.vocab_size,
            &job.stages[0],
        ));
        assert_eq!((exact.finished, exact.checkpoint), (0, 12 * bootstrap));
        assert_eq!((exact.gradients, exact.moments), (8 * trained, 8 * trained));
        // Two lanes' gradients wait for a scale in the first step.
        assert_eq!(exact.sums, (8 + 2 * 4) * trained);
        let kinds = exact.kinds();
        assert_eq!(
            exact.total,
            kinds.iter().map(|(_, bytes)| bytes).sum::<u64>()
        );
        let is_there = |(name, bytes): &(&str, u64)| *bytes > 0 || *name == "finished";
        assert!(kinds.iter().all(is_there), "{kinds:?}");
        // Twice the lanes, twice the features that wait; the rest is of one lane.
        let (alone, ..) = memory(&job, 1);
        assert!(alone.features > exact.features && alone.activations == exact.activations);
        job.reduction = Reduction::Fast;
        assert_eq!(memory(&job, 2).0.sums, 4 * trained);
    }

    #[test]
    fn finished_stages_stay_on_the_host() {
        let mut job = sample();
        job.precision = Precision::Bf16;
        let numel_of = |job: &Job, stage: usize| {
            let stage = &job.stages[stage];
            numel(&trained_by(&job.model, job.tokenizer.vocab_size, stage))
        };
        let memory = |job: &Job, stage: usize| {
            let plan = make(job, 1, Found::default()).expect("fits");
            plan.stages[stage].memory
        };
        // On a CPU both stages before are there in fp32, beside the half that the model computes from.
        let on_cpu = memory(&job, 2);
        let before = numel_of(&job, 0) + numel_of(&job, 1);
        assert!(
            on_cpu.finished > 3 * before && on_cpu.finished <= 4 * before,
            "vectors are shared"
        );
        assert!(on_cpu.frozen >= 2 * before && on_cpu.frozen < 3 * before);
        assert_eq!(on_cpu.checkpoint, 12 * numel_of(&job, 0));
        job.device = "cuda".into();
        let on_gpu = memory(&job, 2);
        assert_eq!((on_gpu.finished, on_gpu.checkpoint), (0, 0));
        assert_eq!(on_gpu.frozen, on_cpu.frozen);
        // What a stage does not build on is not there to compute from.
        job.device = "cpu".into();
        job.precision = Precision::Fp32;
        job.stages[2].from = vec!["bootstrap".into()];
        job.stages[2].experts = None;
        let alone = memory(&job, 2);
        assert_eq!(
            (alone.frozen, alone.finished),
            (4 * numel_of(&job, 0), 4 * numel_of(&job, 1))
        );
    }

    #[test]
    fn a_stage_fits_on_gpus_from_some_size_on() {
        let mut job = sample();
        let fits = |job: &Job| {
            let plan = make(job, 1, Found::default()).expect("fits");
            let gpus = plan.gpus.into_iter();
            gpus.map(|gpu| gpu.fits.iter().any(|name| name == "memory"))
                .collect::<Vec<_>>()
        };
        assert!(fits(&job).is_empty());
        job.device = "cuda".into();
        assert_eq!(fits(&job), [true; 5]);
        // 41 GB of frozen embedding and head, 15 of the text tower's; logits are computed by pieces.
        job.tokenizer.vocab_size = 80_000_000;
        assert_eq!(fits(&job), [false, false, false, true, true]);
    }
}
