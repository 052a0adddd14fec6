//! How likely tokens were.

use mks2_proto::failure::Failure;
use mks2_proto::generate::{Likely, Score, Scored};
use tch::Tensor;

use super::no_numbers;
use super::sample::is_number;
use super::speaker::Speaker;
use crate::objective::to_floats;
use crate::text::TextEncoder;

/// Positions whose logits exist at a time.
const PIECE: i64 = 128;
/// Tokens that may be parts of one character; so many without a whole one are none.
const PARTS: usize = 8;

/// The scores of a prompt's tokens, or of the last of them: `states_td` are those of its positions, of which
/// the last `ids.len()` are the text's. Nothing predicts the first token of all.
pub(super) fn of_prompt(
    speaker: &Speaker,
    states_td: &Tensor,
    ids: &[u32],
    Score { prompt, top }: Score,
) -> Result<Vec<Scored>, Failure> {
    let unscored = ids.len().saturating_sub(prompt as usize);
    let ids = &ids[unscored..];
    let before = states_td.size()[0] - ids.len() as i64;
    let mut scores = Vec::with_capacity(ids.len());
    if before == 0
        && let Some(first) = ids.first()
    {
        scores.push(scored(&speaker.encoder, *first, None, Vec::new()));
    }
    // The position before each token predicts it.
    let mut at = (before - 1).max(0);
    let last = states_td.size()[0] - 1;
    while at < last {
        let count = PIECE.min(last - at);
        let logits_tv = speaker.decoder.logits(&states_td.narrow(0, at, count));
        let width = logits_tv.size()[1] as usize;
        for logits in to_floats(&logits_tv)?.chunks(width) {
            if !logits.iter().copied().all(is_number) {
                return Err(no_numbers(unscored + scores.len()));
            }
            let token = ids[scores.len()];
            scores.push(of_token(&speaker.encoder, logits, token, top));
        }
        at += count;
    }
    Ok(scores)
}

/// How many characters of the text of `ids` stand before each of them. The parts of a character stand where it
/// does, and special tokens have none.
pub(super) fn offsets(encoder: &TextEncoder, ids: &[u32]) -> Result<Vec<u32>, Failure> {
    let mut offsets = Vec::with_capacity(ids.len());
    let (mut said, mut from, mut known, mut characters) = (Vec::new(), 0, 0, 0_u32);
    for id in ids {
        offsets.push(characters);
        if encoder.is_special(*id) {
            continue;
        }
        said.push(*id);
        let before = encoder.plain(&said[from..known])?;
        let after = encoder.plain(&said[from..])?;
        let new = after.strip_prefix(&before).unwrap_or(&after);
        let is_whole = !new.is_empty() && !new.ends_with(char::REPLACEMENT_CHARACTER);
        if is_whole || said.len() - known >= PARTS {
            let more = u32::try_from(new.chars().count()).unwrap_or(u32::MAX);
            characters = characters.saturating_add(more);
            (from, known) = (known, said.len());
        }
    }
    Ok(offsets)
}

/// The score of `token` where the model says `logits`.
pub(super) fn of_token(encoder: &TextEncoder, logits: &[f32], token: u32, top: u32) -> Scored {
    let all = log_sum(logits);
    let of = |id: u32| f64::from(logits[id as usize]) - all;
    let likeliest = likeliest(logits, top as usize);
    let top = likeliest.into_iter();
    let top = top.map(|id| likely(encoder, id, Some(of(id)))).collect();
    scored(encoder, token, Some(of(token)), top)
}

fn scored(encoder: &TextEncoder, id: u32, logprob: Option<f64>, top: Vec<Likely>) -> Scored {
    Scored {
        token: likely(encoder, id, logprob),
        offset: 0,
        top,
    }
}

fn likely(encoder: &TextEncoder, id: u32, logprob: Option<f64>) -> Likely {
    Likely {
        id,
        text: encoder.name_of(id),
        logprob,
    }
}

/// `ln sum exp`.
fn log_sum(logits: &[f32]) -> f64 {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - best).exp())
        .sum();
    f64::from(best) + sum.ln()
}

/// So many tokens with the largest logits, largest first; of equal ones the first.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| {
        let [a_logit, b_logit] = [a, b].map(|id| logits[*id as usize]);
        b_logit.total_cmp(&a_logit).then(a.cmp(b))
    };
    let _ = ids.select_nth_unstable_by(count - 1, order);
    ids.truncate(count);
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_of_equals_the_first() {
        let logits = [1.0, 3.0, -2.0, 3.0, 2.0];
        assert_eq!(likeliest(&logits, 0), [0u32; 0]);
        assert_eq!(likeliest(&logits, 1), [1]);
        assert_eq!(likeliest(&logits, 3), [1, 3, 4]);
        assert_eq!(likeliest(&logits, 9), [1, 3, 4, 0, 2]);
    }

    #[test]
    fn large_logits_have_a_sum() {
        let found = log_sum(&[1000.0, 1000.0]);
        assert!((found - 1000.0 - 2f64.ln()).abs() < 1e-9, "{found}");
        assert!((log_sum(&[0.0, f32::NEG_INFINITY])).abs() < 1e-12);
    }
}
