//! Text-to-image retrieval: the share of texts whose own picture is among the nearest K.

use serde::Serialize;
use tch::{Kind, Tensor};

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
pub fn recall(texts_ne: &Tensor, images_ne: &Tensor) -> Recall {
    let similarity_nn = texts_ne.matmul(&images_ne.tr());
    let own_n1 = similarity_nn.diagonal(0, 0, 1).unsqueeze(1);
    let not_farther_n =
        similarity_nn
            .ge_tensor(&own_n1)
            .sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
    let within = |k: i64| {
        not_farther_n
            .le(k)
            .to_kind(Kind::Double)
            .mean(Kind::Double)
            .double_value(&[])
    };
    Recall {
        r1: within(1),
        r5: within(5),
        r10: within(10),
        n: texts_ne.size()[0] as u64,
    }
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
    use super::*;

    #[test]
    fn counts_how_far_down_the_own_picture_stands() {
        // Pictures on the axes; each text is its own axis but for text 0, which prefers axis 1.
        let images = Tensor::eye(12, (Kind::Float, tch::Device::Cpu));
        let texts = images.copy();
        let _ = texts.get(0).fill_(0.0);
        let _ = texts.get(0).get(1).fill_(1.0);
        let found = recall(&texts, &images);
        assert_eq!(found.n, 12);
        assert!((found.r1 - 11.0 / 12.0).abs() < 1e-9);
        // Eleven ties at zero stand before the own picture: beyond ten.
        assert!((found.r10 - 11.0 / 12.0).abs() < 1e-9);
        assert_eq!(nearest(&texts.get(3), &images, 1)[0].0, 3);
    }
}
