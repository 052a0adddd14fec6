//! Rules that a type alone can not hold: every relation between the values of a job.
//!
//! | part | file |
//! |---|---|
//! | the run, the data, the model | here |
//! | the bridge | [`bridge`] |
//! | the stages | [`stages`] |

mod bridge;
mod stages;

use super::{Decoder, Job, Model, RopeScaling, Stage, StageKind, TextTower, Vision};
use crate::failure::Failure;

/// Most lanes, and with them workers, of a job: their sum has to fit into 64-bit fixed point.
pub const MOST_LANES: u32 = 2000;

/// The smallest vocabulary: every byte, and the special tokens.
pub const SMALLEST_VOCABULARY: u32 = 264;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key whose value is at fault: `stage.memory.batch_size`.
    pub key: String,
    /// Why it can not be, with the numbers.
    pub why: String,
    /// What to write instead.
    pub cure: String,
}

/// Checks every relation between the values of a job.
///
/// # Errors
/// The first broken rule, with [`ExitCode::Settings`](crate::failure::ExitCode::Settings).
pub fn validate(job: &Job) -> Result<(), Failure> {
    match problems(job).into_iter().next() {
        None => Ok(()),
        Some(problem) => Err(Failure::settings(
            format!("{} cannot be used", problem.key),
            problem.why,
            problem.cure,
        )),
    }
}

/// All broken rules, in the order of the job file.
#[must_use]
pub fn problems(job: &Job) -> Vec<Problem> {
    let mut rules = Rules::default();
    run(job, &mut rules);
    data(job, &mut rules);
    model(&job.model, &mut rules);
    bridge::check(job, &mut rules);
    stages::check(job, &mut rules);
    rules.found
}

/// Collects broken rules.
#[derive(Default)]
struct Rules {
    found: Vec<Problem>,
}

impl Rules {
    /// `holds`, or the problem is noted.
    fn require(
        &mut self,
        holds: bool,
        key: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) {
        if !holds {
            self.found.push(Problem {
                key: key.into(),
                why: why.into(),
                cure: cure.into(),
            });
        }
    }

    /// The value is at least 1.
    fn positive(&mut self, table: &str, name: &str, value: u64) {
        let key = format!("{table}.{name}");
        self.require(
            value > 0,
            key,
            "0 leaves nothing to do",
            format!("set {name} to 1 or more"),
        );
    }

    /// `divisor` divides `value`; both belong to `table`.
    fn divides(&mut self, table: &str, divisor: (&str, u32), value: (&str, u32)) {
        let ((small, by), (large, of)) = (divisor, value);
        if by == 0 || of == 0 {
            return;
        }
        self.require(
            of.is_multiple_of(by),
            format!("{table}.{large}"),
            format!("{small} = {by} does not divide {large} = {of}"),
            format!("set {large} to {}, or change {small}", around(of, by)),
        );
    }

    /// As [`divides`](Self::divides), where the divisor is what should change.
    fn divided_by(&mut self, table: &str, value: (&str, u32), divisor: (&str, u32)) {
        let ((small, by), (large, of)) = (divisor, value);
        if by == 0 || of == 0 {
            return;
        }
        let divisors = (1..=of.min(1024)).filter(|part| of.is_multiple_of(*part));
        let divisors: Vec<_> = divisors.map(|part| part.to_string()).collect();
        self.require(
            of.is_multiple_of(by),
            format!("{table}.{small}"),
            format!("{small} = {by} does not divide {large} = {of}"),
            format!("set {small} to one of {}", divisors.join(", ")),
        );
    }

    /// The value is a number from `low` to `high`, both allowed.
    fn within(&mut self, table: &str, name: &str, value: f64, (low, high): (f64, f64)) {
        self.require(
            (low..=high).contains(&value),
            format!("{table}.{name}"),
            format!("{value} is not between {low} and {high}"),
            format!("set {name} to a number between {low} and {high}"),
        );
    }

    /// The value is a finite number above 0.
    fn above_zero(&mut self, table: &str, name: &str, value: f64) {
        self.require(
            value > 0.0 && value.is_finite(),
            format!("{table}.{name}"),
            format!("{value} is not above 0"),
            format!("set {name} to a number above 0"),
        );
    }
}

fn run(job: &Job, rules: &mut Rules) {
    rules.require(
        !job.name.trim().is_empty(),
        "name",
        "an empty name says nothing in status and report",
        "give the job a name",
    );
    rules.require(
        i64::try_from(job.seed).is_ok(),
        "seed",
        format!("TOML ends at {}", i64::MAX),
        "choose a smaller seed",
    );
    rules.require(
        job.lanes > 0,
        "lanes",
        "a run needs at least one lane",
        "set lanes to the largest number of workers you may want, for example 8",
    );
    rules.require(
        job.lanes <= MOST_LANES,
        "lanes",
        format!("sums have room for {MOST_LANES} lanes, not {}", job.lanes),
        "use fewer lanes",
    );
    rules.require(
        job.threads > 0,
        "threads",
        "a worker computes with at least one thread",
        "set threads to the cores of a worker, for example 1",
    );
    rules.require(
        is_device(&job.device),
        "device",
        format!("'{}' is no device", job.device),
        "write \"cpu\", \"cuda\" or \"cuda:N\" with N the number of the GPU",
    );
    let trains_one = |stage: &Stage| stage.kind == StageKind::Bootstrap;
    rules.require(
        job.tokenizer.vocab_size >= SMALLEST_VOCABULARY || !job.stages.iter().any(trains_one),
        "tokenizer.vocab_size",
        format!(
            "{} entries do not hold the 256 bytes and the special tokens",
            job.tokenizer.vocab_size
        ),
        format!("set vocab_size to {SMALLEST_VOCABULARY} or more"),
    );
    rules.positive("tokenizer", "vocab_size", job.tokenizer.vocab_size.into());
    rules.positive("tokenizer", "sample_rows", job.tokenizer.sample_rows);
    rules.positive("checkpoint", "every_steps", job.checkpoint.every_steps);
    rules.require(
        job.checkpoint.keep_last > 0,
        "checkpoint.keep_last",
        "with no checkpoint kept, a run could not be resumed",
        "set keep_last to 1 or more",
    );
}

/// `cpu`, `cuda` or `cuda:N`.
fn is_device(text: &str) -> bool {
    match text.split_once(':') {
        None => text == "cpu" || text == "cuda",
        Some((kind, number)) => {
            kind == "cuda"
                && number.parse::<u16>().is_ok()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        }
    }
}

fn data(job: &Job, rules: &mut Rules) {
    for (name, corpus) in &job.data {
        rules.require(
            is_name(name),
            format!("data.{name}"),
            "names are letters, digits, '-' and '_'",
            "rename the corpus",
        );
        rules.require(
            !corpus.url.trim().is_empty(),
            format!("data.{name}.url"),
            "it is empty",
            "write where `mks2 data import` put the corpus: a path, or s3://..., gs://..., az://...",
        );
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.bytes().all(allowed)
}

fn model(model: &Model, rules: &mut Rules) {
    decoder(&model.decoder, rules);
    vision(&model.vision, rules);
    if let Some(tower) = &model.text_tower {
        text_tower(tower, rules);
    }
    rules.positive("model.memory", "width", model.memory.width.into());
    rules.above_zero("model.memory", "gain", model.memory.gain);
    let table = "model.retrieval";
    rules.positive(table, "dim", model.retrieval.dim.into());
    rules.within(
        table,
        "temperature",
        model.retrieval.temperature,
        (0.01, 100.0),
    );
    let (dim, features) = (model.retrieval.dim, model.vision.projection_dim);
    rules.require(
        model.retrieval.project_images || dim == features,
        format!("{table}.dim"),
        format!(
            "texts of {dim} cannot be compared with image features of {features} (projection_dim)"
        ),
        format!("set dim to {features}, or project_images to true"),
    );
    let blocks = model.decoder.num_hidden_layers;
    stages::blocks(
        rules,
        format!("{table}.extra_blocks"),
        &model.retrieval.extra_blocks,
        blocks,
    );
    rules.require(
        !model.retrieval.extra_blocks.contains(&blocks),
        format!("{table}.extra_blocks"),
        format!("block {blocks} is the last one and is always read"),
        format!("leave {blocks} out"),
    );
}

fn decoder(decoder: &Decoder, rules: &mut Rules) {
    let table = "model.decoder";
    for (name, value) in [
        ("hidden_size", decoder.hidden_size),
        ("intermediate_size", decoder.intermediate_size),
        ("num_hidden_layers", decoder.num_hidden_layers),
        ("num_attention_heads", decoder.num_attention_heads),
        ("num_key_value_heads", decoder.num_key_value_heads),
    ] {
        rules.positive(table, name, value.into());
    }
    let heads = ("num_attention_heads", decoder.num_attention_heads);
    let shared = ("num_key_value_heads", decoder.num_key_value_heads);
    rules.divided_by(table, heads, shared);
    match decoder.head_dim {
        None => rotary_heads(
            rules,
            table,
            decoder.hidden_size,
            decoder.num_attention_heads,
        ),
        Some(size) => rules.require(
            size > 0 && size.is_multiple_of(2),
            "model.decoder.head_dim",
            format!("a head of {size} elements can not be turned in pairs"),
            "set head_dim to an even number",
        ),
    }
    if let Some(window) = decoder.sliding_window {
        rules.positive(table, "sliding_window", window.into());
    }
    rules.above_zero(table, "rope_theta", decoder.rope_theta);
    if let Some(scaling) = &decoder.rope_scaling {
        rope_scaling(scaling, rules);
    }
    rules.above_zero(table, "rms_norm_eps", decoder.rms_norm_eps);
    rules.require(
        decoder.max_text_tokens >= 2,
        "model.decoder.max_text_tokens",
        "the next token can only be predicted where there are two",
        "set max_text_tokens to 2 or more",
    );
}

fn rope_scaling(scaling: &RopeScaling, rules: &mut Rules) {
    let table = "model.decoder.rope_scaling";
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    rules.above_zero(table, "factor", scaling.factor);
    rules.above_zero(table, "low_freq_factor", low);
    rules.positive(
        table,
        "original_max_position_embeddings",
        scaling.original_max_position_embeddings.into(),
    );
    rules.require(
        high > low && high.is_finite(),
        format!("{table}.high_freq_factor"),
        format!("{high} is not above low_freq_factor = {low}"),
        "take both from the config.json of the model",
    );
}

fn vision(vision: &Vision, rules: &mut Rules) {
    let table = "model.vision";
    for (name, value) in [
        ("image_size", vision.image_size),
        ("patch_size", vision.patch_size),
        ("hidden_size", vision.hidden_size),
        ("intermediate_size", vision.intermediate_size),
        ("num_hidden_layers", vision.num_hidden_layers),
        ("num_attention_heads", vision.num_attention_heads),
        ("projection_dim", vision.projection_dim),
    ] {
        rules.positive(table, name, value.into());
    }
    rules.divides(
        table,
        ("patch_size", vision.patch_size),
        ("image_size", vision.image_size),
    );
    let heads = ("num_attention_heads", vision.num_attention_heads);
    rules.divides(table, heads, ("hidden_size", vision.hidden_size));
    rules.above_zero(table, "layer_norm_eps", vision.layer_norm_eps);
}

fn text_tower(tower: &TextTower, rules: &mut Rules) {
    let table = "model.text_tower";
    for (name, value) in [
        ("hidden_size", tower.hidden_size),
        ("intermediate_size", tower.intermediate_size),
        ("num_hidden_layers", tower.num_hidden_layers),
        ("num_attention_heads", tower.num_attention_heads),
    ] {
        rules.positive(table, name, value.into());
    }
    rotary_heads(rules, table, tower.hidden_size, tower.num_attention_heads);
}

/// Heads share the elements of a state evenly, and rotary positions turn pairs of a head's elements.
fn rotary_heads(rules: &mut Rules, table: &str, hidden: u32, heads: u32) {
    if heads == 0 || hidden == 0 {
        return;
    }
    let cure = format!(
        "set hidden_size to {}, or change num_attention_heads",
        around(hidden, heads.saturating_mul(2))
    );
    rules.require(
        hidden.is_multiple_of(heads),
        format!("{table}.hidden_size"),
        format!("num_attention_heads = {heads} does not divide hidden_size = {hidden}"),
        cure.clone(),
    );
    let size = hidden / heads;
    rules.require(
        !hidden.is_multiple_of(heads) || size.is_multiple_of(2),
        format!("{table}.num_attention_heads"),
        format!("a head of {hidden} / {heads} = {size} elements can not be turned in pairs"),
        cure,
    );
}

/// The multiples of `unit` around a number, as words.
fn around(number: u32, unit: u32) -> String {
    let lower = number / unit * unit;
    match lower {
        0 => unit.to_string(),
        lower => format!("{lower} or {}", lower.saturating_add(unit)),
    }
}

#[cfg(test)]
mod tests;
