//! The metrics that a run exports. Their cost is a few nanoseconds while nothing is exported.

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use opentelemetry::{KeyValue, global};

use super::export::SCOPE;
use crate::goodput::{Activity, TimeSpent};

/// Seconds. The SDK's own bounds begin at 5 and fit milliseconds only.
const STEP_BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];
const WAIT_BOUNDS: [f64; 14] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

/// One committed step, as the metrics see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSample<'a> {
    /// Name of the stage.
    pub stage: &'a str,
    /// Samples of this step, over all lanes.
    pub samples: u64,
    /// Tokens of this step, over all lanes.
    pub tokens: u64,
    /// Loss over the global batch.
    pub loss: f64,
    /// Wall time of the step, seconds.
    pub step_seconds: f64,
    /// Time in which the trainer waited for data, seconds.
    pub data_wait_seconds: f64,
    /// Time in which the trainer waited for other workers, seconds.
    pub comm_wait_seconds: f64,
}

/// The instruments of a training process.
#[derive(Clone, Debug)]
pub struct Instruments {
    step_duration: Histogram<f64>,
    data_wait: Histogram<f64>,
    comm_wait: Histogram<f64>,
    checkpoint_duration: Histogram<f64>,
    samples: Counter<u64>,
    tokens: Counter<u64>,
    loss: Gauge<f64>,
}

impl Instruments {
    /// The instruments of this process' meter; to be made after [`init`](super::init).
    #[must_use]
    pub fn new() -> Self {
        let meter = global::meter(SCOPE);
        Self {
            step_duration: seconds(
                &meter,
                "mks2.step.duration",
                "Wall time of a step",
                &STEP_BOUNDS,
            ),
            data_wait: seconds(&meter, "mks2.step.data_wait", "Wait for data", &WAIT_BOUNDS),
            comm_wait: seconds(
                &meter,
                "mks2.step.comm_wait",
                "Wait for workers",
                &WAIT_BOUNDS,
            ),
            checkpoint_duration: seconds(
                &meter,
                "mks2.checkpoint.duration",
                "Time from snapshot to commit",
                &STEP_BOUNDS,
            ),
            samples: count(&meter, "mks2.samples", "{sample}", "Samples trained on"),
            tokens: count(&meter, "mks2.tokens", "{token}", "Tokens trained on"),
            loss: meter
                .f64_gauge("mks2.loss")
                .with_description("Loss of the last step")
                .build(),
        }
    }

    /// Records a committed step; called by one member per step, since samples and tokens are those
    /// of the global batch.
    pub fn record_step(&self, step: &StepSample<'_>) {
        let stage = [KeyValue::new("mks2.stage", step.stage.to_owned())];
        self.step_duration.record(step.step_seconds, &stage);
        self.data_wait.record(step.data_wait_seconds, &stage);
        self.comm_wait.record(step.comm_wait_seconds, &stage);
        self.samples.add(step.samples, &stage);
        self.tokens.add(step.tokens, &stage);
        self.loss.record(step.loss, &stage);
    }

    /// Records a committed checkpoint and the seconds from its snapshot to its commit.
    pub fn record_checkpoint(&self, stage: &str, seconds: f64) {
        self.checkpoint_duration
            .record(seconds, &[KeyValue::new("mks2.stage", stage.to_owned())]);
    }
}

/// Exports where this process' time goes, as often as metrics are read; to be called after
/// [`init`](super::init).
pub fn observe_time(spent: impl Fn() -> TimeSpent + Send + Sync + 'static) {
    let _instrument = global::meter(SCOPE)
        .f64_observable_counter("mks2.time")
        .with_unit("s")
        .with_description("Where the worker's time has gone; the activities add up to it")
        .with_callback(move |observer| {
            let spent = spent();
            for activity in Activity::ALL {
                let seconds = spent.of(activity) as f64 / 1e6;
                let name = KeyValue::new("mks2.activity", activity.name());
                observer.observe(seconds, &[name]);
            }
        })
        .build();
}

impl Default for Instruments {
    fn default() -> Self {
        Self::new()
    }
}

fn seconds(
    meter: &Meter,
    name: &'static str,
    description: &'static str,
    bounds: &[f64],
) -> Histogram<f64> {
    meter
        .f64_histogram(name)
        .with_unit("s")
        .with_description(description)
        .with_boundaries(bounds.to_vec())
        .build()
}

fn count(
    meter: &Meter,
    name: &'static str,
    unit: &'static str,
    description: &'static str,
) -> Counter<u64> {
    meter
        .u64_counter(name)
        .with_unit(unit)
        .with_description(description)
        .build()
}
