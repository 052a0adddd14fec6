//! Summing the lanes' gradients: exactly, by integers, or fast, in fp32.
//!
//! Floating-point addition depends on its order, integer addition does not. In exact mode each
//! lane's gradient is multiplied by a power of two per tensor and rounded to int64; lanes are added
//! on each rank, ranks by a reduce-scatter, and every sum goes back to fp32 once, before an
//! all-gather. So neither the dealing of lanes to ranks nor any order of arrival changes a bit.
//!
//! ```text
//! begin_step                     forget the last step's lanes
//! add_lane (each lane held)      sums += round(gradient * 2^e)
//! finish                         ballot -> verdict; reduce; state.grads = sum * 2^-e
//! commit_step                    the step is applied: e follows its gradients
//! ```
//!
//! 1. The exponents are part of the replicated state ([`Reducer::state_bytes`]): equal on all ranks,
//!    saved with checkpoints. See [`exponents`] for how they follow the gradients.
//! 2. A tensor that has no exponent yet (its first gradients, or zeros so far) has its lanes'
//!    gradients kept until the ballot has fixed one from all of them. What would not fit into
//!    [`HELD_BYTES`] is dropped and the step repeated; both ways give the same bits.
//! 3. The lanes' sums stay intact until `begin_step`: a `finish` that failed with a lost peer, or
//!    that only some ranks have seen succeed, is called again with the collective of the next
//!    generation, after the lanes that were lost have been added. Nothing that outlives a step
//!    changes before `commit_step`, so the outcome has the bits of an undisturbed step.
//! 4. A verdict is the same on every rank.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mks2_proto::job::Reduction;
use mks2_proto::job::validate::MOST_LANES;
use tch::{Device, Kind, Tensor, no_grad};

use crate::collectives::Collective;
use crate::flat::{FlatLayout, FlatState, Span};

mod ballot;
mod cpu;
mod device;
mod error;
mod exponents;
mod fast;
pub(crate) mod kernels;
mod saved;

pub use ballot::BallotError;
use ballot::{Ballot, Tally};
pub(crate) use cpu::reduce_slices;
pub use error::ReduceError;
use exponents::NONE;

/// Gradients without an exponent that a rank keeps until the ballot, bytes.
pub const HELD_BYTES: usize = 512 << 20;

/// What became of a step; the same on every rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `state.grads` holds the sum over all lanes.
    Applied,
    /// Gradients of these tensors had outgrown their fixed point, which is now coarser: compute
    /// and add the step's lanes again.
    Overflow {
        /// Names of the tensors.
        tensors: Vec<String>,
    },
    /// A gradient is infinite or undefined.
    NonFinite {
        /// Name of the first such tensor in the layout.
        tensor: String,
    },
}

/// A lane's gradient that waits for its tensor's first exponent.
struct Held {
    tensor: usize,
    gradient: Tensor,
    factor: f32,
}

/// Sums gradients over lanes and ranks.
pub struct Reducer {
    layout: Arc<FlatLayout>,
    mode: Reduction,
    lanes: u32,
    exponents: Vec<i16>,
    step: Step,
    /// The lanes' sums, one per element of the layout: int64 in exact mode, fp32 in fast mode.
    sums: Tensor,
    /// Most bytes of gradients that are kept until their tensor has an exponent.
    held_limit: usize,
    /// Gradients are added by libtorch's operators, as on devices other than the CPU.
    by_operators: bool,
    /// How long the last `finish` waited until all ranks had come to it.
    waited: Duration,
}

/// What has been added since `begin_step`.
#[derive(Default)]
struct Step {
    lanes: BTreeSet<u32>,
    /// How often the lanes were added anew since the step began, for an overflow.
    attempt: u32,
    /// The largest magnitudes over all ranks, once they are known.
    tallied: Option<Vec<i16>>,
    seen: Vec<i16>,
    /// Tensors whose sums hold this step's lanes; the others hold an earlier step's.
    filled: Vec<bool>,
    /// Largest magnitudes that are still on the device: tensor, fp32 scalar, factor.
    on_device: Vec<(usize, Tensor, f32)>,
    held: Vec<Held>,
    held_bytes: usize,
    dropped: bool,
}

impl Step {
    fn new(tensors: usize) -> Self {
        Self {
            seen: vec![NONE; tensors],
            filled: vec![false; tensors],
            ..Self::default()
        }
    }
}

impl Reducer {
    /// A reducer for `lanes` lanes of gradients on `device`, without exponents.
    ///
    /// # Errors
    /// [`ReduceError::Usage`] for no lanes or more than [`MOST_LANES`]; when memory is short.
    pub fn new(
        layout: Arc<FlatLayout>,
        mode: Reduction,
        lanes: u32,
        device: Device,
    ) -> Result<Self, ReduceError> {
        if lanes == 0 || lanes > MOST_LANES {
            return Err(ReduceError::Usage(format!(
                "{lanes} lanes can not be summed: between 1 and {MOST_LANES} can"
            )));
        }
        let kind = if mode == Reduction::Exact {
            Kind::Int64
        } else {
            Kind::Float
        };
        let sums = Tensor::f_zeros([layout.total() as i64], (kind, device))?;
        let tensors = layout.spans().len();
        let exponents = vec![NONE; tensors];
        let by_operators = device != Device::Cpu;
        let (step, held_limit) = (Step::new(tensors), HELD_BYTES);
        Ok(Self {
            layout,
            mode,
            lanes,
            exponents,
            step,
            sums,
            held_limit,
            by_operators,
            waited: Duration::ZERO,
        })
    }

    /// Forgets the lanes of the step before; the exponents stay.
    pub fn begin_step(&mut self) {
        self.step = Step::new(self.layout.spans().len());
    }

    /// Forgets the lanes added so far, which will be added again in the same step.
    pub fn begin_again(&mut self) {
        let attempt = self.step.attempt;
        self.begin_step();
        self.step.attempt = attempt;
    }

    /// Lanes that were added since the step began.
    #[must_use]
    pub fn lanes(&self) -> &BTreeSet<u32> {
        &self.step.lanes
    }

    /// The step whose `finish` was applied is committed: the exponents follow its gradients.
    pub fn commit_step(&mut self) {
        let tallied = self.step.tallied.take().unwrap_or_default();
        for (exponent, seen) in self.exponents.iter_mut().zip(tallied) {
            *exponent = exponents::follow(*exponent, seen);
        }
    }

    /// Adds one lane's gradients, times `factor` (1 where the loss is already over the global
    /// batch). `grads` are in layout order and of the layout's shapes; an undefined tensor counts
    /// as zeros.
    ///
    /// # Errors
    /// [`ReduceError::Usage`] for a lane that was added before or does not exist, or gradients that
    /// do not fit the layout. Nothing has then been added.
    pub fn add_lane(
        &mut self,
        lane: u32,
        grads: &[Tensor],
        factor: f32,
    ) -> Result<(), ReduceError> {
        self.check_lane(lane, grads)?;
        no_grad(|| -> Result<(), ReduceError> {
            for (tensor, gradient) in grads
                .iter()
                .enumerate()
                .filter(|(_, gradient)| gradient.defined())
            {
                let flat = gradient
                    .f_detach()?
                    .f_to_kind(Kind::Float)?
                    .f_contiguous()?
                    .f_view([-1])?;
                match self.mode {
                    Reduction::Fast => self.add_float(tensor, &flat, factor)?,
                    Reduction::Exact => self.add_fixed(tensor, flat, factor)?,
                }
            }
            Ok(())
        })?;
        self.step.lanes.insert(lane);
        Ok(())
    }

    fn check_lane(&self, lane: u32, grads: &[Tensor]) -> Result<(), ReduceError> {
        if lane >= self.lanes || self.step.lanes.contains(&lane) {
            return Err(ReduceError::Usage(format!(
                "lane {lane} of {} is unknown or was added before",
                self.lanes
            )));
        }
        let spans = self.layout.spans();
        if grads.len() != spans.len() {
            let (found, expected) = (grads.len(), spans.len());
            return Err(ReduceError::Usage(format!(
                "{found} gradients were given for {expected} parameters"
            )));
        }
        match spans
            .iter()
            .zip(grads)
            .find(|(span, grad)| grad.defined() && grad.numel() != span.len)
        {
            None => Ok(()),
            Some((span, grad)) => Err(ReduceError::Usage(format!(
                "the gradient of '{}' has shape {:?} instead of {:?}",
                span.name,
                grad.size(),
                span.shape
            ))),
        }
    }

    fn add_fixed(
        &mut self,
        tensor: usize,
        gradient: Tensor,
        factor: f32,
    ) -> Result<(), ReduceError> {
        if self.exponents[tensor] == NONE {
            return self.hold(tensor, gradient, factor);
        }
        self.add_scaled(tensor, &gradient, factor)
    }

    /// `sums[tensor] += round(gradient * factor * 2^e)`. The product of two fp32 numbers and a
    /// power of two is exact in f64, so the only rounding is the one to an integer.
    fn add_scaled(
        &mut self,
        tensor: usize,
        gradient: &Tensor,
        factor: f32,
    ) -> Result<(), ReduceError> {
        let span = &self.layout.spans()[tensor];
        let scale = f64::from(factor) * exponents::power(self.exponents[tensor]);
        let add = std::mem::replace(&mut self.step.filled[tensor], true);
        if self.by_operators {
            let largest = device::add(&mut self.sums, span, gradient, scale, add)?;
            self.step.on_device.push((tensor, largest, factor));
        } else {
            let largest = cpu::add(&mut self.sums, span, gradient, scale, add)?;
            self.note(tensor, largest, factor);
        }
        Ok(())
    }

    fn hold(&mut self, tensor: usize, gradient: Tensor, factor: f32) -> Result<(), ReduceError> {
        if self.by_operators {
            self.step
                .on_device
                .push((tensor, device::largest(&gradient)?, factor));
        } else {
            self.note(tensor, cpu::largest(&gradient)?, factor);
        }
        let bytes = gradient.numel() * 4;
        if self.step.held_bytes + bytes > self.held_limit {
            self.step.dropped = true;
            return Ok(());
        }
        self.step.held_bytes += bytes;
        // A copy: the caller may reuse the gradient's memory for the next lane.
        self.step.held.push(Held {
            tensor,
            gradient: gradient.copy(),
            factor,
        });
        Ok(())
    }

    fn note(&mut self, tensor: usize, largest: u32, factor: f32) {
        let seen = &mut self.step.seen[tensor];
        *seen = (*seen).max(exponents::of_magnitude(largest, factor));
    }

    fn add_float(
        &mut self,
        tensor: usize,
        gradient: &Tensor,
        factor: f32,
    ) -> Result<(), ReduceError> {
        let mut sum = part(&self.sums, &self.layout.spans()[tensor])?;
        let scaled = if factor == 1.0 {
            gradient.shallow_clone()
        } else {
            gradient.f_mul_scalar(f64::from(factor))?
        };
        if std::mem::replace(&mut self.step.filled[tensor], true) {
            let _ = sum.f_add_(&scaled)?;
        } else {
            sum.f_copy_(&scaled)?;
        }
        Ok(())
    }

    /// Sums over ranks. On [`Verdict::Applied`] every rank's `state.grads` holds the sum over all
    /// lanes; otherwise they are as before.
    ///
    /// # Errors
    /// See [`ReduceError`]; `state.grads` may then hold anything.
    pub fn finish(
        &mut self,
        collective: &mut dyn Collective,
        state: &mut FlatState,
    ) -> Result<Verdict, ReduceError> {
        if state.layout().total() != self.layout.total() {
            return Err(ReduceError::Usage(
                "the state has another layout than the reducer".into(),
            ));
        }
        self.resolve()?;
        let began = Instant::now();
        let ballots = collective.all_gather(&self.ballot().encode())?;
        self.waited = began.elapsed();
        let tally = Tally::count(&ballots, self.layout.spans().len(), self.lanes)?;
        no_grad(|| match self.mode {
            Reduction::Exact => self.finish_exact(&tally, collective, state),
            Reduction::Fast => self.finish_fast(collective, state),
        })
    }

    /// How long the last [`Reducer::finish`] waited until all ranks had come to it.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Brings magnitudes that are still on the device into `seen`.
    fn resolve(&mut self) -> Result<(), ReduceError> {
        let waiting = std::mem::take(&mut self.step.on_device);
        if waiting.is_empty() {
            return Ok(());
        }
        let scalars: Vec<&Tensor> = waiting.iter().map(|(_, largest, _)| largest).collect();
        let values = Vec::<f32>::try_from(Tensor::f_stack(&scalars, 0)?.f_to_device(Device::Cpu)?)?;
        for ((tensor, _, factor), value) in waiting.iter().zip(values) {
            self.note(*tensor, value.to_bits(), *factor);
        }
        Ok(())
    }

    fn ballot(&self) -> Ballot {
        Ballot {
            lanes: self.step.lanes.iter().copied().collect(),
            seen: self.step.seen.clone(),
            exponents: self.exponents.clone(),
            dropped: self.step.dropped,
            attempt: self.step.attempt,
        }
    }

    fn finish_exact(
        &mut self,
        tally: &Tally,
        collective: &mut dyn Collective,
        state: &mut FlatState,
    ) -> Result<Verdict, ReduceError> {
        if let Some(tensor) = tally.not_finite() {
            return Ok(Verdict::NonFinite {
                tensor: self.layout.spans()[tensor].name.clone(),
            });
        }
        if let Some(overflow) = self.agree_on_exponents(tally) {
            return Ok(overflow);
        }
        for held in std::mem::take(&mut self.step.held) {
            self.add_scaled(held.tensor, &held.gradient, held.factor)?;
        }
        self.step.on_device.clear();
        self.clear_unfilled()?;
        if self.by_operators {
            device::reduce(
                &self.sums,
                &self.scales(),
                &self.layout,
                collective,
                &mut state.grads,
            )?;
        } else {
            cpu::reduce(
                &self.sums,
                &self.scales(),
                &self.layout,
                collective,
                &mut state.grads,
            )?;
        }
        self.step.tallied = Some(tally.seen.clone());
        Ok(Verdict::Applied)
    }

    /// Takes the exponents that others have, fits those that nobody has, raises what overflowed.
    /// Where some ranks had learned of an overflow before a peer was lost and others had not, all
    /// take what those have made of it.
    fn agree_on_exponents(&mut self, tally: &Tally) -> Option<Verdict> {
        self.step.attempt = tally.attempt;
        if tally.behind {
            self.exponents.clone_from(&tally.exponents);
            return Some(Verdict::Overflow {
                tensors: Vec::new(),
            });
        }
        let mut repeated = Vec::new();
        for (tensor, span) in self.layout.spans().iter().enumerate() {
            let (seen, shared) = (tally.seen[tensor], tally.exponents[tensor]);
            let first = shared == NONE && seen != NONE;
            if exponents::overflows(seen, shared) || (first && tally.dropped) {
                repeated.push(span.name.clone());
            }
            let fits = !first && !exponents::overflows(seen, shared);
            self.exponents[tensor] = if fits { shared } else { exponents::fit(seen) };
        }
        let repeat = tally.dropped || !repeated.is_empty();
        self.step.attempt += u32::from(repeat);
        repeat.then_some(Verdict::Overflow { tensors: repeated })
    }

    /// Zeroes the sums of tensors that got no gradient on this rank in this step.
    fn clear_unfilled(&mut self) -> Result<(), ReduceError> {
        for (tensor, span) in self.layout.spans().iter().enumerate() {
            if !std::mem::replace(&mut self.step.filled[tensor], true) {
                let _ = part(&self.sums, span)?.f_zero_()?;
            }
        }
        Ok(())
    }

    /// 2^-e per tensor; tensors without an exponent hold only zeros.
    fn scales(&self) -> Vec<f64> {
        let scale = |&exponent: &i16| {
            if exponent == NONE {
                0.0
            } else {
                exponents::power(-exponent)
            }
        };
        self.exponents.iter().map(scale).collect()
    }
}

/// A tensor's part of a flat buffer.
fn part(flat: &Tensor, span: &Span) -> Result<Tensor, tch::TchError> {
    flat.f_narrow(0, span.offset as i64, span.len as i64)
}

#[cfg(test)]
mod tests;
