//! The adapters of the language model, as [PEFT](https://github.com/huggingface/peft) has them.
//!
//! ```text
//! experts.layers.3.mlp.up_proj.lora_a    base_model.model.model.layers.3.mlp.up_proj.lora_A.weight
//! W x + alpha / r B A x                  the same there: lora_alpha / r
//! ```

use std::path::Path;

use mks2_dataset::pretrained::adapter;
use mks2_dataset::store;
use mks2_proto::export::{Dtype, Written};
use mks2_proto::failure::Failure;
use mks2_proto::params;
use serde_json::json;

use super::{put_json, shards};
use crate::trained::{Half, TrainedModel};

/// Writes the adapters of a stage.
pub(super) fn write(
    trained: &TrainedModel,
    stage: &str,
    folder: &Path,
) -> Result<Written, Failure> {
    let Half::Experts(settings) = &trained.half else {
        return Err(Failure::usage(
            format!("stage '{stage}' has no adapters"),
            "stages of kind \"experts\" alone train some",
            "name one of these with --stage, or write the whole model: mks2 export hf",
        ));
    };
    let mut tensors = Vec::new();
    for spec in params::experts(&trained.model, settings) {
        if let Some(name) = adapter::in_peft(&spec.name) {
            tensors.push((name, trained.weights.get(&spec.name)?));
        }
    }
    let blocks = settings.adapter_blocks.iter();
    let layers: Vec<u32> = blocks.map(|block| block.saturating_sub(1)).collect();
    let described = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": trained.base_url.as_deref().map(store::shown),
        "r": settings.lora_rank,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "target_modules": adapter::targets(settings),
        "layers_to_transform": (!layers.is_empty()).then_some(layers),
        "bias": "none",
        "fan_in_fan_out": false,
        "use_rslora": false,
        "use_dora": false,
        "inference_mode": true,
    });
    put_json(folder, adapter::SETTINGS, &described)?;
    shards::file(&tensors, Dtype::Fp32, &folder.join(adapter::TENSORS))?;
    let parameters = tensors
        .iter()
        .map(|(_, tensor)| tensor.numel() as u64)
        .sum();
    let without =
        "the router and the memories with their adapters; the answers are not those of the stage";
    Ok(Written {
        what: format!("LoRA of rank {} for PEFT", settings.lora_rank),
        parameters,
        bytes: parameters * Dtype::Fp32.bytes(),
        files: 1,
        without: (!settings.memories.is_empty()).then(|| without.to_owned()),
    })
}
