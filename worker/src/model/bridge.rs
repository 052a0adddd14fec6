//! The bridge from pictures to soft tokens: one linear layer, one soft token per patch, or per query of a
//! Q-Former before it.
//!
//! ```text
//! soft_bpd = W patches_bpv + b
//! soft_bpd = W QFormer(patches_bpv) + b
//! ```
//!
//! It reads the patch features after the visual encoder's last block but one, as LLaVA does:
//! the last block serves the global feature alone, and nothing ever trained its patches.

use mks2_proto::job;
use tch::{Kind, Tensor};

use super::ops::affine;
use super::q_former::QFormer;
use super::weights::expect_shape;
use super::{Result, Weights};

/// The bridge.
#[derive(Debug)]
pub struct Bridge {
    q_former: Option<QFormer>,
    weight_dv: Tensor,
    bias_d: Tensor,
    kind: Kind,
}

impl Bridge {
    /// The bridge `bridge.{weight,bias}`, and `query_tokens`, `qformer.*` where it has a Q-Former.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(model: &job::Model, weights: &Weights) -> Result<Self> {
        let d = i64::from(model.decoder.hidden_size);
        let v = i64::from(model.vision.hidden_size);
        let q_former = model.q_former();
        let width = q_former.map_or(v, |shape| i64::from(shape.hidden_size));
        let q_former = q_former.map(|shape| QFormer::new(shape, v, weights));
        Ok(Self {
            q_former: q_former.transpose()?,
            weight_dv: weights.shaped("bridge.weight", &[d, width])?,
            bias_d: weights.shaped("bridge.bias", &[d])?,
            kind: weights.kind(),
        })
    }

    /// Soft tokens `[b, p, d]` of `patches_bpv`.
    ///
    /// # Errors
    /// If the features have another width.
    pub fn forward(&self, patches_bpv: &Tensor) -> Result<Tensor> {
        let patches_bpv = patches_bpv.to_kind(self.kind);
        let seen = match &self.q_former {
            Some(q_former) => q_former.forward(&patches_bpv)?,
            None => patches_bpv,
        };
        expect_shape("patches_bpv", &seen, &[-1, -1, self.weight_dv.size()[1]])?;
        Ok(affine(&seen, &self.weight_dv, Some(&self.bias_d)))
    }
}
