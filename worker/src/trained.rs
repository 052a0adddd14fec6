//! What a run has trained up to a stage, read from its checkpoints: for whoever asks the model, or writes it
//! elsewhere.

use std::sync::Arc;

use mks2_dataset::pretrained::Folder;
use mks2_dataset::pretrained::base;
use mks2_dataset::pretrained::config::Described;
use mks2_proto::failure::Failure;
use mks2_proto::generate::Trained;
use mks2_proto::job::{self, Job, Precision, Pretrained, Stage, StageKind, load};
use tch::Device;
use tokio::runtime::Handle;

use crate::checkpoint::{self, CheckpointStore, Expected};
use crate::evaluate::ancestry;
use crate::lineage::{Lineage, StageResult};
use crate::model::Weights;
use crate::text::TextEncoder;

/// What names a stage of a run.
pub(crate) struct OfRun<'a> {
    /// The job, resolved.
    pub(crate) job_toml: &'a str,
    /// Its directory.
    pub(crate) url: &'a str,
    /// The stage.
    pub(crate) stage: &'a str,
    /// The checkpoints of all stages that have any.
    pub(crate) trained: &'a [Trained],
}

impl OfRun<'_> {
    /// The job, in `precision` if one is named, and the results of the stage and of those that it builds
    /// on.
    ///
    /// # Errors
    /// When something is missing, damaged or of another job.
    pub(crate) fn read(
        &self,
        (precision, device): (Option<Precision>, Device),
        runtime: &Handle,
    ) -> Result<(Job, Lineage), Failure> {
        let mut job = load::parse(self.job_toml)?;
        job.precision = precision.unwrap_or(job.precision);
        let lineage = self.lineage(&job, device, runtime)?;
        Ok((job, lineage))
    }

    fn lineage(&self, job: &Job, device: Device, runtime: &Handle) -> Result<Lineage, Failure> {
        let reader = Reader {
            job,
            store: CheckpointStore::open(self.url)?,
            trained: self.trained,
            device,
            runtime,
        };
        reader.lineage(self.stage)
    }
}

/// The model of a stage with all that it is made of, in fp32.
pub(crate) struct TrainedModel {
    /// The shapes of its parts.
    pub(crate) model: job::Model,
    /// All weights that it or the stages before it have.
    pub(crate) weights: Weights,
    /// The job's seed, by which shuffled memories are.
    pub(crate) seed: u64,
    /// Its tokenizer.
    pub(crate) encoder: Arc<TextEncoder>,
    /// What stands in the second halves of its blocks.
    pub(crate) half: Half,
    /// Tokens of text that it has positions for.
    pub(crate) positions: usize,
    /// Where its base was published, if it was.
    pub(crate) base_url: Option<String>,
}

/// What stands in the second halves of the blocks.
pub(crate) enum Half {
    /// The decoder's own MLPs.
    Mlp,
    /// The memory of this name in their place.
    Memory(String),
    /// A mixture of the MLPs and the memories that the settings name.
    Experts(Box<job::Experts>),
}

impl Half {
    fn of(job: &Job, name: &str) -> Result<Self, Failure> {
        let stage = job.stages.iter().find(|stage| stage.name == name);
        match stage.map(|stage| (stage.kind, stage)) {
            Some((StageKind::Memory | StageKind::Attach, _)) => Ok(Self::Memory(name.to_owned())),
            Some((StageKind::Experts, stage)) => Ok(Self::Experts(
                stage.experts.clone().unwrap_or_default().into(),
            )),
            Some((StageKind::Bootstrap | StageKind::Pretrained, _)) => Ok(Self::Mlp),
            Some((StageKind::Evaluate, _)) | None => Err(Failure::usage(
                format!("stage '{name}' has no model"),
                "it trains none",
                "name a stage that does",
            )),
        }
    }
}

impl TrainedModel {
    /// Reads a stage of a run.
    ///
    /// # Errors
    /// As [`OfRun::read`], and when the stage has no model.
    pub(crate) fn of_run(
        named: &OfRun<'_>,
        device: Device,
        runtime: &Handle,
    ) -> Result<Self, Failure> {
        let mut job = load::parse(named.job_toml)?;
        job.precision = Precision::Fp32;
        // What cannot be is told before anything is read.
        let half = Half::of(&job, named.stage)?;
        let lineage = named.lineage(&job, device, runtime)?;
        let names = ancestry(&job, named.stage)?;
        Ok(Self {
            weights: lineage
                .weights(&names)?
                .computing_in((Precision::Fp32, device)),
            seed: job.seed,
            encoder: lineage.encoder(&names)?,
            half,
            positions: positions(&job, &names, runtime)?,
            base_url: published(&job, &names).map(|models| models.decoder.clone()),
            model: job.model,
        })
    }

    /// Whether it can be shown pictures: something connects a visual encoder to it.
    pub(crate) fn sees(&self) -> bool {
        self.weights.contains("bridge.weight")
    }
}

/// Where the base of these stages was published, if it was.
fn published<'j>(job: &'j Job, names: &[String]) -> Option<&'j Pretrained> {
    let stages = job.stages.iter();
    let mut stages = stages.filter(|stage| names.contains(&stage.name));
    stages.find_map(|stage| stage.pretrained.as_ref())
}

/// Tokens of the longest text that the language model of these stages was made for.
///
/// # Errors
/// When the published model cannot be read.
pub(crate) fn positions(job: &Job, names: &[String], runtime: &Handle) -> Result<usize, Failure> {
    let Some(models) = published(job, names) else {
        return Ok(job.model.decoder.max_text_tokens as usize);
    };
    let folder = Folder::open(&models.decoder)?;
    Ok(match runtime.block_on(base::read(&folder))? {
        Described::Decoder(language) => language.shape.max_text_tokens as usize,
        Described::Vision(_) | Described::QFormer(_) | Described::Mks2(_) => 0,
    })
}

/// Reads the stages of a run.
struct Reader<'a> {
    job: &'a Job,
    store: CheckpointStore,
    trained: &'a [Trained],
    device: Device,
    runtime: &'a Handle,
}

impl Reader<'_> {
    /// The results of a stage and of those that it builds on.
    fn lineage(&self, name: &str) -> Result<Lineage, Failure> {
        let mut lineage = Lineage::default();
        for name in &ancestry(self.job, name)? {
            let stage = self.stage(name)?;
            let result = match stage.kind.is_brought() {
                true => lineage.brought((self.job, stage), self.device, self.runtime)?,
                false => self.result(stage, &lineage)?,
            };
            lineage.insert(name, result);
        }
        Ok(lineage)
    }

    fn stage(&self, name: &str) -> Result<&Stage, Failure> {
        let stage = self.job.stages.iter().find(|stage| stage.name == name);
        stage.ok_or_else(|| {
            Failure::usage(
                format!("the run has no stage '{name}'"),
                "the job does not know it",
                "name one of its stages",
            )
        })
    }

    /// What a stage has trained, from its checkpoint.
    fn result(&self, stage: &Stage, lineage: &Lineage) -> Result<StageResult, Failure> {
        let trained = self.trained.iter().find(|one| one.stage == stage.name);
        let trained = trained.ok_or_else(|| {
            Failure::usage(
                format!("stage '{}' cannot be read", stage.name),
                "the run has no checkpoint of it so far",
                "wait for one, or name an earlier stage",
            )
        })?;
        let expected = Expected {
            seed: Some(self.job.seed),
            bases: Some(lineage.digests(&stage.from)?),
            ..Expected::default()
        };
        let read = self.store.load(
            &trained.manifest_path,
            Some(&trained.manifest_digest),
            &expected,
            &[checkpoint::Kind::Weights, checkpoint::Kind::Tokenizer],
        );
        let checkpoint = self.runtime.block_on(read)?;
        StageResult::of(&checkpoint, (self.job, stage), lineage)
    }
}
