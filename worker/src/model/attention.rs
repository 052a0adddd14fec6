//! Grouped-query attention with rotary positions, as in LLaMA.
//!
//! ```text
//! q_bhnk, k_bgtk, v_bgtk = split(W_q x), split(W_k x), split(W_v x)      h / g queries per key
//! rotary (Su et al. 2021, halves paired as Hugging Face does):
//!   x_i, x_{i+k/2} turned by the angle position * theta^(-2i/k)
//! out = W_o concat_h softmax(q k^T / sqrt(k) + mask) v
//! ```

use tch::{Device, Kind, Tensor};

use super::lora::{AttentionAdapters, adapted};
use super::ops::{attend, linear};
use super::{Result, Weights};

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionShape {
    /// Width of the residual stream.
    pub(super) hidden: i64,
    /// Query heads.
    pub(super) heads: i64,
    /// Key and value heads.
    pub(super) groups: i64,
}

impl AttentionShape {
    fn head(self) -> i64 {
        self.hidden / self.heads
    }
}

/// Where queries stand and what they may see; the same for all blocks of a pass.
pub(super) struct Sight {
    /// Rotary table of the keys.
    pub(super) keys: Rotary,
    /// Rotary table of the queries, if they are not the keys' positions.
    pub(super) queries: Option<Rotary>,
    /// What each query may see, `[b or 1, 1, n, t]`; none: causal.
    pub(super) mask: Option<Tensor>,
}

/// Rotary tables that broadcast over `[b, length, heads, k]`.
pub(super) struct Rotary {
    cos: Tensor,
    sin_signed: Tensor,
}

impl Rotary {
    /// Tables of the positions `0 .. length`, `[1, length, 1, k]`.
    pub(super) fn new(length: i64, head: i64, theta: f64, device: Device) -> Self {
        let options = (Kind::Float, device);
        let exponents = Tensor::arange_start_step(0, head, 2, (Kind::Int64, device))
            .to_kind(Kind::Float)
            / head as f64;
        let frequencies = Tensor::full([1], theta, options)
            .pow(&exponents)
            .reciprocal();
        let angles = Tensor::arange(length, options).unsqueeze(1) * frequencies.unsqueeze(0);
        let (cos, sin) = (angles.cos(), angles.sin());
        let shape = [1, length, 1, head];
        Self {
            cos: Tensor::cat(&[&cos, &cos], 1).view(shape),
            sin_signed: Tensor::cat(&[&sin.neg(), &sin], 1).view(shape),
        }
    }

    /// The tables of `length` positions from `start` on.
    pub(super) fn narrow(&self, start: i64, length: i64) -> Self {
        let part = |table: &Tensor| table.narrow(1, start, length);
        Self {
            cos: part(&self.cos),
            sin_signed: part(&self.sin_signed),
        }
    }

    /// The tables of `positions_bn`, `[b, n, 1, k]`.
    pub(super) fn at(&self, positions_bn: &Tensor) -> Self {
        let size = positions_bn.size();
        let flat = positions_bn.flatten(0, -1);
        let part = |table: &Tensor| table.index_select(1, &flat).view([size[0], size[1], 1, -1]);
        Self {
            cos: part(&self.cos),
            sin_signed: part(&self.sin_signed),
        }
    }

    /// Turns `x`, `[b, length, heads, k]`. With the sign kept in the sine's table, exchanging
    /// the halves of a head is a roll.
    fn turn(&self, x: &Tensor) -> Tensor {
        let half = x.size()[3] / 2;
        (x * &self.cos).addcmul(&x.roll([half], [3]), &self.sin_signed)
    }
}

/// The weights of one attention layer.
#[derive(Debug)]
pub(super) struct Attention {
    shape: AttentionShape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    /// `q`, `k` and `v` stacked, when they are frozen.
    qkv: Option<Tensor>,
}

impl Attention {
    pub(super) fn new(at: &str, shape: AttentionShape, weights: &Weights) -> Result<Self> {
        let (d, kv) = (shape.hidden, shape.groups * shape.head());
        let matrix = |name: &str, out| weights.shaped(&format!("{at}.{name}.weight"), &[out, d]);
        let (q, k, v) = (
            matrix("q_proj", d)?,
            matrix("k_proj", kv)?,
            matrix("v_proj", kv)?,
        );
        let qkv = weights.fused(&[&q, &k, &v]);
        Ok(Self {
            shape,
            q,
            k,
            v,
            o: matrix("o_proj", d)?,
            qkv,
        })
    }

    /// Self-attention of `x_btd`; the queries are `queries_bnd` where only some positions are
    /// wanted, else all. Returns `[b, n, d]`.
    pub(super) fn forward(
        &self,
        x_btd: &Tensor,
        queries_bnd: Option<&Tensor>,
        sight: &Sight,
        adapters: Option<&AttentionAdapters>,
    ) -> Tensor {
        let (q, k, v) = match (queries_bnd, adapters) {
            (None, None) => self.all(x_btd, sight),
            _ => self.some(x_btd, queries_bnd.unwrap_or(x_btd), sight, adapters),
        };
        let causal = sight.mask.is_none();
        let [q, k, v] = [q, k, v].map(|x| x.transpose(1, 2));
        let joined_bnd = attend(&q, [&k, &v], sight.mask.as_ref(), causal);
        adapted(
            linear(&joined_bnd, &self.o),
            &joined_bnd,
            adapters.map(|adapters| &adapters.o),
        )
    }

    /// Queries, keys and values of every position: one product, one rotation where possible.
    fn all(&self, x_btd: &Tensor, sight: &Sight) -> (Tensor, Tensor, Tensor) {
        let AttentionShape {
            hidden,
            heads,
            groups,
        } = self.shape;
        let kv = groups * self.shape.head();
        let (qk, v) = match &self.qkv {
            Some(qkv) => {
                let parts = linear(x_btd, qkv).split_with_sizes([hidden + kv, kv], -1);
                (parts[0].shallow_clone(), parts[1].shallow_clone())
            }
            None => {
                let qk = Tensor::cat(&[linear(x_btd, &self.q), linear(x_btd, &self.k)], -1);
                (qk, linear(x_btd, &self.v))
            }
        };
        let turned = sight.keys.turn(&self.heads(&qk));
        let parts = turned.split_with_sizes([heads, groups], 2);
        (
            parts[0].shallow_clone(),
            parts[1].shallow_clone(),
            self.heads(&v),
        )
    }

    /// Queries of some positions, keys and values of all, with or without adapters.
    fn some(
        &self,
        x_btd: &Tensor,
        queries_bnd: &Tensor,
        sight: &Sight,
        adapters: Option<&AttentionAdapters>,
    ) -> (Tensor, Tensor, Tensor) {
        let q = linear(queries_bnd, &self.q);
        let q = adapted(q, queries_bnd, adapters.map(|adapters| &adapters.q));
        let k = adapted(
            linear(x_btd, &self.k),
            x_btd,
            adapters.map(|adapters| &adapters.k),
        );
        let v = adapted(
            linear(x_btd, &self.v),
            x_btd,
            adapters.map(|adapters| &adapters.v),
        );
        let at = sight.queries.as_ref().unwrap_or(&sight.keys);
        (
            at.turn(&self.heads(&q)),
            sight.keys.turn(&self.heads(&k)),
            self.heads(&v),
        )
    }

    /// `[b, t, heads k]` as `[b, t, heads, k]`.
    fn heads(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        x.view([size[0], size[1], -1, self.shape.head()])
    }
}
