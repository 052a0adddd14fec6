//! The manifest of a corpus: what it holds, with digests.
//!
//! Invariants, checked when a manifest is read and before it is written:
//! 1. Shards hold `rows` rows together.
//! 2. Every shard but the last holds exactly `row_group_rows * row_groups_per_shard` rows, and
//!    none is empty. So the place of a row follows from its index by arithmetic.
//! 3. Paths of shards stay inside the corpus.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the manifest inside a corpus. It is written last: what has one is complete.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Name of the list of bad samples inside a corpus.
pub const QUARANTINE_FILE: &str = "quarantine.jsonl";

/// The version of the layout that this program writes and reads.
pub const VERSION: u32 = 1;

/// Rows of a row group, unless told otherwise.
pub const DEFAULT_ROW_GROUP_ROWS: u32 = 128;

/// Row groups of a shard, unless told otherwise.
pub const DEFAULT_ROW_GROUPS_PER_SHARD: u32 = 64;

/// What a corpus holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout.
    pub version: u32,
    /// Rows of all shards.
    pub rows: u64,
    /// Rows of every row group but the last of the corpus.
    pub row_group_rows: u32,
    /// Row groups of every shard but the last.
    pub row_groups_per_shard: u32,
    /// How many rows have what.
    #[serde(default)]
    pub columns: Columns,
    /// The shards in the order of their rows.
    pub shards: Vec<ShardEntry>,
    /// Samples that were left out.
    #[serde(default)]
    pub quarantine: Quarantine,
}

/// How many rows have what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Rows with a picture.
    pub image: u64,
    /// Rows with a caption.
    pub caption: u64,
    /// Rows with a question.
    pub question: u64,
    /// Rows with an answer.
    pub answer: u64,
}

/// One parquet file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Path inside the corpus.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// blake3 of the file, in hexadecimal.
    pub digest: String,
}

/// Samples that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quarantine {
    /// How many.
    pub rows: u64,
    /// How many for each kind of reason.
    pub reasons: BTreeMap<String, u64>,
    /// blake3 of `quarantine.jsonl`, in hexadecimal.
    pub digest: String,
}

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the shard.
    pub shard: usize,
    /// Row group inside the shard.
    pub group: usize,
    /// Row inside the row group.
    pub row: usize,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let found: Version = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if found.version != VERSION {
            return Err(format!(
                "it has version {} and this program reads version {VERSION}",
                found.version
            ));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The text of the file: indented JSON, the same for the same content.
    #[must_use]
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        format!("{text}\n")
    }

    /// blake3 of the manifest's canonical JSON (compact, fields in the order of the type): it
    /// identifies the whole corpus, since every shard's digest is in it.
    #[must_use]
    pub fn digest(&self) -> String {
        let canonical = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&canonical).to_hex().to_string()
    }

    /// Row groups of all shards.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.rows.div_ceil(u64::from(self.row_group_rows.max(1)))
    }

    /// Rows of one row group; 0 beyond the last.
    #[must_use]
    pub fn rows_of_group(&self, group: u64) -> u64 {
        let group_rows = u64::from(self.row_group_rows);
        self.rows
            .saturating_sub(group.saturating_mul(group_rows))
            .min(group_rows)
    }

    /// Rows of a full shard.
    #[must_use]
    pub fn rows_of_full_shard(&self) -> u64 {
        u64::from(self.row_group_rows) * u64::from(self.row_groups_per_shard)
    }

    /// Where a row is, or `None` beyond the last.
    #[must_use]
    pub fn address(&self, row: u64) -> Option<Address> {
        if row >= self.rows {
            return None;
        }
        let in_shard = row % self.rows_of_full_shard();
        let group_rows = u64::from(self.row_group_rows);
        Some(Address {
            shard: usize::try_from(row / self.rows_of_full_shard()).ok()?,
            group: usize::try_from(in_shard / group_rows).ok()?,
            row: usize::try_from(in_shard % group_rows).ok()?,
        })
    }

    /// Checks the invariants.
    ///
    /// # Errors
    /// The first one that does not hold, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.row_group_rows == 0 || self.row_groups_per_shard == 0 {
            return Err("row_group_rows and row_groups_per_shard must be at least 1".into());
        }
        let full = self.rows_of_full_shard();
        let mut left = self.rows;
        for shard in &self.shards {
            if shard.rows == 0 || shard.rows != left.min(full) {
                return Err(format!(
                    "{} has {} rows and should have {}",
                    shard.path,
                    shard.rows,
                    left.min(full)
                ));
            }
            left -= shard.rows;
            crate::store::under(&object_store::path::Path::default(), &shard.path)
                .map_err(|error| error.to_string())?;
        }
        if left > 0 {
            return Err(format!("{left} of {} rows are in no shard", self.rows));
        }
        Ok(())
    }
}

/// Path of a shard inside its corpus.
#[must_use]
pub fn shard_path(index: usize) -> String {
    format!("shards/part-{index:05}.parquet")
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A manifest of the given shape, with made-up digests.
    pub(crate) fn shaped(rows: u64, row_group_rows: u32, row_groups_per_shard: u32) -> Manifest {
        let full = u64::from(row_group_rows) * u64::from(row_groups_per_shard);
        let shards = (0..rows.div_ceil(full)).map(|index| ShardEntry {
            path: shard_path(usize::try_from(index).unwrap()),
            rows: (rows - index * full).min(full),
            bytes: 1,
            digest: String::new(),
        });
        Manifest {
            version: VERSION,
            rows,
            row_group_rows,
            row_groups_per_shard,
            shards: shards.collect(),
            ..Manifest::default()
        }
    }

    #[test]
    fn a_manifest_survives_its_file_and_keeps_its_digest() {
        let manifest = shaped(1000, 128, 3);
        let read = Manifest::parse(manifest.to_json().as_bytes()).unwrap();
        assert_eq!(read, manifest);
        assert_eq!(read.digest(), manifest.digest());
        assert_ne!(read.digest(), shaped(1001, 128, 3).digest());
    }

    #[test]
    fn what_breaks_an_invariant_is_refused() {
        let good = shaped(1000, 128, 3);
        let broken: [fn(&mut Manifest); 6] = [
            |m| m.rows += 1,
            |m| m.shards[0].rows -= 1,
            |m| m.row_group_rows = 0,
            |m| m.version = 2,
            |m| m.shards[0].path = "../../etc/passwd".into(),
            |m| m.shards.clear(),
        ];
        for damage in broken {
            let mut manifest = good.clone();
            damage(&mut manifest);
            assert!(
                Manifest::parse(manifest.to_json().as_bytes()).is_err(),
                "{manifest:?}"
            );
        }
        assert!(Manifest::parse(b"{\"version\": 1, \"surprise\": 2}").is_err());
        assert!(Manifest::parse(b"not json").is_err());
    }

    proptest! {
        #[test]
        fn every_row_has_one_address_and_they_are_in_order(
            rows in 1u64..5000, group in 1u32..200, per_shard in 1u32..9,
        ) {
            let manifest = shaped(rows, group, per_shard);
            prop_assert!(manifest.check().is_ok());
            let mut expected = Address { shard: 0, group: 0, row: 0 };
            for row in 0..rows {
                let at = manifest.address(row).unwrap();
                prop_assert_eq!(at, expected);
                let in_group = manifest.rows_of_group(row / u64::from(group));
                prop_assert!((at.row as u64) < in_group);
                prop_assert!(at.shard < manifest.shards.len());
                expected = next(at, group, per_shard);
            }
            prop_assert_eq!(manifest.address(rows), None);
            let total: u64 = (0..manifest.groups()).map(|g| manifest.rows_of_group(g)).sum();
            prop_assert_eq!(total, rows);
        }
    }

    fn next(at: Address, group_rows: u32, groups: u32) -> Address {
        if at.row + 1 < group_rows as usize {
            return Address {
                row: at.row + 1,
                ..at
            };
        }
        if at.group + 1 < groups as usize {
            return Address {
                group: at.group + 1,
                row: 0,
                ..at
            };
        }
        Address {
            shard: at.shard + 1,
            group: 0,
            row: 0,
        }
    }
}
