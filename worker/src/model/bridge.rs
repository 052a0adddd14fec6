//! The bridge from pictures to soft tokens: one linear layer, one soft token per patch.
//!
//! ```text
//! soft_bpd = W patches_bpv + b
//! ```
//!
//! It reads the patch features after the visual encoder's last block but one, as LLaVA does:
//! the last block serves the global feature alone, and nothing ever trained its patches.

use mks2_proto::job;
use tch::{Kind, Tensor};

use super::ops::affine;
use super::weights::expect_shape;
use super::{Result, Weights};

/// The linear bridge.
#[derive(Debug)]
pub struct Bridge {
    weight_dv: Tensor,
    bias_d: Tensor,
    kind: Kind,
}

impl Bridge {
    /// The bridge `bridge.{weight,bias}`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(model: &job::Model, weights: &Weights) -> Result<Self> {
        let d = i64::from(model.decoder.hidden_size);
        let v = i64::from(model.vision.hidden_size);
        Ok(Self {
            weight_dv: weights.shaped("bridge.weight", &[d, v])?,
            bias_d: weights.shaped("bridge.bias", &[d])?,
            kind: weights.kind(),
        })
    }

    /// Soft tokens `[b, p, d]` of `patches_bpv`.
    ///
    /// # Errors
    /// If the features have another width.
    pub fn forward(&self, patches_bpv: &Tensor) -> Result<Tensor> {
        expect_shape(
            "patches_bpv",
            patches_bpv,
            &[-1, -1, self.weight_dv.size()[1]],
        )?;
        let patches_bpv = patches_bpv.to_kind(self.kind);
        Ok(affine(&patches_bpv, &self.weight_dv, Some(&self.bias_d)))
    }
}
