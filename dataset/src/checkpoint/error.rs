//! What can go wrong with checkpoints.

use mks2_proto::failure::{ExitCode, Failure};

use super::VERSION;
use crate::error::Error;

/// What can go wrong with checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store refused or failed. An upload that ends so has left the last committed
    /// checkpoint as it was.
    #[error(transparent)]
    Store(#[from] Error),
    /// A manifest that does not exist.
    #[error("{path} does not exist")]
    NoManifest {
        /// Path in the run directory.
        path: String,
    },
    /// A manifest that was cut off, changed or is no manifest.
    #[error("{path} is damaged: {reason}")]
    Manifest {
        /// Path in the run directory.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest of another version of the format.
    #[error("{path} has format version {found}, this program knows version {VERSION}")]
    Version {
        /// Path in the run directory.
        path: String,
        /// The version it has.
        found: u64,
    },
    /// A part whose object is gone.
    #[error("part {part} is missing: there is no {object}")]
    MissingPart {
        /// Name of the part.
        part: String,
        /// Path in the run directory.
        object: String,
    },
    /// A part whose bytes are not those that were written.
    #[error("part {part} ({object}) is damaged in {place}")]
    DamagedPart {
        /// Name of the part.
        part: String,
        /// Path in the run directory.
        object: String,
        /// The tensors and bytes concerned.
        place: String,
    },
    /// A checkpoint of a model with other parameters.
    #[error("it is of another model: {difference}")]
    OtherModel {
        /// The first tensor that differs, and how.
        difference: String,
    },
    /// A checkpoint of a run on another corpus.
    #[error("it was trained on another corpus: {difference}")]
    OtherCorpus {
        /// The first corpus that differs, with both digests.
        difference: String,
    },
    /// A checkpoint of a stage that started from other weights.
    #[error("it started from other weights: {difference}")]
    OtherBase {
        /// The first stage that differs, with both digests.
        difference: String,
    },
    /// A checkpoint of a run with another seed.
    #[error("it belongs to seed {found}, the job has seed {expected}")]
    OtherSeed {
        /// The job's seed.
        expected: u64,
        /// The checkpoint's seed.
        found: u64,
    },
    /// The store does not answer.
    #[error("the store has not answered for {seconds} s")]
    Silent {
        /// How long it was waited for.
        seconds: f64,
    },
    /// Buffers and table that do not belong together: a fault of the program.
    #[error("{0}")]
    Internal(String),
}

impl CheckpointError {
    /// Shorthand for a damaged manifest.
    pub fn manifest(path: &str, reason: impl Into<String>) -> Self {
        Self::Manifest {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// Whether the checkpoint itself was refused, as against a store in trouble.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        let is_trouble = matches!(self, Self::Store(_) | Self::Silent { .. });
        !is_trouble && !matches!(self, Self::Internal(_))
    }

    fn cure(&self) -> &'static str {
        match self {
            Self::NoManifest { .. } | Self::Manifest { .. } => {
                "resume from another checkpoint with `--resume STEP`, or begin anew in another run directory"
            }
            Self::Version { .. } => {
                "use the version of mks2 that wrote it, or begin anew in another run directory"
            }
            Self::MissingPart { .. } | Self::DamagedPart { .. } => {
                "restore the object from a copy, or resume from an older checkpoint: `--resume STEP`"
            }
            Self::OtherModel { .. } => {
                "give the job the model that the checkpoint was made with, or another run directory"
            }
            Self::OtherCorpus { .. } => {
                "point the job at the corpus that it was trained on, or use another run directory"
            }
            Self::OtherBase { .. } => {
                "run the stage again from its beginning, or use another run directory"
            }
            Self::OtherSeed { .. } => {
                "set the job's seed to the checkpoint's, or use another run directory"
            }
            Self::Silent { .. } => {
                "see that the run directory can be reached from the worker's machine"
            }
            Self::Store(_) | Self::Internal(_) => "look at the reason, then `--resume auto`",
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Store(error) => error.into(),
            CheckpointError::Silent { .. } => {
                let (why, cure) = (error.to_string(), error.cure());
                Self::storage("the checkpoint is not stored", why, cure).with_source(error)
            }
            CheckpointError::Internal(reason) => {
                Self::internal("the checkpoint cannot be used", reason)
            }
            refusal => {
                let (why, cure) = (refusal.to_string(), refusal.cure());
                Self::new(ExitCode::Checkpoint, "the checkpoint is refused", why, cure)
                    .with_source(refusal)
            }
        }
    }
}
