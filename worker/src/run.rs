//! The job graph from a worker's side: stage after stage, from where the run stands.
//!
//! Every worker walks through the same stages by itself; the coordinator says only where to start
//! and keeps what is committed. A run's position is its step number, counted over all stages.
//!
//! Whatever the workers do together may fail with a lost peer; then those that are left regroup
//! (see [`team`](crate::team)) and do it again: a step in [`train`](crate::train), everything
//! around the steps here and in `together`.

mod newcomer;
mod prepare;
mod together;

use std::collections::BTreeMap;
use std::sync::Arc;

use mks2_dataset::loader::Loader;
use mks2_dataset::plan::Plan;
use mks2_dataset::reader::Corpus;
use mks2_proto::agreement::compares;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, Stage, StageKind};
use mks2_proto::v1::{CheckpointRef, Phase};
use object_store::ObjectStoreExt;
use tch::Device;
use tokio::runtime::Handle;
use tracing::{info, info_span};

use crate::checkpoint::{Facts, Kind, Table};
use crate::device;
use crate::evaluate::{Evaluator, ancestry};
use crate::flat::FlatState;
use crate::lineage::{self, Lineage, StageResult};
use crate::objective::Objective;
use crate::objective::bootstrap::BootstrapObjective;
use crate::objective::experts::ExpertsObjective;
use crate::objective::memory::MemoryObjective;
use crate::replica::Replica;
use crate::saver::{Content, Saver};
use crate::session::{Invitation, Session};
use crate::sources::Sources;
use crate::team::{Blank, Original, Part, Point, Setback, Team};
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
    /// The coordinator let this worker go; the run goes on without it.
    LetGo,
    /// The run went on to the next stage before this worker took part in it.
    Overtaken,
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
    /// This worker and the others.
    pub team: Team,
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
    /// For a worker that comes to a run at work, until it takes part: what it was invited to.
    pub invitation: Option<Invitation>,
}

impl Run {
    /// Runs every stage that is not finished yet.
    ///
    /// # Errors
    /// Whatever ends the run; committed checkpoints stay.
    pub fn run(&mut self, start: &Start) -> Result<End, Failure> {
        let stages = self.job.stages.clone();
        let mut first_step = 0;
        for (number, stage) in (0..).zip(&stages) {
            let span = info_span!("stage", stage = stage.name, kind = stage.kind.name());
            let _entered = span.enter();
            let last_step = first_step + stage.steps;
            let point = Point {
                stage: number,
                part: Part::Start,
            };
            self.team.enter(point);
            if self.is_invited_to_another_than(stage) {
                self.catch_up(stage)?;
                first_step = last_step;
                continue;
            }
            let finished = start.finished.iter().find(|done| done.stage == stage.name);
            let end = match (stage.kind, finished) {
                (kind, _) if kind.is_brought() => {
                    self.session
                        .stage_changed(&stage.name, first_step, last_step)?;
                    self.take_brought(stage)?;
                    match self.come_to(stage, None)? {
                        true => self.cross_alone(last_step)?,
                        false => End::Overtaken,
                    }
                }
                (StageKind::Evaluate, _) => {
                    self.session
                        .stage_changed(&stage.name, first_step, last_step)?;
                    match self.come_to(stage, None)? {
                        true => self.evaluate(stage, first_step)?,
                        false => End::Overtaken,
                    }
                }
                (_, Some(finished)) => {
                    self.recall(stage, finished)?;
                    self.cross_alone(last_step)?
                }
                (_, None) => {
                    self.session
                        .stage_changed(&stage.name, first_step, last_step)?;
                    let resume = start
                        .resume_from
                        .as_ref()
                        .filter(|from| from.stage == stage.name);
                    self.train(stage, first_step, resume)?
                }
            };
            match end {
                End::Complete => {}
                End::Stopped | End::LetGo => return Ok(end),
                End::Overtaken => self.catch_up(stage)?,
            }
            first_step = last_step;
        }
        match &self.invitation {
            None => Ok(End::Complete),
            Some(invitation) => Err(newcomer::no_such_stage(&invitation.stage)),
        }
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

    /// Digest of what these stages have left.
    fn bases(&self, stage: &Stage) -> Result<blake3::Hash, Failure> {
        let mut hasher = blake3::Hasher::new();
        for (name, digest) in self.lineage.digests(&self.base(stage)?)? {
            hasher.update(format!("{name} {digest}\n").as_bytes());
        }
        Ok(hasher.finalize())
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
        self.session.set_phase(Phase::Starting, 0);
        let checkpoint = resume
            .map(|from| self.read(stage, from, &Kind::ALL))
            .transpose()?;
        let prepared = self.layout(stage, checkpoint.as_ref())?;
        drop(checkpoint);
        info!(
            stage = stage.name,
            parameters = prepared.replica.state.layout().parameters() as i64,
            from_step = prepared.replica.progress.step as i64,
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
                    MemoryObjective::new(&job, stage, &encoder, &prepared.weights, device)?
                        .keeping(self.kept_features(stage)?);
                self.drive(stage, first_step, objective, prepared)
            }
            StageKind::Experts => {
                let objective =
                    ExpertsObjective::new(&job, stage, &encoder, &prepared.weights, device)?;
                self.drive(stage, first_step, objective, prepared)
            }
            StageKind::Pretrained | StageKind::Attach | StageKind::Evaluate => Ok(End::Complete),
        }
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
            mut replica,
            weights,
            leaves,
        } = prepared;
        let Some(data) = self.begin(stage, first_step, &mut replica)? else {
            return Ok(End::Overtaken);
        };
        let job = self.job.clone();
        let settings = Settings {
            stage: &stage.name,
            bases: self.bases(stage)?,
            seed: job.seed,
            steps: stage.steps,
            first_step,
            lanes: job.lanes,
            optimizer: &stage.optimizer,
            audit: &job.audit,
        };
        if self.team.rank() == 0 {
            self.saver.warm(&table);
        }
        let tensors = (leaves, weights.frozen());
        let mut trainer = Trainer::new(settings, objective, data, replica, tensors);
        // A newcomer may find the others behind the last step, and the weights evened out.
        let is_behind = self.team.point().part == Part::Border;
        if !is_behind {
            self.team.enter(Point {
                part: Part::Steps,
                ..self.team.point()
            });
            self.walk(&mut trainer, |run, trainer| {
                run.save(stage, first_step, trainer, &table, &encoder)
            })?;
        }
        if trainer.is_done() && !is_behind {
            self.even_out(stage, trainer.state())?;
        }
        let crossed = self.cross(&mut trainer, |run, trainer| {
            // This one must not be skipped for the sake of one before, and others see what is waited for.
            run.session.set_phase(Phase::Checkpointing, 0);
            run.saver.settle()?;
            run.save(stage, first_step, trainer, &table, &encoder)?;
            run.saver.settle()
        })?;
        if !trainer.is_done() {
            return Ok(End::Stopped);
        }
        self.keep(stage, trainer.state(), encoder)?;
        Ok(crossed)
    }

    /// The steps of a stage, until somebody asks to stop. Between two of them the copies are compared
    /// and the state is `saved`, where that is due.
    fn walk<O: Objective>(
        &mut self,
        trainer: &mut Trainer<'_, O>,
        saved: impl Fn(&mut Self, &Trainer<'_, O>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let began_at = trainer.progress().step;
        let mut stop = false;
        while !trainer.is_done() && !stop {
            let step = trainer.progress().step;
            if compares(&self.job.audit, &self.job.checkpoint, step) {
                trainer.audit(&*self.session, &mut self.team)?;
            }
            let every = self.job.checkpoint.every_steps.max(1);
            if step > began_at && step.is_multiple_of(every) {
                saved(self, trainer)?;
            }
            stop = trainer.step(&*self.session, &mut self.team)?;
        }
        Ok(())
    }

    /// Meets the others at the beginning of a stage, or comes to them in its midst: what this worker
    /// reads from now on. None when the run has gone on to another stage.
    fn begin(
        &mut self,
        stage: &Stage,
        first_step: u64,
        replica: &mut Replica,
    ) -> Result<Option<(Plan, Loader)>, Failure> {
        let identity = self.identity(stage, &replica.state)?;
        let blank = Blank { identity, replica };
        if !self.come_to(stage, Some(blank))? {
            return Ok(None);
        }
        let step = replica.progress.step;
        let data = self.sources().data(stage, self.team.held(), step)?;
        if self.team.point().part == Part::Start {
            self.team.set_compared(first_step + step);
            let original = Original { identity, replica };
            self.agree(stage, &data.0, original, first_step + step)?;
            // The lanes held may be others by now.
            data.1.hold(self.team.held())?;
        }
        Ok(Some(data))
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
        if self.team.rank() != 0 {
            return Ok(());
        }
        let _span = info_span!("checkpoint").entered();
        self.session.set_phase(Phase::Checkpointing, 0);
        let progress = trainer.progress();
        let step = first_step + progress.step;
        let facts = Facts {
            step,
            // Where nothing is compared, nothing is known to be better.
            uncompared: self.job.audit.every_steps > 0 && self.team.compared() != step,
            stage: stage.name.clone(),
            stage_step: progress.step,
            is_final: trainer.is_done(),
            generation: self.team.generation(),
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
        let weights = lineage::frozen(state)?.kept();
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

    /// Measures what an evaluation names, together; rank 0 writes it down.
    fn measure(&mut self, stage: &Stage) -> Result<(), Setback> {
        let settings = stage.evaluate.clone().unwrap_or_default();
        let session = Arc::clone(&self.session);
        let evaluator = Evaluator {
            job: &self.job,
            settings: &settings,
            lineage: &self.lineage,
            corpora: &self.corpora,
            device: self.device,
            runtime: self.runtime.clone(),
            control: &*session,
        };
        let found = evaluator.run(self.team.collective())?;
        if self.team.rank() != 0 {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(&found)
            .map_err(|e| Failure::internal("the evaluation could not be written", e.to_string()))?;
        let (store, root) = mks2_dataset::store::open(&self.run_url).map_err(Failure::from)?;
        let path = root.join(EVALUATION);
        let written = self.runtime.block_on(store.put(&path, json.into()));
        written.map_err(|e| {
            Failure::storage(
                "the evaluation could not be written",
                e.to_string(),
                "see that the run directory can be written, then run the same command again",
            )
        })?;
        Ok(())
    }
}
