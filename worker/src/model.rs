//! The model of MKS2 ([arXiv 2311.15759](https://arxiv.org/abs/2311.15759)) as single-device text.
//!
//! No rank, no file and no optimizer in here: a module takes its weights from [`Weights`] (name
//! -> tensor), checks their shapes at the door, and computes. Leaves that are trained share the
//! storage of the flat buffers, so a module built once sees every update.
//!
//! ```text
//! soft tokens = Bridge(Vision(picture).patches_bpv)            d wide, before the caption
//! h_0         = [soft tokens, Decoder::embed(ids)]             [b, t, d]
//! block l:  h_s = h + Attention(RMSNorm(h))                    causal, rotary, grouped queries
//!           X   = RMSNorm'(h_s)
//!           h   = h_s + second half(X)                         chosen by the caller:
//!                 SecondHalves::Mlp      MLP(X)                             bootstrap
//!                 SecondHalves::Memory   MVM(X)                             stage 1
//!                 SecondHalves::Experts  sum_e S_e LoRA-Expert_e(X),
//!                                        S = softmax(W_s X + b_s)           stage 2
//! states      = RMSNorm''(h) at the positions that are read
//! ```
//!
//! One training step of each stage, as the trainer writes it:
//!
//! ```text
//! memory   features = vision.forward(&pixels)                       no graph: frozen
//!          soft     = bridge.forward(&features.patches_bpv)
//!          h        = Tensor::cat([soft, decoder.embed(&ids)], 1)
//!          states   = decoder.forward(&h, &Pass::new(SecondHalves::Memory(&memory))
//!                                            .reading(Read::From(p - 1)))?
//!          (sum, n) = losses::next_token(&decoder, &states.last_bnd, &labels)?
//!          text     = decoder.forward(&decoder.embed(&ids), &Pass::new(..).reading(Read::At(&end_b1)))?
//!          rows     = head.loss_rows(&text, &global_images_me, first_row)?    sum over the rows
//!          loss     = sum / caption tokens of the step + rows / samples of the step
//! experts  states   = decoder.forward(&decoder.embed(&ids), &Pass::new(SecondHalves::Experts(&experts))
//!                                                              .reading(Read::At(&answer_bn)))?
//!          (sum, n) = losses::next_token(&decoder, &states.last_bnd, &labels)?
//! gradients           tape.gradients(&loss, &leaves)?        the passes are `.onto(..)` the tape or not
//! ```
//!
//! A leaf that took no part in the loss comes back as an undefined tensor (`Tensor::defined`): its
//! gradient is zero. Where no weight in a module requires a gradient,
//! libtorch records no graph, so a frozen encoder costs its forward pass alone.
//!
//! Rows are padded on the **right**. A causal mask then suffices: no real position sees padding,
//! and what padding computes is not read. For other layouts give the mask of real keys
//! ([`Pass::keys`]).
//!
//! A model computes in the kind of its [`Weights`], fp32 or bf16, and keeps frozen matrices in it; what is
//! trained is fp32 and converted where it is applied. Statistics of norms, scores of routers, retrieval
//! heads, logits and losses are fp32 in either.
//!
//! Shapes are checked at the doors and give a [`ModelError`]; the operations inside are
//! libtorch's and panic only if it runs out of memory.
//!
//! Suffixes name sizes: `b` rows, `t` tokens, `n` positions read, `d` hidden size, `h` query
//! heads, `g` key and value heads, `k` head width, `p` patches (or what stands for them), `v` width of the visual encoder,
//! `e` global image feature, `s` shared retrieval space, `m` images of the global batch, `x`
//! experts, `r` adapter rank.

mod attention;
mod block;
mod bridge;
mod cache;
mod decoder;
mod error;
mod experts;
mod feed_forward;
mod few_rows;
mod layers;
mod lora;
pub mod losses;
mod memory;
mod onednn;
mod ops;
mod q_former;
mod retrieval;
mod rotary;
#[cfg(test)]
mod small;
mod tape;
mod text_tower;
mod view;
mod vision;
mod weights;

pub use block::{Pass, Read, SecondHalves, States};
pub use bridge::Bridge;
pub(crate) use cache::ROOM;
pub use cache::{Cache, Parked, Wanted};
pub use decoder::Decoder;
pub use error::{ModelError, Result};
pub use experts::Experts;
pub use memory::Memory;
pub use retrieval::{RetrievalHead, RetrievalHeads};
pub use tape::Tape;
pub use text_tower::TextTower;
pub use vision::{Vision, VisionFeatures};
pub(crate) use weights::group_of;
pub use weights::{Weights, kind_of};
