//! Memory of one worker in a stage, by kind.
//!
//! Weights, gradients, moments and sums follow from the parameter table and are exact.
//! Activations are an estimate: what a plain backward pass keeps of one microbatch (lanes are
//! computed one after the other).

use mks2_proto::job::{Decoder, Job, Reduction, Stage, StageKind, Vision};
use mks2_proto::params::StageCost;
use serde::Serialize;

/// Bytes of one fp32 number.
const FP32: u64 = 4;

/// Bytes by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// Trained and frozen, fp32.
    pub(super) weights: u64,
    /// Of the trained ones, fp32.
    pub(super) gradients: u64,
    /// Both moments of AdamW, fp32.
    pub(super) moments: u64,
    /// Sums over lanes: 64-bit fixed point, or fp32 in the fast mode.
    pub(super) sums: u64,
    /// An estimate.
    pub(super) activations: u64,
    pub(super) total: u64,
}

impl Memory {
    /// `tokens` of a sample pass through the language model, `microbatch` samples at a time.
    pub(super) fn estimate(
        job: &Job,
        stage: &Stage,
        cost: &StageCost,
        microbatch: u32,
        tokens: u64,
    ) -> Self {
        let trained = cost.trained();
        let sum_bytes = match job.reduction {
            Reduction::Exact => 8,
            Reduction::Fast => FP32,
        };
        let weights = (trained + cost.frozen()) * FP32;
        let (gradients, moments, sums) = (trained * FP32, trained * 2 * FP32, trained * sum_bytes);
        let activations = activations(job, stage, u64::from(microbatch), tokens);
        let total = weights + gradients + moments + sums + activations;
        Self {
            weights,
            gradients,
            moments,
            sums,
            activations,
            total,
        }
    }
}

fn activations(job: &Job, stage: &Stage, samples: u64, tokens: u64) -> u64 {
    if stage.kind.is_brought() {
        return 0;
    }
    let text = decoder(&job.model.decoder, tokens, job.tokenizer.vocab_size.into());
    let image = match stage.kind {
        StageKind::Bootstrap => vision(&job.model.vision, job.model.vision.num_hidden_layers),
        // Frozen: one block at a time.
        _ => vision(&job.model.vision, 1),
    };
    samples * (text + image) * FP32
}

/// Numbers kept of one sample: per block the inputs of its products, the attention's weights,
/// and the logits with their gradient at the end.
fn decoder(shape: &Decoder, tokens: u64, vocabulary: u64) -> u64 {
    let (d, f) = (
        u64::from(shape.hidden_size),
        u64::from(shape.intermediate_size),
    );
    let block = tokens * (8 * d + 3 * f) + u64::from(shape.num_attention_heads) * tokens * tokens;
    block * u64::from(shape.num_hidden_layers) + 2 * tokens * vocabulary
}

fn vision(shape: &Vision, blocks: u32) -> u64 {
    let patches = u64::from(shape.image_size / shape.patch_size.max(1)).pow(2) + 1;
    let (d, f) = (
        u64::from(shape.hidden_size),
        u64::from(shape.intermediate_size),
    );
    let block = patches * (8 * d + 2 * f) + u64::from(shape.num_attention_heads) * patches.pow(2);
    block * u64::from(blocks)
}
