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
//!
//! When a peer is lost in between, those that are left begin the same step again with what they
//! have: samples, and gradients that are in the sum already. Only the lanes of the one that was
//! lost are computed again (P8). If one of them has committed the step, all had voted, and the
//! others apply the gradient that they have (P6).

mod audit;
mod progress;
mod recent;
mod recovery;
mod work;

use std::time::Instant;

use mks2_dataset::loader::Loader;
use mks2_dataset::plan::Plan;
use mks2_proto::failure::Failure;
use mks2_proto::job;
use mks2_proto::telemetry::{Instruments, StepSample};
use mks2_proto::v1::{Phase, StepMetrics};
use tch::Tensor;
use tracing::{debug, info_span, warn};

use crate::control::Control;
use crate::exact::Verdict;
use crate::exchange::all_lanes;
use crate::flat::FlatState;
use crate::objective::{Losses, Objective, Place};
use crate::optim::{AdamW, clip, learning_rate};
use crate::replica::Replica;
use crate::team::{Setback, Team};
use audit::is_divergence;
pub use progress::Progress;
use recent::Committed;
pub use recent::Recent;
use work::{Vote, Waits, Work};

/// How often a step is computed again because its gradients outgrew their fixed point. The
/// exponent gives way by thousands each time, so more than a few means a run that diverges.
const MAX_OVERFLOWS: u32 = 8;

/// What does not change during a stage.
pub struct Settings<'a> {
    /// Name of the stage.
    pub stage: &'a str,
    /// Digest of all that it builds on.
    pub bases: blake3::Hash,
    /// Seed of the job.
    pub seed: u64,
    /// Steps of the stage.
    pub steps: u64,
    /// Steps of the run before this stage.
    pub first_step: u64,
    /// Lanes of the job.
    pub lanes: u32,
    /// Optimizer and schedule.
    pub optimizer: &'a job::Optimizer,
    /// When copies are compared.
    pub audit: &'a job::Audit,
}

/// Trains one stage, step by step.
pub struct Trainer<'a, O: Objective> {
    settings: Settings<'a>,
    objective: O,
    plan: Plan,
    loader: Loader,
    replica: Replica,
    leaves: Vec<Tensor>,
    /// What the stage reads and does not train.
    frozen: Vec<Tensor>,
    instruments: Instruments,
}

/// In a vote: this worker was asked to stop.
const STOP: u8 = 1;
/// In a vote: this worker was asked to let the generation end behind this step.
const REGROUP: u8 = 2;

impl<'a, O: Objective> Trainer<'a, O> {
    /// A trainer that goes on from where `replica` is. `leaves` are the trained weights, views of
    /// `state`, in the order of its layout; `frozen` are those that the stage reads and does not
    /// train.
    pub fn new(
        settings: Settings<'a>,
        objective: O,
        (plan, loader): (Plan, Loader),
        replica: Replica,
        (leaves, frozen): (Vec<Tensor>, Vec<Tensor>),
    ) -> Self {
        let instruments = Instruments::new();
        Self {
            settings,
            objective,
            plan,
            loader,
            replica,
            leaves,
            frozen,
            instruments,
        }
    }

    /// What has been done.
    pub fn progress(&self) -> &Progress {
        &self.replica.progress
    }

    /// Weights, gradients and moments.
    pub fn state(&self) -> &FlatState {
        &self.replica.state
    }

    /// The exponents of the exact reduction, as a checkpoint keeps them.
    pub fn reducer_state(&self) -> Vec<u8> {
        self.replica.reducer.state_bytes()
    }

    /// Whether all steps of the stage are committed.
    pub fn is_done(&self) -> bool {
        self.replica.progress.step >= self.settings.steps
    }

    /// One step over the global batch, with whoever is left of the team. True when some worker was
    /// asked to stop.
    ///
    /// # Errors
    /// When a row can not be read, the run is over for this worker, or the loss is no number any
    /// more.
    pub fn step(&mut self, control: &dyn Control, team: &mut Team) -> Result<bool, Failure> {
        let began = Instant::now();
        let span = info_span!(
            "step",
            stage = self.settings.stage,
            step = self.global_step() as i64 + 1
        );
        let _entered = span.enter();
        self.replica.reducer.begin_step();
        let mut work = Work::default();
        let vote = loop {
            match self.attempt(&mut work, control, team) {
                Ok(vote) => break vote,
                Err(Setback::Fatal(failure)) => return Err(failure),
                Err(Setback::Peers(cause)) => {
                    if let Some(vote) = self.regroup(cause, &mut work, control, team)? {
                        break vote;
                    }
                }
            }
        };
        let (stop, regroup) = (vote.stop, vote.regroup);
        self.commit(vote, &work, began, control, team)?;
        if regroup && !stop && !self.is_done() {
            self.meet(control, team)?;
        }
        Ok(stop)
    }

    /// Steps of the run that are committed.
    fn global_step(&self) -> u64 {
        self.settings.first_step + self.replica.progress.step
    }

    /// Everything up to the vote, as far as it is not done yet.
    fn attempt(
        &mut self,
        work: &mut Work<O>,
        control: &dyn Control,
        team: &mut Team,
    ) -> Result<Vote, Setback> {
        self.load(work, control, team.held())?;
        self.gather(work, control, team)?;
        self.gradients(work, control, team)?;
        while !self.reduce(work, control, team)? {
            self.check_overflows(work.overflows())?;
            self.gradients(work, control, team)?;
        }
        self.vote(work, control, team)
    }

    /// Samples and inputs of the lanes held that are not there yet.
    fn load(
        &mut self,
        work: &mut Work<O>,
        control: &dyn Control,
        held: &[u32],
    ) -> Result<(), Failure> {
        let _span = info_span!("load").entered();
        let before = self.loader.waited();
        let place = Place {
            seed: self.settings.seed,
            step: self.replica.progress.step,
        };
        let mut loaded = Vec::new();
        control.set_phase(Phase::Loading, 0);
        for &lane in held.iter().filter(|lane| !work.has_inputs(**lane)) {
            loaded.push((
                lane,
                self.loader.next(self.replica.progress.step, lane)?.samples,
            ));
        }
        work.waits.data += (self.loader.waited() - before).as_secs_f64();
        control.set_phase(Phase::Computing, 0);
        for (lane, samples) in loaded {
            let (inputs, share) = self.objective.lane(place, &samples)?;
            work.put_inputs(lane, inputs, share);
        }
        Ok(())
    }

    /// What all lanes have to be known for.
    fn gather(
        &self,
        work: &mut Work<O>,
        control: &dyn Control,
        team: &mut Team,
    ) -> Result<(), Setback> {
        let _span = info_span!("gather").entered();
        control.set_phase(Phase::Gathering, team.collective().sequence() + 1);
        let began = Instant::now();
        let lanes = self.settings.lanes;
        let (_, shares) = all_lanes(team.collective(), 0, &work.shares(), lanes)?;
        work.waits.comm += began.elapsed().as_secs_f64();
        work.global = Some(self.objective.global(&shares)?);
        Ok(())
    }

    /// Forward and backward of each lane held that is not in the sum yet; gradients go into the
    /// reducer.
    fn gradients(
        &mut self,
        work: &mut Work<O>,
        control: &dyn Control,
        team: &Team,
    ) -> Result<(), Setback> {
        let _span = info_span!("compute").entered();
        let (lanes, global) = work.to_compute()?;
        let mut sums = Vec::with_capacity(lanes.len());
        let mut outcome = Ok(());
        for (lane, inputs) in lanes {
            // Nobody waits for what is left of a generation that is over.
            outcome = team.check();
            if outcome.is_err() {
                break;
            }
            control.set_phase(Phase::Computing, 0);
            let mut loss = self.objective.loss(lane, inputs, global)?;
            control.set_phase(Phase::Computing, 0);
            let counts = std::mem::take(&mut loss.sums);
            let gradients = loss.gradients(&self.leaves)?;
            self.replica.reducer.add_lane(lane, &gradients, 1.0)?;
            sums.push((lane, counts));
        }
        work.put_sums(sums);
        outcome
    }

    /// Sums the gradients over workers. False when the lanes must be computed again.
    fn reduce(
        &mut self,
        work: &mut Work<O>,
        control: &dyn Control,
        team: &mut Team,
    ) -> Result<bool, Setback> {
        let _span = info_span!("reduce").entered();
        control.set_phase(Phase::Reducing, team.collective().sequence() + 1);
        let began = Instant::now();
        let summed = self
            .replica
            .reducer
            .finish(team.collective(), &mut self.replica.state);
        work.waits.comm += began.elapsed().as_secs_f64();
        control.waited(self.replica.reducer.waited());
        let verdict = match summed {
            Err(error) if is_divergence(&error) => {
                return Err(self.suspect(error.into(), control, team));
            }
            other => other?,
        };
        match verdict {
            Verdict::Applied => {
                work.is_reduced = true;
                Ok(true)
            }
            Verdict::Overflow { tensors } => {
                debug!(
                    ?tensors,
                    "gradients outgrew their fixed point; the step is computed again"
                );
                self.replica.reducer.begin_again();
                work.compute_again();
                Ok(false)
            }
            Verdict::NonFinite { tensor } => {
                let failure = Failure::run_failed(
                    format!("the gradient of '{tensor}' is infinite or undefined"),
                    format!(
                        "at step {} of stage '{}'",
                        self.replica.progress.step + 1,
                        self.settings.stage
                    ),
                    "lower the stage's learning rate or clip_norm, and resume from an earlier checkpoint",
                );
                Err(self.suspect(failure, control, team))
            }
        }
    }

    fn check_overflows(&self, overflows: u32) -> Result<(), Failure> {
        if overflows < MAX_OVERFLOWS {
            return Ok(());
        }
        let global_step = self.global_step() + 1;
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
        work: &mut Work<O>,
        control: &dyn Control,
        team: &mut Team,
    ) -> Result<Vote, Setback> {
        let _span = info_span!("vote").entered();
        control.set_phase(Phase::Voting, team.collective().sequence() + 1);
        let began = Instant::now();
        let stop = if control.stop_requested() { STOP } else { 0 };
        let regroup = if control.regroup_requested() {
            REGROUP
        } else {
            0
        };
        let (wishes, lanes) = all_lanes(
            team.collective(),
            stop | regroup,
            &work.sums(),
            self.settings.lanes,
        )?;
        work.waits.comm += began.elapsed().as_secs_f64();
        let width = lanes.first().map_or(0, |lane| lane.counts.len());
        let sum = |at: usize| {
            lanes
                .iter()
                .map(|lane| lane.counts.get(at).copied().unwrap_or(0.0))
                .sum()
        };
        Ok(Vote {
            stop: wishes & STOP != 0,
            regroup: wishes & REGROUP != 0,
            sums: (0..width).map(sum).collect(),
        })
    }

    /// The step is applied, and told.
    fn commit(
        &mut self,
        vote: Vote,
        work: &Work<O>,
        began: Instant,
        control: &dyn Control,
        team: &Team,
    ) -> Result<(), Failure> {
        let losses = self.objective.losses(&vote.sums, work.global()?);
        let (grad_norm, lr) = self.update(control)?;
        self.replica.reducer.commit_step();
        self.replica.progress.step += 1;
        self.replica.progress.samples += self.plan.batch();
        self.replica.progress.tokens += losses.tokens;
        self.replica.progress.loss = Some(losses.total);
        let seconds = began.elapsed().as_secs_f64();
        self.replica.progress.seconds += seconds;
        let mut metrics = self.metrics(&losses, grad_norm, lr, seconds, work.waits);
        metrics.workers = u32::try_from(team.world()).unwrap_or(u32::MAX);
        let step = self.global_step();
        let told = (team.rank() == 0).then(|| metrics.clone());
        if told.is_some() {
            self.record(&metrics, losses.tokens);
        }
        let generation = team.generation();
        let committed = Committed {
            generation,
            step,
            metrics,
        };
        self.replica.recent.push(committed, vote.sums);
        self.lose_a_bit(control)?;
        control.step_committed(generation, step, told)
    }

    /// Clips and applies the reduced gradient; gives its norm and the learning rate.
    fn update(&mut self, control: &dyn Control) -> Result<(f64, f64), Failure> {
        let _span = info_span!("update").entered();
        control.set_phase(Phase::Updating, 0);
        let optimizer = self.settings.optimizer;
        let grad_norm = clip(&mut self.replica.state, optimizer.clip_norm)?;
        let lr = learning_rate(optimizer, self.replica.progress.step, self.settings.steps);
        AdamW::new(optimizer).apply(&mut self.replica.state, self.replica.progress.step, lr)?;
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
            epoch: self.plan.epoch(self.replica.progress.step),
            loss: losses.total,
            loss_caption: losses.caption,
            loss_retrieval: losses.retrieval,
            loss_language: losses.language,
            loss_contrastive: losses.contrastive,
            grad_norm,
            lr,
            samples: self.replica.progress.samples,
            tokens: self.replica.progress.tokens,
            step_seconds: seconds,
            data_wait_seconds: waits.data,
            comm_wait_seconds: waits.comm,
            workers: 0,
        }
    }
}
