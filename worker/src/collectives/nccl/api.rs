//! The functions of NCCL and of the CUDA runtime that are needed, found in the libraries that
//! libtorch's CUDA part has already brought into the process: two NCCLs in one process would be a
//! bug, so none is loaded from anywhere else.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::os::unix::{Library, RTLD_NOW};

use crate::collectives::{CollectiveError, Result};
use crate::cuda::loader_reason;

/// What NCCL calls in progress: a non-blocking call that has not ended.
pub(super) const IN_PROGRESS: c_int = 7;
/// What CUDA calls not ready: work on a stream that has not ended.
const CUDA_NOT_READY: c_int = 600;
/// Data types of `ncclDataType_t`.
pub(super) const INT64: c_int = 4;
pub(super) const FLOAT32: c_int = 7;
/// `ncclSum`
pub(super) const SUM: c_int = 0;
/// `NCCL_CONFIG_UNDEF_INT`
const UNDEFINED: c_int = c_int::MIN;
/// The version whose `ncclConfig_t` is written down here, 2.28.9; later ones accept it.
const CONFIG_VERSION: c_uint = 22_809;

/// A communicator, opaque.
pub(super) type Comm = *mut c_void;
/// A CUDA stream; null is the legacy default stream, which is libtorch's current one.
pub(super) type Stream = *mut c_void;

/// `ncclUniqueId`: how ranks of a communicator find each other.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// `ncclConfig_t` of 2.28.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    sizes: [c_int; 3],
    net_name: *const c_char,
    sharing: [c_int; 2],
    comm_name: *const c_char,
    rest: [c_int; 6],
}

type Collect =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
type Rooted = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    c_int,
    Comm,
    Stream,
) -> c_int;
type Spread =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;

/// The table of functions. The libraries stay open as long as it lives.
pub(super) struct Api {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int,
    async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    comm_abort: unsafe extern "C" fn(Comm) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    pub(super) all_reduce: Collect,
    pub(super) reduce: Rooted,
    pub(super) broadcast: Spread,
    set_device: unsafe extern "C" fn(c_int) -> c_int,
    stream_query: unsafe extern "C" fn(Stream) -> c_int,
    cuda_error: unsafe extern "C" fn(c_int) -> *const c_char,
    _libraries: [Library; 2],
}

/// The library with this name that is already in the process.
fn present(name: &str) -> Result<Library> {
    // SAFETY: with RTLD_NOLOAD nothing is loaded, so no foreign code runs.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | libc::RTLD_NOLOAD) };
    library.map_err(|error| {
        let why = "libtorch's CUDA part has not brought it into the process";
        CollectiveError::Nccl(format!(
            "{name} is not there ({}): {why}",
            loader_reason(&error)
        ))
    })
}

/// One function of a library.
fn function<T: Copy>(library: &Library, name: &str) -> Result<T> {
    // SAFETY: `T` is the function's type as the header of NCCL 2.28.9 or CUDA 13 declares it.
    let symbol = unsafe { library.get::<T>(name) };
    symbol.map(|symbol| *symbol).map_err(|error| {
        CollectiveError::Nccl(format!("{name} is missing: {}", loader_reason(&error)))
    })
}

impl Api {
    /// Finds all functions.
    ///
    /// # Errors
    /// [`CollectiveError::Nccl`] naming the library or function that is missing.
    pub(super) fn find() -> Result<Self> {
        let (nccl, cuda) = (present("libnccl.so.2")?, present("libcudart.so.13")?);
        Ok(Self {
            get_version: function(&nccl, "ncclGetVersion")?,
            get_unique_id: function(&nccl, "ncclGetUniqueId")?,
            comm_init: function(&nccl, "ncclCommInitRankConfig")?,
            async_error: function(&nccl, "ncclCommGetAsyncError")?,
            comm_abort: function(&nccl, "ncclCommAbort")?,
            error_string: function(&nccl, "ncclGetErrorString")?,
            last_error: function(&nccl, "ncclGetLastError")?,
            group_start: function(&nccl, "ncclGroupStart")?,
            group_end: function(&nccl, "ncclGroupEnd")?,
            all_reduce: function(&nccl, "ncclAllReduce")?,
            reduce: function(&nccl, "ncclReduce")?,
            broadcast: function(&nccl, "ncclBroadcast")?,
            set_device: function(&cuda, "cudaSetDevice")?,
            stream_query: function(&cuda, "cudaStreamQuery")?,
            cuda_error: function(&cuda, "cudaGetErrorString")?,
            _libraries: [nccl, cuda],
        })
    }

    /// The library's version, as 22809.
    pub(super) fn version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: the function writes one int.
        let code = unsafe { (self.get_version)(&raw mut version) };
        self.check(code, std::ptr::null_mut()).map(|()| version)
    }

    pub(super) fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the function writes 128 bytes.
        let code = unsafe { (self.get_unique_id)(&raw mut id) };
        self.check(code, std::ptr::null_mut()).map(|()| id)
    }

    /// Begins to join a communicator without blocking, on the GPU `device` of this thread.
    pub(super) fn begin_init(
        &self,
        device: usize,
        world: usize,
        id: UniqueId,
        rank: usize,
    ) -> Result<Comm> {
        // SAFETY: plain call with a number.
        let code = unsafe { (self.set_device)(device as c_int) };
        self.check_cuda(code)?;
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: CONFIG_VERSION,
            blocking: 0,
            sizes: [UNDEFINED; 3],
            net_name: std::ptr::null(),
            sharing: [UNDEFINED; 2],
            comm_name: std::ptr::null(),
            rest: [UNDEFINED; 6],
        };
        let mut comm = std::ptr::null_mut();
        // SAFETY: `config` has the layout of ncclConfig_t 2.28 and lives through the call, which
        // copies it; the communicator's handle is written to `comm`.
        let code = unsafe {
            (self.comm_init)(
                &raw mut comm,
                world as c_int,
                id,
                rank as c_int,
                &raw mut config,
            )
        };
        self.check(code, comm).map(|()| comm)
    }

    /// Whether everything asked of the communicator has been handed to the GPU.
    pub(super) fn is_settled(&self, comm: Comm) -> Result<bool> {
        let mut state = 0;
        // SAFETY: `comm` is live; the function writes one int.
        let code = unsafe { (self.async_error)(comm, &raw mut state) };
        self.check(code, comm)?;
        self.check(state, comm)?;
        Ok(state != IN_PROGRESS)
    }

    /// Whether all work on the default stream has ended.
    pub(super) fn is_finished(&self) -> Result<bool> {
        // SAFETY: the null stream is the legacy default stream.
        match unsafe { (self.stream_query)(std::ptr::null_mut()) } {
            CUDA_NOT_READY => Ok(false),
            code => self.check_cuda(code).map(|()| true),
        }
    }

    /// Runs the calls of `body` as one group.
    pub(super) fn group(&self, comm: Comm, body: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: plain call; every start is followed by an end, also after an error.
        self.check(unsafe { (self.group_start)() }, comm)?;
        let result = body();
        // SAFETY: as above.
        let end = self.check(unsafe { (self.group_end)() }, comm);
        result.and(end)
    }

    /// Ends a communicator at once, whatever it is doing.
    pub(super) fn abort(&self, comm: Comm) {
        // SAFETY: `comm` is live and not used again by the caller.
        unsafe { (self.comm_abort)(comm) };
    }

    /// An error for any result but success and "in progress".
    pub(super) fn check(&self, code: c_int, comm: Comm) -> Result<()> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both give texts that end in zero and are not freed; a null communicator is
        // allowed for the second.
        let (kind, detail) = unsafe {
            (
                text((self.error_string)(code)),
                text((self.last_error)(comm)),
            )
        };
        Err(CollectiveError::Nccl(format!("{kind} ({code}) {detail}")))
    }

    fn check_cuda(&self, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the text ends in zero and is never freed.
        let kind = unsafe { text((self.cuda_error)(code)) };
        Err(CollectiveError::Nccl(format!("CUDA: {kind} ({code})")))
    }
}

/// # Safety
/// `message` is null or ends in zero and lives through the call.
unsafe fn text(message: *const c_char) -> String {
    if message.is_null() {
        return String::new();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_layout_of_2_28() {
        assert_eq!(size_of::<Config>(), 80);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(std::mem::offset_of!(Config, comm_name), 48);
    }

    #[test]
    fn without_a_gpu_the_missing_library_is_named() {
        let error = Api::find().map(drop).unwrap_err().to_string();
        assert!(
            error.starts_with("NCCL: libnccl.so.2 is not there"),
            "{error}"
        );
    }
}
