use serde_json::{Value, json};

use super::*;

fn described(json: &Value) -> Result<Described> {
    read(json.to_string().as_bytes(), "config.json")
}

fn language(json: &Value) -> Language {
    match described(json).unwrap() {
        Described::Decoder(language) => language,
        other => panic!("a language model, not {other:?}"),
    }
}

/// As older versions of transformers write it.
fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": null,
        "tie_word_embeddings": false, "hidden_act": "silu", "torch_dtype": "float16",
    })
}

fn with(mut json: Value, changes: Value) -> Value {
    let changes = changes.as_object().unwrap().clone();
    json.as_object_mut().unwrap().extend(changes);
    json
}

#[test]
fn families_differ_in_what_they_leave_out() {
    let plain = language(&llama());
    assert_eq!((plain.family.as_str(), plain.vocab_size), ("llama", 32000));
    let shape = &plain.shape;
    assert_eq!(
        (shape.num_key_value_heads, shape.head(), shape.qkv_bias),
        (32, 128, false)
    );
    assert_eq!((shape.rope_theta, shape.sliding_window), (10_000.0, None));

    let mistral = |changes| {
        language(&with(
            with(llama(), json!({"model_type": "mistral"})),
            changes,
        ))
    };
    assert_eq!(mistral(json!({})).shape.sliding_window, Some(4096));
    assert_eq!(
        mistral(json!({"sliding_window": null}))
            .shape
            .sliding_window,
        None
    );
    let wide = mistral(json!({"sliding_window": 32, "head_dim": 96})).shape;
    assert_eq!((wide.sliding_window, wide.head()), (Some(32), 96));

    let qwen = json!({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": false});
    let qwen = language(&with(llama(), qwen)).shape;
    assert_eq!((qwen.qkv_bias, qwen.sliding_window), (true, None));

    // As in the configurations of transformers.
    for (family, positions) in [("llama", 2048), ("mistral", 131_072), ("qwen2", 32_768)] {
        let mut json = with(llama(), json!({"model_type": family}));
        json.as_object_mut()
            .unwrap()
            .remove("max_position_embeddings");
        assert_eq!(language(&json).shape.max_text_tokens, positions, "{family}");
    }
}

#[test]
fn rotary_positions_are_read_in_the_older_and_the_later_words() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let older = with(
        llama(),
        json!({"rope_theta": 500000.0, "rope_scaling": scaling}),
    );
    let inside = with(scaling, json!({"rope_theta": 500000.0}));
    let later = with(llama(), json!({"rope_parameters": inside}));
    for json in [older, later] {
        let shape = language(&json).shape;
        assert_eq!(shape.rope_theta, 500_000.0);
        let expected = RopeScaling {
            rope_type: RopeType::Llama3,
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(shape.rope_scaling, Some(expected));
    }
    let oldest = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
    let shape = language(&with(llama(), oldest)).shape;
    assert_eq!(shape.rope_scaling, Some(RopeScaling::linear(2.0)));
    let plain = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}});
    let shape = language(&with(llama(), plain)).shape;
    assert_eq!((shape.rope_theta, shape.rope_scaling), (1e6, None));
}

#[test]
fn a_visual_encoder_stands_alone_or_within_clip() {
    let vision = json!({
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
        "projection_dim": 768,
    });
    let both = json!({"model_type": "clip", "projection_dim": 768, "vision_config": vision});
    let alone = described(&vision).unwrap();
    assert_eq!(described(&both).unwrap(), alone);
    let Described::Vision(shape) = alone else {
        panic!("a visual encoder");
    };
    assert_eq!((shape.patch_size, shape.projection_dim), (14, 768));
    assert_eq!(shape.hidden_act, VisionActivation::QuickGelu);
    let big = with(vision, json!({"hidden_act": "gelu"}));
    let Described::Vision(big) = described(&big).unwrap() else {
        panic!("a visual encoder");
    };
    assert_eq!(big.hidden_act, VisionActivation::Gelu);
}

#[test]
fn a_q_former_is_taken_out_of_a_blip_2() {
    let blip = json!({
        "model_type": "blip-2", "num_query_tokens": 16, "vision_config": {"hidden_size": 24},
        "text_config": {"model_type": "opt"},
        "qformer_config": {"hidden_size": 96, "cross_attention_frequency": 3, "encoder_hidden_size": 1408},
    });
    let Described::QFormer(found) = described(&blip).unwrap() else {
        panic!("a Q-Former");
    };
    assert_eq!(found.features, 24);
    let shape = found.shape;
    assert!(!shape.train_q_former);
    assert_eq!((shape.num_query_tokens, shape.hidden_size), (16, 96));
    assert_eq!(
        (shape.cross_attention_frequency, shape.num_hidden_layers),
        (3, 12)
    );
    // As Salesforce/blip2-opt-2.7b says it: nothing but what differs from the first BLIP-2.
    let Described::QFormer(usual) = described(&json!({"model_type": "blip-2"})).unwrap() else {
        panic!("a Q-Former");
    };
    assert_eq!((usual.features, usual.shape.num_query_tokens), (1408, 32));
    let other = with(blip, json!({"qformer_config": {"hidden_act": "relu"}}));
    let refused = described(&other).unwrap_err().to_string();
    assert!(refused.contains("hidden_act 'relu'"), "{refused}");
}

#[test]
fn what_is_not_supported_is_refused_and_not_ignored() {
    for (changes, words) in [
        (json!({"model_type": "gpt2"}), "model_type 'gpt2'"),
        (json!({"hidden_act": "gelu"}), "hidden_act 'gelu'"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true}),
            "sliding window",
        ),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            "'yarn'",
        ),
    ] {
        let error = described(&with(llama(), changes)).unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
        let failure = mks2_proto::failure::Failure::from(error);
        assert!(
            failure.cure.contains("llama, mistral, qwen2"),
            "{}",
            failure.cure
        );
    }
    for (json, words) in [
        (
            json!({"architectures": ["LlamaForCausalLM"]}),
            "no model_type",
        ),
        (json!({"model_type": "llama"}), "hidden_size"),
        (with(llama(), json!({"hidden_size": -1})), "-1"),
        (
            with(llama(), json!({"rope_scaling": {"type": "linear"}})),
            "no factor",
        ),
    ] {
        let error = described(&json).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}
