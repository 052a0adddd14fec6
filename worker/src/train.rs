//! The training step, the same for every stage.
//!
//! ```text
//! load      the samples of each lane held
//! gather    every lane's share of the global batch, to every worker
//! compute   per lane: forward, loss, backward; gradients into the lanes' exact sum
//! reduce    sums over workers; all see overflow and non-finite values alike
//! vote      every worker has the step's gradient: from here on it is applied by all
//! update    clip, AdamW, metrics
//! ```

use std::time::Instant;

use mks2_dataset::loader::{Loader, Sample};
use mks2_dataset::plan::Plan;
use mks2_proto::failure::Failure;
use mks2_proto::job;
use mks2_proto::telemetry::{Instruments, StepSample};
use mks2_proto::v1::{Phase, StepMetrics};
use tch::Tensor;
use tracing::{debug, info_span, warn};

use crate::collectives::Collective;
use crate::control::Control;
use crate::exact::{Reducer, Verdict};
use crate::exchange::all_lanes;
use crate::flat::FlatState;
use crate::objective::{LaneLoss, Losses, Objective, Place, Share};
use crate::optim::{AdamW, clip, learning_rate};

/// How often a step is computed again because its gradients outgrew their fixed point. The
/// exponent gives way by thousands each time, so more than a few means a run that diverges.
const MAX_OVERFLOWS: u32 = 8;

/// Progress of a stage: what a checkpoint must know to go on.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Steps that are committed.
    pub step: u64,
    /// Samples of these steps.
    pub samples: u64,
    /// Tokens with a loss in these steps.
    pub tokens: u64,
    /// Seconds spent in these steps.
    pub seconds: f64,
    /// Loss of the last step.
    pub loss: Option<f64>,
}

/// What does not change during a stage.
pub struct Settings<'a> {
    /// Name of the stage.
    pub stage: &'a str,
    /// Seed of the job.
    pub seed: u64,
    /// Steps of the stage.
    pub steps: u64,
    /// Steps of the run before this stage.
    pub first_step: u64,
    /// Lanes of the job.
    pub lanes: u32,
    /// Lanes that this worker holds.
    pub held: &'a [u32],
    /// Optimizer and schedule.
    pub optimizer: &'a job::Optimizer,
}

/// Trains one stage, step by step.
pub struct Trainer<'a, O: Objective> {
    settings: Settings<'a>,
    objective: O,
    plan: Plan,
    loader: Loader,
    state: FlatState,
    reducer: Reducer,
    leaves: Vec<Tensor>,
    progress: Progress,
    instruments: Instruments,
}

/// Seconds that a step spent waiting for others.
#[derive(Clone, Copy, Debug, Default)]
struct Waits {
    data: f64,
    comm: f64,
}

type Lanes<O> = Vec<(u32, <O as Objective>::Lane)>;

impl<'a, O: Objective> Trainer<'a, O> {
    /// A trainer that goes on after `progress`. `leaves` are the trained weights, views of
    /// `state`, in the order of its layout.
    pub fn new(
        settings: Settings<'a>,
        objective: O,
        (plan, loader): (Plan, Loader),
        (state, leaves): (FlatState, Vec<Tensor>),
        reducer: Reducer,
        progress: Progress,
    ) -> Self {
        let instruments = Instruments::new();
        Self {
            settings,
            objective,
            plan,
            loader,
            state,
            reducer,
            leaves,
            progress,
            instruments,
        }
    }

    /// What has been done.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Weights, gradients and moments.
    pub fn state(&self) -> &FlatState {
        &self.state
    }

    /// The exponents of the exact reduction, as a checkpoint keeps them.
    pub fn reducer_state(&self) -> Vec<u8> {
        self.reducer.state_bytes()
    }

    /// Whether all steps of the stage are committed.
    pub fn is_done(&self) -> bool {
        self.progress.step >= self.settings.steps
    }

    /// One step over the global batch. True when some worker was asked to stop.
    ///
    /// # Errors
    /// When a row can not be read, a peer is lost, or the loss is no number any more.
    pub fn step(
        &mut self,
        control: &dyn Control,
        collective: &mut dyn Collective,
    ) -> Result<bool, Failure> {
        let began = Instant::now();
        let global_step = self.settings.first_step + self.progress.step + 1;
        let span = info_span!(
            "step",
            stage = self.settings.stage,
            step = global_step as i64
        );
        let _entered = span.enter();
        let mut waits = Waits::default();

        let samples = self.load(control, &mut waits)?;
        let (lanes, global) = self.gather(samples, control, collective, &mut waits)?;
        let mut sums = self.gradients(&lanes, &global, control)?;
        let mut overflows = 0;
        while !self.reduce(control, collective, &mut waits)? {
            overflows += 1;
            self.check_overflows(overflows, global_step)?;
            sums = self.gradients(&lanes, &global, control)?;
        }
        let (stop, sums) = self.vote(sums, control, collective, &mut waits)?;
        let losses = self.objective.losses(&sums, &global);
        let (grad_norm, lr) = self.update(control)?;

        self.progress.step += 1;
        self.progress.samples += self.plan.batch();
        self.progress.tokens += losses.tokens;
        self.progress.loss = Some(losses.total);
        let seconds = began.elapsed().as_secs_f64();
        self.progress.seconds += seconds;
        let metrics =
            (collective.rank() == 0).then(|| self.metrics(&losses, grad_norm, lr, seconds, waits));
        if let Some(metrics) = &metrics {
            self.record(metrics, losses.tokens);
        }
        control.step_committed(global_step, metrics)?;
        Ok(stop)
    }

    /// Samples of each lane held, in lane order.
    fn load(
        &mut self,
        control: &dyn Control,
        waits: &mut Waits,
    ) -> Result<Vec<(u32, Vec<Sample>)>, Failure> {
        let _span = info_span!("load").entered();
        control.set_phase(Phase::Loading, 0);
        let before = self.loader.waited();
        let mut lanes = Vec::with_capacity(self.settings.held.len());
        for &lane in self.settings.held {
            lanes.push((lane, self.loader.next(self.progress.step, lane)?.samples));
        }
        waits.data = (self.loader.waited() - before).as_secs_f64();
        Ok(lanes)
    }

    /// Inputs of the lanes held, and what all lanes have to be known for.
    fn gather(
        &self,
        samples: Vec<(u32, Vec<Sample>)>,
        control: &dyn Control,
        collective: &mut dyn Collective,
        waits: &mut Waits,
    ) -> Result<(Lanes<O>, O::Global), Failure> {
        let _span = info_span!("gather").entered();
        control.set_phase(Phase::Computing, 0);
        let place = Place {
            seed: self.settings.seed,
            step: self.progress.step,
        };
        let mut lanes = Vec::with_capacity(samples.len());
        let mut shares: Vec<(u32, Share)> = Vec::with_capacity(samples.len());
        for (lane, samples) in samples {
            let (inputs, share) = self.objective.lane(place, &samples)?;
            lanes.push((lane, inputs));
            shares.push((lane, share));
        }
        control.set_phase(Phase::Gathering, collective.sequence() + 1);
        let began = Instant::now();
        let (_, shares) = all_lanes(collective, false, &shares, self.settings.lanes)?;
        waits.comm += began.elapsed().as_secs_f64();
        Ok((lanes, self.objective.global(&shares)?))
    }

    /// Forward and backward of each lane held; gradients go into the reducer, sums come back.
    fn gradients(
        &mut self,
        lanes: &Lanes<O>,
        global: &O::Global,
        control: &dyn Control,
    ) -> Result<Vec<(u32, Share)>, Failure> {
        let _span = info_span!("compute").entered();
        control.set_phase(Phase::Computing, 0);
        self.reducer.begin_step();
        let mut sums = Vec::with_capacity(lanes.len());
        for (lane, inputs) in lanes {
            let LaneLoss { loss, sums: counts } = self.objective.loss(*lane, inputs, global)?;
            let gradients = Tensor::f_run_backward(&[loss], &self.leaves, false, false)
                .map_err(|e| Failure::internal("the backward pass failed", e.to_string()))?;
            self.reducer.add_lane(*lane, &gradients, 1.0)?;
            sums.push((
                *lane,
                Share {
                    counts,
                    features: Vec::new(),
                },
            ));
        }
        Ok(sums)
    }

    /// Sums the gradients over workers. False when the lanes must be computed again.
    fn reduce(
        &mut self,
        control: &dyn Control,
        collective: &mut dyn Collective,
        waits: &mut Waits,
    ) -> Result<bool, Failure> {
        let _span = info_span!("reduce").entered();
        control.set_phase(Phase::Reducing, collective.sequence() + 1);
        let began = Instant::now();
        let verdict = self.reducer.finish(collective, &mut self.state)?;
        waits.comm += began.elapsed().as_secs_f64();
        match verdict {
            Verdict::Applied => Ok(true),
            Verdict::Overflow { tensors } => {
                debug!(
                    ?tensors,
                    "gradients outgrew their fixed point; the step is computed again"
                );
                Ok(false)
            }
            Verdict::NonFinite { tensor } => Err(Failure::run_failed(
                format!("the gradient of '{tensor}' is infinite or undefined"),
                format!(
                    "at step {} of stage '{}'",
                    self.progress.step + 1,
                    self.settings.stage
                ),
                "lower the stage's learning rate or clip_norm, and resume from an earlier checkpoint",
            )),
        }
    }

    fn check_overflows(&self, overflows: u32, global_step: u64) -> Result<(), Failure> {
        if overflows < MAX_OVERFLOWS {
            return Ok(());
        }
        warn!(
            step = global_step as i64,
            overflows, "gradients grow without end"
        );
        Err(Failure::run_failed(
            format!("the gradients of step {global_step} grow without end"),
            format!("they outgrew their fixed point {overflows} times"),
            "lower the stage's learning rate, and resume from an earlier checkpoint",
        ))
    }

    /// Every worker learns that all have the reduced gradient, and the lanes' sums.
    fn vote(
        &self,
        sums: Vec<(u32, Share)>,
        control: &dyn Control,
        collective: &mut dyn Collective,
        waits: &mut Waits,
    ) -> Result<(bool, Vec<f64>), Failure> {
        let _span = info_span!("vote").entered();
        control.set_phase(Phase::Voting, collective.sequence() + 1);
        let began = Instant::now();
        let (stop, lanes) = all_lanes(
            collective,
            control.stop_requested(),
            &sums,
            self.settings.lanes,
        )?;
        waits.comm += began.elapsed().as_secs_f64();
        let width = lanes.first().map_or(0, |lane| lane.counts.len());
        let sum = |at: usize| {
            lanes
                .iter()
                .map(|lane| lane.counts.get(at).copied().unwrap_or(0.0))
                .sum()
        };
        Ok((stop, (0..width).map(sum).collect()))
    }

    /// Clips and applies the reduced gradient; gives its norm and the learning rate.
    fn update(&mut self, control: &dyn Control) -> Result<(f64, f64), Failure> {
        let _span = info_span!("update").entered();
        control.set_phase(Phase::Updating, 0);
        let optimizer = self.settings.optimizer;
        let grad_norm = clip(&mut self.state, optimizer.clip_norm)?;
        let lr = learning_rate(optimizer, self.progress.step, self.settings.steps);
        AdamW::new(optimizer).apply(&mut self.state, self.progress.step, lr)?;
        Ok((grad_norm, lr))
    }

    fn record(&self, metrics: &StepMetrics, tokens: u64) {
        self.instruments.record_step(&StepSample {
            stage: self.settings.stage,
            samples: self.plan.batch(),
            tokens,
            loss: metrics.loss,
            step_seconds: metrics.step_seconds,
            data_wait_seconds: metrics.data_wait_seconds,
            comm_wait_seconds: metrics.comm_wait_seconds,
        });
    }

    fn metrics(
        &self,
        losses: &Losses,
        grad_norm: f64,
        lr: f64,
        seconds: f64,
        waits: Waits,
    ) -> StepMetrics {
        StepMetrics {
            stage: self.settings.stage.to_owned(),
            epoch: self.plan.epoch(self.progress.step),
            loss: losses.total,
            loss_caption: losses.caption,
            loss_retrieval: losses.retrieval,
            loss_language: losses.language,
            loss_contrastive: losses.contrastive,
            grad_norm,
            lr,
            samples: self.progress.samples,
            tokens: self.progress.tokens,
            step_seconds: seconds,
            data_wait_seconds: waits.data,
            comm_wait_seconds: waits.comm,
        }
    }
}
