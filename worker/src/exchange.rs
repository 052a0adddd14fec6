//! Numbers of all lanes, on every worker, in lane order.
//!
//! A [`Share`] per lane goes into one small all-gather; what comes out does not depend on who held
//! which lane. The same serves for blocks of rows in an evaluation.

use mks2_proto::failure::Failure;

use crate::collectives::Collective;
use crate::objective::Share;
use crate::team::Setback;

/// Gathers the shares of `total` lanes, of which this worker gives `mine`. The bits of `flags` are
/// or-ed over the workers.
///
/// # Errors
/// When a peer is lost, or the shares do not cover every lane exactly once.
pub(crate) fn all_lanes(
    collective: &mut dyn Collective,
    flags: u8,
    mine: &[(u32, Share)],
    total: u32,
) -> Result<(u8, Vec<Share>), Setback> {
    let messages = collective.all_gather(&encode(flags, mine))?;
    let mut any = 0;
    let mut shares: Vec<Option<Share>> = vec![None; total as usize];
    for (rank, message) in messages.iter().enumerate() {
        let (flags, lanes) = decode(message).ok_or_else(|| unreadable(rank))?;
        any |= flags;
        for (lane, share) in lanes {
            match shares.get_mut(lane as usize) {
                Some(slot @ None) => *slot = Some(share),
                _ => return Err(uncovered(lane, total).into()),
            }
        }
    }
    let missing = |lane: usize| uncovered(lane as u32, total);
    let complete = shares
        .into_iter()
        .enumerate()
        .map(|(lane, share)| share.ok_or_else(|| missing(lane)));
    Ok((any, complete.collect::<Result<_, _>>()?))
}

fn unreadable(rank: usize) -> Failure {
    Failure::internal(
        "the workers could not exchange a step's numbers",
        format!("rank {rank} sent a message that can not be read"),
    )
}

fn uncovered(lane: u32, total: u32) -> Failure {
    Failure::internal(
        "the workers could not exchange a step's numbers",
        format!("lane {lane} of {total} was given by no worker, or by two"),
    )
}

/// `flags u8, then per lane: lane u32, counts u32, features u32, f64..., f32...`, little endian.
fn encode(flags: u8, lanes: &[(u32, Share)]) -> Vec<u8> {
    let mut bytes = vec![flags];
    for (lane, share) in lanes {
        for number in [
            *lane,
            share.counts.len() as u32,
            share.features.len() as u32,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(share.counts.iter().flat_map(|count| count.to_le_bytes()));
        bytes.extend(
            share
                .features
                .iter()
                .flat_map(|feature| feature.to_le_bytes()),
        );
    }
    bytes
}

fn decode(message: &[u8]) -> Option<(u8, Vec<(u32, Share)>)> {
    let (&flags, mut rest) = message.split_first()?;
    let mut lanes = Vec::new();
    while !rest.is_empty() {
        let mut number = || -> Option<u32> {
            let (four, behind) = rest.split_first_chunk::<4>()?;
            rest = behind;
            Some(u32::from_le_bytes(*four))
        };
        let (lane, counts, features) = (number()?, number()? as usize, number()? as usize);
        let (counts, behind) = rest.split_at_checked(counts.checked_mul(8)?)?;
        let (features, behind) = behind.split_at_checked(features.checked_mul(4)?)?;
        rest = behind;
        let counts = counts
            .as_chunks::<8>()
            .0
            .iter()
            .map(|eight| f64::from_le_bytes(*eight))
            .collect();
        let features = features
            .as_chunks::<4>()
            .0
            .iter()
            .map(|four| f32::from_le_bytes(*four))
            .collect();
        lanes.push((lane, Share { counts, features }));
    }
    Some((flags, lanes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_survive_the_wire(
            flags: u8,
            lanes in prop::collection::vec((0u32..9, prop::collection::vec(-1e9..1e9, 0..4), prop::collection::vec(-1f32..1.0, 0..9)), 0..4),
        ) {
            let lanes: Vec<(u32, Share)> =
                lanes.into_iter().map(|(lane, counts, features)| (lane, Share { counts, features })).collect();
            prop_assert_eq!(decode(&encode(flags, &lanes)), Some((flags, lanes)));
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
