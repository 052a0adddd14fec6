//! Which source each slot of a lane draws from.
//!
//! Shares are split along a binary tree whose leaves are the sources (Huffman's tree of the
//! weights): of the first `n` slots of a node, `round(n * left / (left + right))` go to its left
//! child and the others to its right one. So the number of slots of a source among the first `n`
//! is a closed form, shares are exact in the long run, and at any moment each source is within
//! half a slot of its share if there are two of them, and well within two slots if there are more.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Weights become integers that add up to about this.
const TOTAL: f64 = (1_u64 << 48) as f64;

/// A low-discrepancy pattern of sources.
#[derive(Clone, Debug)]
pub(crate) struct Mixture {
    nodes: Vec<Node>,
    root: u32,
    /// Root-to-leaf path of each source: the nodes and whether to go left.
    paths: Vec<Vec<(u32, bool)>>,
}

#[derive(Clone, Copy, Debug)]
enum Node {
    Leaf {
        source: u16,
    },
    Split {
        left: u32,
        right: u32,
        left_weight: u64,
        weight: u64,
    },
}

impl Mixture {
    /// The pattern for weights that are positive and finite; at most `u16::MAX` of them.
    pub(crate) fn new(weights: &[f64]) -> Self {
        let sum: f64 = weights.iter().sum();
        let mut nodes = Vec::new();
        let mut heap = BinaryHeap::new();
        for (source, weight) in (0_u16..).zip(weights) {
            let integer = ((weight / sum * TOTAL) as u64).max(1);
            heap.push(Reverse((integer, nodes.len() as u32)));
            nodes.push(Node::Leaf { source });
        }
        while heap.len() > 1 {
            if let (Some(Reverse((light, right))), Some(Reverse((left_weight, left)))) =
                (heap.pop(), heap.pop())
            {
                let weight = light + left_weight;
                heap.push(Reverse((weight, nodes.len() as u32)));
                nodes.push(Node::Split {
                    left,
                    right,
                    left_weight,
                    weight,
                });
            }
        }
        let root = (nodes.len() as u32).saturating_sub(1);
        let mut mixture = Self {
            nodes,
            root,
            paths: vec![Vec::new(); weights.len()],
        };
        mixture.trace(root, &mut Vec::new());
        mixture
    }

    /// The source of `slot`, and how many slots before it went to the same source.
    pub(crate) fn source(&self, slot: u64) -> (u16, u64) {
        let (mut node, mut slot) = (self.root, slot);
        loop {
            match self.nodes[node as usize] {
                Node::Leaf { source } => return (source, slot),
                Node::Split {
                    left,
                    right,
                    left_weight,
                    weight,
                } => {
                    let before = share(slot, left_weight, weight);
                    let goes_left = share(slot + 1, left_weight, weight) > before;
                    node = if goes_left { left } else { right };
                    slot = if goes_left { before } else { slot - before };
                }
            }
        }
    }

    /// How many of the first `slots` slots go to `source`.
    pub(crate) fn count(&self, source: u16, slots: u64) -> u64 {
        self.paths[usize::from(source)]
            .iter()
            .fold(slots, |slots, (node, goes_left)| {
                match self.nodes[*node as usize] {
                    Node::Leaf { .. } => slots,
                    Node::Split {
                        left_weight,
                        weight,
                        ..
                    } => {
                        let left = share(slots, left_weight, weight);
                        if *goes_left { left } else { slots - left }
                    }
                }
            })
    }

    /// The slot of the draw number `nth` (from 0) of `source`, if it is among the first `slots`.
    pub(crate) fn slot_of(&self, source: u16, nth: u64, slots: u64) -> Option<u64> {
        if self.count(source, slots) <= nth {
            return None;
        }
        // The last slot before which there are `nth` draws and behind which there is one more.
        let (mut low, mut high) = (0, slots);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.count(source, middle) <= nth {
                low = middle;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    /// Notes the path to each leaf below `node`.
    fn trace(&mut self, node: u32, path: &mut Vec<(u32, bool)>) {
        match self.nodes[node as usize] {
            Node::Leaf { source } => self.paths[usize::from(source)] = path.clone(),
            Node::Split { left, right, .. } => {
                for (child, goes_left) in [(left, true), (right, false)] {
                    path.push((node, goes_left));
                    self.trace(child, path);
                    path.pop();
                }
            }
        }
    }
}

/// `round(slots * part / whole)`.
fn share(slots: u64, part: u64, whole: u64) -> u64 {
    let (part, whole) = (u128::from(part), u128::from(whole));
    ((2 * u128::from(slots) * part + whole) / (2 * whole)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn counts_agree_with_the_pattern_and_stay_near_the_shares(
            weights in prop::collection::vec(0.001_f64..10.0, 1..9),
            far in 0_u64..1 << 60,
        ) {
            let mixture = Mixture::new(&weights);
            let sum: f64 = weights.iter().sum();
            for begin in [0, far] {
                let mut counts: Vec<u64> =
                    (0..weights.len()).map(|s| mixture.count(s as u16, begin)).collect();
                for slot in begin..begin + 200 {
                    let (source, before) = mixture.source(slot);
                    prop_assert_eq!(before, counts[usize::from(source)]);
                    prop_assert_eq!(mixture.slot_of(source, before, slot), None);
                    prop_assert_eq!(mixture.slot_of(source, before, slot + 1), Some(slot));
                    prop_assert_eq!(mixture.slot_of(source, before, 4 * slot + 9), Some(slot));
                    counts[usize::from(source)] += 1;
                }
                for (source, count) in counts.iter().enumerate() {
                    prop_assert_eq!(mixture.count(source as u16, begin + 200), *count);
                }
                prop_assert_eq!(counts.iter().sum::<u64>(), begin + 200);
            }
            for slots in 0..500_u64 {
                for (source, weight) in weights.iter().enumerate() {
                    let exact = weight / sum * slots as f64;
                    let off = (mixture.count(source as u16, slots) as f64 - exact).abs();
                    let limit = if weights.len() <= 2 { 0.5 + 1e-9 } else { 2.0 };
                    prop_assert!(off <= limit, "source {} is off by {}", source, off);
                }
            }
        }

        #[test]
        fn a_light_source_is_not_starved(heavy in 1e3_f64..1e9, slot in any::<u32>()) {
            let mixture = Mixture::new(&[heavy, 1.0]);
            let slots = u64::from(slot) << 20;
            let exact = slots as f64 / (heavy + 1.0);
            prop_assert!((mixture.count(1, slots) as f64 - exact).abs() <= 1.0 + exact * 1e-5);
        }
    }
}
