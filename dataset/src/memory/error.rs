//! What can be wrong with a memory, in itself or for a job.

use mks2_proto::failure::Failure;

use super::card::VERSION;
use crate::error::Error;

/// What can be wrong with a memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] Error),
    /// A folder without a card.
    #[error("there is no memory.json in {location}")]
    Missing {
        /// The folder.
        location: String,
    },
    /// A card that was cut off, changed or is none.
    #[error("{file} is damaged: {why}")]
    Card {
        /// The card.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A card of another version of the format.
    #[error("{file} has format version {found}, and this program knows version {VERSION}")]
    Version {
        /// The card.
        file: String,
        /// The version that it has.
        found: u64,
    },
    /// A part that is not what the card says.
    #[error("{file} cannot be used: {why}")]
    Part {
        /// The part.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The folder already holds another memory.
    #[error("'{name}' lies there, with the id {id}")]
    Occupied {
        /// The folder.
        location: String,
        /// Name of the memory there.
        name: String,
        /// Its id.
        id: String,
    },
    /// Another memory than the job pins.
    #[error("the memory in {location} has the id {found}, and stage '{stage}' wants {wanted}")]
    OtherId {
        /// The folder.
        location: String,
        /// The stage that attaches it.
        stage: String,
        /// The id that it has.
        found: String,
        /// The id that the job names.
        wanted: String,
    },
    /// A memory of another language model.
    #[error("the memory in {location} was stored beside another language model: {difference}")]
    OtherBase {
        /// The folder.
        location: String,
        /// Both digests, seeds or shapes.
        difference: String,
    },
    /// A memory of another shape than the job says.
    #[error("the memory in {location} is {found}, and the job says that '{stage}' is {said}")]
    OtherShape {
        /// The folder.
        location: String,
        /// The stage that attaches it.
        stage: String,
        /// Its form and width.
        found: String,
        /// Those of the job.
        said: String,
        /// Its form and width as a job file has them.
        table: String,
    },
    /// What was trained beside the memory is not as the job's model has it.
    #[error(
        "bridge or retrieval head of the memory in {location} are not those of [model]: {difference}"
    )]
    OtherBridge {
        /// The folder.
        location: String,
        /// The stage that attaches it.
        stage: String,
        /// The first tensor that differs.
        difference: String,
    },
    /// A fault of the program.
    #[error("{0}")]
    Internal(String),
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        let what = "the memory cannot be used";
        let attached = "the memory cannot be attached";
        let why = error.to_string();
        let failure = match &error {
            MemoryError::Store(_) => return from_store(error, what),
            MemoryError::Missing { .. } => Self::checkpoint(
                what,
                why,
                "name the folder that `mks2 memory export` or `mks2 memory import` has written",
            ),
            MemoryError::Card { .. } | MemoryError::Part { .. } => Self::checkpoint(
                what,
                why,
                "bring the file back from a copy, or export the memory again into another folder",
            ),
            MemoryError::Version { .. } => Self::checkpoint(
                what,
                why,
                "use the version of mks2 that wrote it, or a later one",
            ),
            MemoryError::Occupied { location, .. } => Self::usage(
                format!("{location} already holds another memory"),
                why,
                "choose another folder: a memory is never replaced",
            ),
            MemoryError::OtherId { stage, .. } => Self::checkpoint(
                attached,
                why,
                format!("name the memory that you want, or correct stage.{stage}.attach.id"),
            ),
            MemoryError::OtherBase { .. } => Self::checkpoint(
                attached,
                why,
                "let the stage build on the language model that the memory was stored beside; the \
                 same bootstrap stage with the same seed and corpora makes it again",
            ),
            MemoryError::OtherShape { stage, table, .. } => Self::settings(
                attached,
                why,
                format!("set model.memories.{stage} = {table}"),
            ),
            MemoryError::OtherBridge { stage, .. } => Self::settings(
                attached,
                why,
                format!(
                    "set stage.{stage}.attach.bridge = false to take the memory alone, or give \
                     [model] what the memory's run had"
                ),
            ),
            MemoryError::Internal(_) => Self::internal(what, why),
        };
        failure.with_source(error)
    }
}

fn from_store(error: MemoryError, what: &str) -> Failure {
    match error {
        MemoryError::Store(inner) => inner.into(),
        other => Failure::internal(what, other.to_string()),
    }
}
