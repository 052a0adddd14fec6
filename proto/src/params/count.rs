//! How many parameters a stage has, and what a token costs.
//!
//! The rule of thumb (Kaplan et al. 2020, appendix B; Hoffmann et al. 2022): a token costs 2
//! FLOPs per weight forward and 4 backward, half of these for the weight's gradient and half for
//! the input's. So a trained weight costs 6, a frozen weight through which the gradient passes 4,
//! a frozen weight that only runs forward 2. Look-ups (embeddings) and the attention's products
//! of activations are not counted.

use super::{ParamSpec, numel, specs};
use crate::job::{Model, Stage, StageKind};

/// Parameters of one module of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleCount {
    /// Name of the module, as the parameters' names begin.
    pub module: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Whether the stage trains them.
    pub trained: bool,
}

/// What a stage holds and what it computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageCost {
    /// Parameters by module, the trained ones first.
    pub modules: Vec<ModuleCount>,
    /// Floating-point operations of one step's forward and backward per token that passes
    /// through the language model (a soft token counts as a token).
    pub flops_per_token: u64,
    /// The same per picture: visual encoder and bridge.
    pub flops_per_image: u64,
}

impl StageCost {
    /// Parameters that the stage trains.
    pub fn trained(&self) -> u64 {
        self.modules
            .iter()
            .filter(|m| m.trained)
            .map(|m| m.parameters)
            .sum()
    }

    /// Parameters that the stage reads and leaves as they are.
    pub fn frozen(&self) -> u64 {
        self.modules
            .iter()
            .filter(|m| !m.trained)
            .map(|m| m.parameters)
            .sum()
    }
}

/// Counts the parameters of `stage` and the operations per token.
pub fn stage_cost(model: &Model, vocab: u32, stage: &Stage) -> StageCost {
    let trained = specs::trained_by(model, vocab, stage);
    let frozen = specs::frozen_by(model, vocab, stage);
    let mut modules = by_module(&trained, true);
    modules.extend(by_module(&frozen, false));
    let decoder = specs::decoder(&model.decoder, vocab);
    let mlp = matching(&decoder, |name| name.contains(".mlp."));
    let rest = matching(&decoder, |name| {
        !name.contains(".mlp.") && name.starts_with("model.la")
    }) + head(model, vocab);
    let patches = u64::from(model.vision.image_size / model.vision.patch_size.max(1)).pow(2);
    let vision = numel(&specs::vision(&model.vision));
    let (flops_per_token, flops_per_image) = match stage.kind {
        StageKind::Bootstrap => (6 * (rest + mlp), 6 * vision * patches),
        StageKind::Memory => (
            6 * numel(&specs::memory(model, &stage.name)) + 4 * rest,
            (2 * vision + 6 * numel(&specs::bridge(model))) * patches,
        ),
        StageKind::Experts => {
            let memories = matching(&frozen, |name| name.starts_with("memory."));
            let seen = matching(&frozen, |name| {
                name.starts_with("vis") || name.starts_with("br")
            });
            (
                6 * numel(&trained) + 4 * (rest + mlp + memories),
                2 * seen * patches,
            )
        }
        StageKind::Pretrained | StageKind::Attach => (0, 0),
        StageKind::Evaluate => (2 * (rest + mlp), 2 * vision * patches),
    };
    StageCost {
        modules,
        flops_per_token,
        flops_per_image,
    }
}

/// Weights of the output head; the embedding's when they are shared.
fn head(model: &Model, vocab: u32) -> u64 {
    u64::from(vocab) * u64::from(model.decoder.hidden_size)
}

fn matching(specs: &[ParamSpec], wanted: impl Fn(&str) -> bool) -> u64 {
    specs
        .iter()
        .filter(|spec| wanted(&spec.name))
        .map(|spec| spec.numel() as u64)
        .sum()
}

/// Sums by the first part of the name, in order of appearance; a memory keeps its stage's name.
fn by_module(specs: &[ParamSpec], trained: bool) -> Vec<ModuleCount> {
    let mut modules: Vec<ModuleCount> = Vec::new();
    for spec in specs {
        let module = module_of(&spec.name);
        match modules.iter_mut().find(|count| count.module == module) {
            Some(count) => count.parameters += spec.numel() as u64,
            None => modules.push(ModuleCount {
                module: module.to_owned(),
                parameters: spec.numel() as u64,
                trained,
            }),
        }
    }
    modules
}

fn module_of(name: &str) -> &str {
    let first = name.split('.').next().unwrap_or(name);
    match first {
        "model" | "lm_head" => "decoder",
        "vision_model" | "visual_projection" => "vision",
        "text_tower" | "text_projection" | "logit_scale" => "text_tower",
        "memory" => name.split(".layers.").next().unwrap_or(name),
        _ => first,
    }
}
