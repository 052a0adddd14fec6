//! The product of a few rows with a large matrix, as each token that is generated needs it.
//!
//! ```text
//! y_ro = sum_i x_ri W_oi        [r, i], [o, i] -> [r, o]
//! ```
//!
//! It takes as long as reading the matrix takes, if nothing else is done to it. libtorch gives it to MKL, which first
//! copies the matrix into an order of its own. A row's numbers depend neither on the other rows nor on the
//! number of threads, and are the same on every such processor: each sum is made of eight, whose terms are added
//! one by one.
#![allow(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::flat::{f32_slice, f32_slice_mut};
use crate::openmp;

/// Rows up to which this is the faster way.
const MOST_ROWS: usize = 32;
/// Numbers of a matrix below which it is not worth to wake other threads.
const SMALL: usize = 1 << 15;
/// Outputs that a thread computes at a time.
const BLOCK: usize = 16;

/// `x W^T` over the last dimension; none where libtorch has to do it: for many rows, on a GPU, in another kind than
/// fp32, where a gradient is wanted, the processor has no fused multiply-add or libtorch's threads are not to be had.
pub(super) fn product(x: &Tensor, weight_oi: &Tensor) -> Option<Tensor> {
    product_on(openmp::threads()?, x, weight_oi)
}

fn product_on(threads: u32, x: &Tensor, weight_oi: &Tensor) -> Option<Tensor> {
    let [outputs, inputs] = weight_oi.size()[..] else {
        return None;
    };
    let is_plain = |tensor: &Tensor| {
        tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && !tensor.requires_grad()
    };
    if !is_plain(x) || !is_plain(weight_oi) || !kernel::is_there() || inputs == 0 {
        return None;
    }
    let rows = x.numel() / inputs as usize;
    // Libtorch says what is wrong with a shape.
    if x.size().last() != Some(&inputs) || rows == 0 || rows > MOST_ROWS {
        return None;
    }
    let x = x.contiguous();
    let (all_x, all_w) = (f32_slice(&x).ok()?, f32_slice(weight_oi).ok()?);
    let blocks = (outputs as usize).div_ceil(BLOCK);
    let shape = [blocks as i64, rows as i64, BLOCK as i64];
    let mut y = Tensor::empty(shape, (Kind::Float, Device::Cpu));
    let parts = f32_slice_mut(&mut y).ok()?.chunks_exact_mut(rows * BLOCK);
    let parts = Mutex::new(parts.zip(all_w.chunks(BLOCK * inputs as usize)));
    let work = || {
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some((y, w)) = next() {
            kernel::block(w, all_x, inputs as usize, y);
        }
    };
    match all_w.len() < SMALL {
        true => work(),
        false => openmp::on(threads, &work),
    }
    let mut size = x.size();
    size.pop();
    size.push(outputs);
    let y_ro = y.transpose(0, 1).reshape([rows as i64, -1]);
    Some(y_ro.narrow(1, 0, outputs).reshape(size))
}

#[cfg(not(target_arch = "x86_64"))]
mod kernel {
    /// Other processors' products are left to libtorch.
    pub(super) fn is_there() -> bool {
        false
    }

    pub(super) fn block(_w: &[f32], _x: &[f32], _inputs: usize, _y: &mut [f32]) {}
}

#[cfg(target_arch = "x86_64")]
mod kernel {
    use std::arch::x86_64::{
        __m256, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };

    use super::BLOCK;

    /// Sums that are made side by side and added in the end.
    const LANES: usize = 8;

    /// Whether the processor multiplies and adds in one, eight numbers at once.
    pub(super) fn is_there() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }

    /// The outputs of up to [`BLOCK`] rows of the matrix, `y` being `[r, BLOCK]`; called where it
    /// [`is_there`].
    pub(super) fn block(w: &[f32], x: &[f32], inputs: usize, y: &mut [f32]) {
        // SAFETY: the processor has what it needs.
        unsafe { strips(w, x, inputs, y) }
    }

    /// Tiles of as many sums as registers hold, so that what is loaded is used several times.
    #[target_feature(enable = "avx2,fma")]
    fn strips(w: &[f32], x: &[f32], inputs: usize, y: &mut [f32]) {
        let mut rows = x.chunks_exact(inputs).zip(y.chunks_exact_mut(BLOCK));
        loop {
            let left = rows.len();
            let mut next = || rows.next().unwrap_or_default();
            match left {
                0 => return,
                4.. => strip::<2, 4>(w, std::array::from_fn(|_| next())),
                2 | 3 => strip::<4, 2>(w, std::array::from_fn(|_| next())),
                1 => strip::<8, 1>(w, [next()]),
            }
        }
    }

    /// Some rows of the input with all of the matrix, `OUT` of whose rows are looked at together.
    #[target_feature(enable = "avx2,fma")]
    fn strip<const OUT: usize, const ROWS: usize>(w: &[f32], rows: [(&[f32], &mut [f32]); ROWS]) {
        let inputs = rows[0].0.len();
        let x = std::array::from_fn(|row| rows[row].0);
        let mut y = rows.map(|(_, y)| y);
        let whole = w.chunks_exact(OUT * inputs);
        let rest = whole.remainder().chunks_exact(inputs);
        let first = whole.len() * OUT;
        for (at, w) in whole.enumerate() {
            let w = std::array::from_fn(|of| &w[of * inputs..][..inputs]);
            for (of, sums) in tile::<OUT, ROWS>(w, x).into_iter().enumerate() {
                for (y, sum) in y.iter_mut().zip(sums) {
                    y[at * OUT + of] = sum;
                }
            }
        }
        for (at, w) in rest.enumerate() {
            let [sums] = tile::<1, ROWS>([w], x);
            for (y, sum) in y.iter_mut().zip(sums) {
                y[first + at] = sum;
            }
        }
    }

    /// The products of each row of the matrix with each of the input; all are as long.
    #[target_feature(enable = "avx2,fma")]
    fn tile<const OUT: usize, const ROWS: usize>(
        w: [&[f32]; OUT],
        x: [&[f32]; ROWS],
    ) -> [[f32; ROWS]; OUT] {
        let length = x[0].len();
        assert!(w.iter().chain(&x).all(|row| row.len() == length));
        let mut sums = [[_mm256_setzero_ps(); ROWS]; OUT];
        let whole = length / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            // SAFETY: `LANES` numbers begin at `at` in each of them.
            let load = |row: &[f32]| unsafe { _mm256_loadu_ps(row.as_ptr().add(at)) };
            let x: [__m256; ROWS] = std::array::from_fn(|row| load(x[row]));
            for of in 0..OUT {
                if ROWS > 1 {
                    // Meanwhile come the rows behind these. One row alone waits for memory in any case.
                    let ahead = w[of].as_ptr().wrapping_add(OUT * length + at);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                }
                let w = load(w[of]);
                for row in 0..ROWS {
                    sums[of][row] = _mm256_fmadd_ps(w, x[row], sums[of][row]);
                }
            }
        }
        let with_rest = |of: usize, row: usize| {
            let mut lanes = [0.0; LANES];
            // SAFETY: it has so many numbers.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums[of][row]) };
            let rest = w[of][whole..].iter().zip(&x[row][whole..]);
            for (lane, (w, x)) in lanes.iter_mut().zip(rest) {
                *lane = w.mul_add(*x, *lane);
            }
            total(lanes)
        };
        std::array::from_fn(|of| std::array::from_fn(|row| with_rest(of, row)))
    }

    /// Halves are added to halves.
    fn total(mut lanes: [f32; LANES]) -> f32 {
        for half in [LANES / 2, LANES / 4, LANES / 8] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::normal;

    fn random(shape: &[i64]) -> Tensor {
        normal(shape.iter().sum(), shape, Device::Cpu)
    }

    #[test]
    fn it_is_the_product_for_any_number_of_rows_and_outputs() {
        if !kernel::is_there() {
            eprintln!("SKIPPED: this processor's products are all left to libtorch");
            return;
        }
        for rows in [1, 2, 3, 4, 7, 8, 13, 32] {
            for (outputs, inputs) in [(1, 1), (5, 7), (16, 8), (33, 40), (70, 515)] {
                let x = random(&[1, rows, inputs]);
                let w = random(&[outputs, inputs]);
                let ours = product(&x, &w).expect("few rows");
                assert_eq!(ours.size(), [1, rows, outputs]);
                let right = x
                    .to_kind(Kind::Double)
                    .matmul(&w.to_kind(Kind::Double).tr());
                let error = (&ours - &right).abs().max() / right.abs().max();
                assert!(error.double_value(&[]) < 1e-6, "{rows} {outputs} {inputs}");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_others_nor_on_threads() {
        if !kernel::is_there() {
            eprintln!("SKIPPED: this processor's products are all left to libtorch");
            return;
        }
        let x = random(&[7, 300]);
        let w = random(&[250, 300]);
        let all = product_on(2, &x, &w).expect("few rows");
        for threads in [1, 3] {
            for row in 0..7 {
                let one = product_on(threads, &x.narrow(0, row, 1), &w).expect("few rows");
                assert!(one.equal(&all.narrow(0, row, 1)), "{row}");
            }
        }
    }

    #[test]
    fn other_products_are_left_to_libtorch() {
        let w = random(&[4, 3]);
        assert!(product(&random(&[33, 3]), &w).is_none());
        let half = w.to_kind(Kind::BFloat16);
        let x = random(&[1, 3]);
        assert!(product(&x.to_kind(Kind::BFloat16), &half).is_none());
        assert!(product(&Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)), &w).is_none());
        assert!(product(&Tensor::zeros([1, 4], (Kind::Float, Device::Cpu)), &w).is_none());
        assert!(product(&x, &w.set_requires_grad(true)).is_none());
    }
}
