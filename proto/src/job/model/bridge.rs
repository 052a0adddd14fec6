//! The bridge from pictures to the language model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What makes soft tokens of a picture's patch features. Sizes are those of a Q-Former, by the names of
/// Hugging Face's `Blip2QFormerConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Bridge {
    /// One soft token per patch by a linear layer, or one per query by a Q-Former and a linear layer.
    pub kind: BridgeKind,
    /// Memory stages train the Q-Former from initial values. If not, it comes frozen with a
    /// `pretrained` stage, and they train the linear layer behind it alone.
    pub train_q_former: bool,
    /// Queries, and with them soft tokens of a picture.
    pub num_query_tokens: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the MLP.
    pub intermediate_size: u32,
    /// Blocks.
    pub num_hidden_layers: u32,
    /// Attention heads.
    pub num_attention_heads: u32,
    /// Every so many blocks, beginning with the first, queries look at the picture.
    pub cross_attention_frequency: u32,
    /// Epsilon of LayerNorm.
    pub layer_norm_eps: f64,
}

/// Kinds of bridges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BridgeKind {
    /// A linear layer.
    #[default]
    Linear,
    /// The Q-Former of BLIP-2 ([Li et al. 2023](https://arxiv.org/abs/2301.12597)) and a linear layer.
    QFormer,
}

impl Default for Bridge {
    fn default() -> Self {
        Self {
            kind: BridgeKind::Linear,
            train_q_former: true,
            num_query_tokens: 32,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            cross_attention_frequency: 2,
            layer_norm_eps: 1e-12,
        }
    }
}

impl Bridge {
    /// Whether it is as jobs have it that say nothing of it.
    pub(super) fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}
