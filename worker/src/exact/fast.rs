//! The fast sum: plain fp32, in whatever order it comes.

use super::{ReduceError, Reducer, Verdict, part};
use crate::collectives::Collective;
use crate::flat::FlatState;

impl Reducer {
    pub(super) fn finish_fast(
        &mut self,
        collective: &mut dyn Collective,
        state: &mut FlatState,
    ) -> Result<Verdict, ReduceError> {
        self.clear_unfilled()?;
        state.grads.f_copy_(&self.sums)?;
        collective.all_reduce_tensor(&mut state.grads)?;
        // Every rank holds the same bits now, so no second ballot is needed.
        for span in self.layout.spans() {
            let sum = part(&state.grads, span)?;
            if span.len > 0 && !f64::try_from(sum.f_abs()?.f_max()?)?.is_finite() {
                return Ok(Verdict::NonFinite {
                    tensor: span.name.clone(),
                });
            }
        }
        Ok(Verdict::Applied)
    }
}
