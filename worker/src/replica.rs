//! What all workers of a run hold alike between two steps: the state of training.

mod digest;
mod flip;

use crate::exact::Reducer;
use crate::flat::FlatState;
use crate::train::{Progress, Recent};
pub use flip::Flip;
pub(crate) use flip::flip_in;

/// A worker's copy of the state of training.
pub struct Replica {
    /// Weights and moments; and the gradients of the step under way.
    pub state: FlatState,
    /// The exponents of the exact sum; and the sums of the step under way.
    pub reducer: Reducer,
    /// How far the stage is.
    pub progress: Progress,
    /// Its last steps.
    pub recent: Recent,
}

impl Replica {
    /// One at the beginning of a stage.
    #[must_use]
    pub fn new(state: FlatState, reducer: Reducer) -> Self {
        Self {
            state,
            reducer,
            progress: Progress::default(),
            recent: Recent::default(),
        }
    }
}
