//! Small functions that several modules share.

use tch::{Device, Kind, Tensor};

use super::{few_rows, onednn};

/// `x W^T`, over the last dimension.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    affine(x, weight, None)
}

/// `x W^T + b`, over the last dimension, in the kind of `x`.
///
/// libtorch leaves it to MKL. Few rows, where nothing is differentiated, and large products on some processors are
/// faster in another way.
pub(super) fn affine(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let (weight, bias) = (like(weight, x), bias.map(|bias| like(bias, x)));
    if let Some(product) = few_rows::product(x, &weight) {
        return match bias {
            Some(bias) => product + bias,
            None => product,
        };
    }
    match onednn::linear(x, &weight, bias.as_ref()) {
        Some(product) => product,
        None => x.linear(&weight, bias),
    }
}

/// A weight in the kind of what it is applied to; itself where it is of that kind. A weight that is
/// trained is kept in fp32, and so is its gradient.
pub(super) fn like(weight: &Tensor, x: &Tensor) -> Tensor {
    weight.to_kind(x.kind())
}

/// RMSNorm (Zhang and Sennrich 2019): `x / sqrt(mean(x^2) + eps) * w` over the last dimension. Its
/// statistics are fp32 in any kind.
pub(super) fn rms_norm(x: &Tensor, weight_d: &Tensor, eps: f64) -> Tensor {
    x.rms_norm(weight_d.size(), Some(&like(weight_d, x)), eps)
}

/// CLIP's activation `x sigmoid(1.702 x)`.
pub(super) fn quick_gelu(x: &Tensor) -> Tensor {
    x * (x * 1.702).sigmoid()
}

/// Rows of unit length, for cosine similarity.
pub(super) fn unit_rows(x: &Tensor) -> Tensor {
    let norm = x
        .square()
        .sum_dim_intlist([-1].as_slice(), true, None::<Kind>)
        .clamp_min(1e-24);
    x * norm.rsqrt()
}

/// Keys up to which a CPU multiplies heads in fp32 sooner than it prepares products in bf16 for the backward pass.
const SHORT: i64 = 128;

/// Scaled dot-product attention on `[b, heads, length, k]`; the output is `[b, n, h k]`, in the kind of the queries.
pub(super) fn attend(
    q_bhnk: &Tensor,
    kv_bgtk: [&Tensor; 2],
    mask: Option<&Tensor>,
    causal: bool,
) -> Tensor {
    let (b, h, n, k) = sizes4(q_bhnk);
    let kind = q_bhnk.kind();
    let [k_bgtk, v_bgtk] = kv_bgtk;
    let computed = match q_bhnk.device() {
        Device::Cpu if q_bhnk.requires_grad() && k_bgtk.size()[2] <= SHORT => Kind::Float,
        _ => kind,
    };
    let [q_bhnk, k_bgtk, v_bgtk] = [q_bhnk, k_bgtk, v_bgtk].map(|x| x.to_kind(computed));
    // A mask of bool is of no kind.
    let mask = mask.map(|mask| match mask.kind() {
        Kind::Bool => mask.shallow_clone(),
        _ => mask.to_kind(computed),
    });
    let grouped = h != k_bgtk.size()[1];
    let out = Tensor::scaled_dot_product_attention(
        &q_bhnk, &k_bgtk, &v_bgtk, mask, 0.0, causal, None, grouped,
    );
    out.to_kind(kind).transpose(1, 2).reshape([b, n, h * k])
}

fn sizes4(x: &Tensor) -> (i64, i64, i64, i64) {
    let size = x.size();
    (size[0], size[1], size[2], size[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::normal;

    #[test]
    fn attention_in_bf16_has_its_kind_and_its_gradients_at_any_length() {
        for length in [7, SHORT + 1] {
            let [q, k, v] = [1, 2, 3].map(|seed| normal(seed, &[2, 4, length, 8], Device::Cpu));
            let keys = |x: &Tensor| x.narrow(1, 0, 2);
            let mask = Tensor::ones([length, length], (Kind::Bool, Device::Cpu)).tril(0);
            for mask in [None, Some(&mask)] {
                let of = |kind: Kind| {
                    let [q, k, v] = [&q, &keys(&k), &keys(&v)]
                        .map(|x| x.to_kind(kind).detach().set_requires_grad(true));
                    let out = attend(&q, [&k, &v], mask, mask.is_none());
                    assert_eq!((out.kind(), out.size()), (kind, vec![2, length, 32]));
                    let loss = out.to_kind(Kind::Float).square().sum(Kind::Float);
                    let mut found = Tensor::run_backward(&[loss], &[&q, &k, &v], false, false);
                    assert!(found.iter().all(|gradient| gradient.kind() == kind));
                    found.push(out.detach());
                    found
                };
                for (ours, right) in of(Kind::BFloat16).iter().zip(of(Kind::Float)) {
                    let error = (ours - &right).abs().max() / right.abs().max();
                    assert!(error.double_value(&[]) < 2e-2, "{length}: {error:?}");
                }
            }
        }
    }
}
