//! What a sample costs in a step: tokens, floating-point operations of forward and backward, and the
//! numbers that are kept in between.
//!
//! Operations are counted as PyTorch's `FlopCounterMode` counts a plain implementation of the method
//! (a test holds the two against each other):
//!
//! ```text
//! y = x W^T        2 * rows * outputs * inputs, forward
//!                  as much again for the gradient of x where one flows on, and for that of W where
//!                  it is trained: a trained weight costs 6 per token, a frozen one 4, or 2
//! q k^T, (..) v    2 * tokens^2 * width each, and twice that backward; the whole square of the
//!                  positions, though half of it is masked
//! ```
//!
//! Look-ups, norms, activations and softmax are not counted. Texts are as long as they may be, with
//! a loss on each of their tokens; where rows may have pictures, all have one. Positions that
//! nothing reads count too, though the worker leaves them out of the last block.
//!
//! Kept is what the backward pass reads again: inputs of norms and of trained matrices, both sides
//! of products with gradients, queries, keys, values and outputs of attention (a fused kernel keeps
//! no scores).

mod bridge;

use super::specs::{self, Blocks, Matrix};
use crate::job::{Experts, MemoryForm, Model, Stage, StageKind, TextTower, Vision};
use bridge::bridge;

/// Numbers of logits that a frozen head computes at a time: 24 MiB of fp32.
pub const LOGITS_AT_ONCE: u64 = 6 << 20;

/// What one sample of a step costs, forward and backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleCost {
    /// Tokens through the language model, soft tokens included.
    pub tokens: u64,
    /// Operations of the language model with all that is in its blocks, and of the losses.
    pub text_flops: u64,
    /// Operations of the visual encoder and the bridge.
    pub image_flops: u64,
    /// Numbers that the forward pass keeps for the backward pass, the logits left out.
    pub kept: u64,
    /// Logits: tokens with a loss times vocabulary.
    pub logits: u64,
}

impl SampleCost {
    /// Operations of the language model per token.
    #[must_use]
    pub fn flops_per_token(&self) -> u64 {
        self.text_flops / self.tokens.max(1)
    }

    /// All operations.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.text_flops + self.image_flops
    }
}

/// What a sample of `stage` costs.
#[must_use]
pub fn sample_cost(model: &Model, vocab: u32, stage: &Stage) -> SampleCost {
    let text = u64::from(model.decoder.max_text_tokens);
    let logits = text * u64::from(vocab);
    match stage.kind {
        StageKind::Bootstrap => bootstrap(model, vocab, stage),
        StageKind::Memory => memory(model, vocab, stage),
        StageKind::Experts => experts(model, vocab, stage),
        StageKind::Evaluate => SampleCost {
            tokens: text,
            text_flops: Half::Mlp.pass(model, text, false).0 + head(model, vocab, text, false),
            image_flops: see(&model.vision, false).0,
            kept: 0,
            logits,
        },
        StageKind::Pretrained | StageKind::Attach => SampleCost::default(),
    }
}

/// A caption behind its soft tokens, for the share that is captioned, and a text for retrieval.
fn memory(model: &Model, vocab: u32, stage: &Stage) -> SampleCost {
    let text = u64::from(model.decoder.max_text_tokens);
    let soft = u64::from(model.soft_tokens());
    let settings = stage.memory.clone().unwrap_or_default();
    let captioned = |number: u64| (number as f64 * settings.caption_share) as u64;
    let (captions, kept) = Half::Memory(&stage.name).pass(model, soft + text, true);
    let (queries, kept_of_queries) = Half::Memory(&stage.name).pass(model, text, false);
    let captions = captions + head(model, vocab, text, true);
    let (bridge, kept_of_bridge) = bridge(model, true);
    SampleCost {
        tokens: soft + 2 * text,
        text_flops: captioned(captions) + queries + retrieval(model, stage.batch_size.into()),
        image_flops: see(&model.vision, false).0 + captioned(bridge),
        kept: captioned(kept + kept_of_bridge) + kept_of_queries,
        logits: captioned(text * u64::from(vocab)),
    }
}

/// A question with its answer, behind soft tokens in a stage with pictures.
fn experts(model: &Model, vocab: u32, stage: &Stage) -> SampleCost {
    let text = u64::from(model.decoder.max_text_tokens);
    let settings = stage.experts.clone().unwrap_or_default();
    let (soft, image_flops) = match settings.pictures {
        true => {
            let seen = see(&model.vision, false).0 + bridge(model, false).0;
            (u64::from(model.soft_tokens()), seen)
        }
        false => (0, 0),
    };
    let (flops, kept) = Half::Experts(&settings).pass(model, soft + text, false);
    SampleCost {
        tokens: soft + text,
        text_flops: flops + head(model, vocab, text, true),
        image_flops,
        kept,
        logits: text * u64::from(vocab),
    }
}

/// Language model, both sides of the CLIP, and one or two views of the picture: all are trained.
fn bootstrap(model: &Model, vocab: u32, stage: &Stage) -> SampleCost {
    let text = u64::from(model.decoder.max_text_tokens);
    let d = model.decoder.hidden_size;
    let settings = stage.bootstrap.clone().unwrap_or_default();
    let views = if settings.view_weight > 0.0 { 2 } else { 1 };
    let (decoder, kept) = trained_blocks(&Blocks::from(&model.decoder), text);
    let names = model.text_tower.as_ref();
    let names = names.map(|tower| clip_texts(tower, model, stage.batch_size));
    let (names, kept_of_names) = names.unwrap_or_default();
    let (seen, kept_of_views) = see(&model.vision, true);
    let head = product(text, [vocab as usize, d as usize], Gradients::BOTH);
    SampleCost {
        tokens: text,
        text_flops: decoder + head + names,
        image_flops: views * seen,
        kept: kept + text * u64::from(d) + kept_of_names + views * kept_of_views,
        logits: text * u64::from(vocab),
    }
}

/// Operations and kept numbers of the text side of the bootstrap CLIP, and the similarities of its
/// loss.
fn clip_texts(tower: &TextTower, model: &Model, batch: u32) -> (u64, u64) {
    let (blocks, kept) = trained_blocks(&Blocks::from(tower), model.decoder.max_text_tokens.into());
    let features = model.vision.projection_dim as usize;
    let projection = [features, tower.hidden_size as usize];
    let projection = product(1, projection, Gradients::BOTH);
    let similarities = product(1, [batch as usize, features], Gradients::BOTH);
    (blocks + projection + similarities, kept)
}

/// Which gradients a product needs.
#[derive(Clone, Copy)]
struct Gradients {
    input: bool,
    weight: bool,
}

impl Gradients {
    const BOTH: Self = Self {
        input: true,
        weight: true,
    };
}

/// `rows` vectors times an `[outputs, inputs]` matrix.
fn product(rows: u64, [outputs, inputs]: [usize; 2], needs: Gradients) -> u64 {
    let products = 1 + u64::from(needs.input) + u64::from(needs.weight);
    2 * rows * outputs as u64 * inputs as u64 * products
}

/// The output head on `text` tokens; it is frozen.
fn head(model: &Model, vocab: u32, text: u64, is_reached: bool) -> u64 {
    let shape = [vocab as usize, model.decoder.hidden_size as usize];
    let needs = Gradients {
        input: is_reached,
        weight: false,
    };
    product(text, shape, needs)
}

/// The projections of the retrieval heads and the similarities to all pictures of the step.
fn retrieval(model: &Model, batch: u64) -> u64 {
    let settings = &model.retrieval;
    let (d, e) = (model.decoder.hidden_size, model.vision.projection_dim);
    let dim = settings.dim as usize;
    let text = product(1, [dim, d as usize], Gradients::BOTH);
    // The pictures' features are frozen.
    let (is_projected, frozen) = (settings.project_images, false);
    let image = match is_projected {
        true => {
            let needs = Gradients {
                input: frozen,
                weight: true,
            };
            product(1, [dim, e as usize], needs)
        }
        false => 0,
    };
    let needs = Gradients {
        input: true,
        weight: is_projected,
    };
    let similarities = product(1, [batch as usize, dim], needs);
    let heads = specs::retrieval_heads(model).len() as u64;
    heads * (text + image + similarities)
}

/// Operations and kept numbers of one picture in the visual encoder.
fn see(shape: &Vision, is_trained: bool) -> (u64, u64) {
    let [v, f, e] = [
        shape.hidden_size,
        shape.intermediate_size,
        shape.projection_dim,
    ]
    .map(|size| size as usize);
    let patches = u64::from(shape.patches());
    let positions = patches + 1;
    let pixels = 3 * shape.patch_size as usize * shape.patch_size as usize;
    let needs = Gradients {
        input: is_trained,
        weight: is_trained,
    };
    let of_pixels = Gradients {
        input: false,
        weight: is_trained,
    };
    let matrices = [[v, v], [v, v], [v, v], [v, v], [f, v], [v, f]];
    let products = matrices.map(|shape| product(positions, shape, needs));
    let block = products.iter().sum::<u64>() + attention([positions; 2], v, is_trained);
    let blocks = u64::from(shape.num_hidden_layers);
    let flops =
        product(patches, [v, pixels], of_pixels) + blocks * block + product(1, [e, v], needs);
    let kept = positions * (9 * v + 3 * f) as u64 * blocks + patches * pixels as u64;
    (flops, if is_trained { kept } else { 0 })
}

/// The two products of an attention of so many tokens to so many, all its heads together `width` wide.
fn attention([from, to]: [u64; 2], width: usize, is_reached: bool) -> u64 {
    let forward = 4 * from * to * width as u64;
    if is_reached { 3 * forward } else { forward }
}

/// What stands in the second half of every block, as a stage trains it.
enum Half<'a> {
    Mlp,
    /// The memory of this stage in the place of the MLPs.
    Memory(&'a str),
    Experts(&'a Experts),
}

impl Half<'_> {
    /// Operations and kept numbers of `tokens` in all blocks of the frozen language model;
    /// `is_reached`: the gradient flows on to what comes in.
    fn pass(&self, model: &Model, tokens: u64, is_reached: bool) -> (u64, u64) {
        let blocks = Blocks::from(&model.decoder);
        let mut pass = Pass::new(&blocks, tokens, is_reached);
        let d = blocks.hidden;
        let mlp = specs::feed_forward(MemoryForm::Gated, d, blocks.intermediate);
        let memory_of = |name: &str| {
            let shape = model.memory_of(name);
            specs::feed_forward(shape.form, d, shape.width as usize)
        };
        for layer in 0..model.decoder.num_hidden_layers {
            match self {
                Self::Mlp => {
                    pass.attend(Adapted::FROZEN);
                    pass.second_half(&[&mlp], Adapted::FROZEN, false);
                }
                Self::Memory(name) => {
                    pass.attend(Adapted::FROZEN);
                    pass.second_half(&[&memory_of(name)], Adapted::TRAINED, false);
                }
                Self::Experts(settings) => {
                    let is_adapted = specs::chosen(&settings.adapter_blocks, layer);
                    let adapters = |wanted: bool| Adapted {
                        is_trained: false,
                        rank: wanted.then_some(settings.lora_rank as usize),
                    };
                    pass.attend(adapters(is_adapted && settings.adapt_attention));
                    let is_routed = !settings.memories.is_empty()
                        && specs::chosen(&settings.router_blocks, layer);
                    let memories: Vec<_> = settings
                        .memories
                        .iter()
                        .map(|name| memory_of(name))
                        .collect();
                    let memories = memories.iter().map(Vec::as_slice);
                    let experts: Vec<_> = std::iter::once(mlp.as_slice()).chain(memories).collect();
                    pass.second_half(&experts, adapters(is_adapted), is_routed);
                }
            }
        }
        pass.end()
    }
}

/// All blocks with their own MLPs, everything being trained: operations and kept numbers.
fn trained_blocks(blocks: &Blocks, tokens: u64) -> (u64, u64) {
    let mlp = specs::feed_forward(MemoryForm::Gated, blocks.hidden, blocks.intermediate);
    let mut pass = Pass::new(blocks, tokens, true);
    for _ in 0..blocks.layers {
        pass.attend(Adapted::TRAINED);
        pass.second_half(&[&mlp], Adapted::TRAINED, false);
    }
    pass.end()
}

/// How the matrices of a module are trained: themselves, or through adapters.
#[derive(Clone, Copy)]
struct Adapted {
    is_trained: bool,
    rank: Option<usize>,
}

impl Adapted {
    const FROZEN: Self = Self {
        is_trained: false,
        rank: None,
    };
    const TRAINED: Self = Self {
        is_trained: true,
        rank: None,
    };

    /// Whether something in the module is trained.
    fn learns(self) -> bool {
        self.is_trained || self.rank.is_some()
    }
}

/// Tokens on their way through the blocks.
struct Pass<'a> {
    blocks: &'a Blocks,
    tokens: u64,
    flops: u64,
    /// Numbers that are kept of one token.
    kept: usize,
    /// The gradient flows on to where the pass is now.
    is_reached: bool,
}

impl<'a> Pass<'a> {
    fn new(blocks: &'a Blocks, tokens: u64, is_reached: bool) -> Self {
        Self {
            blocks,
            tokens,
            flops: 0,
            kept: 0,
            is_reached,
        }
    }

    /// Operations and kept numbers, those of the last norm included.
    fn end(mut self) -> (u64, u64) {
        self.keep(self.blocks.hidden, self.is_reached);
        (self.flops, self.tokens * self.kept as u64)
    }

    fn keep(&mut self, numbers: usize, is_needed: bool) {
        if is_needed {
            self.kept += numbers;
        }
    }

    fn attend(&mut self, adapted: Adapted) {
        let (d, q) = (self.blocks.hidden, self.blocks.query);
        let is_inner_reached = self.is_reached || adapted.learns();
        // What goes into the norm, and what comes out of it.
        self.keep(d, self.is_reached);
        self.keep(d, adapted.learns());
        for matrix in self.blocks.attention() {
            let (name, outputs, _) = matrix;
            let is_reached = match name {
                "o_proj" => is_inner_reached,
                _ => self.is_reached,
            };
            // Queries, keys, values; of the last matrix instead what the attention gives to it.
            self.keep(if name == "o_proj" { q } else { outputs }, is_inner_reached);
            self.matrix(matrix, is_reached, adapted);
        }
        self.keep(q, adapted.learns());
        self.flops += attention([self.tokens; 2], q, is_inner_reached);
        self.is_reached = is_inner_reached;
    }

    /// Networks side by side on the same input, with a router where there is one.
    fn second_half(&mut self, networks: &[&[Matrix]], adapted: Adapted, is_routed: bool) {
        let d = self.blocks.hidden;
        let is_inner_reached = self.is_reached || adapted.learns();
        self.keep(d, self.is_reached);
        self.keep(d, adapted.learns() || is_routed);
        for &network in networks {
            for &matrix in network {
                let is_reached = match matrix.0 {
                    "down_proj" => is_inner_reached,
                    _ => self.is_reached,
                };
                self.matrix(matrix, is_reached, adapted);
                self.keep_inside(matrix, is_inner_reached, adapted);
            }
            // Outputs are weighed by scores that have gradients.
            self.keep(d, is_routed);
        }
        if is_routed {
            let router = ("router", networks.len(), d);
            self.matrix(router, self.is_reached, Adapted::TRAINED);
        }
        self.is_reached = is_inner_reached || is_routed;
    }

    /// What is kept between the layers of a network.
    fn keep_inside(&mut self, (name, outputs, inputs): Matrix, is_reached: bool, by: Adapted) {
        match name {
            // Before its activation and behind it.
            "gate_proj" => self.keep(2 * outputs, is_reached),
            "up_proj" => self.keep(outputs, is_reached),
            // Only the gradient of a trained matrix reads what went into it.
            _ => self.keep(inputs, by.learns()),
        }
    }

    /// A matrix and its adapter.
    fn matrix(&mut self, (_, outputs, inputs): Matrix, is_reached: bool, adapted: Adapted) {
        let needs = Gradients {
            input: is_reached,
            weight: adapted.is_trained,
        };
        self.flops += product(self.tokens, [outputs, inputs], needs);
        if let Some(rank) = adapted.rank {
            let low = Gradients {
                input: is_reached,
                weight: true,
            };
            self.flops += product(self.tokens, [rank, inputs], low);
            self.flops += product(self.tokens, [outputs, rank], Gradients::BOTH);
            self.kept += rank;
        }
    }
}

#[cfg(test)]
mod tests;
