//! Memory of one worker in a stage, by kind.
//!
//! ```text
//! persistent   frozen and trained weights, gradients, moments, sums; what finished stages have left;
//!              rank 0's copy for a checkpoint
//! a step       features of the lanes held, then of one lane after the other: activations, logits
//! ```
//!
//! Finished stages keep their weights on the host in fp32, and the copy for a checkpoint is there too: on a
//! CPU that is the same memory, on a GPU none of its own. Published models stay where they are computed from.
//! What persists follows from the parameter table, but for the gaps between tensors. Of a step the largest part is counted,
//! which what the backward pass reads again outweighs by far; that is an estimate
//! ([`mks2_proto::params::SampleCost`]).

use std::collections::{BTreeMap, BTreeSet};

use mks2_proto::job::{Job, Precision, Recompute, Reduction, Stage, StageKind, Vision};
use mks2_proto::params::{
    LOGITS_AT_ONCE, ParamSpec, SampleCost, follows_precision, frozen_by, numel, trained_by,
};
use serde::Serialize;

/// Bytes of one fp32 number.
const FP32: u64 = 4;
/// Most bytes of gradients that a worker keeps until their tensors have a scale: in the first step.
const HELD_BYTES: u64 = 512 << 20;
/// Copies of the trained weights in a checkpoint: they and both moments.
const IN_CHECKPOINT: u64 = 3;

/// Bytes by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// Weights of the stages that it builds on, which are not trained.
    pub(super) frozen: u64,
    /// Weights that are trained, fp32.
    pub(super) trained: u64,
    /// The step's gradients, and those of a lane beside them, fp32.
    pub(super) gradients: u64,
    /// Both moments of AdamW, fp32.
    pub(super) moments: u64,
    /// Sums over lanes: 64-bit fixed point, with gradients that wait for a scale; or fp32 in the fast
    /// mode.
    pub(super) sums: u64,
    /// What a lane's forward pass keeps for its backward pass.
    pub(super) activations: u64,
    /// Logits of a lane's tokens and their gradients.
    pub(super) logits: u64,
    /// What the visual encoder has made of the pictures of all lanes held.
    pub(super) features: u64,
    /// What finished stages have left, beside what the model computes from.
    pub(super) finished: u64,
    /// Rank 0's copy of what goes into a checkpoint, made for the largest stage so far.
    pub(super) checkpoint: u64,
    pub(super) total: u64,
}

impl Memory {
    /// Of a worker that holds `lanes` of the job's lanes.
    pub(super) fn estimate(job: &Job, stage: &Stage, cost: &SampleCost, lanes: u32) -> Self {
        let samples = u64::from(stage.batch_size / job.lanes.max(1));
        let (trained, lanes) = (numel(&left_by(job, stage, false)), u64::from(lanes));
        let held = Held::of(job, stage);
        let sums = match job.reduction {
            Reduction::Exact => trained * 8 + (lanes * trained * FP32).min(HELD_BYTES),
            Reduction::Fast => trained * FP32,
        };
        let mut memory = Self {
            frozen: held.frozen,
            trained: trained * FP32,
            gradients: trained * 2 * FP32,
            moments: trained * 2 * FP32,
            sums,
            activations: samples * activations(job, stage, cost) + copies(job, trained),
            logits: logits(stage, samples * cost.logits) * 2 * FP32,
            features: (lanes * samples * features(job, stage) + gathered(job, stage)) * FP32,
            finished: held.finished,
            checkpoint: checkpoint(job, stage),
            total: 0,
        };
        memory.total = memory.kinds().iter().map(|(_, bytes)| bytes).sum();
        memory
    }

    /// Each kind with its name, without the total.
    pub(super) fn kinds(&self) -> [(&'static str, u64); 10] {
        [
            ("frozen", self.frozen),
            ("trained", self.trained),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("sums", self.sums),
            ("activations", self.activations),
            ("logits", self.logits),
            ("features", self.features),
            ("finished", self.finished),
            ("checkpoint", self.checkpoint),
        ]
    }
}

/// What a stage trains, or brings from elsewhere.
fn left_by(job: &Job, stage: &Stage, is_brought: bool) -> Vec<ParamSpec> {
    let vocab = job.tokenizer.vocab_size;
    match is_brought {
        true => frozen_by(&job.model, vocab, stage),
        false => trained_by(&job.model, vocab, stage),
    }
}

/// Weights that a stage does not train.
#[derive(Default)]
struct Held {
    frozen: u64,
    finished: u64,
}

impl Held {
    fn of(job: &Job, stage: &Stage) -> Self {
        let left = |other: &Stage| left_by(job, other, other.kind.is_brought());
        let own = trained_by(&job.model, job.tokenizer.vocab_size, stage);
        let own: BTreeSet<String> = own.into_iter().map(|spec| spec.name).collect();
        let mut frozen = BTreeMap::new();
        let ancestry = job.ancestry(&stage.name).into_iter();
        for other in ancestry.filter(|other| other.kind.is_brought() || other.name != stage.name) {
            let specs = left(other).into_iter();
            // Later ones win.
            frozen.extend(
                specs
                    .filter(|spec| !own.contains(&spec.name))
                    .map(|spec| (spec.name.clone(), (&other.name, computed(job, &spec)))),
            );
        }
        let mut held = Self {
            frozen: frozen.values().map(|(_, bytes)| bytes).sum(),
            finished: 0,
        };
        let earlier = job.stages.iter().take_while(|one| one.name != stage.name);
        for other in earlier {
            for spec in left(other) {
                let read = frozen.get(&spec.name);
                let is_read = read.is_some_and(|(of, _)| **of == other.name);
                held.finished += kept(job, other, &spec, is_read);
            }
        }
        held
    }
}

/// Bytes of a weight as models compute from it.
fn computed(job: &Job, spec: &ParamSpec) -> u64 {
    let each = match follows_precision(&spec.name, spec.shape.len()) {
        true => job.precision.bytes(),
        false => FP32,
    };
    spec.numel() as u64 * each
}

/// Bytes of a weight that a finished stage keeps, beside those that the model computes from if it reads it.
fn kept(job: &Job, stage: &Stage, spec: &ParamSpec, is_read: bool) -> u64 {
    let (whole, computed) = (spec.numel() as u64 * FP32, computed(job, spec));
    match (stage.kind == StageKind::Pretrained, is_read) {
        (true, true) => 0,
        (true, false) => computed,
        (false, _) if is_on_gpu(job) => 0,
        (false, true) if computed == whole => 0,
        (false, _) => whole,
    }
}

fn is_on_gpu(job: &Job) -> bool {
    job.device.starts_with("cuda")
}

/// Bytes of the copy for a checkpoint: its memory stays from one stage to the next.
fn checkpoint(job: &Job, stage: &Stage) -> u64 {
    if is_on_gpu(job) || !stage.kind.trains() {
        return 0;
    }
    let earlier = job.stages.iter().take_while(|one| one.name != stage.name);
    let trained = earlier
        .chain([stage])
        .map(|one| numel(&left_by(job, one, false)));
    trained.max().unwrap_or(0) * IN_CHECKPOINT * FP32
}

/// Bytes of the trained weights' copies in the precision that the model computes in.
fn copies(job: &Job, trained: u64) -> u64 {
    match job.precision {
        Precision::Fp32 => 0,
        other => trained * other.bytes(),
    }
}

/// Logits that are there at a time: a frozen head computes them by pieces.
fn logits(stage: &Stage, all: u64) -> u64 {
    match stage.kind {
        StageKind::Memory | StageKind::Experts => all.min(LOGITS_AT_ONCE),
        _ => all,
    }
}

/// Bytes of a sample: what is kept, or what the frozen encoder has at a time, whichever is more.
fn activations(job: &Job, stage: &Stage, cost: &SampleCost) -> u64 {
    let seen = match cost.image_flops {
        0 => 0,
        _ => one_block(&job.model.vision),
    };
    let decoder = &job.model.decoder;
    let blocks = u64::from(decoder.num_hidden_layers).max(1);
    let kept = match job.recompute {
        Recompute::None => cost.kept,
        // The inputs of all blocks, and one block as a whole.
        Recompute::Blocks => {
            blocks * cost.tokens * u64::from(decoder.hidden_size) + cost.kept / blocks
        }
    };
    match stage.kind.is_brought() {
        true => 0,
        false => kept.max(seen) * job.precision.bytes(),
    }
}

/// Numbers of a picture that the encoder has at a time: a block's input, and the inside of its MLP
/// before and behind the activation.
fn one_block(shape: &Vision) -> u64 {
    let (d, f) = (shape.hidden_size, shape.intermediate_size);
    u64::from(shape.patches() + 1) * (2 * u64::from(d) + 2 * u64::from(f))
}

/// Numbers of a sample that wait on the device until its lane is computed.
fn features(job: &Job, stage: &Stage) -> u64 {
    let patches = u64::from(job.model.vision.patches());
    let sees = |experts: &mks2_proto::job::Experts| experts.pictures;
    match stage.kind {
        StageKind::Memory => patches * u64::from(job.model.vision.hidden_size),
        StageKind::Experts if stage.experts.as_ref().is_some_and(sees) => {
            u64::from(job.model.soft_tokens()) * u64::from(job.model.decoder.hidden_size)
        }
        StageKind::Bootstrap => 2 * 3 * u64::from(job.model.vision.image_size).pow(2),
        _ => 0,
    }
}

/// Numbers of the global batch that every worker has: the pictures' global features.
fn gathered(job: &Job, stage: &Stage) -> u64 {
    match stage.kind {
        StageKind::Memory | StageKind::Bootstrap => {
            u64::from(stage.batch_size) * u64::from(job.model.vision.projection_dim)
        }
        _ => 0,
    }
}
