//! The losses of the method, as sums that add up over lanes; the caller divides by the counts of
//! the global batch.

use mks2_proto::params::LOGITS_AT_ONCE;
use tch::{Kind, Reduction, Tensor};

use super::ops::unit_rows;
use super::weights::expect_shape;
use super::{Decoder, Result};

/// A label at which there is nothing to predict.
pub const IGNORE: i64 = -100;

/// Learned temperatures never fall below 0.01: the logarithm of the inverse stays below this.
const MAX_LOG_INVERSE_TEMPERATURE: f64 = 4.605_170_185_988_092;

/// Captioning loss `L_c` before its division: the sum of next-token cross-entropies over the
/// labels `labels_bn` that are not [`IGNORE`], and their number. Position `n` of the states
/// predicts label `n`; logits are computed at labelled positions only, and so many rows of them at a
/// time as make [`LOGITS_AT_ONCE`] numbers where the head is frozen.
///
/// # Errors
/// If labels and states do not fit.
pub fn next_token(
    decoder: &Decoder,
    states_bnd: &Tensor,
    labels_bn: &Tensor,
) -> Result<(Tensor, i64)> {
    expect_shape("labels_bn", labels_bn, &states_bnd.size()[..2])?;
    let labels = labels_bn.flatten(0, 1);
    let rows_c = labels.not_equal(IGNORE).nonzero().squeeze_dim(1);
    let count = rows_c.size()[0];
    let states_cd = states_bnd.flatten(0, 1).index_select(0, &rows_c);
    let targets_c = labels.index_select(0, &rows_c);
    let rows = (LOGITS_AT_ONCE as i64 / decoder.vocab()).max(1);
    let sum = match decoder.trains_head() {
        true => cross_entropy_sum(&decoder.logits(&states_cd), &targets_c),
        false => in_pieces(decoder, &states_cd, &targets_c, rows),
    };
    Ok((sum, count))
}

/// The sum of cross-entropies of a frozen head, by pieces of rows. The gradient at the states is
/// computed along with it,
///
/// ```text
/// d sum / d state_c = W_head^T (softmax(logits_c) - onehot(target_c))
/// ```
///
/// and carried by a term that is zero: `(states - states') * gradient`, where `states'` has no graph.
/// Neither logits nor anything of their size is kept for the backward pass.
fn in_pieces(decoder: &Decoder, states_cd: &Tensor, targets_c: &Tensor, rows: i64) -> Tensor {
    let fixed_cd = states_cd.detach();
    let wants_gradient = states_cd.requires_grad();
    let (sum, gradient_cd) = tch::no_grad(|| {
        let mut sum = Tensor::zeros([0_i64; 0], (Kind::Float, states_cd.device()));
        let gradient_cd = match wants_gradient {
            true => fixed_cd.empty_like(),
            false => Tensor::new(),
        };
        let count = fixed_cd.size()[0];
        for first in (0..count).step_by(rows as usize) {
            let size = rows.min(count - first);
            // All in the memory of the logits.
            let mut logits_cv = decoder.logits(&fixed_cd.narrow(0, first, size));
            let targets_c1 = targets_c.narrow(0, first, size).unsqueeze(1);
            logits_cv -= logits_cv.amax([-1].as_slice(), true);
            let own_c1 = logits_cv.gather(1, &targets_c1, false);
            let mut error_cv = logits_cv.exp_();
            let total_c1 = error_cv.sum_dim_intlist([-1].as_slice(), true, Kind::Float);
            sum += (total_c1.log() - own_c1).sum(Kind::Float);
            if wants_gradient {
                error_cv /= total_c1;
                let minus_one = targets_c1.full_like(-1.0).to_kind(Kind::Float);
                let _ = error_cv.scatter_add_(1, &targets_c1, &minus_one);
                let piece = decoder.through_head(&error_cv);
                gradient_cd.narrow(0, first, size).copy_(&piece);
            }
        }
        (sum, gradient_cd)
    });
    match wants_gradient {
        true => sum + ((states_cd - fixed_cd) * gradient_cd).sum(Kind::Float),
        false => sum,
    }
}

/// Where the labels of a batch stand: what a pass has to read ([`Read::At`](super::Read::At)).
#[derive(Debug)]
pub struct Labelled {
    /// Positions that have a label, `[b, n]`; a row with fewer than `n` repeats position 0.
    pub positions_bn: Tensor,
    /// Their labels, `[b, n]`; [`IGNORE`] at the repeated positions.
    pub labels_bn: Tensor,
}

/// Finds the labelled positions of `labels_bt`, so that the last block can be computed for these
/// alone; `n` is the largest number of labels in a row, and at least 1.
///
/// # Errors
/// If the labels are not `[b, t]`.
pub fn labelled(labels_bt: &Tensor) -> Result<Labelled> {
    expect_shape("labels_bt", labels_bt, &[-1, -1])?;
    let size = labels_bt.size();
    let has_label = labels_bt.not_equal(IGNORE).to_kind(Kind::Int64);
    let most = has_label
        .sum_dim_intlist([1].as_slice(), false, Kind::Int64)
        .max();
    let n = most.int64_value(&[]).clamp(1, size[1]);
    // A stable sort by "has no label" brings the labelled positions to the front, in order.
    let order_bt = has_label.argsort_stable(true, 1, true);
    let front_bn = order_bt.narrow(1, 0, n);
    let labels_bn = labels_bt.gather(1, &front_bn, false);
    let positions_bn = front_bn.masked_fill(&labels_bn.eq(IGNORE), 0);
    Ok(Labelled {
        positions_bn,
        labels_bn,
    })
}

/// The retrieval loss of some rows of the global batch, summed over them: row `i` of the unit
/// texts `text_ns` belongs to row `first_row + i` of the unit images `images_ms`.
pub fn retrieval_rows(
    text_ns: &Tensor,
    images_ms: &Tensor,
    first_row: i64,
    log_inverse_temperature: &Tensor,
) -> Tensor {
    let scale = log_inverse_temperature
        .clamp_max(MAX_LOG_INVERSE_TEMPERATURE)
        .exp();
    let logits_nm = text_ns.matmul(&images_ms.tr()) * scale;
    let last = first_row + text_ns.size()[0];
    let targets = Tensor::arange_start(first_row, last, (Kind::Int64, text_ns.device()));
    cross_entropy_sum(&logits_nm, &targets)
}

/// CLIP's symmetric loss over the global batch, and its gradients.
#[derive(Debug)]
pub struct ClipLoss {
    /// Mean of both directions' mean cross-entropies.
    pub loss: Tensor,
    /// Gradient with respect to the text features, `[m, e]`.
    pub grad_text_me: Tensor,
    /// Gradient with respect to the image features, `[m, e]`.
    pub grad_images_me: Tensor,
    /// Gradient with respect to `logit_scale`; it belongs to the step once, not to every lane.
    pub grad_logit_scale: Tensor,
}

/// CLIP's symmetric loss of all features of the global batch, not normalised, and its gradients
/// with respect to them (Gao et al. 2021, "Scaling deep contrastive learning batch size"): each
/// lane then runs backward from `(features * gradient).sum()` over its own rows.
pub fn clip(text_me: &Tensor, images_me: &Tensor, logit_scale: &Tensor) -> ClipLoss {
    let leaf = |x: &Tensor| x.detach().set_requires_grad(true);
    let [text, images, scale] = [text_me, images_me, logit_scale].map(leaf);
    let logits = unit_rows(&text).matmul(&unit_rows(&images).tr())
        * scale.clamp_max(MAX_LOG_INVERSE_TEMPERATURE).exp();
    let m = text.size()[0];
    let targets = Tensor::arange(m, (Kind::Int64, text.device()));
    let both = cross_entropy_sum(&logits, &targets) + cross_entropy_sum(&logits.tr(), &targets);
    let loss = both / (2 * m) as f64;
    let mut gradients = Tensor::run_backward(&[&loss], &[text, images, scale], false, false);
    let mut next = || gradients.pop().unwrap_or_default();
    let (grad_logit_scale, grad_images_me, grad_text_me) = (next(), next(), next());
    ClipLoss {
        loss: loss.detach(),
        grad_text_me,
        grad_images_me,
        grad_logit_scale,
    }
}

/// Sum over the rows of `-log softmax(logits)[target]`.
fn cross_entropy_sum(logits_cv: &Tensor, targets_c: &Tensor) -> Tensor {
    let weight = None::<Tensor>;
    logits_cv.cross_entropy_loss(targets_c, weight, Reduction::Sum, IGNORE, 0.0)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::generator::normal;
    use crate::model::small::{VOCAB, job, weights};

    #[test]
    fn a_loss_in_pieces_is_the_loss() {
        let job = job("");
        let decoder = Decoder::new(&job.model.decoder, VOCAB, &weights(&job)).expect("a decoder");
        let states_cd = normal(1, &[10, 24], Device::Cpu).set_requires_grad(true);
        let targets_c = Tensor::arange(10, (Kind::Int64, Device::Cpu)) * 4;
        let whole = cross_entropy_sum(&decoder.logits(&states_cd), &targets_c);
        let of = |loss: &Tensor| {
            let scaled = loss / 7.0;
            let mut gradients = Tensor::run_backward(&[scaled], &[&states_cd], false, false);
            gradients.pop().expect("one")
        };
        let right = of(&whole);
        for rows in [1, 3, 10] {
            let pieces = in_pieces(&decoder, &states_cd, &targets_c, rows);
            let close = |ours: &Tensor, right: &Tensor| {
                let error = (ours - right).abs().max().double_value(&[]);
                assert!(
                    error < 1e-5 * right.abs().max().double_value(&[]),
                    "{error:e}"
                );
            };
            close(&pieces, &whole);
            close(&of(&pieces), &right);
        }
        let frozen = in_pieces(&decoder, &states_cd.detach(), &targets_c, 4);
        assert!(!frozen.requires_grad());
    }
}
