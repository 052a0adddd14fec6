//! A stack of LLaMA blocks whose second halves the caller chooses.
//!
//! ```text
//! h_s = h + Attention(RMSNorm(h))
//! h   = h_s + second half(RMSNorm'(h_s))
//! ```
//!
//! Where only some positions are read, the last block computes queries, its second half and the
//! final norm for these alone; keys and values come from all.

use std::rc::Rc;

use mks2_proto::job::MemoryForm;
use tch::{Kind, Tensor};

use super::attention::{Attention, AttentionShape, Heads, Sight};
use super::experts::Experts;
use super::feed_forward::FeedForward;
use super::lora::AttentionAdapters;
use super::memory::Memory;
use super::ops::rms_norm;
use super::rotary::Turns;
use super::tape::Tape;
use super::view::{Plan, Selection, View};
use super::weights::expect_shape;
use super::{ModelError, Result, Weights};
use crate::generator;

/// What stands in the second half of every block.
#[derive(Clone, Copy, Debug)]
pub enum SecondHalves<'a> {
    /// The decoder's own MLPs.
    Mlp,
    /// The visual memory in their place: stage 1.
    Memory(&'a Memory),
    /// The soft mixture of both, with adapters: stage 2.
    Experts(&'a Experts),
}

impl<'a> SecondHalves<'a> {
    fn attention_adapters(self, layer: usize) -> Option<&'a AttentionAdapters> {
        match self {
            Self::Experts(experts) => experts.blocks[layer].attention.as_ref(),
            Self::Mlp | Self::Memory(_) => None,
        }
    }
}

/// Positions whose states the caller wants.
#[derive(Clone, Copy, Debug)]
pub enum Read<'a> {
    /// All.
    All,
    /// All from this position on.
    From(i64),
    /// These, `[b, n]` of int64.
    At(&'a Tensor),
}

/// One forward pass through the blocks of a model that lives as long as `'m`.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a, 'm> {
    second: SecondHalves<'m>,
    pub(super) read: Read<'a>,
    pub(super) keys_bt: Option<&'a Tensor>,
    blocks: &'a [u32],
    record_scores: bool,
    dropout_seed: Option<i64>,
    tape: Option<&'a Tape<'m>>,
}

impl<'a, 'm> Pass<'a, 'm> {
    /// A causal pass over rows padded on the right that reads all positions.
    pub fn new(second: SecondHalves<'m>) -> Self {
        Self {
            second,
            read: Read::All,
            keys_bt: None,
            blocks: &[],
            record_scores: false,
            dropout_seed: None,
            tape: None,
        }
    }

    /// Reads these positions alone.
    #[must_use]
    pub fn reading(self, read: Read<'a>) -> Self {
        Self { read, ..self }
    }

    /// Only these keys may be seen, `[b, t]` of bool: for rows with gaps or padding on the left.
    /// A position always sees itself.
    #[must_use]
    pub fn keys(self, keys_bt: &'a Tensor) -> Self {
        Self {
            keys_bt: Some(keys_bt),
            ..self
        }
    }

    /// Also returns the states after these blocks (from 1), at the positions read.
    #[must_use]
    pub fn after_blocks(self, blocks: &'a [u32]) -> Self {
        Self { blocks, ..self }
    }

    /// Also returns the routers' scores.
    #[must_use]
    pub fn recording_scores(self) -> Self {
        Self {
            record_scores: true,
            ..self
        }
    }

    /// What adapters drop follows from this seed and the block's number.
    #[must_use]
    pub fn dropping(self, seed: Option<i64>) -> Self {
        Self {
            dropout_seed: seed,
            ..self
        }
    }

    /// Keeps of each block its input alone for the backward pass, which `tape` then does; without one
    /// all is kept.
    #[must_use]
    pub fn onto(self, tape: Option<&'a Tape<'m>>) -> Self {
        Self { tape, ..self }
    }
}

/// What a pass returns.
#[derive(Debug)]
pub struct States {
    /// States after the last block and the final norm, at the positions read.
    pub last_bnd: Tensor,
    /// States after the blocks asked for (from 1), before any norm, at the positions read.
    pub after_blocks: Vec<(u32, Tensor)>,
    /// Scores `[b, t, x]` of each block's mixture if recorded; `[b, n, x]` in the last block.
    pub scores: Vec<Tensor>,
}

/// Sizes and constants of a stack.
#[derive(Clone, Debug)]
pub(super) struct StackShape {
    pub(super) layers: u32,
    pub(super) attention: AttentionShape,
    pub(super) intermediate: i64,
    /// Positions that a query sees, its own included; none: all up to its own.
    pub(super) window: Option<i64>,
    pub(super) turns: Turns,
    pub(super) eps: f64,
}

/// The blocks and the final norm.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) shape: StackShape,
    pub(super) blocks: Vec<Block>,
    pub(super) norm_d: Tensor,
}

impl Stack {
    /// The stack `<at>.layers.*`, `<at>.norm.weight`.
    pub(super) fn new(at: &str, shape: StackShape, weights: &Weights) -> Result<Self> {
        let blocks = (0..shape.layers)
            .map(|layer| Block::new(&format!("{at}.layers.{layer}"), &shape, weights))
            .collect::<Result<_>>()?;
        let norm_d = weights.shaped(&format!("{at}.norm.weight"), &[shape.attention.hidden])?;
        Ok(Self {
            shape,
            blocks,
            norm_d,
        })
    }

    pub(super) fn forward<'m>(&'m self, h_btd: &Tensor, pass: &Pass<'_, 'm>) -> Result<States> {
        self.forward_keeping(h_btd, pass, |_, _| {})
    }

    /// The same; `keep` is shown the keys and values of every block, numbered from 0, but for those that
    /// go onto a tape.
    pub(super) fn forward_keeping<'m>(
        &'m self,
        h_btd: &Tensor,
        pass: &Pass<'_, 'm>,
        mut keep: impl FnMut(usize, &Heads),
    ) -> Result<States> {
        self.check(h_btd, pass)?;
        let size = h_btd.size();
        let plan = Plan::new(&self.shape, pass, [size[0], size[1]], h_btd.device());
        let plan = Rc::new(plan);
        let mut states = States {
            last_bnd: Tensor::new(),
            after_blocks: vec![],
            scores: vec![],
        };
        let mut h = h_btd.shallow_clone();
        for (layer, block) in self.blocks.iter().enumerate() {
            let step = Step {
                block,
                second: pass.second,
                layer,
                record_scores: pass.record_scores,
                dropout_seed: pass.dropout_seed,
            };
            let is_last = layer + 1 == self.blocks.len();
            let scores = match pass.tape {
                None => {
                    let (out, scores) = step.forward(&h, plan.view(is_last), &mut keep);
                    h = out;
                    scores
                }
                Some(tape) => {
                    let plan = Rc::clone(&plan);
                    let run = move |h: &Tensor| {
                        let (out, scores) = step.forward(h, plan.view(is_last), &mut |_, _| {});
                        std::iter::once(out).chain(scores).collect()
                    };
                    let mut outputs = tape.cut(&h, run).into_iter();
                    h = outputs.next().unwrap_or_default();
                    outputs.next()
                }
            };
            states.scores.extend(scores);
            let number = layer as u32 + 1;
            if pass.blocks.contains(&number) {
                let read = if is_last {
                    h.shallow_clone()
                } else {
                    plan.last.select(&h)
                };
                states.after_blocks.push((number, read));
            }
        }
        states.last_bnd = rms_norm(&h, &self.norm_d, self.shape.eps);
        Ok(states)
    }

    fn check(&self, h_btd: &Tensor, pass: &Pass) -> Result<()> {
        expect_shape("h_btd", h_btd, &[-1, -1, self.shape.attention.hidden])?;
        let size = h_btd.size();
        if let Some(keys_bt) = pass.keys_bt {
            expect_shape("keys_bt", keys_bt, &size[..2])?;
        }
        if let Read::At(positions_bn) = pass.read {
            expect_shape("positions_bn", positions_bn, &[size[0], -1])?;
        }
        let blocks = self.blocks.len();
        match pass
            .blocks
            .iter()
            .find(|block| **block == 0 || **block as usize > blocks)
        {
            Some(block) => Err(ModelError::NoBlock {
                block: *block,
                blocks,
            }),
            None => Ok(()),
        }
    }
}

/// One block's part of a pass.
#[derive(Clone, Copy)]
struct Step<'m> {
    block: &'m Block,
    second: SecondHalves<'m>,
    layer: usize,
    record_scores: bool,
    dropout_seed: Option<i64>,
}

impl Step<'_> {
    /// The states after the block, and its mixture's scores if they are recorded.
    fn forward(
        &self,
        h_btd: &Tensor,
        view: &View,
        keep: &mut impl FnMut(usize, &Heads),
    ) -> (Tensor, Option<Tensor>) {
        let mut halves = || {
            let h = self
                .block
                .attend(h_btd, self.second, self.layer, view, keep);
            let (out, scores) =
                self.block
                    .second_half(&h, self.second, self.layer, self.record_scores);
            (h, out, scores)
        };
        let (h, out, scores) = match self.dropout_seed {
            Some(seed) => generator::seeded(seed.wrapping_add(self.layer as i64), halves),
            None => halves(),
        };
        // Not in place: the norm's backward pass needs h as it was.
        (&h + out, scores)
    }
}

/// One block.
#[derive(Debug)]
pub(super) struct Block {
    norm_d: Tensor,
    attention: Attention,
    second_norm_d: Tensor,
    mlp: FeedForward,
    eps: f64,
}

impl Block {
    fn new(at: &str, shape: &StackShape, weights: &Weights) -> Result<Self> {
        let d = shape.attention.hidden;
        let norm = |name: &str| weights.shaped(&format!("{at}.{name}.weight"), &[d]);
        let sizes = [d, shape.intermediate];
        Ok(Self {
            norm_d: norm("input_layernorm")?,
            attention: Attention::new(&format!("{at}.self_attn"), shape.attention, weights)?,
            second_norm_d: norm("post_attention_layernorm")?,
            mlp: FeedForward::new(&format!("{at}.mlp"), MemoryForm::Gated, sizes, weights)?,
            eps: shape.eps,
        })
    }

    /// `h_s`: self-attention and its residual, at the positions of `view`.
    fn attend(
        &self,
        h_btd: &Tensor,
        second: SecondHalves<'_>,
        layer: usize,
        view: &View,
        keep: &mut impl FnMut(usize, &Heads),
    ) -> Tensor {
        let adapters = second.attention_adapters(layer);
        let x_btd = rms_norm(h_btd, &self.norm_d, self.eps);
        let (residual_bnd, queries_bnd) = match view.select {
            Selection::All => (h_btd.shallow_clone(), None),
            _ => (view.select(h_btd), Some(view.select(&x_btd))),
        };
        let sight = &view.sight;
        let heads = self
            .attention
            .heads(&x_btd, queries_bnd.as_ref(), sight, adapters);
        keep(layer, &heads);
        let sees = (sight.mask.as_ref(), sight.mask.is_none());
        residual_bnd + self.attention.mix(&heads, sees, adapters)
    }

    /// The block at one further position of each row: `keep` adds its key and value to those of the
    /// positions before, and gives all.
    pub(super) fn advance(
        &self,
        h_b1d: &Tensor,
        second: SecondHalves<'_>,
        layer: usize,
        sight: &Sight,
        keep: impl FnOnce(Heads) -> Heads,
    ) -> Tensor {
        let adapters = second.attention_adapters(layer);
        let x_b1d = rms_norm(h_b1d, &self.norm_d, self.eps);
        let heads = keep(self.attention.heads(&x_b1d, None, sight, adapters));
        let sees = (sight.mask.as_ref(), false);
        let h_b1d = h_b1d + self.attention.mix(&heads, sees, adapters);
        let (out, _) = self.second_half(&h_b1d, second, layer, false);
        h_b1d + out
    }

    /// What the second half adds to `h_s`, and the mixture's scores if they are recorded.
    fn second_half(
        &self,
        h_bnd: &Tensor,
        second: SecondHalves<'_>,
        layer: usize,
        record_scores: bool,
    ) -> (Tensor, Option<Tensor>) {
        let x_bnd = rms_norm(h_bnd, &self.second_norm_d, self.eps);
        match second {
            SecondHalves::Mlp => (self.mlp.forward(&x_bnd, None), None),
            SecondHalves::Memory(memory) => (memory.blocks[layer].forward(&x_bnd, None), None),
            SecondHalves::Experts(experts) => {
                experts.blocks[layer].forward(&x_bnd, &self.mlp, record_scores)
            }
        }
    }
}

/// A matrix `[rows, d]` looked up at `ids`.
pub(super) fn look_up(table_vd: &Tensor, ids: &Tensor) -> Tensor {
    Tensor::embedding(table_vd, ids, -1, false, false)
}

/// Positions `[b, 1]` of single ends `[b]`.
pub(super) fn as_positions(end_b: &Tensor) -> Tensor {
    end_b.to_kind(Kind::Int64).unsqueeze(-1)
}
