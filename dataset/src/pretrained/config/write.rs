//! From the shapes of a job to the words of Hugging Face: the other way round.

use mks2_proto::job::{Bridge, Decoder, RopeScaling, RopeType, Vision};
use serde_json::{Map, Value, json};

use super::{Described, Language};
use crate::pretrained::mks2::Mks2;

/// What `config.json` says beside the shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Type of the tensors, by PyTorch's name.
    pub dtype: &'static str,
    /// The token that opens a text.
    pub begin: Option<i64>,
    /// The token that ends a text.
    pub end: i64,
    /// The token that fills rows up.
    pub pad: i64,
}

/// The content of `config.json`: what [`read`](super::read) makes `described` of.
#[must_use]
pub fn write(described: &Described, about: &About) -> Value {
    let mut config = match described {
        Described::Decoder(language) => decoder(language),
        Described::Mks2(model) => mks2(model),
        Described::Vision(shape) => vision(shape),
        Described::QFormer(found) => fields(json!(found.shape)),
    };
    config.insert("dtype".into(), about.dtype.into());
    if matches!(described, Described::Decoder(_) | Described::Mks2(_)) {
        config.insert("bos_token_id".into(), about.begin.into());
        config.insert("eos_token_id".into(), about.end.into());
        config.insert("pad_token_id".into(), about.pad.into());
    }
    config.into()
}

fn decoder(language: &Language) -> Map<String, Value> {
    let (shape, family) = (&language.shape, language.family.as_str());
    let mut config = fields(json!({
        "model_type": family,
        "architectures": [architecture(family)],
        "vocab_size": language.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head(),
        "max_position_embeddings": shape.max_text_tokens,
        "hidden_act": "silu",
        "rms_norm_eps": shape.rms_norm_eps,
        // The older words for it, which all programs understand.
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling.as_ref().map(rope_scaling),
        "tie_word_embeddings": shape.tie_word_embeddings,
    }));
    config.extend(variant(family, shape));
    config
}

/// What one family has and others have not.
fn variant(family: &str, shape: &Decoder) -> Map<String, Value> {
    fields(match family {
        "mistral" => json!({"sliding_window": shape.sliding_window}),
        "qwen2" => json!({"use_sliding_window": false}),
        "mks2" => json!({"sliding_window": shape.sliding_window, "qkv_bias": shape.qkv_bias}),
        _ => json!({"attention_bias": false, "mlp_bias": false}),
    })
}

fn architecture(family: &str) -> &'static str {
    match family {
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "mks2" => "Mks2ForCausalLM",
        _ => "LlamaForCausalLM",
    }
}

fn rope_scaling(scaling: &RopeScaling) -> Value {
    match scaling.rope_type {
        RopeType::Linear => json!({"rope_type": "linear", "factor": scaling.factor}),
        RopeType::Llama3 => json!({
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }),
    }
}

fn mks2(model: &Mks2) -> Map<String, Value> {
    let mut config = decoder(&model.language);
    config.remove("hidden_act");
    let class = |name: &str| format!("modeling_mks2.{name}");
    config.extend(fields(json!({
        "auto_map": {
            "AutoConfig": class("Mks2Config"),
            "AutoModelForCausalLM": class("Mks2ForCausalLM"),
        },
        "vision_config": model.vision.as_ref().map(vision),
    })));
    if let (Some(vision), Some(shape)) = (&model.vision, model.model().q_former()) {
        config.insert("num_query_tokens".into(), shape.num_query_tokens.into());
        config.insert("qformer_config".into(), q_former(shape, vision));
    }
    config.extend(fields(json!(model.words)));
    config
}

fn vision(shape: &Vision) -> Map<String, Value> {
    let mut config = fields(json!(shape));
    config.insert("model_type".into(), "clip_vision_model".into());
    config
}

fn q_former(shape: &Bridge, vision: &Vision) -> Value {
    json!({
        "model_type": "blip_2_qformer",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "cross_attention_frequency": shape.cross_attention_frequency,
        "encoder_hidden_size": vision.hidden_size,
        "layer_norm_eps": shape.layer_norm_eps,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    })
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use mks2_proto::job::{BridgeKind, MemoryForm, VisionActivation};

    use super::super::read;
    use super::*;
    use crate::pretrained::mks2::{LoraWords, MemoryWords, SecondHalf, Words};

    fn shape() -> Decoder {
        Decoder {
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: Some(12),
            qkv_bias: false,
            sliding_window: None,
            rope_theta: 500_000.0,
            rope_scaling: None,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            max_text_tokens: 20,
        }
    }

    fn eyes() -> Vision {
        Vision {
            image_size: 32,
            patch_size: 8,
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            hidden_act: VisionActivation::Gelu,
            layer_norm_eps: 1e-6,
            projection_dim: 16,
        }
    }

    fn mixed() -> Mks2 {
        let shape = Decoder {
            qkv_bias: true,
            sliding_window: Some(7),
            ..shape()
        };
        let memory = MemoryWords {
            width: 24,
            form: MemoryForm::Gated,
        };
        Mks2 {
            language: Language {
                family: "mks2".into(),
                shape,
                vocab_size: 300,
            },
            words: Words {
                second_half: SecondHalf::Experts,
                memories: vec![memory; 2],
                lora: Some(LoraWords {
                    rank: 4,
                    alpha: 16.0,
                    blocks: vec![2],
                    attention: true,
                }),
                router_blocks: vec![1],
                router_bias: -0.5,
                question: Some("Q: {question}".into()),
                answer: Some("A: {answer}".into()),
                answer_after_end: true,
            },
            vision: Some(eyes()),
            bridge: Bridge::default(),
        }
    }

    fn again(described: &Described) -> Described {
        let about = About {
            dtype: "float32",
            begin: Some(1),
            end: 2,
            pad: 0,
        };
        let json = write(described, &about).to_string();
        read(json.as_bytes(), "config.json").expect("read")
    }

    #[test]
    fn a_mixture_is_asked_in_the_words_of_its_training() {
        let Described::Mks2(model) = again(&Described::Mks2(mixed().into())) else {
            panic!("it is another model");
        };
        let settings = model.experts();
        assert_eq!(settings.question, "Q: {question}");
        assert_eq!(settings.answer, "A: {answer}");
        assert!(settings.answer_after_end);
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let llama3 = RopeScaling {
            rope_type: RopeType::Llama3,
            factor: 8.0,
            low_freq_factor: 1.5,
            high_freq_factor: 3.5,
            original_max_position_embeddings: 64,
        };
        let shapes = [
            shape(),
            Decoder {
                sliding_window: Some(9),
                ..shape()
            },
            Decoder {
                qkv_bias: true,
                rope_scaling: Some(RopeScaling::linear(2.0)),
                ..shape()
            },
            Decoder {
                rope_scaling: Some(llama3),
                tie_word_embeddings: false,
                ..shape()
            },
        ];
        let languages = shapes.map(|shape| Language::of(&shape, 300).expect("a family"));
        let mut all: Vec<Described> = languages.map(Described::Decoder).into();
        all.push(Described::Vision(eyes()));
        all.push(Described::Mks2(mixed().into()));
        let plain = Mks2 {
            vision: None,
            words: Words {
                lora: None,
                question: None,
                ..mixed().words
            },
            ..mixed()
        };
        all.push(Described::Mks2(plain.into()));
        let asking = Mks2 {
            bridge: Bridge {
                kind: BridgeKind::QFormer,
                train_q_former: false,
                num_query_tokens: 5,
                hidden_size: 36,
                num_attention_heads: 3,
                ..Bridge::default()
            },
            ..mixed()
        };
        all.push(Described::Mks2(asking.into()));
        for described in &all {
            assert_eq!(again(described), *described);
        }
    }

    #[test]
    fn a_model_has_adapters_where_its_configuration_says_so() {
        let count = |model: &Mks2, part: &str| {
            let specs = model.specs();
            specs.iter().filter(|spec| spec.name.contains(part)).count()
        };
        let model = mixed();
        // Four of the attention, three of each expert, two matrices each, in one block.
        assert_eq!(count(&model, "lora_"), (4 + 3 * 3) * 2);
        assert_eq!(count(&model, "router"), 2);
        assert_eq!(count(&model, "memory.1.layers"), 2 * 3);
        assert_eq!(count(&model, "bridge"), 2);
        let mut merged = model;
        merged.words.lora = None;
        assert_eq!(count(&merged, "lora_"), 0);
        assert_eq!(count(&merged, "router"), 2);
    }

    #[test]
    fn models_that_cannot_be_are_refused() {
        let refused = |change: fn(&mut Words)| {
            let mut model = mixed();
            change(&mut model.words);
            let about = About {
                dtype: "float32",
                begin: None,
                end: 2,
                pad: 2,
            };
            let json = write(&Described::Mks2(model.into()), &about).to_string();
            let error = read(json.as_bytes(), "config.json").expect_err("refused");
            error.to_string()
        };
        assert!(refused(|words| words.second_half = SecondHalf::Memory).contains("several"));
        let rank = refused(|words| words.lora.as_mut().expect("some").rank = 0);
        assert!(rank.contains("rank 0"), "{rank}");
    }
}
