//! One stage of a job in this process alone: the job's model and corpora, all lanes, the trainer of
//! a run. Only the weights are fresh, those of the stages before included. Measurements and the
//! checks of a device work with it; `mesh` connects several processes for them.

pub(crate) mod mesh;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mks2_dataset::loader::Loader;
use mks2_dataset::plan::Plan;
use mks2_dataset::reader::Corpus;
use mks2_proto::failure::Failure;
use mks2_proto::job::load::{self, Overrides};
use mks2_proto::job::{Job, Stage, StageKind};
use mks2_proto::params::{frozen_by, trained_by};
use tch::{Device, Tensor};
use tokio::runtime::Runtime;

use crate::app;
use crate::evaluate::ancestry;
use crate::exact::Reducer;
use crate::flat::{Buffer, FlatLayout, FlatState};
use crate::lineage::{self, StageResult};
use crate::model::Weights;
use crate::objective::Objective;
use crate::objective::bootstrap::BootstrapObjective;
use crate::objective::experts::ExpertsObjective;
use crate::objective::memory::MemoryObjective;
use crate::pretrained;
use crate::replica::Replica;
use crate::sources::{Sources, open_corpora};
use crate::team::Team;
use crate::text::TextEncoder;
use crate::train::{Settings, Trainer};

/// A job and its corpora, to rehearse stages of.
pub(crate) struct Rehearsal {
    job: Job,
    corpora: BTreeMap<String, Corpus>,
    runtime: Runtime,
    held: Vec<u32>,
}

/// One stage of a [`Rehearsal`].
pub(crate) struct Scene<'a> {
    rehearsal: &'a Rehearsal,
    /// The stage, with the steps that are rehearsed.
    pub(crate) stage: Stage,
    /// Stages that it builds on, oldest first.
    base: Vec<Stage>,
    /// Where it is computed.
    device: Device,
}

/// What is done with a stage's trainer, whatever its objective.
pub(crate) trait Act {
    /// What comes of it.
    type Output;

    /// Works with a trainer before its first step, and a team of one.
    ///
    /// # Errors
    /// What went wrong in a step.
    fn play<O: Objective>(
        self,
        trainer: Trainer<'_, O>,
        team: Team,
    ) -> Result<Self::Output, Failure>;
}

impl Rehearsal {
    /// The job at `path`.
    ///
    /// # Errors
    /// When the job file or a corpus cannot be read.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let job = load::load(path, &Overrides::default())?.job;
        let runtime = app::io_runtime()?;
        let corpora = runtime.block_on(open_corpora(&job))?;
        let held = (0..job.lanes).collect();
        Ok(Self {
            job,
            corpora,
            runtime,
            held,
        })
    }

    /// The job.
    pub(crate) fn job(&self) -> &Job {
        &self.job
    }

    /// For everything that is not computing.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The first stage of `kind`, cut to `steps`, on `device`.
    ///
    /// # Errors
    /// When the job has no such stage.
    pub(crate) fn scene(
        &self,
        kind: StageKind,
        steps: u64,
        device: Device,
    ) -> Result<Scene<'_>, Failure> {
        let job = &self.job;
        let wanted = job.stages.iter().find(|stage| is_wanted(stage, kind));
        let mut stage = wanted.cloned().ok_or_else(|| missing(job, kind))?;
        stage.steps = steps;
        let names = ancestry(job, &stage.name)?;
        let is_base = |other: &&Stage| other.name != stage.name && names.contains(&other.name);
        let base = job.stages.iter().filter(is_base).cloned().collect();
        Ok(Scene {
            rehearsal: self,
            stage,
            base,
            device,
        })
    }
}

fn missing(job: &Job, kind: StageKind) -> Failure {
    Failure::settings(
        format!("job '{}' has no stage to rehearse", job.name),
        format!(
            "none is of kind {}, over a memory where it is a mixture",
            kind.name()
        ),
        "name a job file with such a stage",
    )
}

/// Whether a stage is one that `kind` asks for: of several mixtures the one with a memory.
fn is_wanted(stage: &Stage, kind: StageKind) -> bool {
    let remembers = |stage: &Stage| {
        stage
            .experts
            .as_ref()
            .is_some_and(|e| !e.memories.is_empty())
    };
    stage.kind == kind && (kind != StageKind::Experts || remembers(stage))
}

impl Scene<'_> {
    /// Gives `act` the trainer of this stage.
    ///
    /// # Errors
    /// When the stage cannot be built, or what `act` says.
    pub(crate) fn play<A: Act>(&self, act: A) -> Result<A::Output, Failure> {
        let (job, stage, device) = (self.job(), &self.stage, self.device);
        let published = self.published()?;
        let encoder = match published.as_ref().and_then(|models| models.encoder.clone()) {
            Some(encoder) => encoder,
            None => Arc::new(self.encoder()?),
        };
        let (weights, (state, leaves)) = self.weights(encoder.vocab_size(), published)?;
        // What a model makes of frozen weights is known once it is there.
        let trained = |weights: &Weights| (state, (leaves, weights.frozen()));
        match stage.kind {
            StageKind::Bootstrap => {
                let objective = BootstrapObjective::new(job, stage, &encoder, &weights, device)?;
                act.play(self.trainer(objective, trained(&weights))?, self.team())
            }
            StageKind::Memory => {
                let objective = MemoryObjective::new(job, stage, &encoder, &weights, device)?;
                act.play(self.trainer(objective, trained(&weights))?, self.team())
            }
            StageKind::Experts => {
                let objective = ExpertsObjective::new(job, stage, &encoder, &weights, device)?;
                act.play(self.trainer(objective, trained(&weights))?, self.team())
            }
            StageKind::Pretrained | StageKind::Attach | StageKind::Evaluate => {
                Err(missing(job, stage.kind))
            }
        }
    }

    /// The plan and a loader of its own.
    ///
    /// # Errors
    /// When the corpora cannot fill the stage's batches.
    pub(crate) fn data(&self) -> Result<(Plan, Loader), Failure> {
        self.sources().data(&self.stage, self.held(), 0)
    }

    fn team(&self) -> Team {
        Team::alone(self.held().to_vec())
    }

    /// All lanes of the job.
    pub(crate) fn held(&self) -> &[u32] {
        &self.rehearsal.held
    }

    fn job(&self) -> &Job {
        &self.rehearsal.job
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            job: self.job(),
            corpora: &self.rehearsal.corpora,
            runtime: self.rehearsal.runtime.handle(),
        }
    }

    /// The models of the `pretrained` stage that this one builds on, if there is one.
    fn published(&self) -> Result<Option<StageResult>, Failure> {
        let models = self.base.iter().find_map(|stage| stage.pretrained.as_ref());
        let runtime = self.rehearsal.runtime.handle();
        models
            .map(|models| pretrained::load(self.job(), models, self.device, runtime))
            .transpose()
    }

    /// The tokenizer that the job's run would train.
    fn encoder(&self) -> Result<TextEncoder, Failure> {
        let mut lineage = self.base.iter().chain([&self.stage]);
        let first = lineage
            .find(|stage| stage.kind == StageKind::Bootstrap)
            .ok_or_else(|| {
                Failure::settings(
                    format!("stage '{}' has no tokenizer", self.stage.name),
                    "none of the stages it starts from brings one",
                    "name a bootstrap or pretrained stage in its `from`",
                )
            })?;
        let texts = self.sources().tokenizer_texts(first)?;
        let job = self.job();
        TextEncoder::train(
            &texts,
            job.tokenizer.vocab_size as usize,
            job.model.decoder.max_text_tokens as usize,
        )
    }

    /// Initial values of the stage's lineage, frozen, but for what is published; and of the stage
    /// itself, to be trained: its buffers and their leaves.
    fn weights(
        &self,
        vocab_size: u32,
        published: Option<StageResult>,
    ) -> Result<(Weights, (FlatState, Vec<Tensor>)), Failure> {
        let job = self.job();
        let mut weights = published.map_or_else(Weights::new, |models| models.weights);
        for stage in &self.base {
            // How fast a memory is does not depend on what is in it.
            let specs = match stage.kind {
                StageKind::Attach => frozen_by(&job.model, vocab_size, stage),
                _ => trained_by(&job.model, vocab_size, stage),
            };
            weights.extend(Weights::initial(&specs, job.seed, self.device));
        }
        let specs = trained_by(&job.model, vocab_size, &self.stage);
        let layout = Arc::new(FlatLayout::new(&specs)?);
        let mut state = FlatState::new(Arc::clone(&layout), self.device)?;
        for spec in &specs {
            state.load(Buffer::Weights, &spec.name, &spec.initial_values(job.seed))?;
        }
        let mut weights = weights.computing_in((job.precision, self.device));
        let leaves = lineage::leaves(&mut weights, &state)?;
        Ok((weights, (state, leaves)))
    }

    fn trainer<O: Objective>(
        &self,
        objective: O,
        (state, tensors): (FlatState, (Vec<Tensor>, Vec<Tensor>)),
    ) -> Result<Trainer<'_, O>, Failure> {
        let (job, stage) = (self.job(), &self.stage);
        let layout = Arc::clone(state.layout());
        let reducer = Reducer::new(layout, job.reduction, job.lanes, self.device)?;
        let settings = Settings {
            stage: &stage.name,
            bases: blake3::hash(&[]),
            seed: job.seed,
            steps: stage.steps,
            first_step: 0,
            lanes: job.lanes,
            optimizer: &stage.optimizer,
            audit: &job.audit,
        };
        Ok(Trainer::new(
            settings,
            objective,
            self.data()?,
            Replica::new(state, reducer),
            tensors,
        ))
    }
}
