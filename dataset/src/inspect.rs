//! A look at a corpus: what it holds, and a few of its rows.

use serde::Serialize;

use crate::error::Result;
use crate::manifest::{Columns, Quarantine};
use crate::reader::Corpus;
use crate::row::Row;
use crate::shard;

/// What a look at a corpus shows.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Where it is.
    pub url: String,
    /// Digest of the manifest, which identifies the corpus.
    pub digest: String,
    /// Rows of all shards.
    pub rows: u64,
    /// How many rows have what.
    pub columns: Columns,
    /// Shards.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Rows of a row group.
    pub row_group_rows: u32,
    /// Row groups of a shard.
    pub row_groups_per_shard: u32,
    /// Samples that were left out.
    pub quarantine: Quarantine,
    /// Names and types of the columns.
    pub schema: Vec<(String, String)>,
    /// Fields that templates may use, as far as the rows shown have them.
    pub fields: Vec<String>,
    /// A few rows, spread over the corpus.
    #[serde(skip)]
    pub samples: Vec<Row>,
}

/// Opens a corpus and reads a few rows, spread over it.
///
/// # Errors
/// As [`Corpus::open`] and [`Corpus::read_group`].
pub async fn inspect(url: &str, samples: u64) -> Result<Inspection> {
    let corpus = Corpus::open(url).await?;
    let manifest = corpus.manifest();
    let mut rows = Vec::new();
    for row in spread(corpus.rows(), samples) {
        rows.push(corpus.read_row(row).await?);
    }
    let mut fields: Vec<String> = Vec::new();
    for name in rows.iter().flat_map(Row::field_names) {
        if !fields.contains(&name) {
            fields.push(name);
        }
    }
    let schema = shard::schema();
    let types = schema.fields().iter().map(|field| {
        let kind = if field.name() == "image" {
            "picture".into()
        } else {
            field.data_type().to_string()
        };
        (field.name().clone(), kind)
    });
    Ok(Inspection {
        url: corpus.url().to_owned(),
        digest: manifest.digest(),
        rows: manifest.rows,
        columns: manifest.columns,
        shards: manifest.shards.len() as u64,
        bytes: manifest.shards.iter().map(|shard| shard.bytes).sum(),
        row_group_rows: manifest.row_group_rows,
        row_groups_per_shard: manifest.row_groups_per_shard,
        quarantine: manifest.quarantine.clone(),
        schema: types.collect(),
        fields,
        samples: rows,
    })
}

/// `count` indices, evenly spread, the first row among them.
fn spread(rows: u64, count: u64) -> impl Iterator<Item = u64> {
    let count = count.min(rows);
    (0..count).map(move |at| {
        let index = u128::from(at) * u128::from(rows) / u128::from(count.max(1));
        u64::try_from(index).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread_and_never_repeat() {
        assert_eq!(spread(100, 4).collect::<Vec<_>>(), [0, 25, 50, 75]);
        assert_eq!(spread(2, 9).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(spread(u64::MAX, 2).last(), Some(u64::MAX / 2));
        assert_eq!(spread(5, 0).count(), 0);
    }
}
