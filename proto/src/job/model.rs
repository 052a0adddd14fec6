//! The model of a job: its parts and their sizes, by the words of Hugging Face where those exist.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shapes of every module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// The language model.
    pub decoder: Decoder,
    /// The visual encoder.
    pub vision: Vision,
    /// The text side of the small CLIP that a bootstrap stage trains.
    pub text_tower: TextTower,
    /// The modular visual memory.
    pub memory: Memory,
    /// The retrieval head.
    #[serde(default)]
    pub retrieval: Retrieval,
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
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Epsilon of RMSNorm.
    #[serde(default = "default_norm_eps")]
    pub rms_norm_eps: f64,
    /// The output head shares the embedding matrix.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Text tokens of a sample, padded or cut to this length; image tokens come on top.
    pub max_text_tokens: u32,
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
    /// Epsilon of LayerNorm.
    #[serde(default = "default_norm_eps")]
    pub layer_norm_eps: f64,
    /// Size of the global image feature, `e`.
    pub projection_dim: u32,
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

fn default_gain() -> f64 {
    1.0
}
fn default_norm_eps() -> f64 {
    1e-5
}
fn default_rope_theta() -> f64 {
    10_000.0
}
