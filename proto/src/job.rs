//! The job file: one TOML document that says what is trained, on which data and how.
//!
//! The types here are plain data with defaults and units. Reading, merging (`--set`,
//! environment, file) and checking live beside them in [`load`] and [`validate`].

mod attach;
mod evaluate;
mod graph;
mod kind;
pub mod load;
mod model;
pub mod validate;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use attach::Attach;
pub use evaluate::{Evaluate, MKS2};
pub use kind::StageKind;
pub use model::{
    Bridge, BridgeKind, Decoder, Memory, MemoryForm, Model, Retrieval, RopeScaling, RopeType,
    TextTower, Vision, VisionActivation,
};

/// A whole job: the graph of stages and everything that they share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Name of the job, shown in status and report.
    pub name: String,
    /// Seed of every random choice: the plan, initial weights, text templates.
    #[serde(default)]
    pub seed: u64,
    /// Canonical virtual workers. Each contributes `batch_size / lanes` samples to a step,
    /// whatever the number of workers, so that the bits do not depend on it. At most 2,000; a worker
    /// holds at least one.
    #[serde(default = "default_lanes")]
    pub lanes: u32,
    /// How gradients are summed over lanes.
    #[serde(default)]
    pub reduction: Reduction,
    /// `cpu`, `cuda` (the worker's local rank picks the device) or `cuda:N`.
    #[serde(default = "default_device")]
    pub device: String,
    /// Threads of libtorch in each worker. Part of what fixes the bits on a CPU.
    #[serde(default = "default_threads")]
    pub threads: u32,
    /// The numbers that the model computes in. What is trained, its gradients and moments are fp32
    /// in either case; frozen matrices are kept in this precision.
    #[serde(default)]
    pub precision: Precision,
    /// What of the decoder's blocks is computed again in the backward pass instead of kept for it.
    #[serde(default)]
    pub recompute: Recompute,
    /// Corpora by name: what `[[stage.data]]` refers to.
    #[serde(default)]
    pub data: BTreeMap<String, Corpus>,
    /// The tokenizer that a bootstrap stage trains, or that comes with a pretrained model.
    #[serde(default)]
    pub tokenizer: Tokenizer,
    /// Shapes of the model.
    pub model: Model,
    /// When checkpoints are made and which are kept.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// When the workers' copies of the state are compared, and what is done when they differ.
    #[serde(default)]
    pub audit: Audit,
    /// The stages, in the order in which they run.
    #[serde(rename = "stage", default)]
    pub stages: Vec<Stage>,
}

/// How gradients are summed over lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// 64-bit fixed point: the same bits for any number of workers.
    #[default]
    Exact,
    /// Plain fp32 all-reduce: less traffic, bits depend on the number of workers.
    Fast,
}

/// The numbers that a model computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single precision.
    #[default]
    Fp32,
    /// bfloat16, with norms' statistics, scores of routers and losses in fp32.
    Bf16,
}

impl Precision {
    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What is computed again in the backward pass instead of kept for it
/// ([Chen et al. 2016](https://arxiv.org/abs/1604.06174)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// Each block of the decoder: of a block only its input is kept. The weights come out the same.
    Blocks,
}

/// An imported corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Corpus {
    /// Where `mks2 data import` wrote it: a path or any object store URL.
    pub url: String,
}

/// The byte-level BPE tokenizer trained by a bootstrap stage, or that of a pretrained model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tokenizer {
    /// Entries of the vocabulary, the special tokens included; of a pretrained model what its
    /// config.json says, which may be more than its tokenizer has.
    pub vocab_size: u32,
    /// Rows of each corpus, from its beginning, whose texts the tokenizer is trained on.
    pub sample_rows: u64,
}

impl Default for Tokenizer {
    fn default() -> Self {
        Self {
            vocab_size: 2048,
            sample_rows: 100_000,
        }
    }
}

/// When checkpoints are made and which are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Checkpoint {
    /// Steps between two checkpoints inside a stage; each stage also ends in one.
    pub every_steps: u64,
    /// How many of the latest checkpoints inside stages stay; the last of a stage always stays.
    pub keep_last: u32,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            every_steps: 100,
            keep_last: 2,
        }
    }
}

/// When the workers' copies of the state are compared, and what is done when they differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Audit {
    /// Steps between two comparisons inside a stage; there is also one at its end, and before the first
    /// checkpoint after each of them. 0: none at all.
    pub every_steps: u64,
    /// What follows when the copies differ.
    pub on_corruption: OnCorruption,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            every_steps: 100,
            on_corruption: OnCorruption::Rewind,
        }
    }
}

/// What follows when the workers' copies of the state differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnCorruption {
    /// The run goes back to its latest checkpoint before which they were compared, so that nothing
    /// stays of what was computed from damaged weights.
    #[default]
    Rewind,
    /// The worker that differs from most others is ended, and a new one gets their copy; what it
    /// has computed since the last comparison stays. Without a majority the run goes back. Copies are
    /// compared before each checkpoint.
    Evict,
}

/// One stage of the job graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    /// Name, unique in the job.
    pub name: String,
    /// What kind of stage it is; the table of the same name holds its own settings.
    pub kind: StageKind,
    /// Stages from whose last checkpoints this one starts, oldest first.
    #[serde(default)]
    pub from: Vec<String>,
    /// Steps of the optimizer; 0 for `pretrained`, `attach` and `evaluate`.
    #[serde(default)]
    pub steps: u64,
    /// Samples of a step over all lanes; `lanes` divides it.
    #[serde(default = "default_batch_size")]
    pub batch_size: u32,
    /// Where the samples come from.
    #[serde(default)]
    pub data: Vec<Source>,
    /// Optimizer and schedule.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Settings of a `pretrained` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<Pretrained>,
    /// Settings of a `bootstrap` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
    /// Settings of a `memory` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStage>,
    /// Settings of an `attach` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<Attach>,
    /// Settings of an `experts` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// Settings of an `evaluate` stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate: Option<Evaluate>,
}

/// A share of a stage's samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// Name of a corpus in `[data]`.
    pub corpus: String,
    /// Share of the samples, relative to the other sources.
    #[serde(default = "default_weight")]
    pub weight: f64,
}

/// AdamW with warm-up and cosine decay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Optimizer {
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end, as a share of the peak.
    pub min_lr_ratio: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; matrices only, never norms, biases or the temperature.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    pub clip_norm: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            min_lr_ratio: 0.1,
            warmup_steps: 20,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }
}

/// Settings of a `pretrained` stage: folders as Hugging Face ships them, with `config.json` and
/// safetensors. `[model]` and `tokenizer.vocab_size` say what their config.json says:
/// `mks2 model show URL --job` prints the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Pretrained {
    /// The language model with its tokenizer: a path or any object store URL.
    pub decoder: String,
    /// The visual encoder, likewise.
    pub vision: String,
    /// A model as BLIP-2 is published, of which the Q-Former alone is taken, frozen; only for a
    /// `[model.bridge]` of kind `q-former` that is not trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q_former: Option<String>,
    /// Whether a tensor that a model does not know is refused, instead of left out. One that is missing
    /// or of another shape is refused in any case.
    #[serde(skip_serializing_if = "is_true")]
    pub strict: bool,
}

impl Default for Pretrained {
    fn default() -> Self {
        Self {
            decoder: String::new(),
            vision: String::new(),
            q_former: None,
            strict: true,
        }
    }
}

/// A run's resolved job, and with it the job's digest, are those of versions that knew nothing else.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_true(value: &bool) -> bool {
    *value
}

/// Settings of a `bootstrap` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Bootstrap {
    /// Texts of the language model, one chosen by (seed, step, row). Fields of the row stand in
    /// braces: `{caption}`, `{question}`, `{answer}` or a name from its metadata.
    pub texts: Vec<String>,
    /// Texts of the small CLIP, likewise.
    pub clip_texts: Vec<String>,
    /// Largest share of a picture's side by which it is shifted at random (augmentation).
    pub shift: f64,
    /// Weight of a second contrastive loss, between two shifted views of each picture, which
    /// makes the image feature tell pictures with similar texts apart; 0: one view, no such loss.
    pub view_weight: f64,
    /// Temperature of that loss, fixed.
    pub view_temperature: f64,
    /// How far the strengths of the image feature's directions are evened out at the stage's end,
    /// folded into the visual projection: 0 not at all, 1 until all are alike.
    pub whiten: f64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self {
            texts: vec!["{caption}".into()],
            clip_texts: vec!["{caption}".into()],
            shift: 0.0,
            view_weight: 0.0,
            view_temperature: 0.1,
            whiten: 0.0,
        }
    }
}

/// Settings of a `memory` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MemoryStage {
    /// Captions, one chosen by (seed, step, row).
    pub captions: Vec<String>,
    /// Texts of the retrieval loss, one chosen by (seed, step, row).
    pub retrieval_texts: Vec<String>,
    /// Share of each microbatch that is captioned, from its beginning; at least one sample.
    pub caption_share: f64,
    /// Weight of the captioning loss.
    pub caption_weight: f64,
    /// Weight of the retrieval loss.
    pub retrieval_weight: f64,
    /// Each machine keeps in shared memory what the frozen encoder makes of a picture, for later
    /// epochs: `4 * ((image_size / patch_size)^2 * hidden_size + projection_dim) + 32` bytes.
    pub keep_features: bool,
}

impl Default for MemoryStage {
    fn default() -> Self {
        Self {
            captions: vec!["{caption}".into()],
            retrieval_texts: vec!["{caption}".into()],
            caption_share: 1.0,
            caption_weight: 1.0,
            retrieval_weight: 1.0,
            keep_features: false,
        }
    }
}

/// Settings of an `experts` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Experts {
    /// Names of `memory` and `attach` stages whose memories join the MLP in the mixture; the stage builds on
    /// each of them. None: LoRA alone.
    pub memories: Vec<String>,
    /// Permutes each memory's hidden units between its two layers: the control that destroys
    /// what was stored and keeps every statistic of the weights.
    pub shuffle_memory: bool,
    /// Rank of the adapters.
    pub lora_rank: u32,
    /// Scale `alpha`: the adapter's output is multiplied by `alpha / rank`.
    pub lora_alpha: f64,
    /// Share of the adapter's inputs that is dropped in training.
    pub lora_dropout: f64,
    /// A folder as PEFT writes it, at a path or any object store URL: where the adapters of the language
    /// model (MLP, attention) start from, instead of from nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// The adapters' id, to take these and no others; absent: whichever lie there. `mks2 export peft` prints
    /// it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_id: Option<String>,
    /// Adapters on the attention's four projections as well.
    pub adapt_attention: bool,
    /// Blocks (counted from 1) whose experts get adapters; empty: all.
    pub adapter_blocks: Vec<u32>,
    /// Blocks (counted from 1) whose router is trained; empty: all. Every block has the mixture;
    /// a router that is not trained keeps its starting scores.
    pub router_blocks: Vec<u32>,
    /// Score of the memories at the start, before the softmax; the MLP's is 0.
    pub router_bias: f64,
    /// The question, as a template.
    pub question: String,
    /// The answer, as a template; the loss is on its tokens.
    pub answer: String,
    /// Image tokens stand before the question where the row has a picture; the stage builds on one that
    /// brings a bridge. Off: text alone, and pictures are not even read.
    pub pictures: bool,
    /// Put the end token between question and answer, so that the answer is predicted where the
    /// retrieval head reads.
    pub answer_after_end: bool,
}

impl Default for Experts {
    fn default() -> Self {
        Self {
            memories: Vec::new(),
            shuffle_memory: false,
            lora_rank: 16,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            adapter: None,
            adapter_id: None,
            adapt_attention: false,
            adapter_blocks: Vec::new(),
            router_blocks: Vec::new(),
            router_bias: 0.0,
            question: "{question}".into(),
            answer: "{answer}".into(),
            pictures: false,
            answer_after_end: false,
        }
    }
}

fn default_lanes() -> u32 {
    8
}
fn default_device() -> String {
    "cpu".into()
}
fn default_threads() -> u32 {
    1
}
fn default_batch_size() -> u32 {
    64
}
fn default_weight() -> f64 {
    1.0
}
