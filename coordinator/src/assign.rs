//! Who holds which lanes: a pure function of the members.
//!
//! Desired properties, each a property test below:
//! 1. every lane belongs to exactly one member;
//! 2. a member's lanes are one contiguous stretch, and stretches follow the ranks;
//! 3. the shares differ by at most one lane, the larger ones first;
//! 4. ranks are 0, 1, 2, ... without a gap;
//! 5. members of the previous assignment keep their order, newcomers come after them, so that
//!    the same members get the same lanes again;
//! 6. the order in which members came does not matter.

use std::ops::Range;

use mks2_proto::ids::{MemberId, Rank};

/// A member's place and its lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Who.
    pub member: MemberId,
    /// Its place.
    pub rank: Rank,
    /// Its lanes.
    pub lanes: Range<u32>,
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

/// Deals `lanes` to `members`, as close to `previous` as a balanced contiguous deal allows.
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
    let (share, larger) = (lanes / world, lanes % world);
    let mut first = 0;
    Ok((0..world)
        .zip(in_order(members, previous))
        .map(|(rank, member)| {
            let end = first + share + u32::from(rank < larger);
            let dealt = Share {
                member,
                rank: Rank(rank),
                lanes: first..end,
            };
            first = end;
            dealt
        })
        .collect())
}

/// Veterans by their old rank, then newcomers in the order in which people count.
fn in_order(members: &[MemberId], previous: &[Share]) -> Vec<MemberId> {
    let old_rank = |member: &MemberId| {
        previous
            .iter()
            .find(|s| &s.member == member)
            .map(|s| s.rank.0)
    };
    let mut ordered = members.to_vec();
    ordered.sort_by(|a, b| {
        let key = |m| old_rank(m).unwrap_or(u32::MAX);
        key(a)
            .cmp(&key(b))
            .then_with(|| a.natural_key().cmp(&b.natural_key()))
    });
    ordered
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

    proptest! {
        #[test]
        fn shares_are_complete_contiguous_and_balanced((lanes, before, now) in problem()) {
            let previous = deal(lanes, &before, &[]).expect("enough lanes");
            let dealt = deal(lanes, &now, &previous).expect("enough lanes");
            prop_assert_eq!(dealt.len(), now.len());
            let mut next = 0;
            for (rank, share) in (0..).zip(&dealt) {
                prop_assert_eq!(share.rank, Rank(rank));
                prop_assert_eq!(share.lanes.start, next);
                next = share.lanes.end;
            }
            prop_assert_eq!(next, lanes);
            let sizes: Vec<_> = dealt.iter().map(|s| s.lanes.len()).collect();
            prop_assert!(sizes.is_sorted_by(|a, b| a >= b));
            prop_assert!(sizes[0] - sizes[sizes.len() - 1] <= 1);
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
            [("worker-0", 0..3), ("worker-2", 3..6), ("worker-10", 6..8)]
        );
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
