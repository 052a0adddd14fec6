//! Low-rank adapters as [PEFT](https://github.com/huggingface/peft) has them: what `mks2 export peft` writes, and
//! what an `experts` stage can start from.
//!
//! ```text
//! adapter_config.json          rank, alpha, which matrices: W x + lora_alpha / r B A x
//! adapter_model.safetensors    base_model.model.model.layers.3.mlp.up_proj.lora_A.weight
//!                              here: experts.layers.3.mlp.up_proj.lora_a
//! ```

use mks2_proto::job::{Experts, Model};
use mks2_proto::params::{self, ParamSpec};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::base::Part;
use super::tensors::{Differences, Tensors};
use super::{Folder, PretrainedError, Result};

/// What the adapters are.
pub const SETTINGS: &str = "adapter_config.json";
/// Their tensors.
pub const TENSORS: &str = "adapter_model.safetensors";

/// What there is where they were saved by an older PEFT.
pub(super) const PICKLE: &str = "adapter_model.bin";

/// How PEFT names the modules of a language model.
const BASE: &str = "base_model.model.model";
/// Parts of an adapter, here and there.
const PARTS: [(&str, &str); 2] = [(".lora_a", "lora_A"), (".lora_b", "lora_B")];

/// What PEFT calls a parameter of an `experts` stage; none where it belongs to no adapter of the language
/// model.
#[must_use]
pub fn in_peft(parameter: &str) -> Option<String> {
    let rest = parameter.strip_prefix("experts.")?;
    let (matrix, part) = PARTS
        .iter()
        .find_map(|(here, there)| Some((rest.strip_suffix(here)?, there)))?;
    let of = matrix.split('.').nth(2)?;
    matches!(of, "mlp" | "self_attn").then(|| format!("{BASE}.{matrix}.{part}.weight"))
}

/// The matrices that have adapters.
#[must_use]
pub fn targets(settings: &Experts) -> Vec<&'static str> {
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"];
    let attention = attention.iter().filter(|_| settings.adapt_attention);
    let mlp = ["gate_proj", "up_proj", "down_proj"];
    attention.chain(&mlp).copied().collect()
}

/// The adapters of a folder, found to be those of a stage, and not yet read.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// The tensors of the folder, under their names there.
    pub part: Part,
    /// What the stage calls each of them.
    pub parameters: Vec<String>,
}

#[derive(Deserialize)]
struct Words {
    peft_type: String,
    /// Of LoRA alone, as are the others.
    r: Option<u32>,
    lora_alpha: Option<f64>,
    bias: Option<String>,
    /// All others.
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// Settings that change what is computed, and are supported only where they are off.
const VARIANTS: [&str; 9] = [
    "alora_invocation_tokens",
    "use_qalora",
    "use_rslora",
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
];

/// Ways to begin that take a part out of the base's matrices.
const CHANGES_THE_BASE: [&str; 4] = ["pissa", "olora", "loftq", "corda"];

impl Adapter {
    /// Finds the adapters of a folder, and holds them against what a stage of `model` wants.
    ///
    /// # Errors
    /// [`PretrainedError::Adapter`] with all that differs; or when the folder is not whole.
    pub async fn open(location: &str, model: &Model, settings: &Experts) -> Result<Self> {
        let folder = Folder::open(location)?;
        let json = folder.text(SETTINGS).await?;
        let json = json.ok_or_else(|| PretrainedError::Missing {
            file: folder.name_of(SETTINGS),
        })?;
        let words: Words = serde_json::from_slice(&json)
            .map_err(|error| folder.refuse(SETTINGS, error.to_string()))?;
        let refuse = |differences: Vec<String>| PretrainedError::Adapter {
            folder: folder.location().to_owned(),
            differences: differences.join("; "),
        };
        if words.peft_type != "LORA" {
            // Nothing else of them would be as it is here.
            let why = format!("it is of the type {}, not LORA", words.peft_type);
            return Err(refuse(vec![why]));
        }
        let mut differences = words.differences(settings);
        let tensors = Tensors::of_file(&folder, TENSORS).await?;
        let wanted = params::experts(model, settings).into_iter();
        let wanted = wanted.filter_map(|spec| {
            let name = in_peft(&spec.name)?;
            Some((spec.name.clone(), ParamSpec { name, ..spec }))
        });
        let (parameters, specs): (Vec<_>, Vec<_>) = wanted.unzip();
        let found = tensors.differences(&specs, |_| false);
        if found != Differences::default() {
            differences.push(found.to_string());
        }
        match differences.is_empty() {
            true => Ok(Self {
                part: Part {
                    tensors,
                    specs,
                    left_out: Vec::new(),
                },
                parameters,
            }),
            false => Err(refuse(differences)),
        }
    }
}

impl Words {
    fn differences(&self, settings: &Experts) -> Vec<String> {
        let mut found = Vec::new();
        match self.r {
            None => found.push(format!("{SETTINGS} does not say its rank, r")),
            Some(rank) if rank == settings.lora_rank => {}
            Some(rank) => {
                let ours = settings.lora_rank;
                found.push(format!("its rank is {rank}, and lora_rank {ours}"));
            }
        }
        match self.lora_alpha {
            None => found.push(format!("{SETTINGS} does not say its lora_alpha")),
            Some(alpha) if alpha == settings.lora_alpha => {}
            Some(alpha) => {
                let ours = settings.lora_alpha;
                found.push(format!("its lora_alpha is {alpha}, and {ours} here"));
            }
        }
        if let Some(bias) = self.bias.as_ref().filter(|bias| *bias != "none") {
            found.push(format!("it has biases ({bias})"));
        }
        // These start from other base weights than the published ones.
        let own = self.more.get("init_lora_weights").and_then(Value::as_str);
        let is_apart = |way: &&str| CHANGES_THE_BASE.iter().any(|one| way.starts_with(one));
        if let Some(way) = own.filter(is_apart) {
            found.push(format!(
                "its init_lora_weights is {way}, which changes the base"
            ));
        }
        let set = VARIANTS
            .iter()
            .filter(|name| self.more.get(**name).is_some_and(is_on));
        found.extend(set.map(|name| format!("it has {name}, which is not supported")));
        found
    }
}

fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::tensor::{Dtype, TensorView};

    use super::*;

    fn job() -> (Model, Experts) {
        let model = serde_json::json!({
            "decoder": {
                "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "max_text_tokens": 8,
            },
            "vision": {
                "image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 4,
            },
            "memory": {"width": 6},
        });
        let settings = Experts {
            memories: vec!["seen".into()],
            lora_rank: 2,
            lora_alpha: 4.0,
            adapter_blocks: vec![2],
            ..Experts::default()
        };
        (serde_json::from_value(model).expect("a model"), settings)
    }

    /// Writes an adapter of the job's stage, with these words changed.
    fn written(change: Value) -> tempfile::TempDir {
        let (model, settings) = job();
        let folder = tempfile::tempdir().expect("a folder");
        let mut words = serde_json::json!({
            "peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_dora": false,
            "rank_pattern": {}, "modules_to_save": null, "target_modules": targets(&settings),
        });
        let fields = words.as_object_mut().expect("fields");
        fields.extend(change.as_object().expect("fields").clone());
        std::fs::write(folder.path().join(SETTINGS), words.to_string()).expect("written");
        let zeros = vec![0; 4 * 8 * 12];
        let specs = params::experts(&model, &settings);
        let named = specs
            .iter()
            .filter_map(|spec| Some((in_peft(&spec.name)?, spec)));
        let views = named.map(|(name, spec)| {
            let bytes = &zeros[..4 * spec.numel()];
            let view = TensorView::new(Dtype::F32, spec.shape.clone(), bytes);
            (name, view.expect("a view"))
        });
        let views: HashMap<_, _> = views.collect();
        let path = folder.path().join(TENSORS);
        safetensors::serialize_to_file(&views, None, &path).expect("written");
        folder
    }

    async fn opened(folder: &tempfile::TempDir, change: fn(&mut Experts)) -> Result<Adapter> {
        let (model, mut settings) = job();
        change(&mut settings);
        let location = folder.path().to_str().expect("UTF-8");
        Adapter::open(location, &model, &settings).await
    }

    #[test]
    fn parameters_of_the_language_model_alone_have_a_name_there() {
        assert_eq!(
            in_peft("experts.layers.3.mlp.up_proj.lora_a").as_deref(),
            Some("base_model.model.model.layers.3.mlp.up_proj.lora_A.weight")
        );
        assert_eq!(
            in_peft("experts.layers.0.self_attn.q_proj.lora_b").as_deref(),
            Some("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
        );
        for other in [
            "experts.layers.3.seen.up_proj.lora_a",
            "experts.layers.3.router.bias",
            "bridge.bias",
        ] {
            assert_eq!(in_peft(other), None);
        }
    }

    #[tokio::test]
    async fn the_adapters_of_a_stage_are_found() {
        let folder = written(serde_json::json!({}));
        let adapter = opened(&folder, |_| {}).await.expect("its own");
        assert_eq!(adapter.parameters.len(), 6);
        for (parameter, spec) in adapter.parameters.iter().zip(&adapter.part.specs) {
            assert_eq!(in_peft(parameter).as_ref(), Some(&spec.name));
        }
    }

    #[tokio::test]
    async fn all_that_differs_is_named() {
        let plain = written(serde_json::json!({}));
        let error = |result: Result<Adapter>| result.expect_err("refused").to_string();
        let rank = error(opened(&plain, |settings| settings.lora_rank = 3).await);
        assert!(rank.contains("its rank is 2, and lora_rank 3"), "{rank}");
        assert!(rank.contains("[2, 8] instead of [3, 8]"), "{rank}");
        let alpha = error(opened(&plain, |settings| settings.lora_alpha = 5.0).await);
        assert!(alpha.contains("lora_alpha is 4, and 5 here"), "{alpha}");
        let blocks = error(opened(&plain, |settings| settings.adapter_blocks.clear()).await);
        assert!(
            blocks.contains("6 missing: base_model.model.model.layers.0.mlp"),
            "{blocks}"
        );
        let attention = error(opened(&plain, |settings| settings.adapt_attention = true).await);
        assert!(
            attention.contains("layers.1.self_attn.q_proj.lora_A"),
            "{attention}"
        );
        for (change, words) in [
            (serde_json::json!({"r": null}), "does not say its rank"),
            (
                serde_json::json!({"lora_alpha": null}),
                "does not say its lora_alpha",
            ),
            (serde_json::json!({"bias": "all"}), "biases (all)"),
            (serde_json::json!({"use_dora": true}), "use_dora"),
            (
                serde_json::json!({"init_lora_weights": "pissa_niter_16"}),
                "changes the base",
            ),
            (
                serde_json::json!({"rank_pattern": {"up_proj": 4}}),
                "rank_pattern",
            ),
        ] {
            let found = error(opened(&written(change), |_| {}).await);
            assert!(found.contains(words), "{found}");
        }
    }

    #[tokio::test]
    async fn adapters_of_another_type_are_called_by_it() {
        // As PEFT 0.17 writes them.
        let words = serde_json::json!({
            "auto_mapping": null, "base_model_name_or_path": "base", "exclude_modules": null,
            "fan_in_fan_out": false, "feedforward_modules": ["down_proj"], "inference_mode": true,
            "init_ia3_weights": true, "modules_to_save": null, "peft_type": "IA3", "revision": null,
            "target_modules": ["k_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM",
        });
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(SETTINGS), words.to_string()).expect("written");
        let refused = opened(&folder, |_| {}).await.expect_err("another type");
        let why = refused.to_string();
        assert!(why.ends_with("it is of the type IA3, not LORA"), "{why}");
    }

    #[tokio::test]
    async fn pickles_are_told_with_what_converts_them() {
        let folder = written(serde_json::json!({}));
        let at = |name| folder.path().join(name);
        std::fs::rename(at(TENSORS), at(PICKLE)).expect("renamed");
        let refused = opened(&folder, |_| {}).await.expect_err("a pickle");
        assert!(matches!(refused, PretrainedError::Pickle { .. }));
        let failure = mks2_proto::failure::Failure::from(refused);
        assert!(failure.cure.contains("weights_only=True"), "{failure}");
        // What is no adapter at all.
        std::fs::remove_file(at(SETTINGS)).expect("removed");
        let refused = opened(&folder, |_| {}).await.expect_err("nothing there");
        let failure = mks2_proto::failure::Failure::from(refused);
        assert!(failure.cure.contains(SETTINGS), "{failure}");
    }

    #[tokio::test]
    async fn types_that_cannot_be_read_are_named() {
        let folder = written(serde_json::json!({}));
        let file = folder.path().join(TENSORS);
        let bytes = std::fs::read(&file).expect("read");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("whole");
        let views = tensors.iter().map(|(name, view)| {
            let eighth = &view.data()[..view.data().len() / 4];
            let view = TensorView::new(Dtype::I8, view.shape().to_vec(), eighth);
            (name.to_owned(), view.expect("a view"))
        });
        let views: HashMap<_, _> = views.collect();
        let small = safetensors::serialize(&views, None).expect("a file");
        std::fs::write(&file, small).expect("written");
        let refused = opened(&folder, |_| {}).await.expect_err("bytes");
        let why = refused.to_string();
        assert!(
            why.contains("6 of a type other than F32, F16 and BF16"),
            "{why}"
        );
        assert!(why.contains("mlp.up_proj.lora_A.weight I8"), "{why}");
    }

    #[tokio::test]
    async fn folders_that_are_not_whole_are_refused() {
        for (name, words) in [(SETTINGS, "there is no"), (TENSORS, "there is no")] {
            let folder = written(serde_json::json!({}));
            std::fs::remove_file(folder.path().join(name)).expect("removed");
            let error = opened(&folder, |_| {})
                .await
                .expect_err("refused")
                .to_string();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
        let folder = written(serde_json::json!({}));
        std::fs::write(folder.path().join(SETTINGS), "{\"r\": ").expect("written");
        assert!(opened(&folder, |_| {}).await.is_err());
    }
}
