//! The text side of the bootstrap CLIP: decoder blocks of its own, read at the end token.
//!
//! ```text
//! feature_be = W_p RMSNorm(h)_end
//! ```

use mks2_proto::job;
use tch::{Kind, Tensor};

use super::attention::AttentionShape;
use super::block::{Pass, Read, SecondHalves, Stack, StackShape, as_positions, look_up};
use super::ops::linear;
use super::rotary::Turns;
use super::weights::expect_shape;
use super::{Result, Weights};

/// Base of the rotary frequencies and epsilon of the norms: this tower is always made here.
const THETA: f64 = 10_000.0;
const EPS: f64 = 1e-5;

/// The text side of the bootstrap CLIP.
#[derive(Debug)]
pub struct TextTower {
    embedding: Tensor,
    stack: Stack,
    projection_ed: Tensor,
    logit_scale: Tensor,
    kind: Kind,
}

impl TextTower {
    /// The tower `text_tower.*`, `text_projection.weight`, `logit_scale`, into a space of `features`
    /// elements.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(
        shape: &job::TextTower,
        features: u32,
        vocab: u32,
        weights: &Weights,
    ) -> Result<Self> {
        let (d, heads) = (
            i64::from(shape.hidden_size),
            i64::from(shape.num_attention_heads),
        );
        let stack = StackShape {
            layers: shape.num_hidden_layers,
            attention: AttentionShape {
                hidden: d,
                heads,
                groups: heads,
                head: d / heads,
                biased: false,
            },
            intermediate: i64::from(shape.intermediate_size),
            window: None,
            turns: Turns {
                theta: THETA,
                scaling: None,
            },
            eps: EPS,
        };
        let e = i64::from(features);
        let table = [i64::from(vocab), d];
        Ok(Self {
            embedding: weights.shaped("text_tower.embed_tokens.weight", &table)?,
            stack: Stack::new("text_tower", stack, weights)?,
            projection_ed: weights.shaped("text_projection.weight", &[e, d])?,
            logit_scale: weights.shaped("logit_scale", &[])?,
            kind: weights.kind(),
        })
    }

    /// Features `[b, e]` of `ids_bt`, read at the positions `end_b`, int64.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn forward(&self, ids_bt: &Tensor, end_b: &Tensor) -> Result<Tensor> {
        expect_shape("ids_bt", ids_bt, &[-1, -1])?;
        expect_shape("end_b", end_b, &[ids_bt.size()[0]])?;
        let positions_b1 = as_positions(end_b);
        let pass = Pass::new(SecondHalves::Mlp).reading(Read::At(&positions_b1));
        let h_btd = look_up(&self.embedding, ids_bt).to_kind(self.kind);
        let states = self.stack.forward(&h_btd, &pass)?;
        Ok(linear(&states.last_bnd.squeeze_dim(1), &self.projection_ed))
    }

    /// CLIP's `logit_scale`, the logarithm of the inverse temperature.
    pub fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }
}
