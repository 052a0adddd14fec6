//! Where a worker stands in a run, as it tells the others.

use mks2_proto::agreement::{Part, Place, Point};

/// Where a worker stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// What it is doing.
    pub point: Point,
    /// Steps that it has committed, over all stages.
    pub committed: u64,
    /// The steps after which the state was compared last (see [`audit`](crate::audit)): equal to
    /// `committed` where that is done.
    pub compared: u64,
    /// The lanes' sums of the last of them (see [`LaneLoss`](crate::objective::LaneLoss)), for
    /// whoever has to commit it yet.
    pub sums: Vec<f64>,
    /// It has no state of training yet, but for so many bytes of what the others had at that step.
    pub newcomer: Option<u64>,
}

impl Standing {
    /// How far it is; none for a newcomer.
    pub(super) fn place(&self) -> Option<Place> {
        let place = (self.point, self.committed, self.compared);
        self.newcomer.is_none().then_some(place)
    }

    /// Little endian: stage u32, part u8, newcomer u8 and its bytes u64, committed u64, compared
    /// u64, sums f64 each.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.point.stage.to_le_bytes().to_vec();
        bytes.push(self.point.part as u8);
        bytes.push(u8::from(self.newcomer.is_some()));
        bytes.extend(self.newcomer.unwrap_or(0).to_le_bytes());
        bytes.extend(self.committed.to_le_bytes());
        bytes.extend(self.compared.to_le_bytes());
        bytes.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (stage, rest) = bytes.split_first_chunk()?;
        let (part, rest) = rest.split_first()?;
        let (is_newcomer, rest) = rest.split_first()?;
        let (received, rest) = rest.split_first_chunk()?;
        let (committed, rest) = rest.split_first_chunk()?;
        let (compared, rest) = rest.split_first_chunk()?;
        let part = Part::of(*part)?;
        let (sums, odd) = rest.as_chunks();
        odd.is_empty().then(|| Self {
            point: Point {
                stage: u32::from_le_bytes(*stage),
                part,
            },
            committed: u64::from_le_bytes(*committed),
            compared: u64::from_le_bytes(*compared),
            sums: sums.iter().map(|sum| f64::from_le_bytes(*sum)).collect(),
            newcomer: (*is_newcomer == 1).then(|| u64::from_le_bytes(*received)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_standing_survives_the_wire(
            stage: u32,
            part in prop_oneof![Just(Part::Start), Just(Part::Steps), Just(Part::Border)],
            committed: u64,
            compared: u64,
            sums in prop::collection::vec(-1e9..1e9, 0..5),
            newcomer: Option<u64>,
        ) {
            let point = Point { stage, part };
            let standing = Standing { point, committed, compared, sums, newcomer };
            prop_assert_eq!(Standing::decode(&standing.encode()), Some(standing.clone()));
            let whole = standing.encode();
            for cut in 0..30 {
                prop_assert_eq!(Standing::decode(&whole[..cut]), None);
            }
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(bytes: Vec<u8>) {
            let _ = Standing::decode(&bytes);
        }
    }
}
