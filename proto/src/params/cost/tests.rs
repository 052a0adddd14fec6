//! Parameters and operations beside those that PyTorch counts, from
//! `worker/tests/reference/count_models.py`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{SampleCost, sample_cost};
use crate::job::{Model, Stage, StageKind};
use crate::params::module_counts;

/// A stage of some job as PyTorch counts it.
#[derive(Deserialize)]
struct Counted {
    name: String,
    vocab_size: u32,
    model: Model,
    stage: Stage,
    parameters: BTreeMap<String, u64>,
    trained_parameters: u64,
    flops_per_step: u64,
    kept_numbers: Option<u64>,
}

fn counted() -> Vec<Counted> {
    let text = include_str!("../../../tests/fixtures/counts.json");
    serde_json::from_str(text).unwrap()
}

#[test]
fn parameters_are_those_that_pytorch_counts_module_by_module() {
    for case in counted() {
        let modules = module_counts(&case.model, case.vocab_size, &case.stage);
        let trained = modules.iter().filter(|module| module.trained);
        let trained: u64 = trained.map(|module| module.parameters).sum();
        assert_eq!(trained, case.trained_parameters, "{}", case.name);
        let ours: BTreeMap<_, _> = modules
            .into_iter()
            .map(|module| (module.module, module.parameters))
            .collect();
        assert_eq!(ours, case.parameters, "{}", case.name);
    }
}

#[test]
fn operations_are_those_that_pytorch_counts() {
    for case in counted() {
        let cost = sample_cost(&case.model, case.vocab_size, &case.stage);
        let ours = cost.flops() * u64::from(case.stage.batch_size);
        assert_eq!(ours, case.flops_per_step, "{}", case.name);
        assert_eq!(cost.flops_per_token(), cost.text_flops / cost.tokens);
    }
}

#[test]
fn numbers_are_kept_as_autograd_keeps_them() {
    for case in counted() {
        let cost = sample_cost(&case.model, case.vocab_size, &case.stage);
        let (ours, Some(theirs)) = (cost.kept + cost.logits, case.kept_numbers) else {
            continue;
        };
        let error = ours as f64 / theirs as f64 - 1.0;
        assert!(error.abs() < 0.05, "{}: {ours}, {theirs}", case.name);
    }
}

#[test]
fn a_share_of_captions_costs_as_much_less() {
    let job: crate::job::Job = toml::from_str(include_str!("../../job/sample.toml")).unwrap();
    let stage = job
        .stages
        .iter()
        .find(|stage| stage.kind == StageKind::Memory);
    let mut stage = stage.unwrap().clone();
    let mut with = |share| {
        let mut memory = stage.memory.clone().unwrap_or_default();
        memory.caption_share = share;
        stage.memory = Some(memory);
        sample_cost(&job.model, 100, &stage)
    };
    let (all, half, quarter) = (with(1.0), with(0.5), with(0.25));
    let linear = |flops: fn(&SampleCost) -> u64| {
        let [all, half, quarter] = [&all, &half, &quarter].map(flops);
        let steps = (all - half, half - quarter);
        assert!(steps.0.abs_diff(2 * steps.1) <= 2, "{steps:?}");
        assert_ne!(all, half);
    };
    linear(|cost| cost.text_flops);
    linear(|cost| cost.image_flops);
    assert_eq!(all.tokens, u64::from(job.model.soft_tokens()) + 2 * 16);
}

/// A mixture of memories of different widths costs what lies between the mixtures of equal ones.
#[test]
fn memories_cost_by_their_own_shapes() {
    let cases = counted();
    let is_mixture = |case: &&Counted| {
        let settings = case.stage.experts.as_ref();
        settings.is_some_and(|settings| settings.memories.len() == 2)
    };
    let case = cases.iter().find(is_mixture).expect("a mixture of two");
    let names = case
        .stage
        .experts
        .as_ref()
        .expect("settings")
        .memories
        .clone();
    let cost = |widths: [u32; 2]| {
        let mut model = case.model.clone();
        for (name, width) in names.iter().zip(widths) {
            let memory = crate::job::Memory {
                width,
                ..model.memory.clone()
            };
            model.memories.insert(name.clone(), memory);
        }
        sample_cost(&model, case.vocab_size, &case.stage).flops()
    };
    assert_eq!(2 * cost([8, 40]), cost([8, 8]) + cost([40, 40]));
    assert_ne!(cost([8, 40]), cost([8, 8]));
}
