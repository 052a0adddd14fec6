//! `config.json`: from the words of Hugging Face to the shapes of a job.
//!
//! | model | `model_type` |
//! |---|---|
//! | Llama 2, Llama 3 | `llama` |
//! | Mistral | `mistral` |
//! | Qwen2, Qwen2.5 | `qwen2` |
//! | CLIP's visual encoder with its projection, alone or within CLIP | `clip_vision_model`, `clip` |
//! | the Q-Former within BLIP-2 | `blip-2` |
//! | what `mks2 export hf` has written | `mks2` |
//!
//! What a file does not say has the value that transformers gives it. A setting that would change the
//! model and is not supported is refused, not ignored.

mod q_former;

use mks2_proto::job::{Bridge, Decoder, RopeScaling, RopeType, Vision, VisionActivation};
use serde::Deserialize;

use super::mks2::{Mks2, Words};
use super::{PretrainedError, Result};
pub use q_former::QFormer;

mod write;

pub use write::{About, write};

/// Name of the file.
pub const FILE_NAME: &str = "config.json";

const SUPPORTED: &str = "the model types llama, mistral, qwen2 (language models), clip and \
     clip_vision_model (visual encoders), blip-2 (its Q-Former), mks2";

/// What a folder holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Described {
    /// A language model.
    Decoder(Language),
    /// A visual encoder.
    Vision(Vision),
    /// A Q-Former.
    QFormer(QFormer),
    /// A language model with memories, and maybe eyes.
    Mks2(Box<Mks2>),
}

impl Described {
    /// What it is, in words.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Decoder(_) => "language model",
            Self::Vision(_) => "visual encoder",
            Self::QFormer(_) => "Q-Former",
            Self::Mks2(_) => "language model with memories",
        }
    }
}

/// A language model.
#[derive(Clone, Debug, PartialEq)]
pub struct Language {
    /// `llama`, `mistral` or `qwen2`; `mks2` within a model of MKS2.
    pub family: String,
    /// Its shape. `max_text_tokens` is the longest text that it was made for.
    pub shape: Decoder,
    /// Entries of its vocabulary.
    pub vocab_size: u32,
}

/// Reads `config.json`; `file` is what messages call it.
///
/// # Errors
/// When it is damaged, or describes a model that is not supported.
pub fn read(json: &[u8], file: &str) -> Result<Described> {
    let reader = Reader { file };
    let kind: Kind = reader.parse(json)?;
    match kind.model_type.as_deref() {
        Some(family @ ("llama" | "mistral" | "qwen2")) => {
            let words: DecoderWords = reader.parse(json)?;
            Ok(Described::Decoder(reader.decoder(family, words)?))
        }
        Some("mks2") => {
            let model = reader.mks2(json)?;
            Ok(Described::Mks2(model.into()))
        }
        Some("clip_vision_model") => {
            let words: VisionWords = reader.parse(json)?;
            Ok(Described::Vision(reader.vision(words)?))
        }
        Some("clip") => {
            let both: ClipWords = reader.parse(json)?;
            let words = VisionWords {
                projection_dim: both.projection_dim.or(both.vision_config.projection_dim),
                ..both.vision_config
            };
            Ok(Described::Vision(reader.vision(words)?))
        }
        Some("blip-2") => Ok(Described::QFormer(reader.q_former(reader.parse(json)?)?)),
        Some(other) => Err(reader.unsupported(format!("model_type '{other}'"))),
        None => Err(reader.damaged("it has no model_type")),
    }
}

#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
}

#[derive(Deserialize)]
struct DecoderWords {
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    vocab_size: u32,
    max_position_embeddings: Option<u32>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeWords>,
    /// The later name of both, with the base inside.
    rope_parameters: Option<RopeWords>,
    #[serde(default)]
    tie_word_embeddings: bool,
    /// Absent means 4096 for Mistral; null means none.
    #[serde(default, deserialize_with = "some")]
    sliding_window: Option<Option<u32>>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    layer_types: Vec<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    /// Of `mks2` alone.
    #[serde(default)]
    qkv_bias: bool,
}

/// Tells a null from what is absent.
fn some<'de, D, T>(value: D) -> std::result::Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(value).map(Some)
}

#[derive(Deserialize)]
struct RopeWords {
    rope_type: Option<String>,
    /// What older files say, some beside the other.
    #[serde(rename = "type")]
    older_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u32>,
}

#[derive(Deserialize)]
struct ClipWords {
    projection_dim: Option<u32>,
    vision_config: VisionWords,
}

#[derive(Deserialize)]
struct EyesWords {
    vision_config: Option<VisionWords>,
    qformer_config: Option<q_former::Words>,
    num_query_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct VisionWords {
    hidden_size: Option<u32>,
    intermediate_size: Option<u32>,
    num_hidden_layers: Option<u32>,
    num_attention_heads: Option<u32>,
    image_size: Option<u32>,
    patch_size: Option<u32>,
    num_channels: Option<u32>,
    projection_dim: Option<u32>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
}

struct Reader<'a> {
    file: &'a str,
}

impl Reader<'_> {
    fn parse<T: for<'de> Deserialize<'de>>(&self, json: &[u8]) -> Result<T> {
        serde_json::from_slice(json).map_err(|error| self.damaged(error.to_string()))
    }

    fn damaged(&self, why: impl Into<String>) -> PretrainedError {
        PretrainedError::Damaged {
            file: self.file.to_owned(),
            why: why.into(),
        }
    }

    fn unsupported(&self, why: impl Into<String>) -> PretrainedError {
        PretrainedError::Unsupported {
            file: self.file.to_owned(),
            why: why.into(),
            supported: SUPPORTED,
        }
    }

    fn decoder(&self, family: &str, words: DecoderWords) -> Result<Language> {
        self.refuse_variants(family, &words)?;
        let sliding_window = match (family, words.sliding_window) {
            ("mistral", None) => Some(4096),
            ("mistral" | "mks2", Some(window)) => window,
            _ => None,
        };
        // Later files have both in one table.
        let rope = words.rope_parameters.or(words.rope_scaling);
        let theta = rope.as_ref().and_then(|rope| rope.rope_theta);
        let shape = Decoder {
            hidden_size: words.hidden_size,
            intermediate_size: words.intermediate_size,
            num_hidden_layers: words.num_hidden_layers,
            num_attention_heads: words.num_attention_heads,
            num_key_value_heads: words.num_key_value_heads.unwrap_or(match family {
                "mistral" => 8,
                "qwen2" => 32,
                _ => words.num_attention_heads,
            }),
            head_dim: words.head_dim,
            qkv_bias: family == "qwen2" || (family == "mks2" && words.qkv_bias),
            sliding_window,
            rope_theta: theta.or(words.rope_theta).unwrap_or(10_000.0),
            rope_scaling: rope.map_or(Ok(None), |rope| self.rope_scaling(&rope))?,
            rms_norm_eps: words.rms_norm_eps.unwrap_or(1e-6),
            tie_word_embeddings: words.tie_word_embeddings,
            max_text_tokens: words.max_position_embeddings.unwrap_or(match family {
                "mistral" => 4096 * 32,
                "qwen2" => 32_768,
                _ => 2048,
            }),
        };
        Ok(Language {
            family: family.to_owned(),
            shape,
            vocab_size: words.vocab_size,
        })
    }

    fn mks2(&self, json: &[u8]) -> Result<Mks2> {
        let words: DecoderWords = self.parse(json)?;
        let eyes: EyesWords = self.parse(json)?;
        let added: Words = self.parse(json)?;
        let queries = |words| self.queries(eyes.num_query_tokens, words);
        let model = Mks2 {
            language: self.decoder("mks2", words)?,
            words: added,
            bridge: eyes
                .qformer_config
                .map_or_else(|| Ok(Bridge::default()), queries)?,
            vision: eyes
                .vision_config
                .map(|words| self.vision(words))
                .transpose()?,
        };
        match model.problem() {
            Some(problem) => Err(self.unsupported(problem)),
            None => Ok(model),
        }
    }

    /// Settings that change the model in a way that is not supported.
    fn refuse_variants(&self, family: &str, words: &DecoderWords) -> Result<()> {
        let activation = words.hidden_act.as_deref().unwrap_or("silu");
        let slides = words.use_sliding_window
            || (family != "mistral"
                && words
                    .layer_types
                    .iter()
                    .any(|kind| kind != "full_attention"));
        let variants = [
            (activation != "silu", format!("hidden_act '{activation}'")),
            (words.attention_bias, "attention_bias".to_owned()),
            (words.mlp_bias, "mlp_bias".to_owned()),
            (slides, "a sliding window in some of its layers".to_owned()),
        ];
        match variants.into_iter().find(|(is_one, _)| *is_one) {
            Some((_, why)) => Err(self.unsupported(why)),
            None => Ok(()),
        }
    }

    fn rope_scaling(&self, words: &RopeWords) -> Result<Option<RopeScaling>> {
        let rope_type = match words.rope_type.as_deref().or(words.older_type.as_deref()) {
            None | Some("default") => return Ok(None),
            Some("linear") => RopeType::Linear,
            Some("llama3") => RopeType::Llama3,
            Some(other) => {
                return Err(self.unsupported(format!("rotary scaling of type '{other}'")));
            }
        };
        let given = |key: &str, value: Option<f64>| {
            let lacks = || self.damaged(format!("its rotary scaling has no {key}"));
            value.ok_or_else(lacks)
        };
        let factor = given("factor", words.factor)?;
        if rope_type == RopeType::Linear {
            return Ok(Some(RopeScaling::linear(factor)));
        }
        let original = words.original_max_position_embeddings;
        let lacks = || self.damaged("its rotary scaling has no original_max_position_embeddings");
        Ok(Some(RopeScaling {
            rope_type,
            factor,
            low_freq_factor: given("low_freq_factor", words.low_freq_factor)?,
            high_freq_factor: given("high_freq_factor", words.high_freq_factor)?,
            original_max_position_embeddings: original.ok_or_else(lacks)?,
        }))
    }

    fn vision(&self, words: VisionWords) -> Result<Vision> {
        let channels = words.num_channels.unwrap_or(3);
        if channels != 3 {
            return Err(self.unsupported(format!("{channels} colour channels")));
        }
        Ok(Vision {
            image_size: words.image_size.unwrap_or(224),
            patch_size: words.patch_size.unwrap_or(32),
            hidden_size: words.hidden_size.unwrap_or(768),
            intermediate_size: words.intermediate_size.unwrap_or(3072),
            num_hidden_layers: words.num_hidden_layers.unwrap_or(12),
            num_attention_heads: words.num_attention_heads.unwrap_or(12),
            hidden_act: match words.hidden_act.as_deref() {
                None | Some("quick_gelu") => VisionActivation::QuickGelu,
                Some("gelu") => VisionActivation::Gelu,
                Some(other) => return Err(self.unsupported(format!("hidden_act '{other}'"))),
            },
            layer_norm_eps: words.layer_norm_eps.unwrap_or(1e-5),
            projection_dim: words.projection_dim.unwrap_or(512),
        })
    }
}

#[cfg(test)]
mod tests;
