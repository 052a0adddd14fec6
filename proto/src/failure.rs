//! Errors that a user sees: three lines and an exit code.
//!
//! ```text
//! error: corpus 'emoji' cannot be opened
//!   why: there is no manifest.json under /data/emoji
//!   fix: import it first: mks2 data import SOURCE... --out /data/emoji
//! ```
//!
//! Library crates keep precise error enums inside and convert them to a [`Failure`] at the door
//! (`impl From<TheirError> for Failure`). The binaries print it and end with its [`ExitCode`].

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// Exit codes of `mks2` and `mks2-worker`. 0 is "done" and never belongs to a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum ExitCode {
    /// 1: a fault of the program itself.
    Internal = 1,
    /// 2: the command line is wrong.
    Usage = 2,
    /// 3: the job file or a setting is wrong.
    Settings = 3,
    /// 4: a corpus is missing, empty or damaged.
    Data = 4,
    /// 5: storage: permission, disk full, object store unreachable.
    Storage = 5,
    /// 6: the machine: libtorch, CUDA, a taken port, a missing binary.
    Environment = 6,
    /// 7: the run failed and can be resumed, for example because a worker was lost.
    RunFailed = 7,
    /// 8: a checkpoint was refused: damaged, or of another job.
    Checkpoint = 8,
    /// 130: stopped on request.
    Stopped = 130,
}

/// What a worker ends with that SIGTERM has ended before the others could let it go, as shells have it:
/// 128 and the signal's number.
pub const TERMINATED: i32 = 143;

impl ExitCode {
    /// All codes, for documentation and tests.
    pub const ALL: [Self; 9] = [
        Self::Internal,
        Self::Usage,
        Self::Settings,
        Self::Data,
        Self::Storage,
        Self::Environment,
        Self::RunFailed,
        Self::Checkpoint,
        Self::Stopped,
    ];

    /// The number that the process ends with.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The code of a number that another process ended with or reported; numbers without a
    /// meaning of their own count as internal.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        Self::ALL
            .into_iter()
            .find(|known| u32::from(known.code()) == code)
            .unwrap_or(Self::Internal)
    }

    /// One line for the documentation.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Internal => "a fault of the program itself",
            Self::Usage => "the command line is wrong",
            Self::Settings => "the job file or a setting is wrong",
            Self::Data => "a corpus is missing, empty or damaged",
            Self::Storage => "storage: permission, disk full, object store unreachable",
            Self::Environment => "the machine: libtorch, CUDA, a taken port, a missing binary",
            Self::RunFailed => "the run failed and can be resumed",
            Self::Checkpoint => "a checkpoint was refused",
            Self::Stopped => "stopped on request",
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.code().into()
    }
}

/// What went wrong, why, and what to do about it.
///
/// Each text is one sentence without a full stop, in lower case, with names and numbers.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What did not work, seen from the user: "job.toml cannot be read".
    pub what: String,
    /// The reason, with names and numbers.
    pub why: String,
    /// What the user can do.
    pub cure: String,
    /// How the process ends.
    pub exit: ExitCode,
    /// The error below, for logs.
    pub source: Option<Arc<dyn Error + Send + Sync + 'static>>,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(
        exit: ExitCode,
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            cure: cure.into(),
            exit,
            source: None,
        }
    }

    /// Keeps the error below.
    #[must_use]
    pub fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Exit 1: a fault of the program itself.
    pub fn internal(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(
            ExitCode::Internal,
            what,
            why,
            "this is a fault of mks2; please report it with the log, and try `--resume auto`",
        )
    }

    /// Exit 2: the command line is wrong.
    pub fn usage(what: impl Into<String>, why: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, what, why, cure)
    }

    /// Exit 3: the job file or a setting is wrong.
    pub fn settings(
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::new(ExitCode::Settings, what, why, cure)
    }

    /// Exit 4: a corpus is missing, empty or damaged.
    pub fn data(what: impl Into<String>, why: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(ExitCode::Data, what, why, cure)
    }

    /// Exit 5: storage.
    pub fn storage(
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::new(ExitCode::Storage, what, why, cure)
    }

    /// Exit 6: the machine.
    pub fn environment(
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::new(ExitCode::Environment, what, why, cure)
    }

    /// Exit 7: the run failed and can be resumed.
    pub fn run_failed(
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::new(ExitCode::RunFailed, what, why, cure)
    }

    /// Exit 8: a checkpoint was refused.
    pub fn checkpoint(
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::new(ExitCode::Checkpoint, what, why, cure)
    }

    /// Exit 130: stopped on request.
    pub fn stopped(
        what: impl Into<String>,
        why: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self::new(ExitCode::Stopped, what, why, cure)
    }

    /// Exit 5 with the cure that fits the kind of an I/O error: no permission, no space, not
    /// there. `what` names the thing and the act: "/runs/a/metrics.jsonl cannot be written".
    pub fn io(what: impl Into<String>, error: std::io::Error) -> Self {
        let (why, cure) = io_words(&error);
        Self::storage(what, why, cure).with_source(error)
    }

    /// The failure as JSON, for `--log-format json` and for tools.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": self.what,
            "why": self.why,
            "fix": self.cure,
            "exit_code": self.exit.code(),
            "kind": self.exit,
        })
    }
}

/// Reason and cure of an I/O error.
fn io_words(error: &std::io::Error) -> (String, &'static str) {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::PermissionDenied => (
            "permission denied".into(),
            "give this user the right to it, or choose another place",
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (
            "no space left there".into(),
            "free space, or choose another place",
        ),
        ErrorKind::FileTooLarge => (
            "the file is too large for a limit of this process or of the file system".into(),
            "raise the limit (`ulimit -f` shows it), or choose another place",
        ),
        ErrorKind::ReadOnlyFilesystem => (
            "the file system is read-only".into(),
            "choose a place that can be written",
        ),
        ErrorKind::NotFound => (
            "it does not exist".into(),
            "check the path for typing errors",
        ),
        ErrorKind::NotADirectory => (
            "a part of the path is a file, not a folder".into(),
            "choose another path",
        ),
        ErrorKind::IsADirectory => ("it is a folder".into(), "name a file inside it"),
        _ => (error.to_string(), "look at the reason, then try again"),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error: {}\n  why: {}\n  fix: {}",
            self.what, self.why, self.cure
        )
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| &**source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_prints_as_three_lines() {
        let failure = Failure::settings("lanes is 0", "a run needs one", "set lanes = 8");
        assert_eq!(
            failure.to_string(),
            "error: lanes is 0\n  why: a run needs one\n  fix: set lanes = 8"
        );
    }

    #[test]
    fn codes_survive_the_way_through_a_number() {
        for code in ExitCode::ALL {
            assert_eq!(ExitCode::from_code(code.code().into()), code);
            assert!(!code.meaning().is_empty());
        }
        assert_eq!(ExitCode::from_code(139), ExitCode::Internal);
    }

    #[test]
    fn the_source_is_kept_and_disk_full_has_its_own_cure() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let failure = Failure::io("/runs/a cannot be written", full);
        assert!(failure.source().is_some());
        assert_eq!(failure.why, "no space left there");
        assert_eq!(failure.exit, ExitCode::Storage);
    }

    #[test]
    fn json_has_the_three_lines_and_the_code() {
        let json = Failure::data("a", "b", "c").to_json();
        assert_eq!(json["error"], "a");
        assert_eq!(json["fix"], "c");
        assert_eq!(json["exit_code"], 4);
        assert_eq!(json["kind"], "data");
    }
}
