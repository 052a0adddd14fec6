//! CIDEr-D ([Vedantam et al. 2015](https://arxiv.org/abs/1411.5726)), as pycocoevalcap has it: runs of
//! words are weighed by how rare they are among the pictures of the corpus, counts are clipped, and
//! lengths that differ cost (sigma = 6).

use std::collections::HashMap;

use super::Captioned;
use super::ngrams::{self, Counts, LONGEST};

const SIGMA: f64 = 6.0;

/// CIDEr-D of every item, between 0 and 10; the corpus has their mean.
#[must_use]
pub fn cider_d(items: &[Captioned]) -> Vec<f64> {
    let counted: Vec<(Counts<'_>, Vec<Counts<'_>>)> = items
        .iter()
        .map(|item| {
            let references = item.references.iter().map(|r| ngrams::counts(r));
            (ngrams::counts(&item.candidate), references.collect())
        })
        .collect();
    let corpus = Corpus::of(&counted);
    let score = |(candidate, references): &(Counts<'_>, Vec<Counts<'_>>)| {
        let candidate = corpus.weighed(candidate);
        let each = references
            .iter()
            .map(|reference| candidate.likeness(&corpus.weighed(reference)));
        10.0 * each.sum::<f64>() / references.len().max(1) as f64
    };
    counted.iter().map(score).collect()
}

/// How many pictures a run of words describes.
struct Corpus<'a> {
    pictures: HashMap<&'a [String], u32>,
    log_size: f64,
}

impl<'a> Corpus<'a> {
    fn of(items: &[(Counts<'a>, Vec<Counts<'a>>)]) -> Self {
        let mut pictures: HashMap<&[String], u32> = HashMap::new();
        for (_, references) in items {
            let runs = references.iter().flat_map(Counts::keys);
            for run in runs.collect::<std::collections::BTreeSet<_>>() {
                *pictures.entry(run).or_default() += 1;
            }
        }
        Self {
            pictures,
            log_size: (items.len() as f64).ln(),
        }
    }

    fn weighed<'b>(&self, counts: &Counts<'b>) -> Weighed<'b> {
        let mut weighed = Weighed {
            weights: counts.clone().into_keys().map(|run| (run, 0.0)).collect(),
            squares: [0.0; LONGEST],
            pairs: 0,
        };
        for ((run, weight), count) in weighed.weights.iter_mut().zip(counts.values()) {
            let pictures = self.pictures.get(run).copied().unwrap_or(0).max(1);
            *weight = f64::from(*count) * (self.log_size - f64::from(pictures).ln());
            weighed.squares[run.len() - 1] += *weight * *weight;
            if run.len() == 2 {
                weighed.pairs += i64::from(*count);
            }
        }
        weighed
    }
}

/// A text as a vector of weighed runs.
struct Weighed<'a> {
    weights: Vec<(&'a [String], f64)>,
    /// Of the weights of runs of each length, added.
    squares: [f64; LONGEST],
    /// Pairs of words: what lengths are compared by.
    pairs: i64,
}

impl Weighed<'_> {
    /// The mean over the lengths of runs, between 0 and 1.
    fn likeness(&self, reference: &Weighed<'_>) -> f64 {
        let there: HashMap<&[String], f64> = reference.weights.iter().copied().collect();
        let mut products = [0.0; LONGEST];
        for (run, weight) in &self.weights {
            let other = there.get(run).copied().unwrap_or(0.0);
            products[run.len() - 1] += weight.min(other) * other;
        }
        let apart = (self.pairs - reference.pairs) as f64;
        let penalty = (-(apart * apart) / (2.0 * SIGMA * SIGMA)).exp();
        let mut sum = 0.0;
        for (n, product) in products.into_iter().enumerate() {
            let norms = self.squares[n].sqrt() * reference.squares[n].sqrt();
            let cosine = match norms == 0.0 {
                true => product,
                false => product / norms,
            };
            sum += cosine * penalty;
        }
        sum / LONGEST as f64
    }
}
