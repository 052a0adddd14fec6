//! Stage 2: the soft mixture of multimodal experts, with adapters on its parts.
//!
//! ```text
//! S_bnx = softmax(W_s X + b_s)                     one score per expert and token
//! h_M   = sum_x S_x LoRA-Expert_x(X)               expert 0: the MLP, then the memories in order
//! ```
//!
//! Every token uses every expert. A mixture of the MLP alone is the LoRA baseline: its only score
//! is one, and there is no router. A block whose router is not trained keeps the starting scores,
//! `softmax(0, router_bias, ..)`, which no token changes.

use mks2_proto::job;
use tch::{Kind, Tensor};

use super::feed_forward::{FeedForward, FeedForwardAdapters};
use super::lora::{AttentionAdapters, LoraSettings};
use super::memory::Memory;
use super::ops::affine;
use super::weights::options;
use super::{ModelError, Result, Weights};

/// Memories, routers and adapters of an `experts` stage, for all blocks.
#[derive(Debug)]
pub struct Experts {
    pub(super) blocks: Vec<BlockExperts>,
}

impl Experts {
    /// The experts `experts.layers.*` over `memories`, given in the order of
    /// `settings.memories`, shuffled or not as the caller wants.
    ///
    /// What the adapters drop is drawn anew for each block of a pass
    /// ([`Pass::dropping`](super::Pass::dropping)).
    ///
    /// # Errors
    /// If a weight is missing, has another shape, or the memories are not those of the settings.
    pub fn new(
        model: &job::Model,
        settings: &job::Experts,
        memories: &[Memory],
        weights: &Weights,
    ) -> Result<Self> {
        let named = settings.memories.len();
        let same = memories
            .iter()
            .zip(&settings.memories)
            .all(|(memory, name)| memory.name == *name);
        if memories.len() != named || !same {
            return Err(ModelError::Memories {
                found: memories.len(),
                expected: named,
            });
        }
        let blocks = (0..model.decoder.num_hidden_layers).map(|layer| {
            let door = Door {
                model,
                settings,
                weights,
                at: format!("experts.layers.{layer}"),
                layer,
            };
            door.block(memories)
        });
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
        })
    }

    /// Names of the experts, in the order of the router's scores.
    pub fn names(settings: &job::Experts) -> Vec<String> {
        std::iter::once("mlp".to_owned())
            .chain(settings.memories.iter().cloned())
            .collect()
    }
}

/// What the weights of one block are read with.
struct Door<'a> {
    model: &'a job::Model,
    settings: &'a job::Experts,
    weights: &'a Weights,
    at: String,
    layer: u32,
}

impl Door<'_> {
    fn chosen(&self, blocks: &[u32]) -> bool {
        blocks.is_empty() || blocks.contains(&(self.layer + 1))
    }

    fn block(&self, memories: &[Memory]) -> Result<BlockExperts> {
        let adapted = self.chosen(&self.settings.adapter_blocks);
        let lora = LoraSettings::from(self.settings);
        let memories = memories
            .iter()
            .map(|memory| {
                let network = memory.blocks[self.layer as usize].clone();
                let at = format!("{}.{}", self.at, memory.name);
                let adapters = match adapted {
                    true => Some(FeedForwardAdapters::new(
                        &at,
                        network.shape(),
                        lora,
                        self.weights,
                    )?),
                    false => None,
                };
                Ok((network, adapters))
            })
            .collect::<Result<Vec<_>>>()?;
        let decoder = &self.model.decoder;
        let d = i64::from(decoder.hidden_size);
        let (mut mlp, mut attention) = (None, None);
        if adapted {
            let shape = (true, [d, i64::from(decoder.intermediate_size)]);
            let at = format!("{}.mlp", self.at);
            mlp = Some(FeedForwardAdapters::new(&at, shape, lora, self.weights)?);
        }
        if adapted && self.settings.adapt_attention {
            let head = i64::from(decoder.head());
            let [heads, kv] = [decoder.num_attention_heads, decoder.num_key_value_heads]
                .map(|count| head * i64::from(count));
            let at = format!("{}.self_attn", self.at);
            let sizes = [d, heads, kv];
            attention = Some(AttentionAdapters::new(&at, sizes, lora, self.weights)?);
        }
        Ok(BlockExperts {
            scores: self.scores()?,
            mlp,
            attention,
            memories,
        })
    }

    fn scores(&self) -> Result<Scores> {
        let count = self.settings.memories.len() as i64 + 1;
        if count == 1 || !self.chosen(&self.settings.router_blocks) {
            return Ok(Scores::Constant(starting_scores(
                count,
                self.settings.router_bias,
            )));
        }
        let d = i64::from(self.model.decoder.hidden_size);
        Ok(Scores::Router {
            weight_xd: self
                .weights
                .shaped(&format!("{}.router.weight", self.at), &[count, d])?,
            bias_x: self
                .weights
                .shaped(&format!("{}.router.bias", self.at), &[count])?,
        })
    }
}

/// `softmax(0, bias, bias, ..)`.
fn starting_scores(count: i64, bias: f64) -> Vec<f64> {
    let top = bias.max(0.0);
    let raw: Vec<f64> = (0..count)
        .map(|x| (if x == 0 { -top } else { bias - top }).exp())
        .collect();
    let sum: f64 = raw.iter().sum();
    raw.into_iter().map(|score| score / sum).collect()
}

/// How the tokens of a block weigh its experts.
#[derive(Debug)]
enum Scores {
    /// The same for every token.
    Constant(Vec<f64>),
    /// The paper's router.
    Router { weight_xd: Tensor, bias_x: Tensor },
}

/// The mixture of one block.
#[derive(Debug)]
pub(super) struct BlockExperts {
    scores: Scores,
    mlp: Option<FeedForwardAdapters>,
    pub(super) attention: Option<AttentionAdapters>,
    memories: Vec<(FeedForward, Option<FeedForwardAdapters>)>,
}

impl BlockExperts {
    /// The mixture's output for `x_bnd` and the scores `[b, n, x]`, if `record` asks for them.
    pub(super) fn forward(
        &self,
        x_bnd: &Tensor,
        mlp: &FeedForward,
        record: bool,
    ) -> (Tensor, Option<Tensor>) {
        let answers = self
            .memories
            .iter()
            .map(|(memory, adapters)| (memory, adapters.as_ref()));
        let experts = std::iter::once((mlp, self.mlp.as_ref())).chain(answers);
        let outputs = experts.map(|(expert, adapters)| expert.forward(x_bnd, adapters));
        match &self.scores {
            Scores::Constant(scores) => {
                let parts = outputs.zip(scores).map(|(out, score)| match *score {
                    1.0 => out,
                    score => out * score,
                });
                let scores_bnx = record.then(|| broadcast(scores, x_bnd));
                (sum(parts), scores_bnx)
            }
            Scores::Router { weight_xd, bias_x } => {
                // In fp32 whatever the rest computes in: experts are weighed by small differences.
                let scores_bnx = affine(&x_bnd.to_kind(Kind::Float), weight_xd, Some(bias_x))
                    .softmax(-1, None::<Kind>);
                let each = scores_bnx.to_kind(x_bnd.kind()).split(1, -1);
                let parts = outputs.zip(&each).map(|(out, score_bn1)| out * score_bn1);
                (sum(parts), record.then(|| scores_bnx.detach()))
            }
        }
    }
}

fn sum(parts: impl Iterator<Item = Tensor>) -> Tensor {
    let mut parts = parts;
    let first = parts.next().unwrap_or_default();
    parts.fold(first, |sum, part| sum + part)
}

fn broadcast(scores: &[f64], x_bnd: &Tensor) -> Tensor {
    let size = x_bnd.size();
    let scores_x = Tensor::from_slice(scores)
        .to_device(x_bnd.device())
        .to_kind(Kind::Float);
    let shape = [size[0], size[1], scores.len() as i64];
    Tensor::zeros(shape, options(Kind::Float, x_bnd)) + scores_x
}
