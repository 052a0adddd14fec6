//! Rules of the stages, and of what one stage takes from another. Stages that bring weights from
//! elsewhere are in [`brought`].

mod brought;

use super::{Rules, is_name};
use crate::job::{Bootstrap, Evaluate, Experts, Job, MemoryStage, Optimizer, Stage, StageKind};

/// What `evaluate.compare` may hold.
const ROLES: [&str; 3] = ["mks2", "lora", "shuffled"];

pub(super) fn check(job: &Job, rules: &mut Rules) {
    rules.require(
        !job.stages.is_empty(),
        "stage",
        "a job without stages trains nothing",
        "add a [[stage]] table; examples/emoji/job.toml shows four kinds",
    );
    for (index, stage) in job.stages.iter().enumerate() {
        Check {
            job,
            earlier: &job.stages[..index],
            stage,
            key: format!("stage.{}", stage.name),
        }
        .all(rules);
    }
    brought::shapes(job, rules);
}

/// One stage in its place.
struct Check<'a> {
    job: &'a Job,
    earlier: &'a [Stage],
    stage: &'a Stage,
    /// Dotted key of the stage.
    key: String,
}

impl Check<'_> {
    fn all(&self, rules: &mut Rules) {
        self.name(rules);
        self.own_table_only(rules);
        self.origin(rules);
        if self.stage.kind.trains() {
            self.training(rules);
        } else {
            rules.require(
                self.stage.steps == 0,
                self.at("steps"),
                format!(
                    "a stage of kind \"{}\" trains nothing",
                    self.stage.kind.name()
                ),
                "leave steps out",
            );
        }
        match self.stage.kind {
            StageKind::Pretrained => {
                self.pretrained(rules, &self.stage.pretrained.clone().unwrap_or_default());
            }
            StageKind::Bootstrap => {
                self.bootstrap(rules, &self.stage.bootstrap.clone().unwrap_or_default());
            }
            StageKind::Memory => {
                self.memory(rules, &self.stage.memory.clone().unwrap_or_default());
            }
            StageKind::Attach => {
                self.attach(rules, &self.stage.attach.clone().unwrap_or_default());
            }
            StageKind::Experts => {
                self.experts(rules, &self.stage.experts.clone().unwrap_or_default());
            }
            StageKind::Evaluate => {
                self.evaluate(rules, &self.stage.evaluate.clone().unwrap_or_default());
            }
        }
    }

    fn at(&self, name: &str) -> String {
        format!("{}.{name}", self.key)
    }

    fn name(&self, rules: &mut Rules) {
        let name = &self.stage.name;
        rules.require(
            is_name(name),
            self.at("name"),
            "names are letters, digits, '-' and '_'",
            "rename the stage",
        );
        rules.require(
            self.earlier.iter().all(|stage| stage.name != *name),
            self.at("name"),
            format!("two stages are called '{name}'"),
            "give each stage a name of its own",
        );
    }

    fn own_table_only(&self, rules: &mut Rules) {
        let stage = self.stage;
        for (kind, word, present) in [
            (
                StageKind::Pretrained,
                "pretrained",
                stage.pretrained.is_some(),
            ),
            (StageKind::Bootstrap, "bootstrap", stage.bootstrap.is_some()),
            (StageKind::Memory, "memory", stage.memory.is_some()),
            (StageKind::Attach, "attach", stage.attach.is_some()),
            (StageKind::Experts, "experts", stage.experts.is_some()),
            (StageKind::Evaluate, "evaluate", stage.evaluate.is_some()),
        ] {
            rules.require(
                !present || stage.kind == kind,
                self.at(word),
                format!("[stage.{word}] belongs to stages of kind \"{word}\" only"),
                format!("take the table out, or set kind = \"{word}\""),
            );
        }
    }

    /// `from` names earlier stages, and weights come from somewhere.
    fn origin(&self, rules: &mut Rules) {
        for name in &self.stage.from {
            self.earlier_stage(rules, "from", name, |_| true, "");
        }
        let needs = self.stage.kind.is_memory() || self.stage.kind == StageKind::Experts;
        rules.require(
            !needs || !self.stage.from.is_empty(),
            self.at("from"),
            "the language model and the visual encoder must come from an earlier stage",
            "name the bootstrap or pretrained stage, for example from = [\"bootstrap\"]",
        );
        let bases = self.bases();
        rules.require(
            bases.len() < 2,
            self.at("from"),
            format!(
                "it builds on several language models: those of {}",
                bases.join(", ")
            ),
            "let it build on one bootstrap or pretrained stage",
        );
        rules.require(
            !self.stage.kind.is_base() || self.stage.from.is_empty(),
            self.at("from"),
            "such a stage brings all weights itself and starts from none",
            "leave from out",
        );
    }

    /// `name` is a stage before this one, of a kind that `fits`; `kind` is the word for it.
    fn earlier_stage(
        &self,
        rules: &mut Rules,
        key: &str,
        name: &str,
        fits: impl Fn(StageKind) -> bool,
        kind: &str,
    ) {
        let fitting = self.earlier.iter().filter(|stage| fits(stage.kind));
        let names: Vec<_> = fitting.map(|stage| stage.name.as_str()).collect();
        let words = if kind.is_empty() { "" } else { " " };
        let cure = if names.is_empty() {
            format!("put a{words}{kind} stage before this one")
        } else {
            format!("write one of: {}", names.join(", "))
        };
        let why = format!(
            "'{name}' is no{words}{kind} stage before '{}'",
            self.stage.name
        );
        rules.require(names.contains(&name), self.at(key), why, cure);
    }

    fn known_corpus(&self, rules: &mut Rules, key: &str, name: &str) {
        let names: Vec<_> = self.job.data.keys().map(String::as_str).collect();
        let cure = if names.is_empty() {
            format!("add [data.{name}] with its url")
        } else {
            format!(
                "add [data.{name}] with its url, or write one of: {}",
                names.join(", ")
            )
        };
        let known = self.job.data.contains_key(name);
        rules.require(
            known,
            self.at(key),
            format!("[data] knows no corpus '{name}'"),
            cure,
        );
    }

    /// Steps, batch, data and optimizer of a stage that trains.
    fn training(&self, rules: &mut Rules) {
        let (stage, lanes) = (self.stage, self.job.lanes.max(1));
        rules.positive(&self.key, "steps", stage.steps);
        rules.positive(&self.key, "batch_size", stage.batch_size.into());
        let lower = (stage.batch_size / lanes).max(1) * lanes;
        rules.require(
            stage.batch_size.is_multiple_of(lanes),
            self.at("batch_size"),
            format!(
                "lanes = {lanes} does not divide batch_size = {}",
                stage.batch_size
            ),
            format!(
                "set batch_size to {lower} or {}, or change lanes",
                lower + lanes
            ),
        );
        rules.require(
            !stage.data.is_empty(),
            self.at("data"),
            "a stage that trains needs samples",
            "add [[stage.data]] with corpus = \"NAME\"",
        );
        for (index, source) in stage.data.iter().enumerate() {
            self.known_corpus(rules, &format!("data.{index}.corpus"), &source.corpus);
            rules.above_zero(&self.at(&format!("data.{index}")), "weight", source.weight);
        }
        optimizer(rules, &self.at("optimizer"), &stage.optimizer);
    }

    fn bootstrap(&self, rules: &mut Rules, settings: &Bootstrap) {
        rules.require(
            self.job.model.text_tower.is_some(),
            "model.text_tower",
            "a bootstrap stage trains a small CLIP, which has a text side",
            "add [model.text_tower]; examples/emoji/job.toml has one",
        );
        self.templates(rules, "bootstrap.texts", &settings.texts);
        self.templates(rules, "bootstrap.clip_texts", &settings.clip_texts);
        let table = self.at("bootstrap");
        rules.within(&table, "shift", settings.shift, (0.0, 0.5));
        rules.within(&table, "view_weight", settings.view_weight, (0.0, 100.0));
        let temperature = settings.view_temperature;
        rules.within(&table, "view_temperature", temperature, (0.01, 100.0));
        rules.within(&table, "whiten", settings.whiten, (0.0, 1.0));
        self.negatives(rules);
    }

    fn memory(&self, rules: &mut Rules, settings: &MemoryStage) {
        let table = self.at("memory");
        let (caption, retrieval) = (settings.caption_weight, settings.retrieval_weight);
        rules.above_zero(&table, "caption_share", settings.caption_share);
        rules.within(&table, "caption_share", settings.caption_share, (0.0, 1.0));
        self.expert_name(rules);
        rules.within(&table, "caption_weight", caption, (0.0, f64::MAX));
        rules.within(&table, "retrieval_weight", retrieval, (0.0, f64::MAX));
        rules.require(
            caption > 0.0 || retrieval > 0.0,
            format!("{table}.caption_weight"),
            "with both weights 0 there is no loss",
            "set caption_weight or retrieval_weight above 0",
        );
        if caption > 0.0 {
            self.templates(rules, "memory.captions", &settings.captions);
        }
        if retrieval > 0.0 {
            self.templates(rules, "memory.retrieval_texts", &settings.retrieval_texts);
            self.negatives(rules);
        }
    }

    /// A contrastive loss compares samples of one step.
    fn negatives(&self, rules: &mut Rules) {
        rules.require(
            self.stage.batch_size != 1,
            self.at("batch_size"),
            "a contrastive loss over one sample is always 0",
            "set batch_size to 2 or more",
        );
    }

    fn experts(&self, rules: &mut Rules, settings: &Experts) {
        let table = self.at("experts");
        for name in &settings.memories {
            let fits = StageKind::is_memory;
            self.earlier_stage(rules, "experts.memories", name, fits, "memory");
        }
        self.inherits(rules, settings);
        rules.require(
            !has_twice(&settings.memories),
            format!("{table}.memories"),
            "a memory is named twice",
            "name each memory once",
        );
        rules.require(
            !settings.shuffle_memory || !settings.memories.is_empty(),
            format!("{table}.shuffle_memory"),
            "there is no memory to shuffle",
            "name a memory stage in memories, or set shuffle_memory = false",
        );
        rules.positive(&table, "lora_rank", settings.lora_rank.into());
        rules.above_zero(&table, "lora_alpha", settings.lora_alpha);
        rules.within(&table, "lora_dropout", settings.lora_dropout, (0.0, 0.99));
        rules.within(&table, "router_bias", settings.router_bias, (-50.0, 50.0));
        let layers = self.job.model.decoder.num_hidden_layers;
        blocks(
            rules,
            format!("{table}.adapter_blocks"),
            &settings.adapter_blocks,
            layers,
        );
        blocks(
            rules,
            format!("{table}.router_blocks"),
            &settings.router_blocks,
            layers,
        );
        self.adapter(rules, settings);
        self.template(rules, "experts.question", &settings.question);
        self.template(rules, "experts.answer", &settings.answer);
    }

    fn evaluate(&self, rules: &mut Rules, settings: &Evaluate) {
        if let Some(name) = &settings.memory {
            let fits = StageKind::is_memory;
            self.earlier_stage(rules, "evaluate.memory", name, fits, "memory");
            self.has_bridge(rules, name);
            rules.require(
                settings.corpus.is_some(),
                self.at("evaluate.corpus"),
                "retrieval and captions are measured on a corpus",
                "set corpus to a name in [data]",
            );
        }
        for (key, corpus) in [
            ("evaluate.corpus", &settings.corpus),
            ("evaluate.questions", &settings.questions),
            ("evaluate.train_questions", &settings.train_questions),
        ] {
            if let Some(name) = corpus {
                self.known_corpus(rules, key, name);
            }
        }
        if let Some(text) = &settings.retrieval_text {
            self.template(rules, "evaluate.retrieval_text", text);
        }
        self.comparison(rules, settings);
        rules.require(
            settings.tasks.is_empty() || settings.asked(false).is_some(),
            self.at("evaluate.tasks"),
            "tasks need a stage that is asked",
            "name an experts stage in compare.mks2, or a memory stage in memory",
        );
        rules.require(
            settings.tasks.iter().all(|task| !task.trim().is_empty()),
            self.at("evaluate.tasks"),
            "the name of a task file is empty",
            "write where the file is, relative to the job file",
        );
    }

    fn comparison(&self, rules: &mut Rules, settings: &Evaluate) {
        for (role, name) in &settings.compare {
            let key = format!("evaluate.compare.{role}");
            rules.require(
                ROLES.contains(&role.as_str()),
                self.at(&key),
                format!("'{role}' is none of the compared roles"),
                format!("use the keys {}", ROLES.join(", ")),
            );
            let fits = |kind| kind == StageKind::Experts;
            self.earlier_stage(rules, &key, name, fits, "experts");
        }
        rules.require(
            settings.compare.is_empty() || settings.questions.is_some(),
            self.at("evaluate.questions"),
            "experts stages are compared on held-out questions",
            "set questions to a corpus in [data]",
        );
    }

    fn templates(&self, rules: &mut Rules, key: &str, templates: &[String]) {
        rules.require(
            !templates.is_empty(),
            self.at(key),
            "the list is empty",
            "write at least one text, for example [\"{caption}\"]",
        );
        for template in templates {
            self.template(rules, key, template);
        }
    }

    fn template(&self, rules: &mut Rules, key: &str, template: &str) {
        if let Err(why) = well_formed(template) {
            let cure = "write fields of the row in braces, for example \"a picture of {caption}\"";
            rules.require(false, self.at(key), format!("\"{template}\": {why}"), cure);
        }
    }
}

/// Block numbers count from 1, each at most once.
pub(super) fn blocks(rules: &mut Rules, key: String, numbers: &[u32], layers: u32) {
    let outside = numbers
        .iter()
        .find(|number| !(1..=layers).contains(*number));
    rules.require(
        outside.is_none(),
        key.clone(),
        format!(
            "block {} is outside the decoder's 1 to {layers}",
            outside.copied().unwrap_or(0)
        ),
        format!("write numbers from 1 to {layers}"),
    );
    rules.require(
        !has_twice(numbers),
        key,
        "a block is named twice",
        "name each block once",
    );
}

fn optimizer(rules: &mut Rules, table: &str, settings: &Optimizer) {
    rules.above_zero(table, "lr", settings.lr);
    rules.within(table, "min_lr_ratio", settings.min_lr_ratio, (0.0, 1.0));
    for (name, beta) in [("beta1", settings.beta1), ("beta2", settings.beta2)] {
        rules.require(
            (0.0..1.0).contains(&beta),
            format!("{table}.{name}"),
            format!("{beta} is not in [0, 1)"),
            format!("set {name} to a number from 0 to below 1, for example 0.9"),
        );
    }
    rules.above_zero(table, "eps", settings.eps);
    rules.within(
        table,
        "weight_decay",
        settings.weight_decay,
        (0.0, f64::MAX),
    );
    rules.within(table, "clip_norm", settings.clip_norm, (0.0, f64::MAX));
}

/// Braces come in pairs and hold a name.
fn well_formed(template: &str) -> Result<(), &'static str> {
    if template.trim().is_empty() {
        return Err("the text is empty");
    }
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let after = rest[at..]
            .strip_prefix('{')
            .ok_or("a '}' without its '{'")?;
        let end = after.find(['{', '}']).ok_or("a '{' without its '}'")?;
        if after[end..].starts_with('{') {
            return Err("a '{' without its '}'");
        }
        if after[..end].trim().is_empty() {
            return Err("braces without a name");
        }
        rest = &after[end + 1..];
    }
    Ok(())
}

fn has_twice<T: PartialEq>(items: &[T]) -> bool {
    items
        .iter()
        .enumerate()
        .any(|(index, item)| items[..index].contains(item))
}
