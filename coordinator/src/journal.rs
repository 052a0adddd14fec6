//! The journal: decisions as create-only numbered objects beside the run's checkpoints.
//!
//! ```text
//! <run>/journal/00000000000000000001.json   term 1 taken
//! <run>/journal/00000000000000000002.json   run created
//! <run>/journal/00000000000000000003.json   generation 1 formed ...
//! <run>/journal/snapshot-00000000000000000064.json   the sum of the records up to 64
//! ```
//!
//! Invariants:
//! 1. Creating object n + 1 is the append and the fence in one: of several writers the store
//!    lets one win, and the others stop. No lease, no clock, any store with create-only writes.
//! 2. A coordinator's first record takes the next term. From then on the one before it fails at
//!    its next append, wherever it was meanwhile.
//! 3. Each record carries the digest of the one before it and its own: a gap, an exchanged or a
//!    changed record is found at replay and refused.
//! 4. A snapshot says nothing that the records do not say; it only shortens the replay.

mod history;
mod raw;
mod record;
mod replay;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use mks2_dataset::store::{self, Created};
use mks2_proto::{
    failure::Failure,
    ids::{Incarnation, Term},
};
use object_store::{ObjectStore, path::Path};
use serde::{Deserialize, Serialize};

use crate::{books::Books, clock};

pub use history::{Ending, History, Origin, Working};
pub use raw::{Raw, read_raw};
pub use record::{Entry, GenerationMember, Record};
pub use replay::replay;

/// A snapshot is written after every so many records.
const SNAPSHOT_EVERY: u64 = 64;
/// Attempts of an append while the store refuses; the waits between them double.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What can be wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another coordinator has written the record that was ours to write.
    #[error("record {number} was written by another coordinator, of term {term}")]
    Fenced {
        /// The contested number.
        number: u64,
        /// The other's term.
        term: Term,
    },
    /// A record is missing between others.
    #[error("record {number} is missing")]
    Gap {
        /// The missing number.
        number: u64,
    },
    /// A record is not what was written.
    #[error("record {number} was changed: {reason}")]
    Tampered {
        /// Its number.
        number: u64,
        /// What does not fit.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] mks2_dataset::error::Error),
    /// A record cannot be put into words.
    #[error("a record cannot be encoded: {0}")]
    Encode(#[from] serde_json::Error),
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let why = error.to_string();
        match error {
            JournalError::Fenced { .. } => Self::run_failed(
                "this coordinator has lost the run to another one",
                why,
                "leave the run to the other one, or stop that one and start this one again",
            ),
            JournalError::Gap { .. } | JournalError::Tampered { .. } => Self::storage(
                "the run's journal is damaged",
                why,
                "restore the folder journal/ of the run directory, or train into a new one",
            ),
            JournalError::Store(error) => error.into(),
            JournalError::Encode(_) => Self::internal("the journal cannot be written", why),
        }
    }
}

/// A place where journals live.
#[derive(Clone, Debug)]
pub struct Place {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// The run directory in it.
    pub root: Path,
}

impl Place {
    fn record(&self, number: u64) -> Path {
        self.root.clone().join("journal").join(file_name(number))
    }

    fn snapshot(&self, number: u64) -> Path {
        self.root
            .clone()
            .join("journal")
            .join(format!("snapshot-{}", file_name(number)))
    }
}

/// The name of a record in the folder `journal`.
pub(crate) fn file_name(number: u64) -> String {
    format!("{number:020}.json")
}

/// The sum of the records up to one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) number: u64,
    /// Digest of that record.
    pub(crate) last: String,
    pub(crate) history: History,
    /// blake3 in hex of the snapshot as compact JSON with an empty digest.
    pub(crate) digest: String,
}

impl Snapshot {
    pub(crate) fn expected_digest(&self) -> Result<String, serde_json::Error> {
        let blank = Self {
            digest: String::new(),
            ..self.clone()
        };
        Ok(blake3::hash(&serde_json::to_vec(&blank)?)
            .to_hex()
            .to_string())
    }
}

/// What a replay found: the sum, and where the next record goes.
#[derive(Clone, Debug)]
pub struct Replayed {
    place: Place,
    /// The sum of all records.
    pub history: History,
    /// Number of the last record; 0: none.
    pub number: u64,
    last: String,
}

impl Replayed {
    /// Takes office: from here on the coordinator before is fenced.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when another one took it between replay and now.
    pub async fn take_term(self, writer: Incarnation) -> Result<Journal, JournalError> {
        let mut journal = Journal {
            term: Term(
                if planted!(TermForgotten) {
                    0
                } else {
                    self.history.term.0
                } + 1,
            ),
            place: self.place,
            writer,
            history: self.history,
            number: self.number,
            last: self.last,
            is_patient: false,
        };
        journal.append(Entry::TermTaken).await?;
        Ok(journal)
    }
}

/// The journal of a coordinator in office.
#[derive(Debug)]
pub struct Journal {
    place: Place,
    term: Term,
    writer: Incarnation,
    history: History,
    number: u64,
    last: String,
    /// A store that does not answer is waited for.
    is_patient: bool,
}

impl Journal {
    /// From now on members work, and a store that does not answer is waited for, however long it takes.
    pub(crate) fn be_patient(&mut self) {
        self.is_patient = true;
    }

    /// The term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The sum of all records.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Whether the next record is still ours to write, before something is overwritten that a
    /// successor may have written, too.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when it is there already; [`JournalError::Store`] as for
    /// [`Journal::append`].
    pub async fn check_office(&self) -> Result<(), JournalError> {
        let number = self.number + 1;
        let path = self.place.record(number);
        let look = || store::get_if_there(&*self.place.store, &path);
        match self.tried(number, look).await? {
            None => Ok(()),
            Some(bytes) => {
                let other = serde_json::from_slice::<Record>(&bytes);
                let term = other.map_or(Term(0), |other| other.term);
                Err(JournalError::Fenced { number, term })
            }
        }
    }

    /// Writes the next record. While members work, a store that does not answer is waited for, however
    /// long it takes: they go on meanwhile. After an error the journal must not be used again:
    /// another coordinator is in office, or the store does not keep what it is given.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the record is another coordinator's,
    /// [`JournalError::Store`] when the store refused several times.
    pub async fn append(&mut self, entry: Entry) -> Result<u64, JournalError> {
        let books = self.history.books.clone();
        self.append_with(entry, books).await
    }

    /// The same, with the run's books as they are now.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub async fn append_with(&mut self, entry: Entry, books: Books) -> Result<u64, JournalError> {
        let record = Record {
            number: self.number + 1,
            term: self.term,
            writer: self.writer,
            at_ms: clock::wall_ms(),
            previous: self.last.clone(),
            books,
            entry,
            digest: String::new(),
        }
        .sealed()?;
        self.create(&record).await?;
        self.history.fold(&record);
        self.number = record.number;
        self.last = record.digest;
        if self.number.is_multiple_of(SNAPSHOT_EVERY) {
            self.snapshot().await;
        }
        Ok(self.number)
    }

    async fn create(&self, record: &Record) -> Result<(), JournalError> {
        let path = self.place.record(record.number);
        let bytes = Bytes::from(serde_json::to_vec(record)?);
        let put = || store::put_create_only(&*self.place.store, &path, bytes.clone());
        match self.tried(record.number, put).await? {
            Created::New => Ok(()),
            Created::Exists if planted!(NoFence) => Ok(()),
            Created::Exists => self.check_own(record, &path, &bytes).await,
        }
    }

    /// The object is there. If it is ours, only the store's answer was lost.
    async fn check_own(
        &self,
        record: &Record,
        path: &Path,
        bytes: &Bytes,
    ) -> Result<(), JournalError> {
        let read = || store::get(&*self.place.store, path);
        let there = self.tried(record.number, read).await?;
        if there == *bytes {
            return Ok(());
        }
        let term = serde_json::from_slice::<Record>(&there).map_or(Term(0), |other| other.term);
        Err(JournalError::Fenced {
            number: record.number,
            term,
        })
    }

    /// Asks the store about a record several times, as long as it refuses, and for ever while it does
    /// not answer. Before members work somebody waits to hear what is wrong: then silence is a
    /// refusal, too.
    async fn tried<T, F: Future<Output = mks2_dataset::error::Result<T>>>(
        &self,
        number: u64,
        ask: impl Fn() -> F,
    ) -> mks2_dataset::error::Result<T> {
        let (mut wait, mut refusals) = (FIRST_WAIT, 0);
        loop {
            let error = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            refusals = match self.is_patient && error.is_silence() {
                true => 0,
                false => refusals + 1,
            };
            if refusals == ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(number, refusals, %error, "the journal's store fails");
            clock::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Saves the sum so far. Without it only the next replay takes longer.
    async fn snapshot(&self) {
        let saved = async {
            let mut snapshot = Snapshot {
                number: self.number,
                last: self.last.clone(),
                history: self.history.clone(),
                digest: String::new(),
            };
            snapshot.digest = snapshot.expected_digest()?;
            let bytes = Bytes::from(serde_json::to_vec(&snapshot)?);
            let path = self.place.snapshot(self.number);
            store::put_create_only(&*self.place.store, &path, bytes).await?;
            Ok::<_, JournalError>(())
        };
        if let Err(error) = saved.await {
            tracing::warn!(number = self.number, %error, "no snapshot of the journal");
        }
    }
}

#[cfg(test)]
mod tests;
