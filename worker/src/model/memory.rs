//! The modular visual memory: one two-layer network per block, in the place of the block's MLP
//! while it stores (stage 1), an expert beside it afterwards (stage 2).

use mks2_proto::job;
use tch::Tensor;

use super::feed_forward::FeedForward;
use super::{Result, Weights};

/// The memory of one `memory` stage, for all blocks.
#[derive(Clone, Debug)]
pub struct Memory {
    pub(super) name: String,
    pub(super) blocks: Vec<FeedForward>,
}

impl Memory {
    /// The memory `memory.<stage>.layers.*`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn new(model: &job::Model, stage: &str, weights: &Weights) -> Result<Self> {
        let shape = model.memory_of(stage);
        let sizes = [i64::from(model.decoder.hidden_size), i64::from(shape.width)];
        let blocks = (0..model.decoder.num_hidden_layers).map(|layer| {
            let at = format!("memory.{stage}.layers.{layer}");
            FeedForward::new(&at, shape.form, sizes, weights)
        });
        Ok(Self {
            name: stage.to_owned(),
            blocks: blocks.collect::<Result<_>>()?,
        })
    }

    /// The control of the method's claim: in each block the hidden units are permuted between
    /// the two layers, by `seed` and the block's number alone. What was stored is destroyed, every
    /// statistic of the weights stays. The result is frozen, and `weights` know of it.
    #[must_use]
    pub fn shuffled(&self, seed: u64, weights: &Weights) -> Self {
        let blocks = self.blocks.iter().enumerate().map(|(layer, block)| {
            let order = Tensor::from_slice(&permutation(seed, layer, block.width()));
            block.permuted(&order.to_device(block.device()), weights)
        });
        Self {
            name: self.name.clone(),
            blocks: blocks.collect(),
        }
    }

    /// The matrices that shuffling permutes, by their names.
    pub fn outputs(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.map(|(layer, block)| {
            let name = format!("memory.{}.layers.{layer}.down_proj.weight", self.name);
            (name, block.output())
        })
    }
}

/// A permutation of `0 .. width` (Fisher and Yates), keyed by seed and block.
fn permutation(seed: u64, layer: usize, width: i64) -> Vec<i64> {
    let mut hasher = blake3::Hasher::new_derive_key("mks2 2026 shuffled memory");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(layer as u64).to_le_bytes());
    let mut words = hasher.finalize_xof();
    let mut order: Vec<i64> = (0..width).collect();
    for last in (1..order.len()).rev() {
        let mut word = [0; 8];
        words.fill(&mut word);
        // The bias of the remainder is below width / 2^64.
        order.swap(
            last,
            (u64::from_le_bytes(word) % (last as u64 + 1)) as usize,
        );
    }
    order
}

#[cfg(test)]
mod tests {
    use super::permutation;

    #[test]
    fn a_permutation_is_one_and_follows_from_its_key() {
        let order = permutation(3, 1, 97);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..97).collect::<Vec<i64>>());
        assert_eq!(order, permutation(3, 1, 97));
        assert_ne!(order, permutation(3, 2, 97));
        assert_ne!(order, permutation(4, 1, 97));
    }
}
