//! The digest of a replica: what is compared between members.

use blake3::{Hash, Hasher};
use mks2_proto::failure::Failure;

use super::Replica;
use crate::flat::{Buffer, le_bytes};

/// What a step leaves behind in the flat state. Its gradients are no part of it.
const BUFFERS: [Buffer; 3] = [Buffer::Weights, Buffer::ExpAvg, Buffer::ExpAvgSq];

impl Replica {
    /// blake3 over the bytes of everything that all members hold alike between two steps: weights
    /// and moments as they lie in memory, padding included, exponents, and how far the stage is. So
    /// the sign of a zero and the payload of a NaN count. Seconds are each member's own.
    ///
    /// # Errors
    /// When a buffer cannot be read from its device.
    pub fn digest(&self) -> Result<Hash, Failure> {
        let mut hasher = Hasher::new();
        for buffer in BUFFERS {
            let values = self.state.host(buffer)?;
            hasher.update(&(values.len() as u64).to_le_bytes());
            hasher.update(le_bytes(&values));
        }
        let exponents = self.reducer.state_bytes();
        hasher.update(&(exponents.len() as u64).to_le_bytes());
        hasher.update(&exponents);
        let progress = &self.progress;
        for number in [progress.step, progress.samples, progress.tokens] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&[u8::from(progress.loss.is_some())]);
        hasher.update(&progress.loss.unwrap_or(0.0).to_le_bytes());
        for sum in self.recent.sums() {
            hasher.update(&sum.to_le_bytes());
        }
        Ok(hasher.finalize())
    }
}
