//! What can be wrong with a model: a weight that is missing, a shape that does not fit.

use mks2_proto::failure::Failure;
use thiserror::Error;

/// Errors of the model.
#[derive(Debug, Error)]
pub enum ModelError {
    /// No weight has this name.
    #[error("weight '{name}' is missing")]
    Missing {
        /// The weight's global name.
        name: String,
    },
    /// A weight or an input has another shape than the configuration says.
    #[error("'{name}' has shape {found:?}, expected {expected:?} (-1: any)")]
    Shape {
        /// The weight's or input's name.
        name: String,
        /// Its shape.
        found: Vec<i64>,
        /// The shape that the configuration asks for.
        expected: Vec<i64>,
    },
    /// A setting asks for a block that the decoder does not have.
    #[error("block {block} does not exist: the decoder has {blocks} (counted from 1)")]
    NoBlock {
        /// The block asked for, from 1.
        block: u32,
        /// Blocks of the decoder.
        blocks: usize,
    },
    /// The experts do not fit the settings.
    #[error("{found} memories were given, the settings name {expected}")]
    Memories {
        /// Memories given.
        found: usize,
        /// Memories named.
        expected: usize,
    },
    /// There is no memory for the keys and values of answers.
    #[error("{rows} rows with {positions} positions each: {why}")]
    NoRoom {
        /// Answers side by side.
        rows: i64,
        /// Positions of each.
        positions: i64,
        /// What is in the way.
        why: String,
    },
}

/// Result of a model's function.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        let why = error.to_string();
        let failure = match &error {
            ModelError::NoBlock { .. } | ModelError::Memories { .. } => Self::settings(
                "the model cannot be built",
                why,
                "check `extra_blocks`, `adapter_blocks`, `router_blocks` and `memories` in the job file",
            ),
            ModelError::NoRoom { .. } => Self::environment(
                "there is no memory for the keys and values of the answer",
                why,
                "ask for less side by side (--batch, --cache-bytes), or shorten the prompt",
            ),
            ModelError::Missing { .. } | ModelError::Shape { .. } => Self::checkpoint(
                "the model cannot be built from these weights",
                why,
                "check that the stages in `from` were trained with the same `[model]`",
            ),
        };
        failure.with_source(error)
    }
}
