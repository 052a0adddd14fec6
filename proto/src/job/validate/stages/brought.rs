//! Rules of stages that bring weights from elsewhere, and of what others build on them.

use super::{Check, Rules};
use crate::job::{Attach, Job, Pretrained, StageKind};
use crate::params::RESERVED_EXPERT_NAMES;

/// Letters of a digest.
const DIGEST: usize = 64;

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
        let is_digest = |id: &String| {
            id.len() == DIGEST && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        };
        rules.require(
            settings.id.as_ref().is_none_or(is_digest),
            self.at("attach.id"),
            format!("an id is {DIGEST} hexadecimal digits"),
            "write the id that `mks2 memory show` prints, or leave it out",
        );
        self.expert_name(rules);
        self.reads_no_samples(rules);
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

    /// Stages that bring a language model, among those that this one builds on. An evaluation may look
    /// at several.
    pub(super) fn bases(&self) -> Vec<&str> {
        let mut wanted: Vec<&str> = self.stage.from.iter().map(String::as_str).collect();
        let mut bases = Vec::new();
        // Stages stand behind those that they start from, so one look back at each is enough.
        for stage in self.earlier.iter().rev() {
            if wanted.contains(&stage.name.as_str()) {
                wanted.extend(stage.from.iter().map(String::as_str));
                if stage.kind.is_base() && self.stage.kind != StageKind::Evaluate {
                    bases.push(stage.name.as_str());
                }
            }
        }
        bases
    }
}
