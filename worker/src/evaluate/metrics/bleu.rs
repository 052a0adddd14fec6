//! BLEU-1 to BLEU-4 over a corpus ([Papineni et al. 2002](https://aclanthology.org/P02-1040)), as
//! pycocoevalcap has it: of several references the one whose length is closest counts, and of two
//! as close the shorter one.

use super::Captioned;
use super::ngrams::{self, LONGEST};

/// Added to what is divided, so that nothing out of nothing is nothing.
const TINY: f64 = 1e-15;
/// Added to what divides.
const SMALL: f64 = 1e-9;

/// What BLEU needs to know of an item. A corpus has the sum over its items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Runs of 1 to 4 words in the candidate.
    runs: [u64; LONGEST],
    /// Those of them that a reference has, too.
    found: [u64; LONGEST],
    /// Words of the candidate.
    length: u64,
    /// Words of the reference that is closest in length.
    reference: u64,
}

impl Statistics {
    /// Of one item.
    #[must_use]
    pub fn of(item: &Captioned) -> Self {
        let length = item.candidate.len();
        let lengths = item.references.iter().map(Vec::len);
        let closest = lengths.min_by_key(|other| (other.abs_diff(length), *other));
        let mut statistics = Self {
            length: length as u64,
            reference: closest.unwrap_or(0) as u64,
            ..Self::default()
        };
        let references: Vec<_> = item.references.iter().map(|r| ngrams::counts(r)).collect();
        for (run, count) in ngrams::counts(&item.candidate) {
            let most = references.iter().filter_map(|counts| counts.get(run)).max();
            let found = most.copied().unwrap_or(0).min(count);
            statistics.runs[run.len() - 1] += u64::from(count);
            statistics.found[run.len() - 1] += u64::from(found);
        }
        statistics
    }

    /// BLEU-1, -2, -3 and -4.
    #[must_use]
    pub fn bleu(&self) -> [f64; LONGEST] {
        let ratio = (self.length as f64 + TINY) / (self.reference as f64 + SMALL);
        let brevity = match ratio < 1.0 {
            true => (1.0 - 1.0 / ratio).exp(),
            false => 1.0,
        };
        let mut product = 1.0;
        std::array::from_fn(|n| {
            product *= (self.found[n] as f64 + TINY) / (self.runs[n] as f64 + SMALL);
            product.powf(1.0 / (n + 1) as f64) * brevity
        })
    }
}

impl std::iter::Sum for Statistics {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::default(), |mut sum, item| {
            for n in 0..LONGEST {
                sum.runs[n] += item.runs[n];
                sum.found[n] += item.found[n];
            }
            sum.length += item.length;
            sum.reference += item.reference;
            sum
        })
    }
}
