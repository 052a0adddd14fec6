//! Exact reduction on the CPU: the loops of [`super::kernels`] over the flat buffers.

use std::ops::Range;

use tch::Tensor;

use super::{ReduceError, kernels};
use crate::collectives::Collective;
use crate::flat::{
    FlatError, FlatLayout, Span, f32_slice, f32_slice_mut, i64_slice, i64_slice_mut,
};

/// `sums = round(gradient * scale)` at the tensor's place, or `+=`. Gives the bits of the largest
/// magnitude.
pub(super) fn add(
    sums: &mut Tensor,
    span: &Span,
    gradient: &Tensor,
    scale: f64,
    accumulate: bool,
) -> Result<u32, FlatError> {
    let (sums, values) = (
        &mut i64_slice_mut(sums)?[span.range()],
        f32_slice(gradient)?,
    );
    let kernel = if accumulate {
        kernels::add_fixed
    } else {
        kernels::store_fixed
    };
    Ok(kernel(sums, values, scale))
}

/// The bits of the largest magnitude.
pub(super) fn largest(gradient: &Tensor) -> Result<u32, FlatError> {
    Ok(kernels::largest_magnitude(f32_slice(gradient)?))
}

/// Reduces `sums` over ranks into `grads`: reduce-scatter in int64, own shard to fp32, all-gather.
pub(super) fn reduce(
    sums: &Tensor,
    scales: &[f64],
    layout: &FlatLayout,
    collective: &mut dyn Collective,
    grads: &mut Tensor,
) -> Result<(), ReduceError> {
    reduce_slices(
        i64_slice(sums)?,
        scales,
        layout,
        collective,
        f32_slice_mut(grads)?,
    )
}

/// [`reduce`] on slices.
pub(crate) fn reduce_slices(
    sums: &[i64],
    scales: &[f64],
    layout: &FlatLayout,
    collective: &mut dyn Collective,
    grads: &mut [f32],
) -> Result<(), ReduceError> {
    let own = collective.own_shard(sums.len());
    let values = &mut grads[own.clone()];
    collective.reduce_scatter_i64(sums, &mut |first, sums| {
        let range = own.start + first..own.start + first + sums.len();
        convert(
            sums,
            &range,
            scales,
            layout,
            &mut values[first..first + sums.len()],
        );
    })?;
    if collective.world() > 1 {
        collective.all_gather_f32(grads)?;
    }
    Ok(())
}

/// `values = sums * scale of their tensor`, for the elements `range` of the layout.
fn convert(
    sums: &[i64],
    range: &Range<usize>,
    scales: &[f64],
    layout: &FlatLayout,
    values: &mut [f32],
) {
    let first = layout
        .spans()
        .partition_point(|span| span.range().end <= range.start);
    for (span, &scale) in layout.spans().iter().zip(scales).skip(first) {
        if span.offset >= range.end {
            break;
        }
        let start = span.offset.max(range.start) - range.start;
        let end = span.range().end.min(range.end) - range.start;
        kernels::to_float(&mut values[start..end], &sums[start..end], scale);
    }
}
