//! Buffers that another thread reads while training goes on: a checkpoint is copied behind the next
//! step's computation, which reads the same weights and changes none.

use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tch::Tensor;

use super::f32_slice;

/// The loans of a state.
#[derive(Debug, Default)]
pub(super) struct Loans {
    book: Mutex<Book>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Book {
    /// How many are out.
    out: usize,
    /// How long writers have waited for them.
    waited: Duration,
}

impl Loans {
    /// Waits until nobody reads any more.
    pub(super) fn settle(&self) {
        let mut book = self.book();
        if book.out == 0 {
            return;
        }
        let began = Instant::now();
        while book.out > 0 {
            let woken = self.returned.wait(book);
            book = woken.unwrap_or_else(PoisonError::into_inner);
        }
        book.waited += began.elapsed();
    }

    pub(super) fn waited(&self) -> Duration {
        self.book().waited
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The values of a buffer as they are now. Whoever is about to change them waits until this is
/// dropped.
#[derive(Debug)]
pub struct Lent {
    tensor: Tensor,
    loans: Arc<Loans>,
}

impl Lent {
    /// `tensor` is contiguous fp32 on the CPU.
    pub(super) fn new(tensor: Tensor, loans: &Arc<Loans>) -> Self {
        loans.book().out += 1;
        Self {
            tensor,
            loans: Arc::clone(loans),
        }
    }
}

impl Deref for Lent {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // The lender has checked the tensor once; an empty slice can not arise from it.
        f32_slice(&self.tensor).unwrap_or(&[])
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.loans.book().out -= 1;
        self.loans.returned.notify_all();
    }
}
