//! The parameters of every module, in a fixed order.
//!
//! ```text
//! model.embed_tokens.weight                                    [vocab, d]
//! model.layers.0.{self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj}.weight
//! model.layers.0.{input_layernorm, post_attention_layernorm}.weight [d]
//! model.norm.weight [d]     lm_head.weight [vocab, d] (absent when tied)
//! vision_model.*  visual_projection.weight                     as CLIPVisionModelWithProjection
//! text_tower.*  text_projection.weight [e, t]  logit_scale []  text side of the bootstrap CLIP
//! query_tokens  qformer.*                                      patch features -> queries, if the
//!                                                              bridge is a Q-Former
//! bridge.{weight [d, v], bias [d]}                             patch feature, or query -> soft token
//! memory.<stage>.layers.0.{gate,up}_proj.weight [w, d], down_proj.weight [d, w]
//! retrieval.{text_projection.weight [s, d], image_projection.weight [s, e],
//!            log_inverse_temperature []}
//! retrieval.blocks.3.*                                         a head read after block 3 (from 1)
//! experts.layers.0.router.{weight [n, d], bias [n]}
//! experts.layers.0.<mlp | memory stage | self_attn>.<matrix>.{lora_a [r, in], lora_b [out, r]}
//! ```

use super::q_former::q_former;
use super::{Init, ParamSpec};
use crate::job::{
    Decoder, Experts, MemoryForm, Model, Retrieval, Stage, StageKind, TextTower, Vision,
};

/// Names that a memory stage must not have, since they stand beside the experts' names.
pub const RESERVED_EXPERT_NAMES: [&str; 3] = ["mlp", "router", "self_attn"];

/// Standard deviation of embeddings (GPT-2's and LLaMA's).
const EMBEDDING_STD: f32 = 0.02;

/// A normal with the variance of PyTorch's default for linear layers, `1 / (3 fan_in)`.
fn fan_in(inputs: usize) -> Init {
    Init::Normal {
        std: (1.0 / (3.0 * inputs as f32)).sqrt(),
    }
}

/// The same for a matrix that writes into the residual stream, which adds up `2 layers` of them.
fn residual(inputs: usize, layers: usize) -> Init {
    Init::Normal {
        std: (1.0 / (6.0 * inputs as f32 * layers as f32)).sqrt(),
    }
}

fn scaled(init: Init, gain: f64) -> Init {
    match init {
        Init::Normal { std } => normal((f64::from(std) * gain) as f32),
        other => other,
    }
}

pub(super) fn normal(std: f32) -> Init {
    Init::Normal { std }
}

/// The language model.
pub fn decoder(shape: &Decoder, vocab: u32) -> Vec<ParamSpec> {
    let (d, vocab) = (shape.hidden_size as usize, vocab as usize);
    let mut specs = vec![ParamSpec::new(
        "model.embed_tokens.weight",
        &[vocab, d],
        normal(EMBEDDING_STD),
    )];
    decoder_blocks("model", &Blocks::from(shape), &mut specs);
    specs.push(ParamSpec::new("model.norm.weight", &[d], Init::Ones));
    if !shape.tie_word_embeddings {
        specs.push(ParamSpec::new(
            "lm_head.weight",
            &[vocab, d],
            normal(EMBEDDING_STD),
        ));
    }
    specs
}

/// The text side of the bootstrap CLIP: its own embedding and decoder blocks, its projection
/// into the space of the global image feature, and CLIP's `logit_scale`. Nothing where the model has
/// none.
pub fn text_tower(model: &Model, vocab: u32) -> Vec<ParamSpec> {
    let Some(shape) = &model.text_tower else {
        return Vec::new();
    };
    let (t, e) = (
        shape.hidden_size as usize,
        model.vision.projection_dim as usize,
    );
    let vocab = vocab as usize;
    let mut specs = vec![ParamSpec::new(
        "text_tower.embed_tokens.weight",
        &[vocab, t],
        normal(EMBEDDING_STD),
    )];
    decoder_blocks("text_tower", &Blocks::from(shape), &mut specs);
    specs.push(ParamSpec::new("text_tower.norm.weight", &[t], Init::Ones));
    specs.push(ParamSpec::new("text_projection.weight", &[e, t], fan_in(t)));
    specs.push(ParamSpec::new(
        "logit_scale",
        &[],
        Init::Constant((1.0_f32 / 0.07).ln()),
    ));
    specs
}

/// A matrix: name, outputs and inputs.
pub(super) type Matrix = (&'static str, usize, usize);

/// Sizes of a stack of LLaMA blocks.
pub(super) struct Blocks {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    /// All query heads together, and all key or value heads.
    pub(super) query: usize,
    key_value: usize,
    pub(super) intermediate: usize,
    qkv_bias: bool,
}

impl From<&Decoder> for Blocks {
    fn from(shape: &Decoder) -> Self {
        let head = shape.head() as usize;
        Self {
            layers: shape.num_hidden_layers as usize,
            hidden: shape.hidden_size as usize,
            query: head * shape.num_attention_heads as usize,
            key_value: head * shape.num_key_value_heads as usize,
            intermediate: shape.intermediate_size as usize,
            qkv_bias: shape.qkv_bias,
        }
    }
}

impl From<&TextTower> for Blocks {
    fn from(shape: &TextTower) -> Self {
        Self {
            layers: shape.num_hidden_layers as usize,
            hidden: shape.hidden_size as usize,
            query: shape.hidden_size as usize,
            key_value: shape.hidden_size as usize,
            intermediate: shape.intermediate_size as usize,
            qkv_bias: false,
        }
    }
}

impl Blocks {
    /// The attention's matrices.
    pub(super) fn attention(&self) -> [Matrix; 4] {
        let (d, q, kv) = (self.hidden, self.query, self.key_value);
        [
            ("q_proj", q, d),
            ("k_proj", kv, d),
            ("v_proj", kv, d),
            ("o_proj", d, q),
        ]
    }
}

/// The matrices of a gated network, or of a plain one.
pub(super) fn feed_forward(form: MemoryForm, d: usize, width: usize) -> Vec<Matrix> {
    let mut matrices = vec![("up_proj", width, d), ("down_proj", d, width)];
    if form == MemoryForm::Gated {
        matrices.insert(0, ("gate_proj", width, d));
    }
    matrices
}

fn decoder_blocks(prefix: &str, blocks: &Blocks, specs: &mut Vec<ParamSpec>) {
    let (d, layers) = (blocks.hidden, blocks.layers);
    for layer in 0..layers {
        let at = format!("{prefix}.layers.{layer}");
        let init = |name: &str, inputs| match name {
            "o_proj" | "down_proj" => residual(inputs, layers),
            _ => fan_in(inputs),
        };
        for (name, out, inputs) in blocks.attention() {
            let name_of = format!("{at}.self_attn.{name}.weight");
            specs.push(ParamSpec::new(name_of, &[out, inputs], init(name, inputs)));
            if blocks.qkv_bias && name != "o_proj" {
                let name_of = format!("{at}.self_attn.{name}.bias");
                specs.push(ParamSpec::new(name_of, &[out], Init::Zeros));
            }
        }
        for (name, out, inputs) in feed_forward(MemoryForm::Gated, d, blocks.intermediate) {
            let name_of = format!("{at}.mlp.{name}.weight");
            specs.push(ParamSpec::new(name_of, &[out, inputs], init(name, inputs)));
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            specs.push(ParamSpec::new(
                format!("{at}.{norm}.weight"),
                &[d],
                Init::Ones,
            ));
        }
    }
}

/// The visual encoder. Starts as Hugging Face's CLIP does.
pub fn vision(shape: &Vision) -> Vec<ParamSpec> {
    let (v, patch) = (shape.hidden_size as usize, shape.patch_size as usize);
    let side = (shape.image_size / shape.patch_size.max(1)) as usize;
    let width_std = (v as f32).powf(-0.5);
    let embeddings = "vision_model.embeddings";
    let mut specs = vec![
        ParamSpec::new(
            format!("{embeddings}.class_embedding"),
            &[v],
            normal(width_std),
        ),
        ParamSpec::new(
            format!("{embeddings}.patch_embedding.weight"),
            &[v, 3, patch, patch],
            normal(EMBEDDING_STD),
        ),
        ParamSpec::new(
            format!("{embeddings}.position_embedding.weight"),
            &[side * side + 1, v],
            normal(EMBEDDING_STD),
        ),
    ];
    layer_norm("vision_model.pre_layrnorm", v, &mut specs);
    for layer in 0..shape.num_hidden_layers {
        vision_block(
            &format!("vision_model.encoder.layers.{layer}"),
            shape,
            &mut specs,
        );
    }
    layer_norm("vision_model.post_layernorm", v, &mut specs);
    let e = shape.projection_dim as usize;
    specs.push(ParamSpec::new(
        "visual_projection.weight",
        &[e, v],
        normal(width_std),
    ));
    specs
}

fn vision_block(at: &str, shape: &Vision, specs: &mut Vec<ParamSpec>) {
    let (v, width) = (shape.hidden_size as usize, shape.intermediate_size as usize);
    let width_std = (v as f32).powf(-0.5);
    let deep_std = width_std * (2.0 * shape.num_hidden_layers as f32).powf(-0.5);
    for (name, out, inputs, std) in [
        ("self_attn.q_proj", v, v, deep_std),
        ("self_attn.k_proj", v, v, deep_std),
        ("self_attn.v_proj", v, v, deep_std),
        ("self_attn.out_proj", v, v, width_std),
        ("mlp.fc1", width, v, (2.0 * v as f32).powf(-0.5)),
        ("mlp.fc2", v, width, deep_std),
    ] {
        specs.push(ParamSpec::new(
            format!("{at}.{name}.weight"),
            &[out, inputs],
            normal(std),
        ));
        specs.push(ParamSpec::new(
            format!("{at}.{name}.bias"),
            &[out],
            Init::Zeros,
        ));
    }
    layer_norm(&format!("{at}.layer_norm1"), v, specs);
    layer_norm(&format!("{at}.layer_norm2"), v, specs);
}

pub(super) fn layer_norm(at: &str, width: usize, specs: &mut Vec<ParamSpec>) {
    specs.push(ParamSpec::new(format!("{at}.weight"), &[width], Init::Ones));
    specs.push(ParamSpec::new(format!("{at}.bias"), &[width], Init::Zeros));
}

/// The bridge's linear layer, from each patch feature or each of the Q-Former's queries to one soft token.
pub fn bridge(model: &Model) -> Vec<ParamSpec> {
    let d = model.decoder.hidden_size as usize;
    let v = match model.q_former() {
        Some(shape) => shape.hidden_size as usize,
        None => model.vision.hidden_size as usize,
    };
    vec![
        ParamSpec::new("bridge.weight", &[d, v], fan_in(v)),
        ParamSpec::new("bridge.bias", &[d], Init::Zeros),
    ]
}

/// The bridge's Q-Former, if it has one and it is `trained` or not.
fn q_former_of(model: &Model, trained: bool) -> Vec<ParamSpec> {
    let shape = model.q_former();
    let shape = shape.filter(|shape| shape.train_q_former == trained);
    shape.map_or_else(Vec::new, |shape| q_former(shape, model.vision.hidden_size))
}

/// The modular visual memory that the stage called `stage` stores into or brings.
pub fn memory(model: &Model, stage: &str) -> Vec<ParamSpec> {
    let d = model.decoder.hidden_size as usize;
    let shape = model.memory_of(stage);
    let layers = model.decoder.num_hidden_layers as usize;
    let mut specs = Vec::new();
    for layer in 0..layers {
        for (name, out, inputs) in feed_forward(shape.form, d, shape.width as usize) {
            let init = if name == "down_proj" {
                residual(inputs, layers)
            } else {
                scaled(fan_in(inputs), shape.gain)
            };
            let name_of = format!("memory.{stage}.layers.{layer}.{name}.weight");
            specs.push(ParamSpec::new(name_of, &[out, inputs], init));
        }
    }
    specs
}

/// Prefixes of the retrieval heads with the block (from 1) after which each reads: the extra
/// blocks in ascending order, the last block at the end.
pub fn retrieval_heads(model: &Model) -> Vec<(u32, String)> {
    let last = model.decoder.num_hidden_layers;
    let mut blocks: Vec<u32> = model
        .retrieval
        .extra_blocks
        .iter()
        .copied()
        .filter(|block| *block != last)
        .collect();
    blocks.sort_unstable();
    blocks.dedup();
    let mut heads: Vec<(u32, String)> = blocks
        .into_iter()
        .map(|block| (block, format!("retrieval.blocks.{block}")))
        .collect();
    heads.push((last, "retrieval".to_owned()));
    heads
}

/// The retrieval heads.
pub fn retrieval(model: &Model) -> Vec<ParamSpec> {
    let d = model.decoder.hidden_size as usize;
    let e = model.vision.projection_dim as usize;
    let Retrieval {
        dim,
        temperature,
        learn_temperature,
        project_images,
        ..
    } = model.retrieval;
    let dim = dim as usize;
    let mut specs = Vec::new();
    for (_, at) in retrieval_heads(model) {
        specs.push(ParamSpec::new(
            format!("{at}.text_projection.weight"),
            &[dim, d],
            fan_in(d),
        ));
        if project_images {
            specs.push(ParamSpec::new(
                format!("{at}.image_projection.weight"),
                &[dim, e],
                fan_in(e),
            ));
        }
        if learn_temperature {
            let start = Init::Constant(-(temperature.ln()) as f32);
            specs.push(ParamSpec::new(
                format!("{at}.log_inverse_temperature"),
                &[],
                start,
            ));
        }
    }
    specs
}

/// The adapters and routers of an `experts` stage. A stage without memories has no routers; a
/// block whose router is not trained has none here and keeps its starting scores.
pub fn experts(model: &Model, settings: &Experts) -> Vec<ParamSpec> {
    let d = model.decoder.hidden_size as usize;
    let count = settings.memories.len() + 1;
    let mut bias = vec![settings.router_bias as f32; count];
    bias[0] = 0.0;
    let mut specs = Vec::new();
    for layer in 0..model.decoder.num_hidden_layers {
        let at = format!("experts.layers.{layer}");
        if count > 1 && chosen(&settings.router_blocks, layer) {
            specs.push(ParamSpec::new(
                format!("{at}.router.weight"),
                &[count, d],
                Init::Zeros,
            ));
            let bias = Init::Values(bias.clone());
            specs.push(ParamSpec::new(format!("{at}.router.bias"), &[count], bias));
        }
        if chosen(&settings.adapter_blocks, layer) {
            adapters(&at, model, settings, &mut specs);
        }
    }
    specs
}

/// Whether `layer` (from 0) is among `blocks` (from 1); an empty list means all.
pub(super) fn chosen(blocks: &[u32], layer: u32) -> bool {
    blocks.is_empty() || blocks.contains(&(layer + 1))
}

fn adapters(at: &str, model: &Model, settings: &Experts, specs: &mut Vec<ParamSpec>) {
    let rank = settings.lora_rank as usize;
    let blocks = Blocks::from(&model.decoder);
    let d = blocks.hidden;
    let mut adapter = |of: &str, (name, out, inputs): (&str, usize, usize)| {
        let matrix = format!("{at}.{of}.{name}");
        specs.push(ParamSpec::new(
            format!("{matrix}.lora_a"),
            &[rank, inputs],
            fan_in(inputs),
        ));
        specs.push(ParamSpec::new(
            format!("{matrix}.lora_b"),
            &[out, rank],
            Init::Zeros,
        ));
    };
    if settings.adapt_attention {
        blocks
            .attention()
            .into_iter()
            .for_each(|matrix| adapter("self_attn", matrix));
    }
    for matrix in feed_forward(MemoryForm::Gated, d, blocks.intermediate) {
        adapter("mlp", matrix);
    }
    for name in &settings.memories {
        let memory = model.memory_of(name);
        for matrix in feed_forward(memory.form, d, memory.width as usize) {
            adapter(name, matrix);
        }
    }
}

/// What `stage` trains, in a fixed order.
pub fn trained_by(model: &Model, vocab: u32, stage: &Stage) -> Vec<ParamSpec> {
    match stage.kind {
        StageKind::Bootstrap => [
            decoder(&model.decoder, vocab),
            vision(&model.vision),
            text_tower(model, vocab),
        ]
        .concat(),
        StageKind::Memory => [
            memory(model, &stage.name),
            bridge(model),
            q_former_of(model, true),
            retrieval(model),
        ]
        .concat(),
        StageKind::Experts => stage
            .experts
            .as_ref()
            .map(|settings| experts(model, settings))
            .unwrap_or_default(),
        StageKind::Pretrained | StageKind::Attach | StageKind::Evaluate => Vec::new(),
    }
}

/// What `stage` reads and leaves as it is.
pub fn frozen_by(model: &Model, vocab: u32, stage: &Stage) -> Vec<ParamSpec> {
    match stage.kind {
        StageKind::Bootstrap | StageKind::Evaluate => Vec::new(),
        StageKind::Pretrained | StageKind::Memory => [
            decoder(&model.decoder, vocab),
            vision(&model.vision),
            q_former_of(model, false),
        ]
        .concat(),
        StageKind::Attach => {
            let bridged = stage.attach.as_ref().is_none_or(|attach| attach.bridge);
            let mut specs = memory(model, &stage.name);
            if bridged {
                let trained = [bridge(model), q_former_of(model, true), retrieval(model)];
                specs.extend(trained.concat());
            }
            specs
        }
        StageKind::Experts => {
            let mut specs = decoder(&model.decoder, vocab);
            let settings = stage.experts.iter();
            for name in settings.clone().flat_map(|settings| &settings.memories) {
                specs.extend(memory(model, name));
            }
            if settings.clone().any(|settings| settings.pictures) {
                specs.extend([vision(&model.vision), bridge(model)].concat());
                specs.extend(q_former_of(model, true));
                specs.extend(q_former_of(model, false));
            }
            specs
        }
    }
}
