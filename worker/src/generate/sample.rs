//! Which token comes next: a pure function of logits, settings and a position.

use mks2_proto::generate::Sampling;
use mks2_proto::splitmix;

/// Likeliest tokens among which enough are looked for at first.
const HEAD: usize = 256;

/// The next token after `position` tokens of an answer. None when the logits are no numbers.
///
/// As in transformers, temperature comes first, then `top_k`, then `top_p`; of equal logits the
/// first one is the likeliest.
pub(super) fn choose(logits: &[f32], sampling: &Sampling, position: u64) -> Option<u32> {
    let best = likeliest(logits)?;
    if !logits.iter().copied().all(is_number) || logits[best] == f32::NEG_INFINITY {
        return None;
    }
    if sampling.temperature == 0.0 {
        return u32::try_from(best).ok();
    }
    let weights = weights(logits, logits[best], sampling);
    let all: f64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut left = uniform(sampling.seed, position) * all;
    let drawn = weights.iter().find(|(_, weight)| {
        left -= weight;
        left < 0.0
    });
    drawn.or(weights.last()).map(|(token, _)| *token)
}

/// Whether a logit says something; minus infinity says never.
pub(super) fn is_number(logit: f32) -> bool {
    !logit.is_nan() && logit < f32::INFINITY
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    for (at, logit) in logits.iter().enumerate() {
        if best.is_none_or(|best: usize| *logit > logits[best]) {
            best = Some(at);
        }
    }
    best
}

/// The tokens that may be drawn with their weights, likeliest first.
fn weights(logits: &[f32], best: f32, sampling: &Sampling) -> Vec<(u32, f64)> {
    let weight = |logit: f32| (f64::from(logit - best) / sampling.temperature).exp();
    let mut weights: Vec<(u32, f64)> = (0..)
        .zip(logits)
        .map(|(token, logit)| (token, weight(*logit)))
        .collect();
    let is_cut = sampling.top_p < 1.0 || sampling.top_k > 0;
    if !is_cut {
        return weights;
    }
    if sampling.top_k > 0 {
        let most = weights.len().min(sampling.top_k as usize);
        likeliest_first(&mut weights, most);
        weights.truncate(most);
    }
    let wanted = sampling.top_p * weights.iter().map(|(_, weight)| weight).sum::<f64>();
    let most = nucleus(&mut weights, wanted);
    weights.truncate(most);
    weights
}

/// How many of the likeliest have as much weight as is wanted together; they are brought to the front, likeliest
/// first. Few do, mostly: the others are not put in order.
fn nucleus(weights: &mut [(u32, f64)], wanted: f64) -> usize {
    let (mut sorted, mut head, mut sum) = (0, HEAD, 0.0);
    while sorted < weights.len() {
        head = head.min(weights.len());
        likeliest_first(&mut weights[sorted..], head - sorted);
        let enough = weights[sorted..head].iter().position(|(_, weight)| {
            sum += weight;
            sum >= wanted
        });
        if let Some(at) = enough {
            return sorted + at + 1;
        }
        (sorted, head) = (head, head.saturating_mul(8));
    }
    weights.len()
}

/// Brings the `count` likeliest to the front, likeliest first; of equal ones the first token.
fn likeliest_first(weights: &mut [(u32, f64)], count: usize) {
    let order =
        |(one, a): &(u32, f64), (other, b): &(u32, f64)| b.total_cmp(a).then(one.cmp(other));
    if count < weights.len() {
        let _ = weights.select_nth_unstable_by(count, order);
    }
    weights[..count].sort_unstable_by(order);
}

/// A number in [0, 1) that depends on seed and position alone.
fn uniform(seed: u64, position: u64) -> f64 {
    let mut state = seed;
    let mut state = splitmix::next(&mut state) ^ position;
    (splitmix::next(&mut state) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

    fn drawn(sampling: &Sampling) -> [f64; 4] {
        let mut counts = [0.0; 4];
        for position in 0..20_000 {
            counts[choose(&LOGITS, sampling, position).expect("a token") as usize] += 1.0;
        }
        counts.map(|count| count / 20_000.0)
    }

    fn near(found: [f64; 4], wanted: [f64; 4]) {
        let pairs = found.iter().zip(&wanted);
        let far = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far < 0.015, "{found:?}, expected {wanted:?}");
    }

    fn softmax(temperature: f64, kept: [bool; 4]) -> [f64; 4] {
        let mut weights = LOGITS.map(|logit| (f64::from(logit) / temperature).exp());
        for (weight, kept) in weights.iter_mut().zip(kept) {
            *weight *= f64::from(u8::from(kept));
        }
        let sum: f64 = weights.iter().sum();
        weights.map(|weight| weight / sum)
    }

    #[test]
    fn without_a_temperature_it_is_the_first_of_the_likeliest() {
        for position in 0..50 {
            let sampling = Sampling {
                seed: position,
                ..Sampling::default()
            };
            assert_eq!(choose(&LOGITS, &sampling, position), Some(1));
        }
    }

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        for temperature in [0.5, 1.0, 2.0] {
            let sampling = Sampling {
                temperature,
                seed: 5,
                ..Sampling::default()
            };
            near(drawn(&sampling), softmax(temperature, [true; 4]));
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_likeliest() {
        let usual = Sampling {
            temperature: 1.0,
            seed: 9,
            ..Sampling::default()
        };
        let three = Sampling { top_k: 3, ..usual };
        near(drawn(&three), softmax(1.0, [false, true, true, true]));
        // Both of 3.0 have 0.80 together, one of them 0.40.
        let most = Sampling {
            top_p: 0.7,
            ..usual
        };
        near(drawn(&most), softmax(1.0, [false, true, false, true]));
        let one = Sampling {
            top_p: 0.1,
            ..usual
        };
        near(drawn(&one), [0.0, 1.0, 0.0, 0.0]);
        let both = Sampling {
            top_k: 1,
            top_p: 0.99,
            ..usual
        };
        near(drawn(&both), [0.0, 1.0, 0.0, 0.0]);
    }

    /// All tokens put in order, and cut.
    fn by_sorting(logits: &[f32], best: f32, sampling: &Sampling) -> Vec<(u32, f64)> {
        let all = Sampling {
            top_k: 0,
            top_p: 1.0,
            ..*sampling
        };
        let mut weights = weights(logits, best, &all);
        weights.sort_by(|(one, a), (other, b)| b.total_cmp(a).then(one.cmp(other)));
        if sampling.top_k > 0 {
            weights.truncate(sampling.top_k as usize);
        }
        let wanted = sampling.top_p * weights.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut sum = 0.0;
        let enough = weights.iter().position(|(_, weight)| {
            sum += weight;
            sum >= wanted
        });
        weights.truncate(enough.map_or(weights.len(), |at| at + 1));
        weights
    }

    #[test]
    fn what_may_be_drawn_is_as_if_all_tokens_were_put_in_order() {
        // Rounded, so that many are equal.
        let logits: Vec<f32> = (0..5000)
            .map(|at| ((uniform(4, at) * 12.0).round() / 2.0) as f32)
            .collect();
        let best = logits.iter().copied().fold(f32::MIN, f32::max);
        for top_k in [0, 1, 2, 255, 256, 257, 4999, 5000, 6000] {
            for top_p in [0.001, 0.3, 0.75, 0.99, 0.999_999, 1.0] {
                for temperature in [0.3, 1.0, 30.0] {
                    let sampling = Sampling {
                        temperature,
                        top_k,
                        top_p,
                        seed: 0,
                    };
                    let found = weights(&logits, best, &sampling);
                    let is_cut = top_k > 0 || top_p < 1.0;
                    let right = by_sorting(&logits, best, &sampling);
                    assert!(!is_cut || found == right, "{sampling:?}");
                }
            }
        }
    }

    #[test]
    fn seed_and_position_decide() {
        let at = |seed, position| {
            let sampling = Sampling {
                temperature: 1.0,
                seed,
                ..Sampling::default()
            };
            choose(&LOGITS, &sampling, position)
        };
        let row = |seed| {
            (0..64)
                .map(|position| at(seed, position))
                .collect::<Vec<_>>()
        };
        assert_eq!(row(1), row(1));
        assert_ne!(row(1), row(2));
    }

    #[test]
    fn logits_that_are_no_numbers_give_no_token() {
        let usual = Sampling::default();
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(choose(&[0.0, bad, 1.0], &usual, 0), None);
        }
        assert_eq!(choose(&[f32::NEG_INFINITY; 2], &usual, 0), None);
        assert_eq!(choose(&[], &usual, 0), None);
        assert_eq!(choose(&[f32::NEG_INFINITY, 0.0], &usual, 0), Some(1));
    }
}
