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
use safetensors::Dtype as Stored;
use serde_json::json;
use tch::Tensor;

use super::{put_json, shards};
use crate::objective::to_floats;
use crate::pretrained::{self, Hashed};
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
    let parameters: u64 = tensors
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
        id: Some(id(&tensors)?),
        without: (!settings.memories.is_empty()).then(|| without.to_owned()),
    })
}

/// The adapters' id: what a stage that starts from them finds in their file.
fn id(tensors: &[(String, Tensor)]) -> Result<String, Failure> {
    let sizes = |tensor: &Tensor| tensor.size().iter().map(|size| *size as usize).collect();
    let shapes: Vec<Vec<usize>> = tensors.iter().map(|(_, tensor)| sizes(tensor)).collect();
    let mut found = Vec::with_capacity(tensors.len());
    for ((name, tensor), shape) in tensors.iter().zip(&shapes) {
        let numbers = to_floats(tensor)?.into_iter();
        let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        found.push(Hashed {
            name,
            dtype: Stored::F32,
            shape,
            bytes: blake3::hash(&bytes),
        });
    }
    Ok(pretrained::digest(found).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use mks2_proto::job::{Experts, load};
    use tch::Device;

    use super::*;
    use crate::model::Weights;
    use crate::text::TextEncoder;

    #[test]
    fn written_adapters_are_taken_in_by_their_id_alone() {
        let job = load::parse(include_str!("../../../proto/src/job/sample.toml")).expect("a job");
        let mut settings = job.stages[2].experts.clone().expect("settings");
        let specs = params::experts(&job.model, &settings);
        let encoder = TextEncoder::train(&["a text".to_owned()], 300, 16).expect("trained");
        let trained = TrainedModel {
            model: job.model.clone(),
            weights: Weights::initial(&specs, 5, Device::Cpu),
            seed: 5,
            encoder: encoder.into(),
            half: Half::Experts(settings.clone().into()),
            positions: 16,
            base_url: None,
        };
        let folder = tempfile::tempdir().expect("a folder");
        let written = write(&trained, "with-memory", folder.path()).expect("written");
        let id = written.id.expect("an id");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        settings.adapter = Some(folder.path().display().to_string());
        settings.adapter_id = Some(id.clone());
        let read = |settings: &Experts| pretrained::adapter(&job.model, settings, runtime.handle());
        let values = read(&settings).expect("its own");
        assert!(!values.is_empty());
        for (name, values) in values {
            let wanted = trained.weights.get(&name).expect("there");
            assert_eq!(values, to_floats(&wanted).expect("numbers"), "{name}");
        }
        let other = "0".repeat(64);
        settings.adapter_id = Some(other.clone());
        let refused = read(&settings).expect_err("others");
        assert!(
            refused.why.contains(&id) && refused.why.contains(&other),
            "{refused}"
        );
        settings.adapter_id = None;
        read(&settings).expect("whichever lie there");
    }
}
