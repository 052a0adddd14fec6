//! The language model: LLaMA's architecture ([Touvron et al. 2023](https://arxiv.org/abs/2302.13971))
//! and its relatives (Llama 3, Mistral, Qwen2), with Hugging Face's names and conventions.
//!
//! ```text
//! logits_bnV = W_head states_bnd        W_head is the embedding where they are tied
//! ```

use mks2_proto::job;
use tch::{Kind, Tensor};

use super::attention::AttentionShape;
use super::block::{Pass, SecondHalves, Stack, StackShape, States, look_up};
use super::cache::{Cache, Parked, Wanted};
use super::ops::linear;
use super::rotary::Turns;
use super::weights::expect_shape;
use super::{Result, Weights};

/// A LLaMA-like decoder.
#[derive(Debug)]
pub struct Decoder {
    embedding: Tensor,
    head: Tensor,
    stack: Stack,
    kind: Kind,
}

impl Decoder {
    /// The decoder `model.*`, `lm_head.weight` with `vocab` tokens.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(shape: &job::Decoder, vocab: u32, weights: &Weights) -> Result<Self> {
        let (vocab, d) = (i64::from(vocab), i64::from(shape.hidden_size));
        let embedding = weights.shaped("model.embed_tokens.weight", &[vocab, d])?;
        let head = match shape.tie_word_embeddings {
            true => embedding.shallow_clone(),
            false => weights.shaped("lm_head.weight", &[vocab, d])?,
        };
        let stack = StackShape {
            layers: shape.num_hidden_layers,
            attention: AttentionShape {
                hidden: d,
                heads: i64::from(shape.num_attention_heads),
                groups: i64::from(shape.num_key_value_heads),
                head: i64::from(shape.head()),
                biased: shape.qkv_bias,
            },
            intermediate: i64::from(shape.intermediate_size),
            window: shape.sliding_window.map(i64::from),
            turns: Turns {
                theta: shape.rope_theta,
                scaling: shape.rope_scaling.clone(),
            },
            eps: shape.rms_norm_eps,
        };
        Ok(Self {
            embedding,
            head,
            stack: Stack::new("model", stack, weights)?,
            kind: weights.kind(),
        })
    }

    /// Embeddings `[b, t, d]` of `ids_bt`, int64. All that follows computes in their kind.
    ///
    /// # Errors
    /// If the ids are not `[b, t]`.
    pub fn embed(&self, ids_bt: &Tensor) -> Result<Tensor> {
        expect_shape("ids_bt", ids_bt, &[-1, -1])?;
        Ok(look_up(&self.embedding, ids_bt).to_kind(self.kind))
    }

    /// The states that `pass` reads, from the input embeddings `h_btd`.
    ///
    /// # Errors
    /// If a shape does not fit, or a block is asked for that does not exist.
    pub fn forward<'m>(&'m self, h_btd: &Tensor, pass: &Pass<'_, 'm>) -> Result<States> {
        self.stack.forward(h_btd, pass)
    }

    /// An empty cache for at most so many rows times positions.
    pub fn cache(&self, most: i64) -> Cache {
        self.stack.cache(most, (self.kind, self.embedding.device()))
    }

    /// Bytes of keys and values that a position has.
    pub fn position_bytes(&self) -> u64 {
        self.stack.kept_elements().unsigned_abs() * self.kind.elt_size_in_bytes() as u64
    }

    /// Makes room in `cache` for so many rows with so many positions, before anything is computed.
    ///
    /// # Errors
    /// When there may not be so much, or there is no memory for it. The rows stay as they are.
    pub fn make_room(&self, cache: &mut Cache, rows: usize, positions: i64) -> Result<()> {
        self.stack.make_room(cache, rows, positions)
    }

    /// Brings a row back that was parked; it is the last one.
    ///
    /// # Errors
    /// As [`Decoder::make_room`].
    pub fn resume(&self, parked: &Parked, cache: &mut Cache) -> Result<()> {
        self.stack.resume(parked, cache)
    }

    /// Reads new rows of input embeddings `h_btd`, padded on the right behind `lengths`, into
    /// `cache`; gives the normed states that are wanted.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn read(
        &self,
        h_btd: &Tensor,
        lengths: &[i64],
        (second, states): (SecondHalves<'_>, Wanted),
        cache: &mut Cache,
    ) -> Result<Tensor> {
        self.stack.read(h_btd, lengths, (second, states), cache)
    }

    /// One further position of every row of `cache`, from its input embedding `h_b1d`; gives the
    /// normed states, `[b, 1, d]`.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn advance(
        &self,
        h_b1d: &Tensor,
        second: SecondHalves<'_>,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        self.stack.advance(h_b1d, second, cache)
    }

    /// Logits `[.., V]` of normed states `[.., d]`, fp32.
    pub fn logits(&self, states: &Tensor) -> Tensor {
        linear(states, &self.head).to_kind(Kind::Float)
    }

    /// What the head makes of an error in its logits: `error W_head`, `[.., d]`.
    pub(super) fn through_head(&self, error: &Tensor) -> Tensor {
        linear(&error.to_kind(self.head.kind()), &self.head.tr())
    }

    /// Tokens that it knows.
    pub(super) fn vocab(&self) -> i64 {
        self.head.size()[0]
    }

    /// Whether the output head is trained.
    pub(super) fn trains_head(&self) -> bool {
        self.head.requires_grad()
    }
}
