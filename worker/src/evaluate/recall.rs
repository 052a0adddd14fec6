//! Text-to-image retrieval: the share of texts whose own picture is among the nearest K.

use mks2_proto::failure::Failure;
use serde::Serialize;
use tch::Tensor;

use super::metrics::rank::rank;
use crate::objective::to_floats;

/// Rows that are compared with all others at a time.
const AT_ONCE: usize = 256;

/// Recall at 1, 5 and 10, shares between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Recall {
    /// Share of texts whose picture is the nearest.
    pub r1: f64,
    /// Share of texts whose picture is among the nearest five.
    pub r5: f64,
    /// Share of texts whose picture is among the nearest ten.
    pub r10: f64,
    /// How many texts, and pictures, were compared.
    pub n: u64,
}

/// Recall of `texts_ne` against `images_ne`, both of unit length, row `i` belonging to row `i`.
/// A tie counts against the text.
///
/// # Errors
/// When libtorch refuses.
pub fn recall(texts_ne: &Tensor, images_ne: &Tensor) -> Result<Recall, Failure> {
    let right: Vec<Vec<usize>> = (0..texts_ne.size()[0] as usize).map(|i| vec![i]).collect();
    let ranks = ranks(texts_ne, images_ne, &right)?;
    let within = |k: usize| {
        let found = ranks.iter().filter(|rank| **rank <= k).count();
        found as f64 / ranks.len().max(1) as f64
    };
    Ok(Recall {
        r1: within(1),
        r5: within(5),
        r10: within(10),
        n: ranks.len() as u64,
    })
}

/// The place, from 1, of the first of the `right` rows of `found_me` for each row of `asked_ne`, by
/// cosine similarity of rows of unit length.
///
/// # Errors
/// When libtorch refuses.
pub(super) fn ranks(
    asked_ne: &Tensor,
    found_me: &Tensor,
    right: &[Vec<usize>],
) -> Result<Vec<usize>, Failure> {
    let (width, found_em) = (found_me.size()[0] as usize, found_me.tr());
    let mut ranks = Vec::with_capacity(right.len());
    for rows in (0..right.len()).collect::<Vec<_>>().chunks(AT_ONCE) {
        let asked = asked_ne.narrow(0, rows[0] as i64, rows.len() as i64);
        let likeness = to_floats(&asked.matmul(&found_em))?;
        let each = likeness.chunks(width).zip(rows);
        ranks.extend(each.map(|(likeness, row)| rank(likeness, &right[*row])));
    }
    Ok(ranks)
}

/// The `k` pictures nearest to one text `[e]`, nearest first, as (row, similarity).
pub fn nearest(text_e: &Tensor, images_ne: &Tensor, k: i64) -> Vec<(usize, f64)> {
    let similarity_n = images_ne.mv(text_e);
    let (values, rows) = similarity_n.topk(k.min(similarity_n.size()[0]), 0, true, true);
    (0..rows.size()[0])
        .map(|i| (rows.int64_value(&[i]) as usize, values.double_value(&[i])))
        .collect()
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn counts_how_far_down_the_own_picture_stands() {
        // Pictures on the axes; each text is its own axis but for text 0, which prefers axis 1.
        let images = Tensor::eye(12, (Kind::Float, tch::Device::Cpu));
        let texts = images.copy();
        let _ = texts.get(0).fill_(0.0);
        let _ = texts.get(0).get(1).fill_(1.0);
        let found = recall(&texts, &images).unwrap();
        assert_eq!(found.n, 12);
        assert!((found.r1 - 11.0 / 12.0).abs() < 1e-9);
        // Eleven ties at zero stand before the own picture: beyond ten.
        assert!((found.r10 - 11.0 / 12.0).abs() < 1e-9);
        assert_eq!(nearest(&texts.get(3), &images, 1)[0].0, 3);
    }
}
