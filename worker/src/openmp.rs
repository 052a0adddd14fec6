//! The threads in which libtorch computes: they wait for work at any time, and a second set of threads would
//! wait beside them for the same processors.
#![allow(unsafe_code)]

use std::ffi::{c_uint, c_void};
use std::sync::LazyLock;

use libloading::os::unix::Library;

/// `GOMP_parallel(body, data, threads, flags)` of libgomp, which libtorch brings along: a part of the interface
/// between GCC and its library, the same since GCC 4.9.
type Parallel =
    unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

static PARALLEL: LazyLock<Option<Parallel>> = LazyLock::new(|| {
    // SAFETY: the function of this name has this type.
    let found = unsafe { Library::this().get::<Parallel>(b"GOMP_parallel") };
    found.ok().map(|function| *function)
});

type Work<'a> = &'a (dyn Fn() + Sync);

/// How many there are for [`on`]; none where libtorch has several of another kind.
pub(crate) fn threads() -> Option<c_uint> {
    let threads = c_uint::try_from(tch::get_num_threads()).unwrap_or(1);
    (threads <= 1 || PARALLEL.is_some()).then_some(threads)
}

/// Runs `work` in so many of libtorch's threads at once, this one among them, and returns when it has ended in each.
///
/// A panic in `work` ends the process.
pub(crate) fn on(threads: c_uint, work: Work) {
    unsafe extern "C" fn body(data: *mut c_void) {
        // SAFETY: `data` is the `work` below, which lives until all threads have returned.
        let work = unsafe { &*data.cast::<Work>() };
        work();
    }
    match *PARALLEL {
        Some(parallel) if threads > 1 => {
            let data = (&raw const work).cast_mut().cast();
            // SAFETY: `body` takes what it is given; `work` may be called from several threads.
            unsafe { parallel(body, data, threads, 0) }
        }
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn all_threads_work_and_have_ended_when_it_returns() {
        assert!(PARALLEL.is_some(), "libtorch's threads are libgomp's");
        let (calls, threads) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
        on(3, &|| {
            threads
                .lock()
                .unwrap()
                .insert(format!("{:?}", std::thread::current().id()));
            calls.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(calls.into_inner(), 3);
        assert_eq!(threads.into_inner().unwrap().len(), 3);
    }
}
