//! Who sends what to whom: pure arithmetic, the same on every rank.
//!
//! A buffer is cut into one shard per rank, on multiples of 64 bytes of fp32. In a reduce-scatter
//! every rank sends each peer that peer's shard and receives its own shard from each; in an
//! all-gather every rank sends its own shard and receives each peer's. Rank r serves its peers in
//! the order r+1, r+2, ..., so that no rank is everybody's first; received shards are added in
//! that order too, which fixes the bits of fp32 sums for a given world.

use std::ops::Range;

use crate::flat::ALIGN_ELEMENTS;

use super::{Collective, CollectiveError, Result};

/// What one rank exchanges with one peer, in elements of the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The peer's rank.
    pub peer: usize,
    /// Sent to the peer.
    pub send: Range<usize>,
    /// Filled or added to from what the peer sends.
    pub receive: Range<usize>,
}

/// The elements of a buffer that `rank` owns. Shards are in order, do not overlap and cover the
/// buffer; the longest has at most 16 elements more than the shortest, save at the buffer's end.
#[must_use]
pub fn shard(len: usize, world: usize, rank: usize) -> Range<usize> {
    let units = len.div_ceil(ALIGN_ELEMENTS) as u128;
    let border = |rank: usize| {
        let unit = (units * rank as u128 / world.max(1) as u128) as usize;
        (unit * ALIGN_ELEMENTS).min(len)
    };
    border(rank)..border(rank + 1)
}

/// The other ranks, in the order in which `rank` serves them.
pub fn peers(world: usize, rank: usize) -> impl Iterator<Item = usize> {
    (1..world).map(move |distance| (rank + distance) % world)
}

/// A reduce-scatter from `rank`'s point of view.
#[must_use]
pub fn reduce_scatter(len: usize, world: usize, rank: usize) -> Vec<Transfer> {
    let own = shard(len, world, rank);
    peers(world, rank)
        .map(|peer| Transfer {
            peer,
            send: shard(len, world, peer),
            receive: own.clone(),
        })
        .collect()
}

/// An all-gather of shards from `rank`'s point of view.
#[must_use]
pub fn all_gather(len: usize, world: usize, rank: usize) -> Vec<Transfer> {
    let own = shard(len, world, rank);
    peers(world, rank)
        .map(|peer| Transfer {
            peer,
            send: own.clone(),
            receive: shard(len, world, peer),
        })
        .collect()
}

/// Compares a digest over all ranks.
///
/// # Errors
/// [`CollectiveError::Usage`] on every rank, with the ranks whose digest is not rank 0's.
pub fn agree(collective: &mut dyn Collective, what: &str, digest: &blake3::Hash) -> Result<()> {
    let all = collective.all_gather(digest.as_bytes())?;
    let others: Vec<usize> = (0..all.len()).filter(|&rank| all[rank] != all[0]).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(CollectiveError::Usage(format!(
        "the {what} of ranks {others:?} differs from that of rank 0"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: [usize; 9] = [0, 1, 15, 16, 17, 100, 1000, 4096, 123_457];

    #[test]
    fn shards_cover_the_buffer_in_order_and_evenly() {
        for world in 1..=8 {
            for len in LENGTHS {
                let shards: Vec<_> = (0..world).map(|rank| shard(len, world, rank)).collect();
                assert_eq!(shards[0].start, 0);
                assert_eq!(shards[world - 1].end, len);
                assert!(shards.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert!(
                    shards
                        .iter()
                        .all(|own| own.is_empty() || own.start % ALIGN_ELEMENTS == 0)
                );
                let longest = shards.iter().map(ExactSizeIterator::len).max().unwrap();
                assert!(longest <= len / world + ALIGN_ELEMENTS);
            }
        }
    }

    #[test]
    fn every_send_has_its_receive() {
        for world in 1..=8 {
            for len in LENGTHS {
                for plan in [reduce_scatter, all_gather] {
                    for rank in 0..world {
                        for transfer in plan(len, world, rank) {
                            let back = plan(len, world, transfer.peer);
                            let mirror = back.iter().find(|other| other.peer == rank).unwrap();
                            assert_eq!(transfer.send, mirror.receive);
                            assert_eq!(transfer.receive, mirror.send);
                        }
                    }
                }
            }
        }
    }

    /// Run on sets: after both phases every rank has every rank's contribution to every element.
    #[test]
    fn the_two_phases_make_an_all_reduce() {
        for world in 1..=8 {
            let len = 1000;
            let mut sums = vec![vec![0u32; len]; world];
            for (rank, sums) in sums.iter_mut().enumerate() {
                shard(len, world, rank).for_each(|at| sums[at] |= 1 << rank);
                for transfer in reduce_scatter(len, world, rank) {
                    transfer
                        .receive
                        .for_each(|at| sums[at] |= 1 << transfer.peer);
                }
            }
            let reduced = sums.clone();
            for (rank, sums) in sums.iter_mut().enumerate() {
                for transfer in all_gather(len, world, rank) {
                    transfer
                        .receive
                        .for_each(|at| sums[at] = reduced[transfer.peer][at]);
                }
                assert!(sums.iter().all(|&set| set == (1 << world) - 1));
            }
        }
    }

    #[test]
    fn peers_are_served_in_turn() {
        assert_eq!(peers(4, 2).collect::<Vec<_>>(), [3, 0, 1]);
        for turn in 0..7 {
            let mut targets: Vec<_> = (0..8).filter_map(|rank| peers(8, rank).nth(turn)).collect();
            targets.sort_unstable();
            assert_eq!(targets, (0..8).collect::<Vec<_>>());
        }
    }
}
