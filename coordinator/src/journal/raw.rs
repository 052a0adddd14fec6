//! The journal as it lies there: every object, whatever is in it. For who wants to judge it.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use mks2_dataset::store;
use object_store::path::Path;

use super::{JournalError, Place, replay::list};

/// Objects that are read at a time.
const AT_ONCE: usize = 16;

/// The objects of a journal by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw {
    /// Records.
    pub records: BTreeMap<u64, Bytes>,
    /// Snapshots.
    pub snapshots: BTreeMap<u64, Bytes>,
}

/// Reads all objects of a run's journal and judges none of them. Takes no term: the run may be at
/// work meanwhile.
///
/// # Errors
/// The store's own.
pub async fn read_raw(place: &Place) -> Result<Raw, JournalError> {
    let (records, snapshots) = list(place).await?;
    let of_records = records
        .into_iter()
        .map(|number| (number, place.record(number)));
    let of_snapshots = snapshots
        .into_iter()
        .map(|number| (number, place.snapshot(number)));
    Ok(Raw {
        records: read(place, of_records).await?,
        snapshots: read(place, of_snapshots).await?,
    })
}

async fn read(
    place: &Place,
    objects: impl Iterator<Item = (u64, Path)>,
) -> Result<BTreeMap<u64, Bytes>, JournalError> {
    let one = async |(number, path): (u64, Path)| {
        let bytes = store::get_if_there(&*place.store, &path).await?;
        Ok::<_, JournalError>((number, bytes))
    };
    let read = stream::iter(objects).map(one).buffered(AT_ONCE);
    // What went away since it was listed is missing.
    let there = read.try_filter_map(async |(number, bytes)| Ok(bytes.map(|bytes| (number, bytes))));
    there.try_collect().await
}
