//! What can be wrong with a task.

use mks2_proto::failure::Failure;

use crate::error::Error;

/// What can be wrong with a task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A store failed, or a name is none.
    #[error(transparent)]
    Store(#[from] Error),
    /// A file is not there.
    #[error("there is no {file}")]
    Missing {
        /// The file.
        file: String,
        /// The task file that names it, if it is another one.
        named_by: Option<String>,
    },
    /// The task file is none.
    #[error("task file {file}: {why}")]
    Settings {
        /// The file.
        file: String,
        /// Which key, and what is wrong.
        why: String,
    },
    /// The data as a whole are not what the kind of task needs.
    #[error("{file}: {why}")]
    Data {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// One row is not.
    #[error("{file}, {at}: {why}")]
    Row {
        /// The file.
        file: String,
        /// `line 3`, `question 4`
        at: String,
        /// What is wrong.
        why: String,
    },
    /// A picture is not there.
    #[error("{file}, {at}: there is no picture {picture}")]
    NoPicture {
        /// The file that names it.
        file: String,
        /// Where.
        at: String,
        /// The picture's file.
        picture: String,
    },
}

impl From<TaskError> for Failure {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Store(error) => error.into(),
            TaskError::Missing {
                file,
                named_by: None,
            } => Self::settings(
                format!("there is no task file {file}"),
                "it was named as a task",
                "name a TOML file that describes one; examples/emoji/tasks has some",
            ),
            TaskError::Missing {
                file,
                named_by: Some(task),
            } => Self::data(
                format!("there is no file {file}"),
                format!("{task} names it"),
                "names in a task file are relative to it",
            ),
            TaskError::Settings { file, why } => Self::settings(
                format!("task file {file} cannot be used"),
                why,
                "compare it with docs/cli.md, \"What eval measures\"",
            ),
            TaskError::Data { file, why } => Self::data(
                format!("{file} cannot be measured on"),
                why,
                "give data in the form that docs/cli.md describes for the task's kind",
            ),
            TaskError::Row { file, at, why } => Self::data(
                format!("{file}, {at}: it cannot be measured on"),
                why,
                "mend the row, or take it out",
            ),
            TaskError::NoPicture { file, at, picture } => Self::data(
                format!("{file}, {at}: its picture is not there"),
                format!("there is no file {picture}"),
                "set images to the folder that the names of pictures are relative to",
            ),
        }
    }
}
