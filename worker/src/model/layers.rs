//! Layers with biases, as CLIP and BERT are built of: linear, and LayerNorm.

use tch::Tensor;

use super::ops::{affine, like};
use super::{Result, Weights};

/// LayerNorm with bias.
#[derive(Debug)]
pub(super) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(super) fn new(at: &str, width: i64, eps: f64, weights: &Weights) -> Result<Self> {
        Ok(Self {
            weight: weights.shaped(&format!("{at}.weight"), &[width])?,
            bias: weights.shaped(&format!("{at}.bias"), &[width])?,
            eps,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(
            self.weight.size(),
            Some(&like(&self.weight, x)),
            Some(&like(&self.bias, x)),
            self.eps,
            true,
        )
    }
}

/// A linear layer with bias.
#[derive(Debug)]
pub(super) struct Affine {
    weight: Tensor,
    bias: Tensor,
}

impl Affine {
    pub(super) fn new(at: &str, [out, inputs]: [i64; 2], weights: &Weights) -> Result<Self> {
        Ok(Self {
            weight: weights.shaped(&format!("{at}.weight"), &[out, inputs])?,
            bias: weights.shaped(&format!("{at}.bias"), &[out])?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        affine(x, &self.weight, Some(&self.bias))
    }

    /// Several layers on the same input as one, when they are frozen.
    pub(super) fn fused(parts: [&Self; 3], weights: &Weights) -> Option<Self> {
        let weight = weights.fused(&parts.map(|part| &part.weight))?;
        Some(Self {
            weight,
            bias: weights.fused(&parts.map(|part| &part.bias))?,
        })
    }
}
