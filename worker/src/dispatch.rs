//! Any aten operator, through libtorch's stable C ABI.
//!
//! tch binds most operators, but leaves out the fused optimizers and the `_foreach_` family. The C
//! ABI of libtorch 2.11 (`torch/csrc/stable/c/shim.h`) calls every operator of the dispatcher by
//! name with a stack of 64-bit values. The call steals its arguments, so tensors and lists are
//! given as new references. Nothing throws over the border: a refusal is an error code, and
//! libtorch writes its text to standard error.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};

use mks2_proto::failure::Failure;
use tch::Tensor;
use thiserror::Error;

/// An operator could not be called.
#[derive(Debug, Error)]
pub enum DispatchError {
    /// libtorch refused the call: unknown operator, or arguments that do not fit.
    #[error(
        "libtorch refused {operator} with {arguments} arguments (code {code}); its reason is on standard error"
    )]
    Refused {
        /// `aten::name.overload`.
        operator: String,
        /// Arguments given.
        arguments: usize,
        /// The ABI's error code.
        code: i32,
    },
    /// An operator's name holds a zero byte.
    #[error("operator name '{0}' holds a zero byte")]
    Name(String),
}

/// One argument in the order of the operator's schema; every one must be given, defaults too.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// `Tensor`
    Tensor(&'a Tensor),
    /// `Tensor[]`
    Tensors(&'a [&'a Tensor]),
    /// `float`
    Float(f64),
    /// `int`
    Int(i64),
    /// `bool`
    Bool(bool),
    /// Any optional type without a value.
    None,
}

type List = *mut c_void;

/// The version of the ABI that the argument encoding follows, 2.11.0, as libtorch writes its own:
/// major, minor and patch in one byte each, from the top.
const ABI_VERSION: u64 = (2 << 56) | (11 << 48);
const SUCCESS: i32 = 0;

unsafe extern "C" {
    fn aoti_torch_abi_version() -> u64;
    fn torch_call_dispatcher(
        name: *const c_char,
        overload: *const c_char,
        stack: *mut u64,
        version: u64,
    ) -> i32;
    fn torch_new_list_reserve_size(size: usize, list: *mut List) -> i32;
    fn torch_list_push_back(list: List, element: u64) -> i32;
    fn torch_delete_list(list: List) -> i32;
}

/// Version of the libtorch in this process: `2.11.0`.
#[must_use]
pub fn libtorch_version() -> String {
    // SAFETY: no arguments, no state.
    shown(unsafe { aoti_torch_abi_version() })
}

/// Refuses to work with another libtorch than the one that these calls are written for: a folder
/// that comes first in `LD_LIBRARY_PATH` may hold any.
///
/// # Errors
/// Exit 6, naming both versions.
pub fn check_libtorch() -> Result<(), Failure> {
    // SAFETY: no arguments, no state.
    check_abi(unsafe { aoti_torch_abi_version() })
}

fn check_abi(found: u64) -> Result<(), Failure> {
    // A patch release keeps the signatures.
    let without_patch = |version: u64| version >> 48;
    if without_patch(found) == without_patch(ABI_VERSION) {
        return Ok(());
    }
    Err(Failure::environment(
        format!("libtorch {} can not be used", shown(found)),
        format!("this program is built for libtorch {}", shown(ABI_VERSION)),
        "take other versions out of LD_LIBRARY_PATH, or run `cargo xtask setup` and build again",
    ))
}

fn shown(version: u64) -> String {
    let byte = |shift: u32| (version >> shift) & 0xff;
    format!("{}.{}.{}", byte(56), byte(48), byte(40))
}

/// Calls an operator that returns nothing, or changes its first arguments in place and returns
/// `results` of them, which are released.
///
/// # Errors
/// [`DispatchError::Refused`] when libtorch refuses. The arguments may then have been changed in
/// part.
pub fn call(
    operator: &str,
    overload: &str,
    arguments: &[Argument<'_>],
    results: usize,
) -> Result<(), DispatchError> {
    call_returning(operator, overload, arguments, results).map(drop)
}

/// Calls an operator whose `results` results are all tensors.
///
/// # Errors
/// As [`call`].
pub fn call_returning(
    operator: &str,
    overload: &str,
    arguments: &[Argument<'_>],
    results: usize,
) -> Result<Vec<Tensor>, DispatchError> {
    let refused = |code| DispatchError::Refused {
        operator: if overload.is_empty() {
            operator.into()
        } else {
            format!("{operator}.{overload}")
        },
        arguments: arguments.len(),
        code,
    };
    let text = |name: &str| CString::new(name).map_err(|_| DispatchError::Name(name.into()));
    let (name, over) = (text(operator)?, text(overload)?);
    let mut stack = Vec::with_capacity(arguments.len().max(results));
    for argument in arguments {
        match encode(argument) {
            Ok(value) => stack.push(value),
            // References made so far are leaked: a list could not be allocated, so little is lost.
            Err(code) => return Err(refused(code)),
        }
    }
    stack.resize(arguments.len().max(results), 0);
    // SAFETY: both names end in zero; the stack has room for all arguments and results, encoded as
    // the ABI's version says; references in it are owned and given away by the call.
    let code = unsafe {
        torch_call_dispatcher(
            name.as_ptr(),
            over.as_ptr(),
            stack.as_mut_ptr(),
            ABI_VERSION,
        )
    };
    if code != SUCCESS {
        return Err(refused(code));
    }
    // SAFETY: after success the first `results` values are owned tensor references, by contract of
    // this function with its caller.
    Ok(stack[..results]
        .iter()
        .map(|&value| unsafe { Tensor::from_ptr(value as usize as *mut _) })
        .collect())
}

/// A new reference to the tensor, as the ABI's owned handle.
fn owned(tensor: &Tensor) -> u64 {
    let reference = std::mem::ManuallyDrop::new(tensor.shallow_clone());
    reference.as_ptr() as usize as u64
}

fn encode(argument: &Argument<'_>) -> Result<u64, i32> {
    Ok(match argument {
        Argument::Tensor(tensor) => owned(tensor),
        Argument::Tensors(tensors) => encode_list(tensors)?,
        Argument::Float(value) => value.to_bits(),
        Argument::Int(value) => value.cast_unsigned(),
        Argument::Bool(value) => u64::from(*value),
        Argument::None => 0,
    })
}

fn encode_list(tensors: &[&Tensor]) -> Result<u64, i32> {
    let mut list: List = std::ptr::null_mut();
    // SAFETY: the function writes a new list's handle to `list`, or returns an error code.
    let code = unsafe { torch_new_list_reserve_size(tensors.len(), &raw mut list) };
    if code != SUCCESS {
        return Err(code);
    }
    for tensor in tensors {
        // SAFETY: `list` is live; it becomes the owner of the reference.
        let code = unsafe { torch_list_push_back(list, owned(tensor)) };
        if code != SUCCESS {
            // SAFETY: `list` is live and not used again.
            unsafe { torch_delete_list(list) };
            return Err(code);
        }
    }
    Ok(list as usize as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn another_libtorch_is_refused_with_both_versions() {
        assert_eq!(libtorch_version(), "2.11.0");
        assert!(check_libtorch().is_ok());
        assert!(check_abi(ABI_VERSION | (1 << 40)).is_ok());
        let failure = check_abi((2 << 56) | (13 << 48)).unwrap_err();
        assert_eq!(failure.exit.code(), 6);
        assert!(failure.what.contains("2.13.0") && failure.why.contains("2.11.0"));
    }

    #[test]
    fn results_and_arguments_keep_their_references() {
        let a = Tensor::from_slice(&[1f32, 2.0]);
        let b = Tensor::from_slice(&[10f32, 20.0]);
        let arguments = [
            Argument::Tensor(&a),
            Argument::Tensor(&b),
            Argument::Float(2.0),
        ];
        // `add.Tensor` takes a Scalar, which the ABI does not carry: `hypot` takes two tensors.
        assert!(call("aten::nothing_of_this_name", "", &arguments, 1).is_err());
        for _ in 0..1000 {
            let result = call_returning("aten::maximum", "", &arguments[..2], 1).unwrap();
            assert_eq!(Vec::<f32>::try_from(&result[0]).unwrap(), [10.0, 20.0]);
        }
        assert_eq!(a.size(), [2]);
    }

    #[test]
    fn a_refusal_is_an_error_with_the_operators_name() {
        let a = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let arguments = [Argument::Tensor(&a), Argument::Tensor(&a)];
        let error = call("aten::mm", "", &arguments, 1).unwrap_err();
        assert!(
            error.to_string().contains("aten::mm with 2 arguments"),
            "{error}"
        );
    }
}
