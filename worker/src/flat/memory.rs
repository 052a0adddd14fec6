//! The memory of CPU tensors as slices. The only place that turns tensor pointers into slices.
#![allow(unsafe_code)]

use tch::{Device, Kind, Tensor};

use super::FlatError;

fn check(tensor: &Tensor, expected: Kind) -> Result<usize, FlatError> {
    let fits = tensor.defined()
        && tensor.kind() == expected
        && tensor.device() == Device::Cpu
        && tensor.is_contiguous();
    if !fits {
        return Err(FlatError::Memory {
            expected,
            found: format!("{tensor:?}"),
        });
    }
    Ok(tensor.numel())
}

/// `kind` must be the tensor kind of `T`.
fn slice<T: Plain>(tensor: &Tensor, kind: Kind) -> Result<&[T], FlatError> {
    let len = check(tensor, kind)?;
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: the tensor is contiguous, on the CPU and holds `len` numbers of type `T`; the borrow
    // keeps its storage alive.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), len) })
}

/// `kind` must be the tensor kind of `T`.
fn slice_mut<T: Plain>(tensor: &mut Tensor, kind: Kind) -> Result<&mut [T], FlatError> {
    let len = check(tensor, kind)?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `slice`; the exclusive borrow and the single thread of tensors exclude other
    // accesses while the slice lives.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), len) })
}

/// The values of a contiguous fp32 tensor on the CPU, in place.
///
/// # Errors
/// [`FlatError::Memory`] for any other tensor.
pub fn f32_slice(tensor: &Tensor) -> Result<&[f32], FlatError> {
    slice(tensor, Kind::Float)
}

/// The values of a contiguous fp32 tensor on the CPU, for writing in place. Other tensors may view
/// the same storage: nobody may read them through libtorch while the slice lives, which holds
/// because a worker's tensors stay on one thread.
///
/// # Errors
/// [`FlatError::Memory`] for any other tensor.
pub fn f32_slice_mut(tensor: &mut Tensor) -> Result<&mut [f32], FlatError> {
    slice_mut(tensor, Kind::Float)
}

/// The values of a contiguous int64 tensor on the CPU, in place.
///
/// # Errors
/// [`FlatError::Memory`] for any other tensor.
pub fn i64_slice(tensor: &Tensor) -> Result<&[i64], FlatError> {
    slice(tensor, Kind::Int64)
}

/// The values of a contiguous int64 tensor on the CPU, for writing in place; see [`f32_slice_mut`].
///
/// # Errors
/// [`FlatError::Memory`] for any other tensor.
pub fn i64_slice_mut(tensor: &mut Tensor) -> Result<&mut [i64], FlatError> {
    slice_mut(tensor, Kind::Int64)
}

/// The bytes of a contiguous tensor of any kind on the CPU, in place.
///
/// # Errors
/// [`FlatError::Memory`] for any other tensor.
pub(crate) fn bytes(tensor: &Tensor) -> Result<&[u8], FlatError> {
    let len = check(tensor, tensor.kind())? * tensor.kind().elt_size_in_bytes();
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: as in `slice`; a byte has no alignment.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), len) })
}

/// The bytes of a contiguous tensor of any kind on the CPU, for writing in place; see
/// [`f32_slice_mut`].
///
/// # Errors
/// [`FlatError::Memory`] for any other tensor.
pub(crate) fn bytes_mut(tensor: &mut Tensor) -> Result<&mut [u8], FlatError> {
    let len = check(tensor, tensor.kind())? * tensor.kind().elt_size_in_bytes();
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `slice_mut`; any bytes are numbers.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), len) })
}

#[cfg(not(target_endian = "little"))]
compile_error!("digests, checkpoints and the wire are defined on little-endian machines");

/// The values as little-endian bytes, in place.
pub(crate) fn le_bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types are numbers without padding; a byte has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The values as little-endian bytes, for writing in place.
pub(crate) fn le_bytes_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `le_bytes`; any bytes are a valid number.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Numbers for which every bit pattern is a value.
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for i64 {}
