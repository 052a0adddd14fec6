//! The model of a job: its parts and their sizes, by the words of Hugging Face where those exist.

mod bridge;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use bridge::{Bridge, BridgeKind};

/// Shapes of every module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// The language model.
    pub decoder: Decoder,
    /// The visual encoder.
    pub vision: Vision,
    /// The text side of the small CLIP that a bootstrap stage trains; no other job needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_tower: Option<TextTower>,
    /// What connects the two.
    #[serde(default, skip_serializing_if = "Bridge::is_usual")]
    pub bridge: Bridge,
    /// The modular visual memory.
    pub memory: Memory,
    /// Memories that are not as `[model.memory]` says, by the names of their stages.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub memories: BTreeMap<String, Memory>,
    /// The retrieval head.
    #[serde(default)]
    pub retrieval: Retrieval,
}

impl Model {
    /// The memory of the stage called `stage`.
    #[must_use]
    pub fn memory_of(&self, stage: &str) -> &Memory {
        self.memories.get(stage).unwrap_or(&self.memory)
    }

    /// Soft tokens that stand for a picture before a text.
    #[must_use]
    pub fn soft_tokens(&self) -> u32 {
        match self.q_former() {
            Some(shape) => shape.num_query_tokens,
            None => self.vision.patches(),
        }
    }

    /// The Q-Former, where the bridge is one.
    #[must_use]
    pub fn q_former(&self) -> Option<&Bridge> {
        (self.bridge.kind == BridgeKind::QFormer).then_some(&self.bridge)
    }
}

/// A LLaMA-like decoder. Names are those of Hugging Face's `LlamaConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Decoder {
    /// Width of the residual stream, `d`.
    pub hidden_size: u32,
    /// Width of the SwiGLU MLP.
    pub intermediate_size: u32,
    /// Blocks, `L`.
    pub num_hidden_layers: u32,
    /// Query heads.
    pub num_attention_heads: u32,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: u32,
    /// Elements of a head; absent: `hidden_size / num_attention_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<u32>,
    /// Biases on the projections of queries, keys and values, as Qwen2 has them.
    #[serde(default)]
    pub qkv_bias: bool,
    /// Positions that a query sees, its own included, as in Mistral; absent: all up to its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<u32>,
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// How the rotary frequencies are changed for texts longer than those of the first training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of RMSNorm.
    #[serde(default = "default_norm_eps")]
    pub rms_norm_eps: f64,
    /// The output head shares the embedding matrix.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Text tokens of a sample, padded or cut to this length; image tokens come on top.
    pub max_text_tokens: u32,
}

impl Decoder {
    /// Elements of a head.
    #[must_use]
    pub fn head(&self) -> u32 {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }
}

/// Changes of the rotary frequencies. Names are those of Hugging Face's `rope_scaling`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RopeScaling {
    /// Which frequencies are changed.
    pub rope_type: RopeType,
    /// By how much texts may be longer: what low frequencies are divided by.
    pub factor: f64,
    /// `llama3`: wavelengths above `original_max_position_embeddings / low_freq_factor` are low
    /// frequencies.
    #[serde(default = "default_low_freq_factor")]
    pub low_freq_factor: f64,
    /// `llama3`: wavelengths below `original_max_position_embeddings / high_freq_factor` are high
    /// frequencies, which stay; those between are interpolated.
    #[serde(default = "default_high_freq_factor")]
    pub high_freq_factor: f64,
    /// `llama3`: positions of the first training.
    #[serde(default = "default_original_positions")]
    pub original_max_position_embeddings: u32,
}

impl RopeScaling {
    /// All frequencies divided by a factor.
    #[must_use]
    pub fn linear(factor: f64) -> Self {
        Self {
            rope_type: RopeType::Linear,
            factor,
            low_freq_factor: default_low_freq_factor(),
            high_freq_factor: default_high_freq_factor(),
            original_max_position_embeddings: default_original_positions(),
        }
    }
}

/// Which rotary frequencies are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RopeType {
    /// All ([Chen et al. 2023](https://arxiv.org/abs/2306.15595)).
    Linear,
    /// The low ones, as in Llama 3.1.
    Llama3,
}

/// A CLIP-like vision transformer. Names are those of `CLIPVisionConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vision {
    /// Side of the square input, pixels.
    pub image_size: u32,
    /// Side of a square patch, pixels; divides `image_size`.
    pub patch_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the MLP.
    pub intermediate_size: u32,
    /// Blocks.
    pub num_hidden_layers: u32,
    /// Attention heads.
    pub num_attention_heads: u32,
    /// Activation of the MLP.
    #[serde(default)]
    pub hidden_act: VisionActivation,
    /// Epsilon of LayerNorm.
    #[serde(default = "default_norm_eps")]
    pub layer_norm_eps: f64,
    /// Size of the global image feature, `e`.
    pub projection_dim: u32,
}

impl Vision {
    /// Patches of a picture.
    #[must_use]
    pub fn patches(&self) -> u32 {
        (self.image_size / self.patch_size.max(1)).pow(2)
    }
}

/// Activations of a visual encoder. Names are those of Hugging Face.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VisionActivation {
    /// `x sigmoid(1.702 x)`: OpenAI's CLIP.
    #[default]
    QuickGelu,
    /// The exact GELU: OpenCLIP's large models, such as bigG.
    Gelu,
}

/// The text side of the bootstrap CLIP: decoder blocks read at the end token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TextTower {
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the SwiGLU MLP.
    pub intermediate_size: u32,
    /// Blocks.
    pub num_hidden_layers: u32,
    /// Attention heads.
    pub num_attention_heads: u32,
}

/// The modular visual memory (MVM) of every block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Hidden width of the two-layer network.
    pub width: u32,
    /// Two matrices with GELU, or three with SwiGLU.
    #[serde(default)]
    pub form: MemoryForm,
    /// Factor on the first layer's initial weights; above 1 single objects are stored sooner.
    #[serde(default = "default_gain")]
    pub gain: f64,
}

/// Forms of the modular visual memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemoryForm {
    /// `down(gelu(up(x)))`
    #[default]
    Plain,
    /// `down(silu(gate(x)) * up(x))`
    Gated,
}

/// The retrieval head: projections of text state and image feature, and the temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Retrieval {
    /// Size of the shared space.
    pub dim: u32,
    /// Temperature `tau` of InfoNCE at the start.
    pub temperature: f64,
    /// Whether `tau` is trained (bounded below by 0.01) or stays fixed.
    pub learn_temperature: bool,
    /// Whether image features have a trained projection too. If not, texts are projected into the
    /// encoder's own space (`dim` is `projection_dim`), and nothing it sees is trained away.
    pub project_images: bool,
    /// Blocks (counted from 1) after which the text state is read as well, each with a head
    /// of its own; the losses are averaged. The last block is always read.
    pub extra_blocks: Vec<u32>,
}

impl Default for Retrieval {
    fn default() -> Self {
        Self {
            dim: 128,
            temperature: 0.07,
            learn_temperature: true,
            project_images: true,
            extra_blocks: Vec::new(),
        }
    }
}

fn default_low_freq_factor() -> f64 {
    1.0
}
fn default_high_freq_factor() -> f64 {
    4.0
}
fn default_original_positions() -> u32 {
    8192
}
fn default_gain() -> f64 {
    1.0
}
fn default_norm_eps() -> f64 {
    1e-5
}
fn default_rope_theta() -> f64 {
    10_000.0
}
