//! libtorch's CUDA part, loaded at run time by the same binary that runs without it.
//!
//! The binary is linked to `libtorch_cpu` alone. Where a job asks for a GPU, [`load`] opens
//! `libtorch_cuda.so` from the folder that `libtorch_cpu` itself came from, so that the two are
//! always of one build. It must happen before the first question about CUDA: libtorch asks once
//! whether its CUDA part is there and remembers the answer.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use mks2_proto::env::{CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_VALUE};
use mks2_proto::failure::Failure;

/// The file that holds libtorch's CUDA part.
const LIBRARY: &str = "libtorch_cuda.so";

unsafe extern "C" {
    /// Any symbol of libtorch_cpu; only its address is used.
    fn aoti_torch_device_type_cuda() -> i32;
    /// `at::globalContext()`
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut c_void;
    /// `at::Context::setDeterministicAlgorithms(bool mode, bool warn_only)`
    #[link_name = "_ZN2at7Context26setDeterministicAlgorithmsEbb"]
    fn set_deterministic_algorithms(context: *mut c_void, mode: bool, warn_only: bool);
    /// `at::Context::setDeterministicFillUninitializedMemory(bool)`
    #[link_name = "_ZN2at7Context39setDeterministicFillUninitializedMemoryEb"]
    fn set_fill_uninitialized_memory(context: *mut c_void, fill: bool);
}

/// Makes libtorch choose kernels that give the same bits each time, and refuse operators that have
/// none. New tensors are not filled for it: none of ours is read before it is written.
///
/// # Errors
/// Exit 6 when the environment lacks [`CUBLAS_WORKSPACE`], without which cuBLAS may choose another
/// algorithm from call to call.
pub fn repeat_bits() -> Result<(), Failure> {
    if std::env::var_os(CUBLAS_WORKSPACE).is_none() {
        return Err(Failure::environment(
            "equal bits can not be promised on this GPU",
            format!("{CUBLAS_WORKSPACE} is not set, so cuBLAS may choose its algorithms anew"),
            format!(
                "set {CUBLAS_WORKSPACE}={CUBLAS_WORKSPACE_VALUE}, or train with --set reduction=fast"
            ),
        ));
    }
    set_repeating(true);
    Ok(())
}

fn set_repeating(wanted: bool) {
    // SAFETY: the context is libtorch's own and lives as long as the process; both functions store
    // flags in it, with the signatures of libtorch 2.11.
    unsafe {
        let context = global_context();
        set_fill_uninitialized_memory(context, false);
        set_deterministic_algorithms(context, wanted, false);
    }
}

/// The folder from which this process has loaded libtorch.
#[must_use]
pub fn libtorch_folder() -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let address: *const c_void = aoti_torch_device_type_cuda as *const c_void;
    // SAFETY: the address is that of a function; `info` may be written as a whole.
    let found = unsafe { libc::dladdr(address, info.as_mut_ptr()) };
    // SAFETY: zeroed bytes are a valid Dl_info: pointers, some of them null.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's name of the library ends in zero and lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let file = Path::new(OsStr::from_bytes(name.to_bytes()))
        .canonicalize()
        .ok()?;
    file.parent().map(Path::to_path_buf)
}

/// Loads libtorch's CUDA part, once in a process. Jobs on a CPU must not call it.
///
/// # Errors
/// Exit 6 when libtorch here has no CUDA part or it can not be loaded.
pub fn load() -> Result<(), Failure> {
    static LOADED: OnceLock<Result<(), Failure>> = OnceLock::new();
    LOADED
        .get_or_init(|| load_from(libtorch_folder().as_deref()))
        .clone()
}

fn load_from(folder: Option<&Path>) -> Result<(), Failure> {
    let what = "a GPU is asked for, and libtorch's CUDA part can not be loaded";
    let cure = "run with the libraries of a PyTorch 2.11.0 for CUDA (its torch/lib folder first in \
                LD_LIBRARY_PATH)";
    let Some(folder) = folder else {
        return Err(Failure::environment(
            what,
            "the folder of libtorch could not be found",
            cure,
        ));
    };
    let file = folder.join(LIBRARY);
    if !file.is_file() {
        let why = format!(
            "there is no {LIBRARY} in {}: this is libtorch for CPUs",
            folder.display()
        );
        return Err(Failure::environment(what, why, cure));
    }
    // SAFETY: loading runs the library's own initialisers, which register its kernels with the
    // libtorch_cpu of the same build; no other thread uses libtorch yet.
    match unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            // Stays loaded: its kernels are registered for the rest of the process.
            std::mem::forget(library);
            tracing::debug!(file = %file.display(), "libtorch's CUDA part loaded");
            Ok(())
        }
        Err(error) => Err(Failure::environment(what, loader_reason(&error), cure)),
    }
}

/// What the loader says, with the file's name, which the error itself keeps to its source.
pub(crate) fn loader_reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_is_found_where_it_was_loaded_from() {
        assert!(libtorch_folder().unwrap().join("libtorch_cpu.so").is_file());
    }

    /// Asked back from libtorch itself, so that a symbol with another meaning would be noticed.
    #[test]
    fn libtorch_keeps_the_wish_for_equal_bits() {
        unsafe extern "C" {
            #[link_name = "_ZNK2at7Context23deterministicAlgorithmsEv"]
            fn deterministic_algorithms(context: *const c_void) -> bool;
        }
        // SAFETY: as in `repeat_bits`; the getter takes the context alone.
        let asked = || unsafe { deterministic_algorithms(global_context()) };
        assert!(!asked());
        set_repeating(true);
        assert!(asked());
        set_repeating(false);
        assert!(!asked());
    }

    #[test]
    fn a_libtorch_for_cpus_is_said_to_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let failure = load_from(Some(folder.path())).unwrap_err();
        assert_eq!(failure.exit.code(), 6);
        assert!(
            failure.why.contains("this is libtorch for CPUs"),
            "{}",
            failure.why
        );
        assert_eq!(load_from(None).unwrap_err().exit.code(), 6);
    }

    #[test]
    fn a_damaged_library_is_an_error_with_the_loaders_reason() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LIBRARY), b"not a library").unwrap();
        let failure = load_from(Some(folder.path())).unwrap_err();
        assert!(failure.why.contains(LIBRARY), "{}", failure.why);
    }
}
