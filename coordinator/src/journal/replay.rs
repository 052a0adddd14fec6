//! Reading a journal and proving that it is whole.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use mks2_dataset::{error::Error, store};
use object_store::path::Path;

use super::{History, JournalError, Place, Record, Replayed, Snapshot};

/// Reads and checks the journal of a run directory; an empty one is no error.
///
/// # Errors
/// [`JournalError::Gap`], [`JournalError::Tampered`], or the store's own.
pub async fn replay(place: Place) -> Result<Replayed, JournalError> {
    let (records, snapshots) = list(&place).await?;
    let mut replayed = from_snapshot(place, &snapshots).await;
    let Some(last) = records.last().copied() else {
        return match replayed.number {
            0 => Ok(replayed),
            number => Err(JournalError::Gap { number }),
        };
    };
    if last < replayed.number {
        return Err(JournalError::Gap { number: last + 1 });
    }
    for number in replayed.number + 1..=last {
        if !records.contains(&number) {
            return Err(JournalError::Gap { number });
        }
        let record = read(&replayed.place, number).await?;
        check(&record, number, &replayed)?;
        replayed.history.fold(&record);
        replayed.number = number;
        replayed.last = record.digest;
    }
    Ok(replayed)
}

/// Numbers of the records and of the snapshots.
pub(super) async fn list(place: &Place) -> Result<(BTreeSet<u64>, BTreeSet<u64>), JournalError> {
    let folder = place.root.clone().join("journal");
    let listed: Result<Vec<_>, _> = place.store.list(Some(&folder)).try_collect().await;
    let listed = match listed {
        Err(object_store::Error::NotFound { .. }) => Vec::new(),
        other => other.map_err(|error| Error::store("listed", folder.as_ref(), &error))?,
    };
    let (mut records, mut snapshots) = (BTreeSet::new(), BTreeSet::new());
    for meta in listed {
        match number_of(&meta.location) {
            Some((number, false)) => records.insert(number),
            Some((number, true)) => snapshots.insert(number),
            None => continue,
        };
    }
    Ok((records, snapshots))
}

/// The number in an object's name, and whether it is a snapshot.
fn number_of(location: &Path) -> Option<(u64, bool)> {
    let name = location.filename()?.strip_suffix(".json")?;
    let (digits, is_snapshot) = match name.strip_prefix("snapshot-") {
        Some(digits) => (digits, true),
        None => (name, false),
    };
    let number = (digits.len() == 20).then(|| digits.parse().ok())??;
    Some((number, is_snapshot))
}

/// Starts from the latest snapshot that is whole; a damaged one only costs time.
async fn from_snapshot(place: Place, numbers: &BTreeSet<u64>) -> Replayed {
    for number in numbers.iter().rev() {
        if let Some(snapshot) = read_snapshot(&place, *number).await {
            return Replayed {
                place,
                history: snapshot.history,
                number: snapshot.number,
                last: snapshot.last,
            };
        }
        tracing::warn!(
            number,
            "a snapshot of the journal is damaged; reading the records"
        );
    }
    Replayed {
        place,
        history: History::default(),
        number: 0,
        last: String::new(),
    }
}

async fn read_snapshot(place: &Place, number: u64) -> Option<Snapshot> {
    let bytes = store::get(&*place.store, &place.snapshot(number))
        .await
        .ok()?;
    let snapshot: Snapshot = serde_json::from_slice(&bytes).ok()?;
    let whole = snapshot.number == number && snapshot.expected_digest().ok()? == snapshot.digest;
    whole.then_some(snapshot)
}

async fn read(place: &Place, number: u64) -> Result<Record, JournalError> {
    let bytes = store::get(&*place.store, &place.record(number)).await?;
    serde_json::from_slice(&bytes).map_err(|error| JournalError::Tampered {
        number,
        reason: error.to_string(),
    })
}

fn check(record: &Record, number: u64, before: &Replayed) -> Result<(), JournalError> {
    let tampered = |reason: &str| JournalError::Tampered {
        number,
        reason: reason.to_owned(),
    };
    if record.number != number {
        return Err(tampered("it has another number inside"));
    }
    if record.expected_digest()? != record.digest {
        return Err(tampered("its digest does not fit its contents"));
    }
    if record.previous != before.last {
        return Err(tampered("it does not continue the record before it"));
    }
    match before.history.objection(record) {
        Some(reason) => Err(tampered(&reason)),
        None => Ok(()),
    }
}
