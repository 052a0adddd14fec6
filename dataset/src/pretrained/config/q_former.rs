//! The Q-Former within the configuration of a BLIP-2.

use mks2_proto::job::{Bridge, BridgeKind};
use serde::Deserialize;

use super::{Reader, Result};

/// A Q-Former, and what it looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct QFormer {
    /// Its shape, frozen.
    pub shape: Bridge,
    /// Width of the features of a picture.
    pub features: u32,
}

/// `config.json` of a BLIP-2. Of the models beside the Q-Former, only the width of the features counts:
/// transformers takes it from the visual encoder, whatever `encoder_hidden_size` says.
#[derive(Deserialize)]
pub(super) struct Blip2Words {
    #[serde(default)]
    qformer_config: Words,
    #[serde(default)]
    vision_config: VisionWords,
    num_query_tokens: Option<u32>,
}

#[derive(Default, Deserialize)]
struct VisionWords {
    hidden_size: Option<u32>,
}

#[derive(Default, Deserialize)]
pub(super) struct Words {
    hidden_size: Option<u32>,
    intermediate_size: Option<u32>,
    num_hidden_layers: Option<u32>,
    num_attention_heads: Option<u32>,
    cross_attention_frequency: Option<u32>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
}

impl Reader<'_> {
    pub(super) fn q_former(&self, words: Blip2Words) -> Result<QFormer> {
        Ok(QFormer {
            shape: self.queries(words.num_query_tokens, words.qformer_config)?,
            features: words.vision_config.hidden_size.unwrap_or(1408),
        })
    }

    /// A frozen Q-Former with so many queries.
    pub(super) fn queries(&self, number: Option<u32>, words: Words) -> Result<Bridge> {
        if let Some(other) = words.hidden_act.filter(|name| name != "gelu") {
            return Err(self.unsupported(format!("hidden_act '{other}' in its qformer_config")));
        }
        // What is said nowhere is as in BLIP-2, there and here.
        let usual = Bridge::default();
        Ok(Bridge {
            kind: BridgeKind::QFormer,
            train_q_former: false,
            num_query_tokens: number.unwrap_or(usual.num_query_tokens),
            hidden_size: words.hidden_size.unwrap_or(usual.hidden_size),
            intermediate_size: words.intermediate_size.unwrap_or(usual.intermediate_size),
            num_hidden_layers: words.num_hidden_layers.unwrap_or(usual.num_hidden_layers),
            num_attention_heads: words
                .num_attention_heads
                .unwrap_or(usual.num_attention_heads),
            cross_attention_frequency: words
                .cross_attention_frequency
                .unwrap_or(usual.cross_attention_frequency),
            layer_norm_eps: words.layer_norm_eps.unwrap_or(usual.layer_norm_eps),
        })
    }
}
