//! Exact reduction by libtorch's operators, for devices other than the CPU. The same bits as
//! [`super::cpu`]: products are exact in f64, `round` rounds to nearest even, and the way back is
//! int64 to f64 to fp32.

use tch::{Kind, Tensor};

use super::{ReduceError, part};
use crate::collectives::Collective;
use crate::flat::{FlatLayout, Span};

/// `sums = round(gradient * scale)` at the tensor's place, or `+=`. Gives the largest magnitude as
/// a scalar that stays on the device.
pub(super) fn add(
    sums: &mut Tensor,
    span: &Span,
    gradient: &Tensor,
    scale: f64,
    accumulate: bool,
) -> Result<Tensor, tch::TchError> {
    let fixed = gradient
        .f_to_kind(Kind::Double)?
        .f_mul_scalar(scale)?
        .f_round()?
        .f_to_kind(Kind::Int64)?;
    let mut sum = part(sums, span)?;
    if accumulate {
        let _ = sum.f_add_(&fixed)?;
    } else {
        sum.f_copy_(&fixed)?;
    }
    largest(gradient)
}

/// The largest magnitude, as a scalar on the device; NaN if there is one.
pub(super) fn largest(gradient: &Tensor) -> Result<Tensor, tch::TchError> {
    if gradient.numel() == 0 {
        return Tensor::f_zeros(&[] as &[i64], (Kind::Float, gradient.device()));
    }
    gradient.f_abs()?.f_max()
}

/// Reduces `sums` over ranks into `grads`: reduce-scatter in int64, own shard to fp32, all-gather.
pub(super) fn reduce(
    sums: &Tensor,
    scales: &[f64],
    layout: &FlatLayout,
    collective: &mut dyn Collective,
    grads: &mut Tensor,
) -> Result<(), ReduceError> {
    let own = collective.own_shard(layout.total());
    let reduced = if collective.world() == 1 {
        sums.shallow_clone()
    } else {
        collective.reduce_scatter_tensor(sums)?
    };
    for (span, &scale) in layout.spans().iter().zip(scales) {
        let (start, end) = (span.offset.max(own.start), span.range().end.min(own.end));
        if start < end {
            let len = (end - start) as i64;
            let sum = reduced.f_narrow(0, (start - own.start) as i64, len)?;
            let values = sum
                .f_to_kind(Kind::Double)?
                .f_mul_scalar(scale)?
                .f_to_kind(Kind::Float)?;
            grads.f_narrow(0, start as i64, len)?.f_copy_(&values)?;
        }
    }
    if collective.world() > 1 {
        collective.all_gather_tensor(grads)?;
    }
    Ok(())
}
