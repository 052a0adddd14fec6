//! The job graph from a worker's side: stage after stage, from where the run stands.
//!
//! Every worker walks through the same stages by itself; the coordinator says only where to start
//! and keeps what is committed. A run's position is its step number, counted over all stages.

mod prepare;

use std::collections::BTreeMap;
use std::sync::Arc;

use mks2_dataset::plan::Plan;
use mks2_dataset::reader::Corpus;
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::job::{Job, Stage, StageKind};
use mks2_proto::v1::{CheckpointRef, Phase};
use object_store::ObjectStoreExt;
use tch::Device;
use tokio::runtime::Handle;
use tracing::{info, info_span};

use crate::checkpoint::{Facts, Kind, Table};
use crate::collectives::Collective;
use crate::collectives::schedule::agree;
use crate::device;
use crate::evaluate::{Evaluator, ancestry};
use crate::flat::FlatState;
use crate::lineage::{self, Lineage, StageResult};
use crate::objective::Objective;
use crate::objective::bootstrap::BootstrapObjective;
use crate::objective::experts::ExpertsObjective;
use crate::objective::memory::MemoryObjective;
use crate::saver::{Content, Saver};
use crate::session::Session;
use crate::sources::Sources;
use crate::text::TextEncoder;
use crate::train::{Settings, Trainer};
use prepare::Prepared;

/// Where the result of an `evaluate` stage lies in the run directory.
const EVALUATION: &str = "evaluation.json";

/// How a run, or a stage of it, came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything is done.
    Complete,
    /// Somebody asked to stop; the state is committed.
    Stopped,
}

/// Where a run stands when this worker joins it.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The checkpoint to go on from.
    pub resume_from: Option<CheckpointRef>,
    /// Last checkpoints of the stages that are finished.
    pub finished: Vec<CheckpointRef>,
}

/// One worker's part in a run.
pub struct Run {
    /// The job, the same for all workers.
    pub job: Job,
    /// Digest of the resolved job file.
    pub config_digest: String,
    /// The way to the coordinator.
    pub session: Arc<Session>,
    /// The way to the other workers.
    pub collective: Box<dyn Collective>,
    /// Lanes that this worker holds, ascending.
    pub held: Vec<u32>,
    /// Corpora by name.
    pub corpora: BTreeMap<String, Corpus>,
    /// Checkpoints.
    pub saver: Saver,
    /// URL of the run directory.
    pub run_url: String,
    /// Where to compute.
    pub device: Device,
    /// For everything that is not computing.
    pub runtime: Handle,
    /// What finished stages have left.
    pub lineage: Lineage,
}

impl Run {
    /// Runs every stage that is not finished yet.
    ///
    /// # Errors
    /// Whatever ends the run; committed checkpoints stay.
    pub fn run(&mut self, start: &Start) -> Result<End, Failure> {
        let stages = self.job.stages.clone();
        let mut first_step = 0;
        for stage in &stages {
            let span = info_span!("stage", stage = stage.name, kind = stage.kind.name());
            let _entered = span.enter();
            let last_step = first_step + stage.steps;
            if stage.kind == StageKind::Evaluate {
                self.session
                    .stage_changed(&stage.name, first_step, last_step)?;
                if self.evaluate(stage)? == End::Stopped {
                    return Ok(End::Stopped);
                }
            } else if let Some(finished) =
                start.finished.iter().find(|done| done.stage == stage.name)
            {
                self.recall(stage, finished)?;
            } else {
                self.session
                    .stage_changed(&stage.name, first_step, last_step)?;
                let resume = start
                    .resume_from
                    .as_ref()
                    .filter(|from| from.stage == stage.name);
                if self.train(stage, first_step, resume)? == End::Stopped {
                    return Ok(End::Stopped);
                }
            }
            if self.stop_agreed()? {
                return Ok(End::Stopped);
            }
            first_step = last_step;
        }
        Ok(End::Complete)
    }

    /// Whether some worker was asked to stop between stages; the same answer on all.
    fn stop_agreed(&mut self) -> Result<bool, Failure> {
        let mine = [u8::from(self.session.stop_requested())];
        let all = self.collective.all_gather(&mine)?;
        Ok(all.iter().any(|flag| flag.first() == Some(&1)))
    }

    fn corpus_digests(&self, stage: &Stage) -> BTreeMap<String, String> {
        let named = stage
            .data
            .iter()
            .filter_map(|source| self.corpora.get_key_value(&source.corpus));
        named
            .map(|(name, corpus)| (name.clone(), corpus.manifest().digest()))
            .collect()
    }

    /// Stages that `stage` builds on, oldest first.
    fn base(&self, stage: &Stage) -> Result<Vec<String>, Failure> {
        let mut names = ancestry(&self.job, &stage.name)?;
        names.pop();
        Ok(names)
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            job: &self.job,
            corpora: &self.corpora,
            runtime: &self.runtime,
        }
    }

    /// Trains a stage to its end, or until somebody asks to stop.
    fn train(
        &mut self,
        stage: &Stage,
        first_step: u64,
        resume: Option<&CheckpointRef>,
    ) -> Result<End, Failure> {
        let checkpoint = resume
            .map(|from| self.read(stage, from, &Kind::ALL))
            .transpose()?;
        let prepared = self.layout(stage, checkpoint.as_ref())?;
        drop(checkpoint);
        info!(
            stage = stage.name,
            parameters = prepared.state.layout().parameters() as i64,
            from_step = prepared.progress.step as i64,
            steps = stage.steps as i64,
            "stage begins"
        );
        let (job, device) = (self.job.clone(), self.device);
        let encoder = Arc::clone(&prepared.encoder);
        match stage.kind {
            StageKind::Bootstrap => {
                let objective =
                    BootstrapObjective::new(&job, stage, &encoder, &prepared.weights, device)?;
                self.drive(stage, first_step, objective, prepared)
            }
            StageKind::Memory => {
                let objective =
                    MemoryObjective::new(&job, stage, &encoder, &prepared.weights, device)?;
                self.drive(stage, first_step, objective, prepared)
            }
            StageKind::Experts => {
                let objective =
                    ExpertsObjective::new(&job, stage, &encoder, &prepared.weights, device)?;
                self.drive(stage, first_step, objective, prepared)
            }
            StageKind::Evaluate => Ok(End::Complete),
        }
    }

    /// Compares with all workers what a stage is about to do (P3) and what it starts from: a
    /// worker with another plan, other parameters or other bits would hang or spoil the rest.
    fn agree(
        &mut self,
        stage: &Stage,
        plan: &Plan,
        state: &FlatState,
        from_step: u64,
    ) -> Result<(), Failure> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.config_digest.as_bytes());
        hasher.update(stage.name.as_bytes());
        hasher.update(&from_step.to_le_bytes());
        hasher.update(plan.digest().as_bytes());
        hasher.update(state.layout().digest().as_bytes());
        hasher.update(state.weights_digest()?.as_bytes());
        let what = format!("start of stage '{}'", stage.name);
        Ok(agree(&mut *self.collective, &what, &hasher.finalize())?)
    }

    fn drive<O: Objective>(
        &mut self,
        stage: &Stage,
        first_step: u64,
        objective: O,
        prepared: Prepared,
    ) -> Result<End, Failure> {
        let Prepared {
            encoder,
            table,
            state,
            reducer,
            progress,
            leaves,
            ..
        } = prepared;
        let (job, held) = (self.job.clone(), self.held.clone());
        let settings = Settings {
            stage: &stage.name,
            seed: job.seed,
            steps: stage.steps,
            first_step,
            lanes: job.lanes,
            held: &held,
            optimizer: &stage.optimizer,
        };
        let data = self.sources().data(stage, &held, progress.step)?;
        self.agree(stage, &data.0, &state, progress.step)?;
        if self.collective.rank() == 0 {
            self.saver.warm(&table);
        }
        let mut trainer = Trainer::new(
            settings,
            objective,
            data,
            (state, leaves),
            reducer,
            progress,
        );
        while !trainer.is_done() {
            let stop = trainer.step(&*self.session, &mut *self.collective)?;
            let step = trainer.progress().step;
            let is_final = trainer.is_done();
            if is_final {
                self.even_out(stage, trainer.state())?;
            }
            if is_final || stop || step.is_multiple_of(job.checkpoint.every_steps.max(1)) {
                self.save(stage, first_step, &trainer, &table, &encoder)?;
            }
            if stop && !is_final {
                self.saver.settle()?;
                return Ok(End::Stopped);
            }
        }
        self.saver.settle()?;
        self.keep(stage, trainer.state(), encoder)?;
        Ok(End::Complete)
    }

    /// Saves the state after the last committed step. Rank 0 alone does.
    fn save<O: Objective>(
        &mut self,
        stage: &Stage,
        first_step: u64,
        trainer: &Trainer<O>,
        table: &Arc<Table>,
        encoder: &TextEncoder,
    ) -> Result<(), Failure> {
        if self.collective.rank() != 0 {
            return Ok(());
        }
        let _span = info_span!("checkpoint").entered();
        self.session.set_phase(Phase::Checkpointing, 0);
        let progress = trainer.progress();
        let facts = Facts {
            step: first_step + progress.step,
            stage: stage.name.clone(),
            stage_step: progress.step,
            is_final: trainer.is_done(),
            seed: self.job.seed,
            config_digest: self.config_digest.clone(),
            corpora: self.corpus_digests(stage),
            bases: self.lineage.digests(&stage.from)?,
            loss: progress.loss,
            seconds: progress.seconds,
            samples: progress.samples,
            tokens: progress.tokens,
            made_with: device::made_with(self.device),
        };
        let tokenizer = match stage.kind {
            StageKind::Bootstrap => Some(encoder.to_json()?),
            _ => None,
        };
        let content = Content {
            state: trainer.state(),
            table: Arc::clone(table),
            reducer: trainer.reducer_state(),
            tokenizer,
            facts,
        };
        self.saver.begin(content)
    }

    /// Keeps what a stage has trained for the stages after it.
    fn keep(
        &mut self,
        stage: &Stage,
        state: &FlatState,
        encoder: Arc<TextEncoder>,
    ) -> Result<(), Failure> {
        let weights = lineage::frozen(state)?;
        let weights_digest = state.weights_digest()?.to_hex().to_string();
        let encoder = (stage.kind == StageKind::Bootstrap).then_some(encoder);
        self.lineage.insert(
            &stage.name,
            StageResult {
                weights,
                weights_digest,
                encoder,
            },
        );
        Ok(())
    }

    fn evaluate(&mut self, stage: &Stage) -> Result<End, Failure> {
        self.session.set_phase(Phase::Evaluating, 0);
        let settings = stage.evaluate.clone().unwrap_or_default();
        let evaluator = Evaluator {
            job: &self.job,
            settings: &settings,
            lineage: &self.lineage,
            corpora: &self.corpora,
            device: self.device,
            runtime: self.runtime.clone(),
            stop_requested: &|| self.session.stop_requested(),
        };
        let found = match evaluator.run(&mut *self.collective) {
            Err(failure) if failure.exit == ExitCode::Stopped => return Ok(End::Stopped),
            found => found?,
        };
        if self.collective.rank() != 0 {
            return Ok(End::Complete);
        }
        let json = serde_json::to_vec_pretty(&found)
            .map_err(|e| Failure::internal("the evaluation could not be written", e.to_string()))?;
        let (store, root) = mks2_dataset::store::open(&self.run_url)?;
        let path = root.join(EVALUATION);
        self.runtime
            .block_on(store.put(&path, json.into()))
            .map_err(|e| {
                Failure::storage(
                    "the evaluation could not be written",
                    e.to_string(),
                    "see that the run directory can be written, then run the same command again",
                )
            })?;
        Ok(End::Complete)
    }
}
