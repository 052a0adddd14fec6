//! Low-rank adapters (Hu et al. 2021), put on a matrix from outside.
//!
//! ```text
//! y = W x + (alpha / r) B A dropout(x)        W [out, in] frozen, A [r, in], B [out, r]
//! ```

use mks2_proto::job;
use tch::Tensor;

use super::ops::linear;
use super::{Result, Weights};

/// How the adapters of a stage are scaled and regularised.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoraSettings {
    rank: i64,
    scale: f64,
    dropout: f64,
}

impl From<&job::Experts> for LoraSettings {
    fn from(settings: &job::Experts) -> Self {
        let rank = i64::from(settings.lora_rank);
        Self {
            rank,
            scale: settings.lora_alpha / rank.max(1) as f64,
            dropout: settings.lora_dropout,
        }
    }
}

/// One adapter.
#[derive(Debug)]
pub(super) struct Lora {
    a_ri: Tensor,
    b_or: Tensor,
    settings: LoraSettings,
    training: bool,
}

impl Lora {
    /// The adapter `<at>.lora_a`, `<at>.lora_b` of an `[out, in]` matrix.
    pub(super) fn new(
        at: &str,
        [out, inputs]: [i64; 2],
        settings: LoraSettings,
        weights: &Weights,
    ) -> Result<Self> {
        let a_ri = weights.shaped(&format!("{at}.lora_a"), &[settings.rank, inputs])?;
        let b_or = weights.shaped(&format!("{at}.lora_b"), &[out, settings.rank])?;
        let training = a_ri.requires_grad();
        Ok(Self {
            a_ri,
            b_or,
            settings,
            training,
        })
    }

    /// The adapter's part alone.
    fn delta(&self, x: &Tensor) -> Tensor {
        let low = match self.settings.dropout {
            p if p > 0.0 && self.training => linear(&x.dropout(p, true), &self.a_ri),
            _ => linear(x, &self.a_ri),
        };
        linear(&(low * self.settings.scale), &self.b_or)
    }
}

/// `y = W x` with the adapter's part, if there is an adapter.
pub(super) fn adapted(y: Tensor, x: &Tensor, adapter: Option<&Lora>) -> Tensor {
    match adapter {
        Some(adapter) => y + adapter.delta(x),
        None => y,
    }
}

/// Adapters of the four matrices of an attention layer.
#[derive(Debug)]
pub(super) struct AttentionAdapters {
    pub(super) q: Lora,
    pub(super) k: Lora,
    pub(super) v: Lora,
    pub(super) o: Lora,
}

impl AttentionAdapters {
    /// Adapters for a residual stream `d` wide, all query heads, and all key or value heads.
    pub(super) fn new(
        at: &str,
        [d, heads, kv]: [i64; 3],
        settings: LoraSettings,
        weights: &Weights,
    ) -> Result<Self> {
        let adapter =
            |name: &str, shape| Lora::new(&format!("{at}.{name}"), shape, settings, weights);
        Ok(Self {
            q: adapter("q_proj", [heads, d])?,
            k: adapter("k_proj", [kv, d])?,
            v: adapter("v_proj", [kv, d])?,
            o: adapter("o_proj", [d, heads])?,
        })
    }
}
