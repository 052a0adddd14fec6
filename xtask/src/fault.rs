//! What can go wrong here, in one sentence with its cure and the exit code of the command.

use std::fmt;
use std::io;
use std::path::Path;

/// The machine lacks something: a tool, space, the network.
pub(crate) const ENVIRONMENT: u8 = 6;

/// The result of every verb.
pub(crate) type Outcome<T = ()> = Result<T, Fault>;

/// One sentence that says what is wrong and what to do.
#[derive(Debug)]
pub(crate) struct Fault {
    sentence: String,
    /// Exit code of the process.
    pub(crate) exit: u8,
}

impl Fault {
    /// A check or a step failed.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            exit: 1,
        }
    }

    /// The machine lacks something.
    pub(crate) fn environment(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            exit: ENVIRONMENT,
        }
    }

    /// A file or folder that cannot be used; `act` says for what: "write", "make", "read".
    pub(crate) fn file(act: &str, path: &Path, error: &io::Error) -> Self {
        let cure = match error.kind() {
            io::ErrorKind::StorageFull => ": free some space and try again",
            io::ErrorKind::PermissionDenied => ": give this user the right to it",
            _ => "",
        };
        Self::environment(format!("cannot {act} {}: {error}{cure}", path.display()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}
