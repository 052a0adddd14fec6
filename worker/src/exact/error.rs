//! Why a reduction failed.

use mks2_proto::failure::Failure;
use thiserror::Error;

use super::BallotError;
use crate::collectives::CollectiveError;
use crate::flat::FlatError;

/// The reduction failed on this rank.
#[derive(Debug, Error)]
pub enum ReduceError {
    /// The exchange failed; after a new generation has formed, `finish` may be called again.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The ranks' ballots do not fit together.
    #[error(transparent)]
    Ballot(#[from] BallotError),
    /// Buffers that can not be used.
    #[error(transparent)]
    Flat(#[from] FlatError),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    /// Arguments that do not fit the layout.
    #[error("{0}")]
    Usage(String),
    /// A saved state that does not belong to this layout.
    #[error("the saved reduction state {0}")]
    State(String),
}

impl From<ReduceError> for Failure {
    fn from(error: ReduceError) -> Self {
        match error {
            ReduceError::Collective(error) => error.into(),
            error => Self::internal("the gradients could not be summed", error.to_string())
                .with_source(error),
        }
    }
}
