//! Words in a row, counted.

use std::collections::BTreeMap;

/// Words of the longest runs that are counted.
pub(super) const LONGEST: usize = 4;

/// How often each run of one to [`LONGEST`] words stands in a text. Ordered, so that sums over it
/// have the same bits everywhere.
pub(super) type Counts<'a> = BTreeMap<&'a [String], u32>;

/// Counts the runs of a text.
pub(super) fn counts(words: &[String]) -> Counts<'_> {
    let mut counts = Counts::new();
    for length in 1..=LONGEST {
        for run in words.windows(length) {
            *counts.entry(run).or_default() += 1;
        }
    }
    counts
}
