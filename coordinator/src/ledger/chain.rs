//! The journal as a chain: every record there, unchanged, and continuing the one before it.

use bytes::Bytes;

use super::Violation;
use crate::journal::{History, Raw, Record, Snapshot, file_name};

const RESTORE: &str = "bring the file back from a copy of the run directory; without one, what the \
     run did cannot be proved";

/// The records that could be read.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// In the order of their numbers.
    pub records: Vec<Record>,
    /// No record is missing or changed.
    pub is_whole: bool,
    /// How many snapshots there are.
    pub snapshots: usize,
}

/// What is known of the record before, to compare the next one with.
enum Before {
    /// There is none: the next one is the first.
    Nothing,
    /// The digest that it has, and the one that it should have.
    Digests(String, String),
    /// It is missing, or not what it says it is.
    Unknown,
}

impl Chain {
    pub(super) fn read(raw: &Raw, violations: &mut Vec<Violation>) -> Self {
        let (mut records, mut before) = (Vec::new(), Before::Nothing);
        let (mut due, known) = (1, violations.len());
        for (&number, bytes) in &raw.records {
            if number != due {
                violations.push(missing(due, number - 1));
                before = Before::Unknown;
            }
            due = number + 1;
            before = match read_record(number, bytes) {
                Err(what) => {
                    violations.push(Violation::new(path(number), what, RESTORE));
                    Before::Unknown
                }
                Ok((record, problem)) => {
                    let problem = problem.or_else(|| break_with(&before, &record));
                    violations
                        .extend(problem.map(|what| Violation::new(path(number), what, RESTORE)));
                    let expected = record.expected_digest().unwrap_or_default();
                    let digests = Before::Digests(record.digest.clone(), expected);
                    records.push(record);
                    digests
                }
            };
        }
        let beyond = raw.snapshots.keys().next_back().copied().unwrap_or(0);
        if beyond >= due {
            violations.push(missing(due, beyond));
        }
        let is_whole = violations.len() == known;
        if is_whole {
            check_snapshots(raw, &records, violations);
        }
        Self {
            records,
            is_whole,
            snapshots: raw.snapshots.len(),
        }
    }
}

/// Where a record lies in the run directory.
pub(super) fn path(number: u64) -> String {
    format!("journal/{}", file_name(number))
}

fn missing(from: u64, to: u64) -> Violation {
    let what = match from == to {
        true => format!("record {from} is missing"),
        false => format!("records {from} to {to} are missing"),
    };
    Violation::new(path(from), what, RESTORE)
}

/// A record, and what is wrong with it though it can be read.
fn read_record(number: u64, bytes: &Bytes) -> Result<(Record, Option<String>), String> {
    let record: Record = serde_json::from_slice(bytes)
        .map_err(|error| format!("record {number} cannot be read: {error}"))?;
    if record.number != number {
        return Err(format!(
            "record {number} is another one: inside it has the number {}",
            record.number
        ));
    }
    let problem = if record.expected_digest().ok().as_ref() != Some(&record.digest) {
        Some(format!(
            "record {number} was changed: its digest does not fit its contents"
        ))
    } else if serde_json::to_vec(&record).ok().as_deref() != Some(&bytes[..]) {
        Some(format!(
            "record {number} was changed: it is not byte for byte what a coordinator writes"
        ))
    } else {
        None
    };
    Ok((record, problem))
}

fn break_with(before: &Before, record: &Record) -> Option<String> {
    let continues = match before {
        Before::Nothing => record.previous.is_empty(),
        // Where that one's own digest was changed, it alone is to blame.
        Before::Digests(found, expected) => [found, expected].contains(&&record.previous),
        Before::Unknown => true,
    };
    (!continues).then(|| {
        format!(
            "record {} does not continue the one before it: one of the two was exchanged",
            record.number
        )
    })
}

/// Snapshots shorten a replay, so one that says something else would change the run.
fn check_snapshots(raw: &Raw, records: &[Record], violations: &mut Vec<Violation>) {
    let (mut history, mut folded) = (History::default(), 0);
    for (&number, bytes) in &raw.snapshots {
        let upto = usize::try_from(number).map_or(records.len(), |n| n.min(records.len()));
        records[folded..upto].iter().for_each(|r| history.fold(r));
        folded = upto;
        let last = records[..upto].last().map(|record| &record.digest);
        let says_the_same = serde_json::from_slice::<Snapshot>(bytes).is_ok_and(|snapshot| {
            snapshot.number == number
                && Some(&snapshot.last) == last
                && snapshot.history == history
                && snapshot.expected_digest().ok() == Some(snapshot.digest)
        });
        if !says_the_same {
            violations.push(Violation::new(
                format!("journal/snapshot-{}", file_name(number)),
                format!("the snapshot of record {number} does not say what the records say"),
                "delete it: the records say the same and more",
            ));
        }
    }
}
