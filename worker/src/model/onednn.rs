//! Products by oneDNN.
//!
//! ```text
//! y = x W^T + b          dx = dy W          dW = dy^T x          db = sum(dy)
//! ```
//!
//! libtorch gives those in fp32 to MKL, which keeps AVX-512 to Intel's processors and packs the whole matrix anew for
//! each product. oneDNN, which is also a part of libtorch, takes what a processor has. In bf16 it multiplies in any
//! case, but keeps what it has compiled for every number of rows. Its operator for tensors as they lie has no
//! gradient; that is in `onednn.cpp`, since only C++ can add an operation to libtorch's graph, and there rows are
//! padded to few numbers.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};
use std::sync::LazyLock;

use tch::{Device, Kind, Tensor};

/// Multiplications below which it is not worth to compile code for another shape, which takes oneDNN a third of a
/// millisecond.
const SMALL: usize = 1 << 23;
/// Numbers of a matrix that a processor's cache may hold: 64 MiB. A larger one is not packed for one product.
const CACHED: usize = 16 << 20;

/// Whether MKL leaves half of this processor's width unused.
static IS_FASTER: LazyLock<bool> = LazyLock::new(processor::is_wide_and_not_intels);

unsafe extern "C" {
    fn mks2_linear(
        x: *const c_void,
        weight: *const c_void,
        bias: *const c_void,
        reason: *mut c_char,
        length: usize,
    ) -> *mut c_void;
}

/// Whether oneDNN multiplies in bf16 on this processor, as libtorch has it do.
static HAS_BF16: LazyLock<bool> = LazyLock::new(|| {
    let one = Tensor::ones([1, 1], (Kind::BFloat16, Device::Cpu));
    cfg!(target_arch = "x86_64") && product(&one, &one, None).is_ok()
});

/// `x W^T + b` over the last dimension; none where it is left to libtorch: on GPUs, in other kinds, and in fp32
/// small products, and those on processors on which MKL is as fast but for a large frozen matrix.
pub(super) fn linear(x: &Tensor, weight_oi: &Tensor, bias: Option<&Tensor>) -> Option<Tensor> {
    let kind = x.kind();
    let is_alike = |tensor: &Tensor| tensor.device() == Device::Cpu && tensor.kind() == kind;
    if !is_alike(x) || !is_alike(weight_oi) || x.numel() == 0 || !tch::utils::has_mkldnn() {
        return None;
    }
    let outputs = weight_oi.size().first().copied().unwrap_or(0) as usize;
    let is_frozen = !x.requires_grad() && !weight_oi.requires_grad();
    let pays = match kind {
        Kind::Float if *IS_FASTER => x.numel() * outputs >= SMALL,
        Kind::Float => is_frozen && weight_oi.numel() > CACHED,
        Kind::BFloat16 => *HAS_BF16,
        _ => false,
    };
    pays.then(|| product(x, weight_oi, bias).ok()).flatten()
}

/// The same, whatever pays.
///
/// # Errors
/// libtorch's words, where it refuses.
fn product(x: &Tensor, weight_oi: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, String> {
    let pointer = |tensor: &Tensor| tensor.as_ptr().cast();
    let mut reason = [0_u8; 512];
    // SAFETY: the pointers are those of tensors that outlive the call, or null; `reason` is as long as told.
    let found = unsafe {
        mks2_linear(
            pointer(x),
            pointer(weight_oi),
            bias.map_or(std::ptr::null(), pointer),
            reason.as_mut_ptr().cast(),
            reason.len(),
        )
    };
    if found.is_null() {
        let length = reason.iter().position(|byte| *byte == 0);
        let words = &reason[..length.unwrap_or(reason.len())];
        return Err(String::from_utf8_lossy(words).into_owned());
    }
    // SAFETY: a new tensor, which nobody else has.
    Ok(unsafe { Tensor::from_ptr(found.cast()) })
}

#[cfg(target_arch = "x86_64")]
mod processor {
    use std::arch::x86_64::__cpuid;

    pub(super) fn is_wide_and_not_intels() -> bool {
        let vendor = __cpuid(0);
        let vendor = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
        is_x86_feature_detected!("avx512f") && vendor.as_flattened() != b"GenuineIntel"
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod processor {
    pub(super) fn is_wide_and_not_intels() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::normal;

    /// The largest error that a kind may have, relative to the largest number.
    fn tolerance(kind: Kind) -> f64 {
        match kind {
            Kind::BFloat16 => 1e-2,
            _ => 1e-5,
        }
    }

    /// What each way gives: the product, and the gradients of its square's sum at what requires one.
    fn both(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> [(Tensor, Vec<Tensor>); 2] {
        let leaves: Vec<&Tensor> = [Some(x), Some(weight), bias]
            .into_iter()
            .flatten()
            .filter(|leaf| leaf.requires_grad())
            .collect();
        let ours = product(x, weight, bias).expect("a product");
        [ours, x.linear(weight, bias)].map(|y| {
            assert_eq!(y.requires_grad(), !leaves.is_empty());
            let gradients = match leaves.is_empty() {
                true => vec![],
                false => {
                    let loss = y.square().sum(Kind::Float);
                    let mut found = Tensor::run_backward(&[loss], &leaves, true, false);
                    // The gradient of a sum is one number, seen from everywhere.
                    let sum = y.sum(Kind::Float);
                    found.extend(Tensor::run_backward(&[sum], &leaves, false, false));
                    found
                }
            };
            (y.detach(), gradients)
        })
    }

    fn assert_close(ours: &Tensor, right: &Tensor) {
        assert_eq!((ours.size(), ours.kind()), (right.size(), right.kind()));
        let error = (ours - right).abs().max() / right.abs().max();
        let error = error.double_value(&[]);
        assert!(error < tolerance(right.kind()), "{error:e}");
    }

    fn assert_all_close(kind: Kind, [rows, outputs, inputs]: [i64; 3]) {
        for trained in 0..8 {
            let leaf = |seed: i64, shape: &[i64]| {
                let leaf = normal(seed, shape, Device::Cpu).to_kind(kind);
                leaf.set_requires_grad(trained >> seed & 1 == 1)
            };
            let x = leaf(0, &[2, rows, inputs]);
            let (weight, bias) = (leaf(1, &[outputs, inputs]), leaf(2, &[outputs]));
            for bias in [None, Some(&bias)] {
                let [(ours, our_gradients), (right, gradients)] = both(&x, &weight, bias);
                assert_close(&ours, &right);
                assert_eq!(our_gradients.len(), gradients.len());
                for (ours, right) in our_gradients.iter().zip(&gradients) {
                    assert_close(ours, right);
                }
            }
        }
    }

    #[test]
    fn it_has_the_product_and_the_gradients_of_libtorch() {
        for sizes in [[1, 1, 1], [3, 5, 7], [40, 8, 96], [41, 96, 8]] {
            assert_all_close(Kind::Float, sizes);
            match *HAS_BF16 {
                true => assert_all_close(Kind::BFloat16, sizes),
                false => eprintln!("SKIPPED: oneDNN does not multiply in bf16 on this processor"),
            }
        }
    }

    #[test]
    fn strided_tensors_are_taken_as_they_lie() {
        let x = normal(1, &[9, 2, 20], Device::Cpu)
            .transpose(0, 1)
            .set_requires_grad(true);
        let wide = normal(2, &[30, 40], Device::Cpu);
        let weight = wide.narrow(1, 3, 20).narrow(0, 2, 16);
        let [(ours, our_gradients), (right, gradients)] = both(&x, &weight, None);
        assert_close(&ours, &right);
        assert_close(&our_gradients[0], &gradients[0]);
    }

    #[test]
    fn a_refusal_has_libtorchs_words() {
        let x = normal(1, &[4, 3], Device::Cpu);
        let words = product(&x, &normal(2, &[2, 5], Device::Cpu), None).expect_err("refused");
        assert!(!words.is_empty());
    }
}
