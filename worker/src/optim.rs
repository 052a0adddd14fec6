//! The optimizer: schedule, clipping by the global norm, fused AdamW over flat buffers.
//!
//! The update of step `t` reads like the rule it follows:
//!
//! ```text
//! norm = sqrt(sum of squares of g)      blocks of 4096 elements, added in order in f64
//! g    = g * clip / norm                when norm > clip
//! m    = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
//! w    = w - lr * (weight_decay * w + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps))
//! ```
//!
//! Nothing here depends on ranks or threads. AdamW is libtorch's own fused kernel, so its bits are
//! PyTorch's (`torch.optim.AdamW(fused=True)`).

use std::ops::Range;

use mks2_proto::failure::Failure;
use mks2_proto::job::Optimizer;
use tch::{Device, Kind, Tensor, no_grad};
use thiserror::Error;

use crate::dispatch::{self, Argument, DispatchError};
use crate::flat::{FlatError, FlatState, f32_slice};

/// Elements whose squares are summed at a time; the blocks' sums are added in order.
pub const NORM_BLOCK: usize = 4096;
/// Blocks that a device sums up at a time: their f64 copies and squares take 64 MiB, at the end twice that,
/// whatever the model's size.
const BLOCKS_AT_ONCE: usize = (1 << 22) / NORM_BLOCK;

/// The optimizer could not do its step.
#[derive(Debug, Error)]
pub enum OptimError {
    /// The fused kernel was refused.
    #[error(transparent)]
    Dispatch(#[from] DispatchError),
    /// A buffer could not be read.
    #[error(transparent)]
    Flat(#[from] FlatError),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

impl From<OptimError> for Failure {
    fn from(error: OptimError) -> Self {
        Self::internal("the optimizer's step failed", error.to_string()).with_source(error)
    }
}

/// The learning rate of `step` (from 0) in a stage of `steps`: linear warm-up, whose last step has
/// the peak, then a cosine that reaches `min_lr_ratio` times the peak at the stage's last step.
#[must_use]
pub fn learning_rate(optimizer: &Optimizer, step: u64, steps: u64) -> f64 {
    let warmup = optimizer.warmup_steps.min(steps);
    if step < warmup {
        return optimizer.lr * (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup + 1) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos());
    optimizer.lr * (optimizer.min_lr_ratio + (1.0 - optimizer.min_lr_ratio) * cosine)
}

/// Euclidean norm of a whole 1-D fp32 buffer.
///
/// # Errors
/// When the buffer can not be read.
pub fn global_norm(buffer: &Tensor) -> Result<f64, OptimError> {
    let squares = match buffer.device() {
        Device::Cpu => block_squares(f32_slice(buffer)?),
        _ => block_squares_on_device(buffer, BLOCKS_AT_ONCE)?,
    };
    Ok(squares.iter().sum::<f64>().sqrt())
}

/// Sums of squares of blocks of [`NORM_BLOCK`] elements, each over eight interleaved partial sums,
/// so that vector units of any width give the same bits.
fn block_squares(values: &[f32]) -> Vec<f64> {
    values.chunks(NORM_BLOCK).map(sum_of_squares).collect()
}

fn sum_of_squares(block: &[f32]) -> f64 {
    let mut partial = [0f64; 8];
    let (eights, rest) = block.as_chunks::<8>();
    for eight in eights {
        for (sum, &value) in partial.iter_mut().zip(eight) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    for (sum, &value) in partial.iter_mut().zip(rest) {
        *sum += f64::from(value) * f64::from(value);
    }
    partial.iter().sum()
}

fn block_squares_on_device(buffer: &Tensor, at_once: usize) -> Result<Vec<f64>, OptimError> {
    let (len, blocks) = (buffer.numel(), buffer.numel() / NORM_BLOCK);
    let sums = |range: Range<usize>, rows: usize| -> Result<Vec<f64>, OptimError> {
        let part = buffer
            .f_narrow(0, range.start as i64, range.len() as i64)?
            .f_view([rows as i64, -1])?;
        let part = part.f_to_kind(Kind::Double)?;
        let sums = part
            .f_mul(&part)?
            .f_sum_dim_intlist(1, false, Kind::Double)?;
        Ok(Vec::try_from(sums.f_to_device(Device::Cpu)?)?)
    };
    no_grad(|| {
        let mut squares = Vec::with_capacity(blocks + 1);
        for slice in slices(blocks, at_once) {
            let (start, end) = (slice.start * NORM_BLOCK, slice.end * NORM_BLOCK);
            squares.extend(sums(start..end, slice.len())?);
        }
        if blocks * NORM_BLOCK < len {
            squares.extend(sums(blocks * NORM_BLOCK..len, 1)?);
        }
        Ok(squares)
    })
}

/// Blocks in slices of `at_once`, the last of up to twice as many: how a GPU adds up the numbers of a block
/// may depend on how many blocks there are if they are few, so that a short rest could give other bits.
fn slices(blocks: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    let count = (blocks / at_once).max(usize::from(blocks > 0));
    (0..count).map(move |slice| {
        let end = if slice + 1 == count {
            blocks
        } else {
            (slice + 1) * at_once
        };
        slice * at_once..end
    })
}

/// Scales `state.grads` down to norm `limit` when it is longer; 0 switches clipping off. Returns
/// the norm before clipping.
///
/// # Errors
/// When the gradients can not be read or scaled.
pub fn clip(state: &mut FlatState, limit: f64) -> Result<f64, OptimError> {
    let norm = global_norm(&state.grads)?;
    if limit > 0.0 && norm > limit {
        let _ = no_grad(|| state.grads.f_mul_scalar_(limit / norm))?;
    }
    Ok(norm)
}

/// Fused AdamW over the two groups of a flat layout: matrices with weight decay, the rest without.
#[derive(Clone, Debug)]
pub struct AdamW {
    settings: Optimizer,
}

impl AdamW {
    /// An optimizer with these settings; its moments are in the [`FlatState`].
    #[must_use]
    pub fn new(settings: &Optimizer) -> Self {
        Self {
            settings: settings.clone(),
        }
    }

    /// One update of the weights from `state.grads`. `step` counts from 0 within the stage.
    ///
    /// # Errors
    /// When libtorch refuses; the state must then not be used.
    pub fn apply(&self, state: &mut FlatState, step: u64, lr: f64) -> Result<(), OptimError> {
        // A checkpoint of the state before may still be copied.
        state.wait_for_readers();
        let (decayed, undecayed) = (state.layout().decayed(), state.layout().undecayed());
        self.update(state, decayed, step, lr, self.settings.weight_decay)?;
        self.update(state, undecayed, step, lr, 0.0)
    }

    fn update(
        &self,
        state: &FlatState,
        range: Range<usize>,
        step: u64,
        lr: f64,
        weight_decay: f64,
    ) -> Result<(), OptimError> {
        if range.is_empty() {
            return Ok(());
        }
        let part = |flat: &Tensor| flat.f_narrow(0, range.start as i64, range.len() as i64);
        // The kernel counts from 1 in fp32, as PyTorch does: exact up to 16,777,216 steps.
        let count = Tensor::from((step + 1) as f32).f_to_device(state.device())?;
        no_grad(|| {
            let (weights, grads) = (part(&state.weights)?, part(&state.grads)?);
            let (exp_avg, exp_avg_sq) = (part(&state.exp_avg)?, part(&state.exp_avg_sq)?);
            dispatch::call(
                "aten::_fused_adamw_",
                "",
                &[
                    Argument::Tensors(&[&weights]),
                    Argument::Tensors(&[&grads]),
                    Argument::Tensors(&[&exp_avg]),
                    Argument::Tensors(&[&exp_avg_sq]),
                    Argument::Tensors(&[]), // max_exp_avg_sqs
                    Argument::Tensors(&[&count]),
                    Argument::Float(lr),
                    Argument::Float(self.settings.beta1),
                    Argument::Float(self.settings.beta2),
                    Argument::Float(weight_decay),
                    Argument::Float(self.settings.eps),
                    Argument::Bool(false), // amsgrad
                    Argument::Bool(false), // maximize
                    Argument::None,        // grad_scale
                    Argument::None,        // found_inf
                ],
                0,
            )?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
