//! Memory of one worker in a stage, by kind.
//!
//! ```text
//! persistent   frozen and trained weights, gradients, moments, sums
//! a step       features of the lanes held, then of one lane after the other: activations, logits
//! ```
//!
//! What persists follows from the parameter table and is exact. Of a step the largest part is counted,
//! which what the backward pass reads again outweighs by far; that is an estimate
//! ([`mks2_proto::params::SampleCost`]).

use mks2_proto::job::{Job, Precision, Recompute, Reduction, Stage, StageKind, Vision};
use mks2_proto::params::{LOGITS_AT_ONCE, ModuleCount, SampleCost};
use serde::Serialize;

/// Bytes of one fp32 number.
const FP32: u64 = 4;
/// Most bytes of gradients that a worker keeps until their tensors have a scale: in the first step.
const HELD_BYTES: u64 = 512 << 20;

/// Bytes by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// Weights that are read and not trained.
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
    pub(super) total: u64,
}

impl Memory {
    /// Of a worker that holds `lanes` of the job's lanes.
    pub(super) fn estimate(
        job: &Job,
        stage: &Stage,
        (modules, cost): (&[ModuleCount], &SampleCost),
        lanes: u32,
    ) -> Self {
        let count = |is_trained: bool| {
            let modules = modules.iter().filter(|m| m.trained == is_trained);
            modules.map(|module| module.parameters).sum::<u64>()
        };
        let samples = u64::from(stage.batch_size / job.lanes.max(1));
        let (trained, lanes) = (count(true), u64::from(lanes));
        let sums = match job.reduction {
            Reduction::Exact => trained * 8 + (lanes * trained * FP32).min(HELD_BYTES),
            Reduction::Fast => trained * FP32,
        };
        let mut memory = Self {
            frozen: count(false) * job.precision.bytes(),
            trained: trained * FP32,
            gradients: trained * 2 * FP32,
            moments: trained * 2 * FP32,
            sums,
            activations: samples * activations(job, stage, cost) + copies(job, trained),
            logits: logits(stage, samples * cost.logits) * 2 * FP32,
            features: (lanes * samples * features(job, stage) + gathered(job, stage)) * FP32,
            total: 0,
        };
        memory.total = memory.kinds().iter().map(|(_, bytes)| bytes).sum();
        memory
    }

    /// Each kind with its name, without the total.
    pub(super) fn kinds(&self) -> [(&'static str, u64); 8] {
        [
            ("frozen", self.frozen),
            ("trained", self.trained),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("sums", self.sums),
            ("activations", self.activations),
            ("logits", self.logits),
            ("features", self.features),
        ]
    }
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
