//! Folders of the architecture `mks2`: what `mks2 export hf` writes, and what it is asked by again.
//!
//! Tensors have the names of the parameter table ([`mks2_proto::params`]); memories are known by their
//! numbers there, `0` being the first one, whatever the stages were called that have stored into them.

use std::collections::BTreeMap;

use mks2_proto::job::{
    Bridge, Decoder, Experts, Memory, MemoryForm, Model, Retrieval, Vision, VisionActivation,
};
use mks2_proto::params::{self, ParamSpec};
use serde::{Deserialize, Serialize};

use super::config::Language;

/// A model of the architecture `mks2`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mks2 {
    /// Its decoder.
    pub language: Language,
    /// What MKS2 adds to it.
    pub words: Words,
    /// What it sees with.
    pub vision: Option<Vision>,
    /// What stands between that and the decoder, its Q-Former frozen.
    pub bridge: Bridge,
}

/// What `config.json` says beside the words of a decoder. Blocks are counted from 1; none: all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Words {
    /// What stands in the second half of every block.
    pub second_half: SecondHalf,
    /// Its memories.
    #[serde(default)]
    pub memories: Vec<MemoryWords>,
    /// Its adapters; none where they are part of the matrices.
    #[serde(default)]
    pub lora: Option<LoraWords>,
    /// Blocks with a router.
    #[serde(default)]
    pub router_blocks: Vec<u32>,
    /// Score of the memories in other blocks, before the softmax; the MLP's is 0.
    #[serde(default)]
    pub router_bias: f64,
    /// How a question is put into words.
    #[serde(default)]
    pub question: Option<String>,
    /// How an answer is put into words.
    #[serde(default)]
    pub answer: Option<String>,
    /// The end token closes a question.
    #[serde(default)]
    pub answer_after_end: bool,
}

/// What stands in the second half of every block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecondHalf {
    /// The memory in the place of the MLP.
    Memory,
    /// The mixture of the MLP and all memories.
    Experts,
}

/// The shape of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryWords {
    /// Hidden width of its networks.
    pub width: u32,
    /// Their form.
    pub form: MemoryForm,
}

/// The adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraWords {
    /// Their rank.
    pub rank: u32,
    /// Their scale is `alpha / rank`.
    pub alpha: f64,
    /// Blocks that have them.
    pub blocks: Vec<u32>,
    /// Whether the attention has some, too.
    pub attention: bool,
}

/// Stands where a model has no encoder.
const BLIND: Vision = Vision {
    image_size: 0,
    patch_size: 1,
    hidden_size: 0,
    intermediate_size: 0,
    num_hidden_layers: 0,
    num_attention_heads: 1,
    hidden_act: VisionActivation::QuickGelu,
    layer_norm_eps: 0.0,
    projection_dim: 0,
};
/// No block has this number.
const NO_BLOCK: u32 = 0;

impl Mks2 {
    /// Why it cannot be, if it cannot.
    pub(super) fn problem(&self) -> Option<String> {
        let words = &self.words;
        let problems = [
            (
                words.second_half == SecondHalf::Memory && words.memories.len() != 1,
                "second_half 'memory' with several memories, or none",
            ),
            (
                words.lora.as_ref().is_some_and(|lora| lora.rank == 0),
                "adapters of rank 0",
            ),
        ];
        let found = problems.into_iter().find(|(is_one, _)| *is_one);
        found.map(|(_, words)| words.to_owned())
    }

    /// Its parts, in the words of a job.
    #[must_use]
    pub fn model(&self) -> Model {
        let plain = self.language.model();
        let memories = self.memories().into_iter().zip(&self.words.memories);
        let memories = memories.map(|(name, words)| {
            let memory = Memory {
                width: words.width,
                form: words.form,
                ..plain.memory.clone()
            };
            (name, memory)
        });
        Model {
            vision: self.vision.clone().unwrap_or(plain.vision),
            bridge: self.bridge.clone(),
            memories: memories.collect(),
            ..plain
        }
    }

    /// Names of its memories: their numbers.
    #[must_use]
    pub fn memories(&self) -> Vec<String> {
        let numbers = 0..self.words.memories.len();
        numbers.map(|number| number.to_string()).collect()
    }

    /// The settings of its mixture, in the words of a job.
    #[must_use]
    pub fn experts(&self) -> Experts {
        let words = &self.words;
        let usual = Experts::default();
        let lora = words.lora.as_ref();
        Experts {
            memories: self.memories(),
            lora_rank: lora.map_or(usual.lora_rank, |lora| lora.rank),
            lora_alpha: lora.map_or(usual.lora_alpha, |lora| lora.alpha),
            adapt_attention: lora.is_some_and(|lora| lora.attention),
            adapter_blocks: lora.map_or(vec![NO_BLOCK], |lora| lora.blocks.clone()),
            router_blocks: words.router_blocks.clone(),
            router_bias: words.router_bias,
            question: words.question.clone().unwrap_or(usual.question.clone()),
            answer: words.answer.clone().unwrap_or(usual.answer.clone()),
            answer_after_end: words.answer_after_end,
            pictures: self.vision.is_some(),
            ..usual
        }
    }

    /// Its tensors.
    #[must_use]
    pub fn specs(&self) -> Vec<ParamSpec> {
        let model = self.model();
        let mut specs = params::decoder(&model.decoder, self.language.vocab_size);
        for name in self.memories() {
            specs.extend(params::memory(&model, &name));
        }
        if self.words.second_half == SecondHalf::Experts {
            specs.extend(params::experts(&model, &self.experts()));
        }
        if let Some(vision) = &self.vision {
            specs.extend(params::vision(vision));
            if let Some(shape) = model.q_former() {
                specs.extend(params::q_former(shape, vision.hidden_size));
            }
            specs.extend(params::bridge(&model));
        }
        specs
    }
}

impl Language {
    /// The decoder in the words of a job, with nothing beside it.
    #[must_use]
    pub fn model(&self) -> Model {
        Model {
            decoder: self.shape.clone(),
            vision: BLIND,
            text_tower: None,
            bridge: Bridge::default(),
            memories: BTreeMap::new(),
            memory: Memory {
                width: 0,
                form: MemoryForm::Plain,
                gain: 1.0,
            },
            retrieval: Retrieval::default(),
        }
    }

    /// A decoder of the family that has such a shape; none if no published one has.
    #[must_use]
    pub fn of(shape: &Decoder, vocab_size: u32) -> Option<Self> {
        let family = match (shape.qkv_bias, shape.sliding_window) {
            (false, None) => "llama",
            (false, Some(_)) => "mistral",
            (true, None) => "qwen2",
            (true, Some(_)) => return None,
        };
        Some(Self {
            family: family.to_owned(),
            shape: shape.clone(),
            vocab_size,
        })
    }
}
