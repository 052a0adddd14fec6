//! Rules of stages that bring weights from elsewhere, and of what others build on them.

use super::{Check, Rules};
use crate::ids::{DIGEST, is_digest};
use crate::job::{Attach, Experts, Job, Pretrained, Stage, StageKind};
use crate::params::RESERVED_EXPERT_NAMES;

/// `[model.memories]` speaks of memories that there are.
pub(super) fn shapes(job: &Job, rules: &mut Rules) {
    let memories = job.stages.iter().filter(|stage| stage.kind.is_memory());
    let names: Vec<&str> = memories.map(|stage| stage.name.as_str()).collect();
    for (name, shape) in &job.model.memories {
        let table = format!("model.memories.{name}");
        rules.require(
            names.contains(&name.as_str()),
            table.clone(),
            format!("no memory or attach stage is called '{name}'"),
            match names.is_empty() {
                true => "take the table out".to_owned(),
                false => format!("write one of: {}", names.join(", ")),
            },
        );
        rules.positive(&table, "width", shape.width.into());
        rules.above_zero(&table, "gain", shape.gain);
    }
}

impl Check<'_> {
    pub(super) fn pretrained(&self, rules: &mut Rules, settings: &Pretrained) {
        for (name, url) in [("decoder", &settings.decoder), ("vision", &settings.vision)] {
            rules.require(
                !url.trim().is_empty(),
                self.at(&format!("pretrained.{name}")),
                "it is empty",
                "write where the folder with config.json and safetensors is: a path, or s3://..., \
                 gs://..., az://...",
            );
        }
        self.reads_no_samples(rules);
    }

    pub(super) fn attach(&self, rules: &mut Rules, settings: &Attach) {
        rules.require(
            !settings.memory.trim().is_empty(),
            self.at("attach.memory"),
            "it is empty",
            "write where `mks2 memory export` has put the memory: a path, or s3://..., gs://..., \
             az://...",
        );
        rules.require(
            settings.id.as_deref().is_none_or(is_digest),
            self.at("attach.id"),
            format!("an id is {DIGEST} hexadecimal digits"),
            "write the id that `mks2 memory show` prints, or leave it out",
        );
        self.expert_name(rules);
        self.reads_no_samples(rules);
    }

    /// Where the adapters of an experts stage start from.
    pub(super) fn adapter(&self, rules: &mut Rules, settings: &Experts) {
        let (adapter, id) = (settings.adapter.as_deref(), settings.adapter_id.as_deref());
        rules.require(
            adapter.is_none_or(|url| !url.trim().is_empty()),
            self.at("experts.adapter"),
            "it is empty",
            "write where the folder with adapter_config.json is, or leave it out",
        );
        rules.require(
            id.is_none_or(is_digest),
            self.at("experts.adapter_id"),
            format!("an id is {DIGEST} hexadecimal digits"),
            "write the id that `mks2 export peft` prints, or leave it out",
        );
        rules.require(
            id.is_none() || adapter.is_some(),
            self.at("experts.adapter_id"),
            "it is the id of adapters that start from elsewhere, and these start from nothing",
            "name their folder in adapter, or leave adapter_id out",
        );
    }

    fn reads_no_samples(&self, rules: &mut Rules) {
        rules.require(
            self.stage.data.is_empty(),
            self.at("data"),
            format!(
                "a stage of kind \"{}\" reads no samples",
                self.stage.kind.name()
            ),
            "leave data out",
        );
    }

    /// A memory's name stands beside those of a block's other parts.
    pub(super) fn expert_name(&self, rules: &mut Rules) {
        let name = self.stage.name.as_str();
        rules.require(
            !RESERVED_EXPERT_NAMES.contains(&name),
            self.at("name"),
            format!("'{name}' already means another part of a block"),
            "give the memory stage another name",
        );
    }

    /// Retrieval and captions need what was trained beside the memory.
    pub(super) fn has_bridge(&self, rules: &mut Rules, name: &str) {
        let named = self.earlier.iter().find(|stage| stage.name == name);
        let attach = named.and_then(|stage| stage.attach.as_ref());
        rules.require(
            attach.is_none_or(|attach| attach.bridge),
            self.at("evaluate.memory"),
            format!("stage '{name}' brings neither bridge nor retrieval head"),
            format!("set stage.{name}.attach.bridge to true, or name another memory"),
        );
    }

    /// Memories and the bridge of an experts stage are weights of stages that it builds on.
    pub(super) fn inherits(&self, rules: &mut Rules, settings: &Experts) {
        let ancestors = self.ancestors();
        let is_earlier = |name: &str| {
            let mut memories = self.earlier.iter().filter(|stage| stage.kind.is_memory());
            memories.any(|stage| stage.name == name)
        };
        // A name that no earlier memory has is told by its own rule.
        for name in settings.memories.iter().filter(|name| is_earlier(name)) {
            rules.require(
                ancestors.iter().any(|stage| stage.name == *name),
                self.at("experts.memories"),
                format!(
                    "'{}' does not build on '{name}', so it has no weights of this memory",
                    self.stage.name
                ),
                format!(
                    "add \"{name}\" to {}, or take it out of memories",
                    self.at("from")
                ),
            );
        }
        rules.require(
            !settings.pictures || ancestors.iter().any(|stage| has_bridge(stage)),
            self.at("experts.pictures"),
            format!(
                "none of the stages that '{}' builds on brings a bridge, which shows pictures to the \
                 language model",
                self.stage.name
            ),
            self.way_to_a_bridge(),
        );
    }

    fn way_to_a_bridge(&self) -> String {
        let bridges = self.earlier.iter().filter(|stage| has_bridge(stage));
        let names: Vec<_> = bridges.map(|stage| stage.name.as_str()).collect();
        if names.is_empty() {
            return "put a memory stage before this one and name it in from, set bridge = true in \
                    [stage.attach], or set pictures = false"
                .to_owned();
        }
        format!(
            "add one of them to {}: {}; or set pictures = false",
            self.at("from"),
            names.join(", ")
        )
    }

    /// Stages that bring a language model, among those that this one builds on. An evaluation may look
    /// at several.
    pub(super) fn bases(&self) -> Vec<&str> {
        let is_one = |stage: &&&Stage| stage.kind.is_base();
        if self.stage.kind == StageKind::Evaluate {
            return Vec::new();
        }
        let ancestors = self.ancestors();
        let bases = ancestors.iter().filter(is_one);
        bases.map(|stage| stage.name.as_str()).collect()
    }

    /// Stages that this one builds on, the latest first. A job that is not sound may build in circles, so
    /// only what stands before a stage counts.
    fn ancestors(&self) -> Vec<&Stage> {
        let mut wanted: Vec<&str> = self.stage.from.iter().map(String::as_str).collect();
        let mut ancestors = Vec::new();
        // Stages stand behind those that they start from, so one look back at each is enough.
        for stage in self.earlier.iter().rev() {
            if wanted.contains(&stage.name.as_str()) {
                wanted.extend(stage.from.iter().map(String::as_str));
                ancestors.push(stage);
            }
        }
        ancestors
    }
}

/// Whether what the stage leaves can be shown pictures.
fn has_bridge(stage: &Stage) -> bool {
    match stage.kind {
        StageKind::Memory => true,
        StageKind::Attach => stage.attach.clone().unwrap_or_default().bridge,
        _ => false,
    }
}
