//! The Q-Former of BLIP-2: queries that look at the patches of a picture (Li et al. 2023, section 3.1).
//!
//! ```text
//! x   = LayerNorm(queries)
//! block l:  x = LayerNorm(x + Attention(x))                       among the queries
//!           x = LayerNorm(x + CrossAttention(x, patches))         in every f-th block, from the first on
//!           x = LayerNorm(x + W_2 gelu(W_1 x))
//! ```
//!
//! It computes what transformers' `Blip2QFormerModel` does for queries alone. In the suffixes `q` are the
//! queries, `w` is its own width and `v` the width of the patch features.

use mks2_proto::job::Bridge;
use tch::Tensor;

use super::layers::{Affine, LayerNorm};
use super::ops::{attend, like};
use super::weights::expect_shape;
use super::{Result, Weights};

/// A Q-Former.
#[derive(Debug)]
pub(super) struct QFormer {
    features: i64,
    queries_1qw: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
}

impl QFormer {
    /// The Q-Former `query_tokens`, `qformer.*`, for features of this width.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub(super) fn new(shape: &Bridge, features: i64, weights: &Weights) -> Result<Self> {
        let width = i64::from(shape.hidden_size);
        let blocks = (0..shape.num_hidden_layers).map(|layer| {
            let looks = layer.is_multiple_of(shape.cross_attention_frequency);
            let features = looks.then_some(features);
            let at = format!("qformer.encoder.layer.{layer}");
            Block::new(&at, shape, features, weights)
        });
        let queries = [1, i64::from(shape.num_query_tokens), width];
        let eps = shape.layer_norm_eps;
        Ok(Self {
            features,
            queries_1qw: weights.shaped("query_tokens", &queries)?,
            norm: LayerNorm::new("qformer.layernorm", width, eps, weights)?,
            blocks: blocks.collect::<Result<_>>()?,
        })
    }

    /// What the queries have found in `patches_bpv`, `[b, q, w]`.
    ///
    /// # Errors
    /// If the features have another width.
    pub(super) fn forward(&self, patches_bpv: &Tensor) -> Result<Tensor> {
        expect_shape("patches_bpv", patches_bpv, &[-1, -1, self.features])?;
        let rows = patches_bpv.size()[0];
        let x_1qw = self.norm.forward(&like(&self.queries_1qw, patches_bpv));
        let x_bqw = x_1qw.expand([rows, -1, -1], false);
        let look = |x_bqw: Tensor, block: &Block| block.forward(&x_bqw, patches_bpv);
        Ok(self.blocks.iter().fold(x_bqw, look))
    }
}

#[derive(Debug)]
struct Block {
    among: Attention,
    at_patches: Option<Attention>,
    inner: Affine,
    outer: Affine,
    norm: LayerNorm,
}

impl Block {
    /// A block that looks at features of this width, if at any.
    fn new(at: &str, shape: &Bridge, features: Option<i64>, weights: &Weights) -> Result<Self> {
        let (width, inner) = (
            i64::from(shape.hidden_size),
            i64::from(shape.intermediate_size),
        );
        let attention =
            |name: &str, seen| Attention::new(&format!("{at}.{name}"), shape, seen, weights);
        let affine = |name: &str, sizes| Affine::new(&format!("{at}.{name}"), sizes, weights);
        let norm = format!("{at}.output_query.LayerNorm");
        Ok(Self {
            among: attention("attention", width)?,
            at_patches: features
                .map(|features| attention("crossattention", features))
                .transpose()?,
            inner: affine("intermediate_query.dense", [inner, width])?,
            outer: affine("output_query.dense", [width, inner])?,
            norm: LayerNorm::new(&norm, width, shape.layer_norm_eps, weights)?,
        })
    }

    fn forward(&self, x_bqw: &Tensor, patches_bpv: &Tensor) -> Tensor {
        let mut x_bqw = self.among.forward(x_bqw, x_bqw);
        if let Some(attention) = &self.at_patches {
            x_bqw = attention.forward(&x_bqw, patches_bpv);
        }
        let found = self.outer.forward(&self.inner.forward(&x_bqw).gelu("none"));
        self.norm.forward(&(found + x_bqw))
    }
}

/// Attention with its residual.
#[derive(Debug)]
struct Attention {
    heads: i64,
    query: Affine,
    key: Affine,
    value: Affine,
    out: Affine,
    norm: LayerNorm,
}

impl Attention {
    /// Attention to what is `seen` wide.
    fn new(at: &str, shape: &Bridge, seen: i64, weights: &Weights) -> Result<Self> {
        let width = i64::from(shape.hidden_size);
        let affine =
            |name: &str, seen| Affine::new(&format!("{at}.{name}"), [width, seen], weights);
        let norm = format!("{at}.output.LayerNorm");
        Ok(Self {
            heads: i64::from(shape.num_attention_heads),
            query: affine("attention.query", width)?,
            key: affine("attention.key", seen)?,
            value: affine("attention.value", seen)?,
            out: affine("output.dense", width)?,
            norm: LayerNorm::new(&norm, width, shape.layer_norm_eps, weights)?,
        })
    }

    /// What queries find in `seen`, added to them.
    fn forward(&self, x_bqw: &Tensor, seen: &Tensor) -> Tensor {
        let query = self.split(&self.query.forward(x_bqw));
        let [key, value] = [&self.key, &self.value].map(|of| self.split(&of.forward(seen)));
        let found = self
            .out
            .forward(&attend(&query, [&key, &value], None, false));
        self.norm.forward(&(found + x_bqw))
    }

    /// `[b, n, w]` as `[b, heads, n, k]`.
    fn split(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        x.reshape([size[0], size[1], self.heads, -1])
            .transpose(1, 2)
    }
}
