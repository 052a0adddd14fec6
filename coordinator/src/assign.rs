//! Who holds which lanes: a pure function of the members and of what they held before.
//!
//! Desired properties, each a property test below:
//! 1. every lane belongs to exactly one member;
//! 2. the shares differ by at most one lane;
//! 3. a member gives a lane up only where balance asks for it: when others are lost, survivors
//!    keep every lane, with what they have computed of it;
//! 4. ranks are 0, 1, 2, ... without a gap;
//! 5. members of the previous assignment keep their order, newcomers come after them, so that
//!    the same members get the same lanes again;
//! 6. the order in which members came does not matter;
//! 7. a first deal gives each member one contiguous stretch, in the order of ranks.

use std::collections::HashMap;

use mks2_proto::ids::{MemberId, Rank};

/// A member's place and its lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who.
    pub member: MemberId,
    /// Its place.
    pub rank: Rank,
    /// Its lanes, ascending.
    pub lanes: Vec<u32>,
}

/// Shares in the order of ranks.
pub type Assignment = Vec<Share>;

/// Why lanes cannot be dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DealError {
    /// Nobody is there.
    #[error("there is no member to hold the {lanes} lanes")]
    NoMembers {
        /// Lanes of the job.
        lanes: u32,
    },
    /// Some members would have nothing to do.
    #[error("{members} workers cannot share {lanes} lanes: each holds at least one")]
    MoreMembersThanLanes {
        /// Members.
        members: usize,
        /// Lanes of the job.
        lanes: u32,
    },
}

/// Deals `lanes` to `members`: each keeps what it held in `previous` up to its fair share, and
/// the rest goes to those who hold less.
///
/// # Errors
/// When there are no members, or more of them than lanes.
pub fn deal(lanes: u32, members: &[MemberId], previous: &[Share]) -> Result<Assignment, DealError> {
    if members.is_empty() {
        return Err(DealError::NoMembers { lanes });
    }
    let world = u32::try_from(members.len()).unwrap_or(u32::MAX);
    if world > lanes {
        return Err(DealError::MoreMembersThanLanes {
            members: members.len(),
            lanes,
        });
    }
    let before = previous.iter().map(|share| (&share.member, share));
    let before: HashMap<_, _> = before.collect();
    let mut shares: Assignment = (0..world)
        .zip(in_order(members, &before))
        .map(|(rank, member)| Share {
            lanes: held_before(before.get(&member).copied(), lanes),
            member,
            rank: Rank(rank),
        })
        .collect();
    let fair = fair_shares(lanes, &shares);
    for (share, fair) in shares.iter_mut().zip(&fair) {
        share.lanes.truncate(*fair);
    }
    let mut is_held = vec![false; lanes as usize];
    for lane in shares.iter().flat_map(|share| &share.lanes) {
        is_held[*lane as usize] = true;
    }
    let mut free = (0..lanes).filter(|lane| !is_held[*lane as usize]);
    for (share, fair) in shares.iter_mut().zip(fair) {
        let missing = fair - share.lanes.len();
        share.lanes.extend(free.by_ref().take(missing));
        share.lanes.sort_unstable();
    }
    if planted!(LaneDealtTwice) {
        shares.iter_mut().for_each(|share| share.lanes[0] = 0);
    }
    Ok(shares)
}

/// How many lanes each member should hold: those who hold the most now get what is left over.
fn fair_shares(lanes: u32, shares: &[Share]) -> Vec<usize> {
    let world = shares.len();
    let (fair, left_over) = (lanes as usize / world, lanes as usize % world);
    let mut by_holding: Vec<usize> = (0..world).collect();
    by_holding.sort_by_key(|at| std::cmp::Reverse(shares[*at].lanes.len()));
    let mut targets = vec![fair; world];
    for at in by_holding.into_iter().take(left_over) {
        targets[at] += 1;
    }
    targets
}

fn held_before(share: Option<&Share>, lanes: u32) -> Vec<u32> {
    share.map_or_else(Vec::new, |share| {
        let mut held = share.lanes.clone();
        held.retain(|lane| *lane < lanes);
        held
    })
}

/// Veterans by their old rank, then newcomers in the order in which people count.
fn in_order(members: &[MemberId], previous: &HashMap<&MemberId, &Share>) -> Vec<MemberId> {
    let rank = |member| previous.get(member).map_or(u32::MAX, |share| share.rank.0);
    let mut ordered: Vec<_> = members
        .iter()
        .map(|member| (rank(member), member))
        .collect();
    ordered.sort_by(|(a_rank, a), (b_rank, b)| {
        let by_name = || a.natural_key().cmp(&b.natural_key());
        a_rank.cmp(b_rank).then_with(by_name)
    });
    ordered
        .into_iter()
        .map(|(_, member)| member.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::subsequence};

    use super::*;

    fn ids(numbers: &[u32]) -> Vec<MemberId> {
        numbers
            .iter()
            .map(|n| MemberId::new(&format!("worker-{n}")).expect("good"))
            .collect()
    }

    /// Lanes, the members before, and the members now in any order.
    fn problem() -> impl Strategy<Value = (u32, Vec<MemberId>, Vec<MemberId>)> {
        let pool: Vec<u32> = (0..24).collect();
        (
            24_u32..2000,
            subsequence(pool.clone(), 1..24),
            subsequence(pool, 1..24).prop_shuffle(),
        )
            .prop_map(|(lanes, before, now)| (lanes, ids(&before), ids(&now)))
    }

    /// What an assignment of others has left to `before`: nothing, or stretches out of order.
    fn now_of(before: &[MemberId], now: &[MemberId], lanes: u32) -> Assignment {
        let mut mixed = now.to_vec();
        mixed.extend(before.iter().rev().filter(|id| !now.contains(id)).cloned());
        deal(lanes, &mixed, &[]).unwrap_or_default()
    }

    proptest! {
        #[test]
        fn shares_are_complete_and_balanced((lanes, before, now) in problem()) {
            let previous = deal(lanes, &before, &[]).expect("enough lanes");
            let dealt = deal(lanes, &now, &previous).expect("enough lanes");
            prop_assert_eq!(dealt.len(), now.len());
            let ranks: Vec<_> = dealt.iter().map(|share| share.rank.0).collect();
            prop_assert_eq!(ranks, (0..u32::try_from(now.len()).unwrap()).collect::<Vec<_>>());
            let mut held: Vec<_> = dealt.iter().flat_map(|share| share.lanes.clone()).collect();
            prop_assert!(dealt.iter().all(|share| share.lanes.is_sorted()));
            held.sort_unstable();
            prop_assert_eq!(held, (0..lanes).collect::<Vec<_>>());
            let sizes = || dealt.iter().map(|share| share.lanes.len());
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }

        #[test]
        fn survivors_keep_what_they_hold((lanes, before, now) in problem(), again in any::<u64>()) {
            // One loss after the other, so that what was held is not contiguous any more.
            let mut assignment = deal(lanes, &before, &now_of(&before, &now, lanes)).unwrap();
            for round in 0..4 {
                let left: Vec<_> = assignment.iter().map(|share| share.member.clone())
                    .enumerate()
                    .filter(|(at, _)| *at == 0 || (again >> (8 * round + at % 8)) & 1 == 1)
                    .map(|(_, member)| member)
                    .collect();
                let next = deal(lanes, &left, &assignment).unwrap();
                for share in &next {
                    let before = assignment.iter().find(|b| b.member == share.member).unwrap();
                    prop_assert!(before.lanes.iter().all(|lane| share.lanes.contains(lane)));
                }
                assignment = next;
            }
        }

        #[test]
        fn a_first_deal_is_contiguous((lanes, before, _) in problem()) {
            let dealt = deal(lanes, &before, &[]).unwrap();
            let lanes_of_ranks: Vec<_> = dealt.into_iter().flat_map(|share| share.lanes).collect();
            prop_assert_eq!(lanes_of_ranks, (0..lanes).collect::<Vec<_>>());
        }

        #[test]
        fn veterans_keep_their_order_before_newcomers((lanes, before, now) in problem()) {
            let previous = deal(lanes, &before, &[]).expect("enough lanes");
            let dealt = deal(lanes, &now, &previous).expect("enough lanes");
            let old = |s: &Share| previous.iter().find(|p| p.member == s.member).map(|p| p.rank.0);
            let ranks: Vec<_> = dealt.iter().map(|s| old(s).unwrap_or(u32::MAX)).collect();
            prop_assert!(ranks.is_sorted());
        }

        #[test]
        fn the_order_of_arrival_does_not_matter((lanes, before, now) in problem()) {
            let previous = deal(lanes, &before, &[]).expect("enough lanes");
            let mut sorted = now.clone();
            sorted.sort();
            prop_assert_eq!(deal(lanes, &now, &previous), deal(lanes, &sorted, &previous));
            prop_assert_eq!(deal(lanes, &before, &previous).expect("enough lanes"), previous);
        }
    }

    #[test]
    fn eight_lanes_for_three_workers() {
        let dealt = deal(8, &ids(&[2, 10, 0]), &[]).expect("enough lanes");
        let shown: Vec<_> = dealt
            .iter()
            .map(|s| (s.member.as_str(), s.lanes.clone()))
            .collect();
        assert_eq!(
            shown,
            [
                ("worker-0", vec![0, 1, 2]),
                ("worker-2", vec![3, 4, 5]),
                ("worker-10", vec![6, 7])
            ]
        );
    }

    #[test]
    fn the_lanes_of_a_lost_worker_are_dealt_out() {
        let before = deal(8, &ids(&[0, 1, 2]), &[]).expect("enough lanes");
        let dealt = deal(8, &ids(&[1, 2]), &before).expect("enough lanes");
        let lanes: Vec<_> = dealt.into_iter().map(|share| share.lanes).collect();
        assert_eq!(lanes, [vec![0, 3, 4, 5], vec![1, 2, 6, 7]]);
    }

    #[test]
    fn more_workers_than_lanes_are_refused_in_words() {
        let error = deal(2, &ids(&[0, 1, 2]), &[]).expect_err("too many");
        assert_eq!(
            error.to_string(),
            "3 workers cannot share 2 lanes: each holds at least one"
        );
        assert_eq!(deal(2, &[], &[]), Err(DealError::NoMembers { lanes: 2 }));
    }
}
