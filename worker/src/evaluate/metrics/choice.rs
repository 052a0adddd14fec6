//! The likeliest of several continuations, as lm-evaluation-harness has `acc` and `acc_norm`.

/// The first of the largest, by the log-likelihood alone.
#[must_use]
pub fn likeliest(log_likelihoods: &[f64]) -> usize {
    let mut best = 0;
    for (at, value) in log_likelihoods.iter().enumerate() {
        if *value > log_likelihoods[best] {
            best = at;
        }
    }
    best
}

/// The same by the log-likelihood per character of a choice, without what stands before it.
#[must_use]
pub fn likeliest_per_character(log_likelihoods: &[f64], choices: &[String]) -> usize {
    let per_character = log_likelihoods
        .iter()
        .zip(choices)
        .map(|(sum, choice)| sum / choice.chars().count() as f64);
    likeliest(&per_character.collect::<Vec<_>>())
}
