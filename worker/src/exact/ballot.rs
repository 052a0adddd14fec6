//! What ranks tell each other before a reduction, and what follows from it.
//!
//! A ballot says which lanes a rank has added, how large each tensor's gradients were and which
//! exponents it used. The tally is a pure function of all ballots, so every rank reaches the same
//! verdict.

use super::exponents::{NONE, NOT_FINITE};

/// One rank's part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ballot {
    /// Lanes added in this step.
    pub(super) lanes: Vec<u32>,
    /// Per tensor: exponent of the largest element of any lane; see [`super::exponents`].
    pub(super) seen: Vec<i16>,
    /// Per tensor: exponent of the fixed point in use; [`NONE`] while it has none.
    pub(super) exponents: Vec<i16>,
    /// Some gradient without an exponent could not be kept: the step must be repeated.
    pub(super) dropped: bool,
    /// How often this rank has added its lanes anew in this step.
    pub(super) attempt: u32,
}

/// All ballots together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    /// Per tensor, over all lanes of all ranks.
    pub(super) seen: Vec<i16>,
    /// Per tensor, as used by the ranks that have one.
    pub(super) exponents: Vec<i16>,
    /// Whether any rank has dropped a gradient.
    pub(super) dropped: bool,
    /// The latest attempt of any rank; the exponents are those of the ranks that are in it.
    pub(super) attempt: u32,
    /// Whether some rank is in an earlier one.
    pub(super) behind: bool,
}

/// Why ballots can not be counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BallotError {
    /// The lanes of a step were not each added once.
    #[error("lane {lane} was added {times} times in one step instead of once")]
    Lane {
        /// The lane.
        lane: u32,
        /// How often it was added.
        times: usize,
    },
    /// Two ranks use different exponents for one tensor.
    #[error(
        "rank {rank} scales tensor {tensor} by 2^{found}, others by 2^{expected}: the replicas have come apart"
    )]
    Diverged {
        /// The rank that differs.
        rank: usize,
        /// The tensor's place in the layout.
        tensor: usize,
        /// Its exponent.
        found: i16,
        /// The exponent of lower ranks.
        expected: i16,
    },
    /// A ballot that can not be read.
    #[error("rank {rank} sent a ballot of {bytes} bytes that does not fit {tensors} tensors")]
    Malformed {
        /// The rank.
        rank: usize,
        /// Its ballot's length.
        bytes: usize,
        /// Tensors of this rank's layout.
        tensors: usize,
    },
}

impl Ballot {
    /// Little endian: dropped u32, attempt u32, count u32, lanes u32 each, seen i16 each,
    /// exponents i16 each.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(12 + 4 * self.lanes.len() + 4 * self.seen.len());
        bytes.extend(u32::from(self.dropped).to_le_bytes());
        bytes.extend(self.attempt.to_le_bytes());
        bytes.extend((self.lanes.len() as u32).to_le_bytes());
        bytes.extend(self.lanes.iter().flat_map(|lane| lane.to_le_bytes()));
        bytes.extend(self.seen.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(self.exponents.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    pub(super) fn decode(bytes: &[u8], tensors: usize) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(12)?;
        let word = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
        let (dropped, attempt, lanes) = (word(0)?, word(4)?, word(8)? as usize);
        let (lanes, rest) = rest.split_at_checked(lanes.checked_mul(4)?)?;
        if rest.len() != 4 * tensors || dropped > 1 {
            return None;
        }
        let (seen, exponents) = rest.split_at(2 * tensors);
        let numbers = |bytes: &[u8]| {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|pair| i16::from_le_bytes(*pair))
                .collect()
        };
        Some(Self {
            lanes: lanes
                .as_chunks()
                .0
                .iter()
                .map(|word| u32::from_le_bytes(*word))
                .collect(),
            seen: numbers(seen),
            exponents: numbers(exponents),
            dropped: dropped == 1,
            attempt,
        })
    }
}

impl Tally {
    /// Counts the encoded ballots, by rank.
    pub(super) fn count(
        ballots: &[Vec<u8>],
        tensors: usize,
        lanes: u32,
    ) -> Result<Self, BallotError> {
        let decode = |(rank, bytes): (usize, &Vec<u8>)| {
            let malformed = BallotError::Malformed {
                rank,
                bytes: bytes.len(),
                tensors,
            };
            Ballot::decode(bytes, tensors).ok_or(malformed)
        };
        let ballots: Vec<Ballot> = ballots
            .iter()
            .enumerate()
            .map(decode)
            .collect::<Result<_, _>>()?;
        let attempts = || ballots.iter().map(|ballot| ballot.attempt);
        let attempt = attempts().max().unwrap_or_default();
        let mut tally = Self {
            seen: vec![NONE; tensors],
            exponents: vec![NONE; tensors],
            dropped: false,
            attempt,
            behind: attempts().any(|other| other < attempt),
        };
        let mut times = vec![0usize; lanes as usize];
        for (rank, ballot) in ballots.iter().enumerate() {
            for &lane in &ballot.lanes {
                *times
                    .get_mut(lane as usize)
                    .ok_or(BallotError::Lane { lane, times: 1 })? += 1;
            }
            tally.add(rank, ballot)?;
        }
        match times.iter().position(|&times| times != 1) {
            Some(lane) => Err(BallotError::Lane {
                lane: lane as u32,
                times: times[lane],
            }),
            None => Ok(tally),
        }
    }

    fn add(&mut self, rank: usize, ballot: &Ballot) -> Result<(), BallotError> {
        self.dropped |= ballot.dropped;
        for tensor in 0..self.seen.len() {
            self.seen[tensor] = self.seen[tensor].max(ballot.seen[tensor]);
            if ballot.attempt < self.attempt {
                continue;
            }
            let (expected, found) = (self.exponents[tensor], ballot.exponents[tensor]);
            if expected == NONE {
                self.exponents[tensor] = found;
            } else if found != NONE && found != expected {
                return Err(BallotError::Diverged {
                    rank,
                    tensor,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// The first tensor with an infinite or undefined gradient.
    pub(super) fn not_finite(&self) -> Option<usize> {
        self.seen.iter().position(|&seen| seen == NOT_FINITE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(lanes: &[u32], seen: &[i16], exponents: &[i16]) -> Vec<u8> {
        let (seen, exponents) = (seen.to_vec(), exponents.to_vec());
        Ballot {
            lanes: lanes.to_vec(),
            seen,
            exponents,
            dropped: false,
            attempt: 0,
        }
        .encode()
    }

    #[test]
    fn the_largest_counts_whoever_saw_it() {
        let (a, b) = (
            ballot(&[0, 2], &[3, NONE], &[40, NONE]),
            ballot(&[1], &[5, -4], &[40, 9]),
        );
        let tally = Tally::count(&[a.clone(), b.clone()], 2, 3).unwrap();
        assert_eq!(
            tally,
            Tally {
                seen: vec![5, -4],
                exponents: vec![40, 9],
                dropped: false,
                attempt: 0,
                behind: false,
            }
        );
        assert_eq!(Tally::count(&[b, a], 2, 3).unwrap(), tally);
    }

    #[test]
    fn each_lane_counts_once() {
        let one = |lanes: &[u32]| ballot(lanes, &[1], &[1]);
        let lane = |error| matches!(error, BallotError::Lane { .. });
        assert!(lane(
            Tally::count(&[one(&[0]), one(&[0])], 1, 1).unwrap_err()
        ));
        assert!(lane(
            Tally::count(&[one(&[0]), one(&[])], 1, 2).unwrap_err()
        ));
        assert!(lane(Tally::count(&[one(&[0, 7])], 1, 1).unwrap_err()));
    }

    #[test]
    fn replicas_that_came_apart_are_named() {
        let error =
            Tally::count(&[ballot(&[0], &[1], &[4]), ballot(&[], &[1], &[5])], 1, 1).unwrap_err();
        assert_eq!(
            error,
            BallotError::Diverged {
                rank: 1,
                tensor: 0,
                found: 5,
                expected: 4
            }
        );
    }

    #[test]
    fn those_who_learned_of_an_overflow_lead_the_others() {
        let mut ahead = Ballot {
            lanes: vec![0],
            seen: vec![9],
            exponents: vec![30],
            dropped: false,
            attempt: 1,
        };
        let behind = ballot(&[1], &[9], &[40]);
        let tally = Tally::count(&[behind.clone(), ahead.encode()], 1, 2).unwrap();
        assert_eq!((tally.exponents, tally.behind), (vec![30], true));
        ahead.attempt = 0;
        let error = Tally::count(&[behind, ahead.encode()], 1, 2).unwrap_err();
        assert!(matches!(error, BallotError::Diverged { rank: 1, .. }));
    }

    #[test]
    fn damaged_ballots_are_refused() {
        let whole = ballot(&[0], &[1], &[1]);
        for cut in 0..whole.len() {
            assert_eq!(Ballot::decode(&whole[..cut], 1), None);
        }
        assert_eq!(Ballot::decode(&whole, 2), None);
        let endless = [[0; 8].as_slice(), &[255; 4]].concat();
        assert_eq!(Ballot::decode(&endless, 1), None);
    }
}
