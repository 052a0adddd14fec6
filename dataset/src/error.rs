//! What can go wrong with stores and corpora, and what a user is told about it.

use mks2_proto::failure::Failure;

use crate::picture::PictureError;

/// Result of everything that touches a store or a corpus.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with stores and corpora.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Text that is neither a path nor the URL of a known kind of store.
    #[error("{location}: {reason}")]
    Location {
        /// What was given, without secrets.
        location: String,
        /// Why it can not be opened.
        reason: String,
    },
    /// A store refused or failed.
    #[error("{object} cannot be {verb}: {detail}")]
    Store {
        /// The object, without secrets.
        object: String,
        /// `read`, `written`, `listed` or `deleted`.
        verb: &'static str,
        /// What kind of trouble it is.
        trouble: Trouble,
        /// The store's own words, without secrets.
        detail: String,
    },
    /// A bucket or container that does not exist.
    #[error("there is no {bucket}")]
    MissingBucket {
        /// `bucket URL`, or `such bucket` where the URL is not known.
        bucket: String,
        /// The object that was to be reached.
        object: String,
    },
    /// No manifest at the place of a corpus.
    #[error("no corpus at {url}")]
    MissingCorpus {
        /// The corpus.
        url: String,
    },
    /// A corpus without rows.
    #[error("the corpus at {url} has no rows")]
    EmptyCorpus {
        /// The corpus.
        url: String,
    },
    /// A manifest that can not be used.
    #[error("the manifest of {url} cannot be used: {reason}")]
    Manifest {
        /// The corpus.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A shard that the manifest names and the store does not have.
    #[error("{shard} of the corpus at {url} does not exist")]
    MissingShard {
        /// The corpus.
        url: String,
        /// The file in the corpus.
        shard: String,
    },
    /// A shard that does not hold what the manifest promises.
    #[error("{file} is damaged: {detail}")]
    Corrupt {
        /// The file.
        file: String,
        /// What is wrong, with the row if it is known.
        detail: String,
    },
    /// A row or group that the corpus does not have.
    #[error("{what} {index} is beyond the {count} of {url}")]
    OutOfRange {
        /// `row` or `row group`.
        what: &'static str,
        /// What was asked for.
        index: u64,
        /// How many there are.
        count: u64,
        /// The corpus.
        url: String,
    },
    /// A template that a row can not fill.
    #[error("the template {template:?} cannot be filled: {reason}")]
    Template {
        /// The template.
        template: String,
        /// The field and the row.
        reason: String,
    },
    /// A picture of a row that can not be decoded.
    #[error("the picture of row {row} ({key}): {problem}")]
    Picture {
        /// Global index of the row.
        row: u64,
        /// Its key.
        key: String,
        /// What is wrong with it.
        problem: PictureError,
    },
    /// A source of an import that is not there.
    #[error("the source {name} does not exist")]
    MissingSource {
        /// The source, without secrets.
        name: String,
    },
    /// A pattern of sources that can not be expanded.
    #[error("the source {pattern} cannot be understood: {reason}")]
    Pattern {
        /// The pattern, without secrets.
        pattern: String,
        /// Why not.
        reason: String,
    },
    /// A source of an import that can not be read as any known format.
    #[error("the source {name} cannot be imported: {reason}")]
    Source {
        /// The source as given.
        name: String,
        /// Why not.
        reason: String,
    },
    /// An import that found no usable row.
    #[error("no row could be imported: {reason}")]
    NothingImported {
        /// What became of the samples.
        reason: String,
        /// Where the bad ones are listed, if there are any.
        quarantine: Option<String>,
    },
    /// An import that would replace another finished corpus.
    #[error("{url} already holds another corpus: {difference}")]
    OtherCorpus {
        /// The corpus that is there.
        url: String,
        /// The first difference found.
        difference: String,
    },
    /// A setting of an import out of its range.
    #[error("{0}")]
    Setting(String),
    /// A fault of this program.
    #[error("{0}")]
    Internal(String),
}

/// Kinds of trouble with a store, as far as they matter to what a user can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The object does not exist.
    Missing,
    /// The bucket or container does not exist.
    NoBucket,
    /// The object exists and was to be created.
    Exists,
    /// An object store refuses: no permission, or no valid credentials.
    Denied,
    /// No credentials for an object store were found.
    NoCredentials,
    /// The operating system refuses: no right to a local file or folder.
    NoRight,
    /// No space left.
    Full,
    /// A file may not grow as far as this one must.
    TooLarge,
    /// A part of the path is a file.
    NotAFolder,
    /// The object was changed meanwhile.
    Changed,
    /// The store does not answer, or fails in a way that may pass.
    Silent,
    /// Anything else.
    Other,
}

impl Trouble {
    /// What a user can do about it.
    fn cure(self) -> &'static str {
        match self {
            Self::Missing => "check the name for typing errors",
            Self::NoBucket => "make the bucket, or check its name for typing errors",
            Self::Exists => "choose another place, or remove what is there",
            Self::Denied => {
                "check permissions and credentials (AWS_*, GOOGLE_*, AZURE_* variables), or choose another place"
            }
            Self::NoCredentials => {
                "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION for s3://, \
                 GOOGLE_APPLICATION_CREDENTIALS for gs://, AZURE_STORAGE_ACCOUNT_NAME and \
                 AZURE_STORAGE_ACCOUNT_KEY for az://"
            }
            Self::NoRight => "give this user the right to it, or choose another place",
            Self::Full => "free space, or choose another place; what is complete stays valid",
            Self::TooLarge => {
                "raise the limit (`ulimit -f` shows it) or choose another place; what is complete stays valid"
            }
            Self::NotAFolder => "choose a path whose parents are folders",
            Self::Changed => "wait until nothing else writes there, then start again",
            Self::Silent | Self::Other => "check that the store can be reached, then start again",
        }
    }
}

impl Error {
    /// A store's error about one object; secrets are removed from its words.
    pub fn store(verb: &'static str, object: &str, error: &object_store::Error) -> Self {
        let (trouble, detail) = crate::store::diagnose(error);
        let object = crate::store::redact(object);
        if trouble == Trouble::NoBucket {
            let bucket = match crate::store::bucket_of(&object) {
                Some(url) => format!("bucket {url}"),
                None => "such bucket".to_owned(),
            };
            return Self::MissingBucket { bucket, object };
        }
        Self::Store {
            object,
            verb,
            trouble,
            detail,
        }
    }

    /// Whether a store did not answer: what was asked of it may have been done, and the same question
    /// may be answered later.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Store {
                trouble: Trouble::Silent,
                ..
            }
        )
    }

    /// Whether an object was simply not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::MissingShard { .. }
                | Self::Store {
                    trouble: Trouble::Missing,
                    ..
                }
        )
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let why = error.to_string();
        match &error {
            Error::Store { .. } | Error::MissingBucket { .. } | Error::Location { .. } => {
                storage_failure(&error)
            }
            Error::Internal(_) => Self::internal("the corpus tools failed", why),
            Error::Setting(_) => Self::usage(
                "the import cannot start",
                why,
                "see `mks2 data import --help`",
            ),
            Error::Template { template, reason } => Self::data(
                format!("the text template {template:?} cannot be filled"),
                reason,
                "use fields that every row has: `mks2 data inspect` lists them",
            ),
            Error::MissingSource { .. } | Error::Pattern { .. } | Error::Source { .. } => {
                source_failure(&error)
            }
            _ => corpus_failure(&error),
        }
        .with_source(error)
    }
}

/// Trouble with a store, exit code 5.
fn storage_failure(error: &Error) -> Failure {
    match error {
        Error::Store {
            object,
            verb,
            trouble,
            detail,
        } => Failure::storage(format!("{object} cannot be {verb}"), detail, trouble.cure()),
        Error::MissingBucket { bucket, object } => Failure::storage(
            format!("{object} cannot be reached"),
            format!("there is no {bucket}"),
            Trouble::NoBucket.cure(),
        ),
        other => Failure::storage(
            "a location cannot be opened",
            other.to_string(),
            "give a path or a URL such as s3://bucket/folder, gs://, az:// or file:///folder",
        ),
    }
}

/// Trouble with what is to be imported, exit code 4.
fn source_failure(error: &Error) -> Failure {
    let cure = match error {
        Error::MissingSource { .. } => {
            "check the name for typing errors; {00000..00003} counts through shards"
        }
        Error::Pattern { .. } => {
            "close each brace and quote the pattern: 'part-{00000..00003}.tar' or '{a,b}.jsonl'"
        }
        _ => "give WebDataset tars (.tar) or JSON lines (.jsonl)",
    };
    Failure::data("the import cannot start", error.to_string(), cure)
}

/// Trouble with a corpus, exit code 4.
fn corpus_failure(error: &Error) -> Failure {
    let why = error.to_string();
    match error {
        Error::MissingCorpus { url } => Failure::data(
            format!("there is no corpus at {url}"),
            "it has no manifest.json",
            format!("import one: mks2 data import SOURCE... --out {url}"),
        ),
        Error::EmptyCorpus { url } => Failure::data(
            format!("the corpus at {url} cannot be used"),
            "it has no rows",
            format!("import at least one sample: mks2 data import SOURCE... --out {url}"),
        ),
        Error::NothingImported { reason, quarantine } => {
            let listed = quarantine
                .as_ref()
                .map(|file| format!("; {file} lists the bad ones"))
                .unwrap_or_default();
            Failure::data(
                "the corpus would be empty",
                reason,
                format!("give sources with at least one good sample{listed}"),
            )
        }
        Error::Manifest { url, reason } => Failure::data(
            format!("the corpus at {url} cannot be used"),
            format!("its manifest.json is damaged: {reason}"),
            "bring manifest.json back from a copy, or import the corpus again with --overwrite",
        ),
        Error::MissingShard { url, shard } => Failure::data(
            format!("the corpus at {url} is not whole"),
            format!("its manifest names {shard}, which does not exist"),
            format!(
                "bring the file back from a copy, or import the corpus again with --overwrite; \
                 `mks2 data verify {url}` says what else is missing"
            ),
        ),
        Error::OtherCorpus { url, difference } => Failure::data(
            format!("{url} already holds another corpus"),
            difference,
            "choose another --out, or replace it with --overwrite",
        ),
        _ => Failure::data(
            "the corpus cannot be read",
            why,
            "run `mks2 data verify` on it; import it again if it is damaged",
        ),
    }
}

#[cfg(test)]
mod tests {
    use mks2_proto::failure::ExitCode;

    use super::*;

    #[test]
    fn a_missing_corpus_says_how_to_import_one() {
        let failure = Failure::from(Error::MissingCorpus {
            url: "/data/x".into(),
        });
        assert_eq!(failure.exit, ExitCode::Data);
        assert!(failure.cure.contains("mks2 data import"));
    }

    /// What is said when a local file cannot be written.
    fn of_file(kind: std::io::ErrorKind) -> Failure {
        let generic = object_store::Error::Generic {
            store: "test",
            source: Box::new(std::io::Error::from(kind)),
        };
        let failure = Failure::from(Error::store("written", "/x", &generic));
        assert_eq!(failure.exit, ExitCode::Storage);
        failure
    }

    #[test]
    fn a_full_disk_is_a_storage_failure_with_its_own_cure() {
        let failure = of_file(std::io::ErrorKind::StorageFull);
        assert_eq!(failure.why, "no space left there");
        assert!(failure.cure.contains("free space"), "{failure}");
    }

    #[test]
    fn a_limit_of_file_sizes_has_nothing_to_do_with_reaching_a_store() {
        let failure = of_file(std::io::ErrorKind::FileTooLarge);
        assert!(failure.why.contains("too large"), "{failure}");
        assert!(failure.cure.contains("ulimit -f"), "{failure}");
        assert!(!failure.cure.contains("reached"), "{failure}");
    }

    #[test]
    fn a_local_folder_without_rights_has_nothing_to_do_with_credentials() {
        let failure = of_file(std::io::ErrorKind::PermissionDenied);
        assert_eq!(failure.why, "permission denied");
        assert!(failure.cure.contains("the right to it"), "{failure}");
        assert!(!failure.cure.contains("AWS"), "{failure}");
    }

    #[test]
    fn a_bucket_that_is_not_there_is_said_to_be_missing() {
        let answer = "Server returned 404: <Error><Code>NoSuchBucket</Code></Error>";
        let missing = object_store::Error::NotFound {
            path: "run/journal".into(),
            source: answer.into(),
        };
        let error = Error::store("listed", "s3://mine/run/journal", &missing);
        assert!(
            !error.is_missing(),
            "an object may be missing, not its bucket"
        );
        let failure = Failure::from(error);
        assert_eq!(failure.exit, ExitCode::Storage);
        assert_eq!(failure.why, "there is no bucket s3://mine");
        assert!(failure.what.contains("s3://mine/run/journal"), "{failure}");
    }

    #[test]
    fn missing_credentials_are_named_with_their_variables() {
        let words = "error performing PUT http://169.254.169.254/latest/api/token in 1 s";
        let generic = object_store::Error::Generic {
            store: "S3",
            source: words.into(),
        };
        let failure = Failure::from(Error::store("read", "s3://mine/x", &generic));
        assert!(failure.why.contains("no credentials"), "{failure}");
        assert!(failure.cure.contains("AWS_ACCESS_KEY_ID"), "{failure}");
    }

    #[test]
    fn an_unfillable_template_is_told_once() {
        let failure = Failure::from(Error::Template {
            template: "a {nam}".into(),
            reason: "row 0 (k) has no field \"nam\"".into(),
        });
        let text = failure.to_string();
        assert_eq!(text.matches("a {nam}").count(), 1, "{text}");
        assert_eq!(text.matches("row 0").count(), 1, "{text}");
    }
}
