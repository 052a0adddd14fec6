//! ROUGE-L ([Lin 2004](https://aclanthology.org/W04-1013)) of an item, as pycocoevalcap has it: the
//! best precision and the best recall over all references, weighed with beta = 1.2.

use super::Captioned;

const BETA: f64 = 1.2;

/// ROUGE-L of one item, between 0 and 1.
#[must_use]
pub fn rouge_l(item: &Captioned) -> f64 {
    // A text without words counts as one empty word.
    let nothing = [String::new()];
    let words = |text: &'_ [String]| match text.is_empty() {
        true => nothing.to_vec(),
        false => text.to_vec(),
    };
    let candidate = words(&item.candidate);
    let (mut precision, mut recall) = (0f64, 0f64);
    for reference in &item.references {
        let reference = words(reference);
        let common = common(&candidate, &reference) as f64;
        precision = precision.max(common / candidate.len() as f64);
        recall = recall.max(common / reference.len() as f64);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    let weight = BETA * BETA;
    (1.0 + weight) * precision * recall / (recall + weight * precision)
}

/// Length of the longest sequence of words that both have, in order.
fn common(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for word in a {
        let mut before = 0;
        for (at, other) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = match word == other {
                true => before + 1,
                false => above.max(row[at]),
            };
            before = above;
        }
    }
    row[b.len()]
}
