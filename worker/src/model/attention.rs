//! Grouped-query attention with rotary positions, as in LLaMA.
//!
//! ```text
//! q_bhnk, k_bgtk, v_bgtk = split(W_q x), split(W_k x), split(W_v x)      h / g queries per key
//! rotary (Su et al. 2021, halves paired as Hugging Face does):
//!   x_i, x_{i+k/2} turned by the angle position * f_i,  f_i = theta^(-2i/k), or scaled (`rotary.rs`)
//! out = W_o concat_h softmax(q k^T / sqrt(k) + mask) v
//! ```

use tch::Tensor;

use super::lora::{AttentionAdapters, adapted};
use super::ops::{affine, attend, linear};
use super::rotary::Rotary;
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
    /// Elements of a head.
    pub(super) head: i64,
    /// Whether queries, keys and values have biases.
    pub(super) biased: bool,
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

/// Queries, keys and values, head by head.
pub(super) struct Heads {
    pub(super) q_bnhk: Tensor,
    pub(super) k_btgk: Tensor,
    pub(super) v_btgk: Tensor,
}

/// A projection, with its bias if it has one.
#[derive(Debug)]
struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Projection {
    fn new(at: &str, shape: [i64; 2], biased: bool, weights: &Weights) -> Result<Self> {
        let bias = || weights.shaped(&format!("{at}.bias"), &shape[..1]);
        Ok(Self {
            weight: weights.shaped(&format!("{at}.weight"), &shape)?,
            bias: biased.then(bias).transpose()?,
        })
    }

    /// Several on the same input as one, when they are frozen.
    fn fused(parts: [&Self; 3], weights: &Weights) -> Option<Self> {
        let weight = weights.fused(&parts.map(|part| &part.weight))?;
        let biases: Vec<_> = parts.iter().flat_map(|part| &part.bias).collect();
        let bias = match biases.is_empty() {
            true => None,
            false => Some(weights.fused(&biases)?),
        };
        Some(Self { weight, bias })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        affine(x, &self.weight, self.bias.as_ref())
    }
}

/// The weights of one attention layer.
#[derive(Debug)]
pub(super) struct Attention {
    shape: AttentionShape,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Tensor,
    /// `q`, `k` and `v` stacked, when they are frozen.
    qkv: Option<Projection>,
}

impl Attention {
    pub(super) fn new(at: &str, shape: AttentionShape, weights: &Weights) -> Result<Self> {
        let (d, heads) = (shape.hidden, shape.heads * shape.head);
        let kv = shape.groups * shape.head;
        let projection = |name: &str, out| {
            Projection::new(&format!("{at}.{name}"), [out, d], shape.biased, weights)
        };
        let (q, k, v) = (
            projection("q_proj", heads)?,
            projection("k_proj", kv)?,
            projection("v_proj", kv)?,
        );
        Ok(Self {
            shape,
            qkv: Projection::fused([&q, &k, &v], weights),
            q,
            k,
            v,
            o: weights.shaped(&format!("{at}.o_proj.weight"), &[d, heads])?,
        })
    }

    /// Queries, keys and values of `x_btd`, turned to their positions; the queries are of
    /// `queries_bnd` where only some positions are wanted, else of all.
    pub(super) fn heads(
        &self,
        x_btd: &Tensor,
        queries_bnd: Option<&Tensor>,
        sight: &Sight,
        adapters: Option<&AttentionAdapters>,
    ) -> Heads {
        match (queries_bnd, adapters) {
            (None, None) => self.all(x_btd, sight),
            _ => self.some(x_btd, queries_bnd.unwrap_or(x_btd), sight, adapters),
        }
    }

    /// What the queries of `heads` take from its keys and values, `[b, n, d]`. Without a `mask` all
    /// see all, or where that is `causal`, what is not behind them.
    pub(super) fn mix(
        &self,
        heads: &Heads,
        (mask, causal): (Option<&Tensor>, bool),
        adapters: Option<&AttentionAdapters>,
    ) -> Tensor {
        let [q, k, v] = [&heads.q_bnhk, &heads.k_btgk, &heads.v_btgk].map(|x| x.transpose(1, 2));
        let joined_bnd = attend(&q, [&k, &v], mask, causal);
        adapted(
            linear(&joined_bnd, &self.o),
            &joined_bnd,
            adapters.map(|adapters| &adapters.o),
        )
    }

    /// Queries, keys and values of every position: one product, one rotation where possible.
    fn all(&self, x_btd: &Tensor, sight: &Sight) -> Heads {
        let AttentionShape {
            heads,
            groups,
            head,
            ..
        } = self.shape;
        let (qk, v) = match &self.qkv {
            Some(qkv) => {
                let sizes = [(heads + groups) * head, groups * head];
                let parts = qkv.forward(x_btd).split_with_sizes(sizes, -1);
                (parts[0].shallow_clone(), parts[1].shallow_clone())
            }
            None => {
                let qk = [self.q.forward(x_btd), self.k.forward(x_btd)];
                (Tensor::cat(&qk, -1), self.v.forward(x_btd))
            }
        };
        let turned = sight.keys.turn(&self.split(&qk));
        let parts = turned.split_with_sizes([heads, groups], 2);
        Heads {
            q_bnhk: parts[0].shallow_clone(),
            k_btgk: parts[1].shallow_clone(),
            v_btgk: self.split(&v),
        }
    }

    /// Queries of some positions, keys and values of all, with or without adapters.
    fn some(
        &self,
        x_btd: &Tensor,
        queries_bnd: &Tensor,
        sight: &Sight,
        adapters: Option<&AttentionAdapters>,
    ) -> Heads {
        let q = self.q.forward(queries_bnd);
        let q = adapted(q, queries_bnd, adapters.map(|adapters| &adapters.q));
        let k = adapted(
            self.k.forward(x_btd),
            x_btd,
            adapters.map(|adapters| &adapters.k),
        );
        let v = adapted(
            self.v.forward(x_btd),
            x_btd,
            adapters.map(|adapters| &adapters.v),
        );
        let at = sight.queries.as_ref().unwrap_or(&sight.keys);
        Heads {
            q_bnhk: at.turn(&self.split(&q)),
            k_btgk: sight.keys.turn(&self.split(&k)),
            v_btgk: self.split(&v),
        }
    }

    /// `[b, t, heads k]` as `[b, t, heads, k]`.
    fn split(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        x.view([size[0], size[1], -1, self.shape.head])
    }
}
