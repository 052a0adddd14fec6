//! What the training step says to whoever directs it, and asks of him.

use std::time::Duration;

use mks2_proto::failure::Failure;
use mks2_proto::v1::{Phase, StepMetrics};

use crate::replica::Flip;
use crate::session::Session;

/// The side of a run's direction that a step knows: in a run the [`Session`] with the coordinator,
/// in a measurement a stopwatch.
pub trait Control {
    /// Says what the step does from now on. `collective` is the number of the collective operation
    /// under way, 0 for none.
    fn set_phase(&self, phase: Phase, collective: u64);

    /// Says how long the step has waited for other workers within its present phase.
    fn waited(&self, _time: Duration) {}

    /// Whether somebody asked the run to stop.
    fn stop_requested(&self) -> bool {
        false
    }

    /// Whether the workers are to change behind the step.
    fn regroup_requested(&self) -> bool {
        false
    }

    /// The bit that a test has ordered to be flipped, once.
    fn ordered_flip(&self) -> Option<Flip> {
        None
    }

    /// Says that a step, counted from 1 over all stages, was applied in a generation; rank 0 adds
    /// the metrics.
    ///
    /// # Errors
    /// When the run is over.
    fn step_committed(
        &self,
        _generation: u64,
        _step: u64,
        _metrics: Option<StepMetrics>,
    ) -> Result<(), Failure> {
        Ok(())
    }
}

impl Control for Session {
    fn set_phase(&self, phase: Phase, collective: u64) {
        Self::set_phase(self, phase, collective);
    }

    fn waited(&self, time: Duration) {
        Self::waited(self, time);
    }

    fn stop_requested(&self) -> bool {
        Self::stop_requested(self)
    }

    fn regroup_requested(&self) -> bool {
        Self::regroup_requested(self)
    }

    fn ordered_flip(&self) -> Option<Flip> {
        Self::ordered_flip(self)
    }

    fn step_committed(
        &self,
        generation: u64,
        step: u64,
        metrics: Option<StepMetrics>,
    ) -> Result<(), Failure> {
        Self::step_committed(self, generation, step, metrics)
    }
}
