//! A flipped bit on order, for tests: what bad memory does.

use std::str::FromStr;

use mks2_proto::failure::Failure;
use tch::Tensor;

use super::Replica;
use crate::flat::{FlatError, bytes_mut};

/// Where a bit is flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// In a trained weight.
    Weights,
    /// In a first moment.
    ExpAvg,
    /// In a second moment.
    ExpAvgSq,
    /// In an exponent of the exact sum.
    Exponents,
    /// In the count of samples.
    Progress,
    /// In a weight that is not trained.
    Frozen,
}

impl Flip {
    /// All places.
    pub const ALL: [Self; 6] = [
        Self::Weights,
        Self::ExpAvg,
        Self::ExpAvgSq,
        Self::Exponents,
        Self::Progress,
        Self::Frozen,
    ];

    /// Its word in an order.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::ExpAvg => "exp-avg",
            Self::ExpAvgSq => "exp-avg-sq",
            Self::Exponents => "exponents",
            Self::Progress => "progress",
            Self::Frozen => "frozen",
        }
    }
}

impl FromStr for Flip {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        let mut known = Self::ALL.into_iter();
        known.find(|flip| flip.name() == word).ok_or(())
    }
}

impl Replica {
    /// Flips one bit, chosen by `choice` among all bits of the place. Frozen weights are not in here.
    ///
    /// # Errors
    /// When a buffer is not in the memory of the CPU.
    pub(crate) fn flip(&mut self, place: Flip, choice: u64) -> Result<(), Failure> {
        match place {
            Flip::Weights => flip_in(&mut self.state.weights, choice)?,
            Flip::ExpAvg => flip_in(&mut self.state.exp_avg, choice)?,
            Flip::ExpAvgSq => flip_in(&mut self.state.exp_avg_sq, choice)?,
            Flip::Exponents => {
                let exponents = self.reducer.exponents_mut();
                let (at, bit) = at(choice, exponents.len(), i16::BITS);
                if let Some(exponent) = exponents.get_mut(at) {
                    *exponent ^= 1 << bit;
                }
            }
            Flip::Progress => self.progress.samples ^= 1 << (choice % u64::from(u64::BITS)),
            Flip::Frozen => {}
        }
        Ok(())
    }
}

/// Flips one bit of a contiguous tensor on the CPU.
///
/// # Errors
/// For any other tensor.
pub(crate) fn flip_in(tensor: &mut Tensor, choice: u64) -> Result<(), FlatError> {
    let bytes = bytes_mut(tensor)?;
    let (at, bit) = at(choice, bytes.len(), u8::BITS);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << bit;
    }
    Ok(())
}

/// The element and its bit.
fn at(choice: u64, elements: usize, bits: u32) -> (usize, u32) {
    let bit = choice % (elements.max(1) as u64 * u64::from(bits));
    let (element, bit) = (bit / u64::from(bits), bit % u64::from(bits));
    (element as usize, bit as u32)
}
