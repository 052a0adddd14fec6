//! How many parameters the modules of a stage have.

use super::{ParamSpec, specs};
use crate::job::{Model, Stage};

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

/// Parameters of `stage` by module, the trained ones first.
#[must_use]
pub fn module_counts(model: &Model, vocab: u32, stage: &Stage) -> Vec<ModuleCount> {
    let mut modules = by_module(&specs::trained_by(model, vocab, stage), true);
    modules.extend(by_module(&specs::frozen_by(model, vocab, stage), false));
    modules
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
        "query_tokens" | "qformer" => "q_former",
        "memory" => name.split(".layers.").next().unwrap_or(name),
        _ => first,
    }
}
