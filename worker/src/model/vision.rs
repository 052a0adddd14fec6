//! The visual encoder: CLIP's vision transformer ([Radford et al. 2021](https://arxiv.org/abs/2103.00020)),
//! with Hugging Face's names.
//!
//! ```text
//! h_0     = LN_pre([class, W_patch patches] + positions)         [b, 1 + p, v]
//! block   h = h + Attention(LN_1 h);  h = h + fc2(gelu(fc1(LN_2 h)))      quick_gelu or gelu
//! patches = h after the last block but one, without the class position
//! global  = W_proj LN_post(h after the last block at the class position)
//! ```
//!
//! Of the last block only the class position is ever used, so only that is computed.

use mks2_proto::job::{self, VisionActivation};
use tch::{Kind, Tensor};

use super::layers::{Affine, LayerNorm};
use super::ops::{attend, like, linear, quick_gelu};
use super::weights::expect_shape;
use super::{Result, Weights};

/// Features of a batch of pictures.
#[derive(Debug)]
pub struct VisionFeatures {
    /// Patch features after the last block but one, `[b, p, v]`.
    pub patches_bpv: Tensor,
    /// Global features, `[b, e]`, not normalised.
    pub global_be: Tensor,
}

impl VisionFeatures {
    /// Numbers that one picture has: `p * v + e`.
    pub fn numbers(shape: &job::Vision) -> usize {
        let grid = (shape.image_size / shape.patch_size) as usize;
        grid * grid * shape.hidden_size as usize + shape.projection_dim as usize
    }

    /// All of them in one row for each picture, `[b, p * v + e]`.
    pub fn pack(&self) -> Tensor {
        Tensor::cat(&[&self.patches_bpv.flatten(1, -1), &self.global_be], 1)
    }
}

/// A CLIP-like vision transformer.
#[derive(Debug)]
pub struct Vision {
    side: i64,
    patch: i64,
    class_v: Tensor,
    patch_vc: Tensor,
    positions_pv: Tensor,
    pre: LayerNorm,
    blocks: Vec<VisionBlock>,
    post: LayerNorm,
    projection_ev: Tensor,
    kind: Kind,
}

impl Vision {
    /// The encoder `vision_model.*`, `visual_projection.weight`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(shape: &job::Vision, weights: &Weights) -> Result<Self> {
        let (v, patch) = (i64::from(shape.hidden_size), i64::from(shape.patch_size));
        let side = i64::from(shape.image_size);
        let count = (side / patch) * (side / patch) + 1;
        let at = "vision_model.embeddings";
        let kernel = weights.shaped(
            &format!("{at}.patch_embedding.weight"),
            &[v, 3, patch, patch],
        )?;
        let eps = shape.layer_norm_eps;
        let norm = |name: &str| LayerNorm::new(&format!("vision_model.{name}"), v, eps, weights);
        let blocks = (0..shape.num_hidden_layers).map(|layer| {
            VisionBlock::new(
                &format!("vision_model.encoder.layers.{layer}"),
                shape,
                weights,
            )
        });
        let e = i64::from(shape.projection_dim);
        Ok(Self {
            side,
            patch,
            class_v: weights.shaped(&format!("{at}.class_embedding"), &[v])?,
            patch_vc: kernel.flatten(1, -1),
            positions_pv: weights
                .shaped(&format!("{at}.position_embedding.weight"), &[count, v])?,
            pre: norm("pre_layrnorm")?,
            blocks: blocks.collect::<Result<_>>()?,
            post: norm("post_layernorm")?,
            projection_ev: weights.shaped("visual_projection.weight", &[e, v])?,
            kind: weights.kind(),
        })
    }

    /// Features of `pixels_bchw`: RGB, normalised, as wide and high as configured.
    ///
    /// # Errors
    /// If the pictures have another size.
    pub fn forward(&self, pixels_bchw: &Tensor) -> Result<VisionFeatures> {
        expect_shape("pixels_bchw", pixels_bchw, &[-1, 3, self.side, self.side])?;
        let mut h = self.pre.forward(&self.embed(pixels_bchw));
        let mut patches_bpv = h.shallow_clone();
        for (layer, block) in self.blocks.iter().enumerate() {
            let is_last = layer + 1 == self.blocks.len();
            if is_last {
                patches_bpv = h.shallow_clone();
            }
            h = block.forward(&h, is_last);
        }
        let global = self.post.forward(&h.select(1, 0));
        Ok(VisionFeatures {
            patches_bpv: patches_bpv.narrow(1, 1, patches_bpv.size()[1] - 1),
            global_be: linear(&global, &self.projection_ev),
        })
    }

    /// The features that [`VisionFeatures::pack`] has put into `all_bf`.
    pub fn unpack(&self, all_bf: &Tensor) -> VisionFeatures {
        let (b, v, e) = (
            all_bf.size()[0],
            self.class_v.size()[0],
            self.projection_ev.size()[0],
        );
        let of_patches = all_bf.size()[1] - e;
        VisionFeatures {
            patches_bpv: all_bf
                .narrow(1, 0, of_patches)
                .contiguous()
                .view([b, -1, v]),
            global_be: all_bf.narrow(1, of_patches, e).contiguous(),
        }
    }

    /// Class and patch embeddings with positions. The convolution's stride is its size, so it is
    /// one product over patches laid out as rows.
    fn embed(&self, pixels_bchw: &Tensor) -> Tensor {
        let (b, grid, patch) = (pixels_bchw.size()[0], self.side / self.patch, self.patch);
        let patches_bpc = pixels_bchw
            .reshape([b, 3, grid, patch, grid, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([b, grid * grid, 3 * patch * patch]);
        let rows_bpv = linear(&patches_bpc.to_kind(self.kind), &self.patch_vc);
        let class_b1v = like(&self.class_v, &rows_bpv).expand([b, 1, -1], false);
        let positions_pv = like(&self.positions_pv, &rows_bpv);
        Tensor::cat(&[class_b1v, rows_bpv], 1) + positions_pv
    }
}

/// One block of the encoder.
#[derive(Debug)]
struct VisionBlock {
    heads: i64,
    norm1: LayerNorm,
    q: Affine,
    k: Affine,
    v: Affine,
    qkv: Option<Affine>,
    out: Affine,
    norm2: LayerNorm,
    fc1: Affine,
    activation: VisionActivation,
    fc2: Affine,
}

impl VisionBlock {
    fn new(at: &str, shape: &job::Vision, weights: &Weights) -> Result<Self> {
        let (v, w) = (
            i64::from(shape.hidden_size),
            i64::from(shape.intermediate_size),
        );
        let affine = |name: &str, sizes| Affine::new(&format!("{at}.{name}"), sizes, weights);
        let eps = shape.layer_norm_eps;
        let norm = |name: &str| LayerNorm::new(&format!("{at}.{name}"), v, eps, weights);
        let parts = ["q_proj", "k_proj", "v_proj", "out_proj"]
            .map(|name| affine(&format!("self_attn.{name}"), [v, v]));
        let [q, k, value, out] = parts;
        let (q, k, value) = (q?, k?, value?);
        Ok(Self {
            heads: i64::from(shape.num_attention_heads),
            norm1: norm("layer_norm1")?,
            qkv: Affine::fused([&q, &k, &value], weights),
            q,
            k,
            v: value,
            out: out?,
            norm2: norm("layer_norm2")?,
            fc1: affine("mlp.fc1", [w, v])?,
            activation: shape.hidden_act,
            fc2: affine("mlp.fc2", [v, w])?,
        })
    }

    /// All positions, or the class position alone, `[b, 1, v]`.
    fn forward(&self, h_bpv: &Tensor, class_only: bool) -> Tensor {
        let x_bpv = self.norm1.forward(h_bpv);
        let class = |x: &Tensor| {
            if class_only {
                x.narrow(1, 0, 1)
            } else {
                x.shallow_clone()
            }
        };
        let [q, k, v] = match (&self.qkv, class_only) {
            (Some(qkv), false) => {
                let parts = qkv.forward(&x_bpv).chunk(3, -1);
                [0, 1, 2].map(|part| parts[part].shallow_clone())
            }
            _ => [
                self.q.forward(&class(&x_bpv)),
                self.k.forward(&x_bpv),
                self.v.forward(&x_bpv),
            ],
        };
        let [q, k, v] = [q, k, v].map(|x| self.split(&x));
        let h = class(h_bpv) + self.out.forward(&attend(&q, [&k, &v], None, false));
        let inner = self.fc1.forward(&self.norm2.forward(&h));
        let inner = match self.activation {
            VisionActivation::QuickGelu => quick_gelu(&inner),
            VisionActivation::Gelu => inner.gelu("none"),
        };
        h + self.fc2.forward(&inner)
    }

    /// `[b, p, v]` as `[b, heads, p, k]`.
    fn split(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        x.reshape([size[0], size[1], self.heads, -1])
            .transpose(1, 2)
    }
}
