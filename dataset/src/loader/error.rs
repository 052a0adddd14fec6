//! Why a microbatch could not be read.

use mks2_proto::failure::Failure;

use crate::error::Error;

/// Why a microbatch could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A row group could not be read.
    #[error("row group {group} of {url} ({shard}): {cause}")]
    Group {
        /// The corpus.
        url: String,
        /// File of the shard in the corpus.
        shard: String,
        /// The row group, counted over the whole corpus.
        group: u64,
        /// What went wrong.
        cause: Box<Error>,
    },
    /// A picture could not be decoded.
    #[error("{url}, {shard}: {cause}")]
    Picture {
        /// The corpus.
        url: String,
        /// File of the shard in the corpus.
        shard: String,
        /// The row and what is wrong with its picture.
        cause: Box<Error>,
    },
    /// A row group that lacks a row of the plan.
    #[error("source {source_index} has no row {row}")]
    NoRow {
        /// Index among the plan's sources.
        source_index: u16,
        /// The row.
        row: u64,
    },
    /// A microbatch did not become ready in time.
    #[error("step {step} of lane {lane} was not read after {seconds:.0} seconds")]
    Timeout {
        /// The step within the stage.
        step: u64,
        /// The lane.
        lane: u32,
        /// How long was waited.
        seconds: f64,
    },
    /// A microbatch that this loader was not started for.
    #[error("step {step} of lane {lane} is not this loader's")]
    NotOurs {
        /// The step within the stage.
        step: u64,
        /// The lane.
        lane: u32,
    },
    /// Corpora, plan and lanes that do not belong together.
    #[error("{reason}")]
    Mismatch {
        /// What does not fit.
        reason: String,
    },
    /// A thread panicked.
    #[error("reading step {step} of lane {lane} panicked")]
    Panicked {
        /// The step within the stage.
        step: u64,
        /// The lane.
        lane: u32,
    },
    /// The loader is being dropped.
    #[error("the loader was stopped")]
    Stopped,
    /// The system gave no thread.
    #[error("no thread could be started: {0}")]
    Threads(std::io::Error),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let why = error.to_string();
        let what = "the training data cannot be read";
        match error {
            LoadError::Group { cause, .. } | LoadError::Picture { cause, .. } => {
                let missing = cause.is_missing();
                let below = Self::from(*cause);
                if missing {
                    return below;
                }
                Self {
                    what: what.into(),
                    why,
                    ..below
                }
            }
            LoadError::Timeout { .. } => Self::storage(
                what,
                why,
                "check that the store answers, then run the same command again: it resumes",
            ),
            LoadError::Threads(_) => {
                Self::environment(what, why, "raise the limit of processes (ulimit -u)")
            }
            _ => Self::internal(what, why),
        }
    }
}
