//! Silent corruption: whether the members' copies of the state of training are alike.
//!
//! A bit that memory has lost changes no length and raises no error. But all members hold the same
//! state between two steps, bit for bit, so they can compare it:
//!
//! ```text
//! digest of what each holds ─► all-gather ─► judge ─► alike: go on
//!                                                └──► not: tell the coordinator who differs from most
//! ```
//!
//! 1. The verdict is a pure function of the gathered digests: every member reaches the same.
//! 2. A checkpoint says whether the copies were compared before it was saved: if so, it is a place to go
//!    back to.
//! 3. A newcomer gets the state only from members that are alike (`team/handover.rs`): copies that
//!    are counted as two have come about independently.

use blake3::{Hash, Hasher};
use mks2_proto::agreement::{Verdict, judge};
use mks2_proto::failure::Failure;
use tch::{Device, Tensor};

use crate::collectives::{Collective, CollectiveError};
use crate::flat::{FlatError, bytes};
use crate::replica::Replica;

/// The members' copies differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Steps that were committed, over all stages.
    pub step: u64,
    /// Steps after which they were alike the last time.
    pub agreed_step: u64,
    /// Ranks that differ from most others; none where there is no majority.
    pub odd: Vec<usize>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            step, agreed_step, ..
        } = self;
        write!(
            f,
            "the copies of the state of training differ after step {step}, and were alike after \
             step {agreed_step}; unlike most others: ranks {:?}",
            self.odd
        )
    }
}

/// Compares digests over all ranks. Every rank must call it; one that has nothing to compare gives
/// none.
///
/// # Errors
/// When a peer is lost.
pub(crate) fn compare(
    collective: &mut dyn Collective,
    mine: Option<Hash>,
) -> Result<Verdict, CollectiveError> {
    let mine: &[u8] = mine.as_ref().map_or(&[], |digest| digest.as_bytes());
    let all = collective.all_gather(mine)?;
    let read = |bytes: &Vec<u8>| {
        let digest = <[u8; blake3::OUT_LEN]>::try_from(bytes.as_slice()).ok()?;
        Some(Hash::from_bytes(digest))
    };
    let digests: Vec<Option<Hash>> = all.iter().map(read).collect();
    Ok(judge(&digests))
}

/// Digest of everything that a step is computed from and that all members hold alike: the replica,
/// and the weights that the stage does not train.
///
/// # Errors
/// When something cannot be read from its device.
pub fn digest(replica: &Replica, frozen: &[Tensor]) -> Result<Hash, Failure> {
    let mut hasher = Hasher::new();
    hasher.update(replica.digest()?.as_bytes());
    for tensor in frozen {
        add(&mut hasher, tensor)?;
    }
    Ok(hasher.finalize())
}

fn add(hasher: &mut Hasher, tensor: &Tensor) -> Result<(), FlatError> {
    let on_host = match tensor.device() {
        Device::Cpu => tensor.shallow_clone(),
        _ => tensor.f_to_device(Device::Cpu)?,
    };
    hasher.update(bytes(&on_host.f_contiguous()?)?);
    Ok(())
}

#[cfg(test)]
mod tests;
