//! The `evaluate` stage: what was stored, what can be retrieved, and the method's claim.
//!
//! | part | measures |
//! |---|---|
//! | [`pairs`] | text-to-image retrieval over all pictures; caption loss with and without the picture |
//! | [`examples`] | a few greedy captions and the pictures nearest to a text |
//! | [`questions`] | held-out questions asked in text alone: MKS2, LoRA alone, shuffled memory |
//! | [`probes`] | linear probes of the same knowledge |
//! | [`tasks`] | tasks in files of their own, as `mks2 eval` measures them ([`program`]) by [`metrics`] |
//!
//! Rows are cut into blocks of fixed size that the workers share, and every number is added in the
//! order of blocks: a result does not depend on the number of workers.

mod blocks;
pub mod examples;
pub mod metrics;
pub mod pairs;
mod probe;
pub mod probes;
pub mod program;
pub mod questions;
pub mod recall;
mod tasks;

use std::collections::BTreeMap;
use std::sync::Arc;

use mks2_dataset::picture;
use mks2_dataset::reader::Corpus;
use mks2_dataset::row::Row;
use mks2_proto::evaluate::Measured;
use mks2_proto::failure::Failure;
use mks2_proto::job::{self, Job, MKS2};
use mks2_proto::v1::Phase;
use serde::Serialize;
use tch::Device;
use tokio::runtime::Handle;

use crate::collectives::Collective;
use crate::control::Control;
use crate::generate::Speaker;
use crate::lineage::Lineage;
use crate::model::Weights;
use crate::objective::Share;
use crate::team::Setback;
use crate::text::TextEncoder;
use blocks::{Blocks, Workers};

/// What an `evaluate` stage has found: `evaluation.json` of the run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Evaluation {
    /// blake3 of all trained parameters of the evaluated model, in name order, as fp32 little
    /// endian.
    pub weights_digest: String,
    /// Text-to-image retrieval over the whole corpus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<recall::Recall>,
    /// Caption loss with and without the picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<pairs::CaptionLoss>,
    /// Held-out questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions: Option<questions::Questions>,
    /// Linear probes of the questions' answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<probes::Probes>,
    /// Pictures, their captions and what their text finds.
    pub examples: Vec<examples::Example>,
    /// Share of the memories in the mixture, per block and kind of token.
    pub router: Vec<questions::BlockUse>,
    /// Tasks in files of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Measured>,
}

/// What all parts of an evaluation read.
pub struct Evaluator<'a> {
    /// The job.
    pub job: &'a Job,
    /// The stage's own settings.
    pub settings: &'a job::Evaluate,
    /// Results of the stages before.
    pub lineage: &'a Lineage,
    /// Corpora by their names in the job.
    pub corpora: &'a BTreeMap<String, Corpus>,
    /// Where to compute.
    pub device: Device,
    /// For reading corpora.
    pub runtime: Handle,
    /// Is told what this worker does, and whom it waits for; says whether it is to stop.
    pub control: &'a dyn Control,
}

impl Evaluator<'_> {
    /// Measures everything that the stage's settings name.
    ///
    /// # Errors
    /// [`Setback::Peers`] when a peer is lost: then the evaluation begins again. A failure when a
    /// corpus can not be read or a stage has not run; exit 130 when some
    /// worker was asked to stop: an evaluation leaves nothing half-done and begins again.
    pub fn run(&self, collective: &mut dyn Collective) -> Result<Evaluation, Setback> {
        self.control.set_phase(Phase::Evaluating, 0);
        tch::no_grad(|| {
            let mut found = Evaluation {
                weights_digest: self.weights_digest()?,
                ..Default::default()
            };
            if let (Some(stage), Some(corpus)) = (&self.settings.memory, &self.settings.corpus) {
                let pairs = pairs::Pairs::measure(self, stage, corpus, collective)?;
                found.retrieval = Some(pairs.recall()?);
                found.caption = Some(pairs.caption);
                if collective.rank() == 0 {
                    found.examples = examples::examples(self, stage, &pairs)?;
                }
            }
            if let Some(corpus) = &self.settings.questions {
                let (questions, router) = questions::measure(self, corpus, collective)?;
                found.questions = Some(questions);
                found.router = router;
                found.probes = probes::measure(self, corpus)?;
            }
            found.tasks = tasks::of_stage(self, collective)?;
            Ok(found)
        })
    }

    /// Digest of the model under evaluation: the full method's, or else the memory stage's.
    fn weights_digest(&self) -> Result<String, Failure> {
        let stage = self
            .settings
            .compare
            .get(MKS2)
            .or(self.settings.memory.as_ref());
        match stage {
            Some(stage) => self.lineage.digest(&self.ancestry(stage)?),
            None => Ok(String::new()),
        }
    }

    /// All rows of a corpus, in order.
    fn rows(&self, name: &str) -> Result<Vec<Row>, Failure> {
        let corpus = self.corpora.get(name).ok_or_else(|| {
            Failure::settings(
                format!("there is no corpus '{name}'"),
                "the evaluate stage names it",
                "add it to [data], or name another one",
            )
        })?;
        let groups = corpus.manifest().groups();
        let mut rows = Vec::new();
        self.control.set_phase(Phase::Loading, 0);
        for group in 0..groups {
            rows.extend(self.runtime.block_on(corpus.read_group(group))?);
        }
        self.control.set_phase(Phase::Evaluating, 0);
        Ok(rows)
    }

    /// The tokenizer of the lineage that `stage` stands in.
    fn encoder(&self, stage: &str) -> Result<Arc<TextEncoder>, Failure> {
        self.lineage.encoder(&self.ancestry(stage)?)
    }

    /// All that `stage` and those that it builds on have left, to compute as the job does.
    fn weights(&self, stage: &str) -> Result<Weights, Failure> {
        let weights = self.lineage.weights(&self.ancestry(stage)?)?;
        Ok(weights.computing_in((self.job.precision, self.device)))
    }

    /// A stage and all stages that it builds on, oldest first.
    ///
    /// # Errors
    /// When the job has no such stage.
    pub fn ancestry(&self, stage: &str) -> Result<Vec<String>, Failure> {
        ancestry(self.job, stage)
    }

    /// The picture of a row as RGB bytes of the encoder's size.
    fn picture(&self, row: &Row) -> Result<Vec<u8>, Failure> {
        picture_of(row, self.job.model.vision.image_size)
    }
}

/// The picture of a row, decoded, as RGB bytes `[side, side, 3]`.
pub(crate) fn picture_of(row: &Row, side: u32) -> Result<Vec<u8>, Failure> {
    let bytes = row.image.as_ref().ok_or_else(|| {
        Failure::data(
            format!("row {} ({}) has no picture", row.index, row.key),
            "this stage needs pictures",
            "name a corpus in which every row has one",
        )
    })?;
    let square = picture::square(bytes, &picture::Limits::default(), side);
    Ok(square.map_err(|error| undecodable(row, &error))?.pixels)
}

fn undecodable(row: &Row, error: &picture::PictureError) -> Failure {
    Failure::data(
        format!(
            "the picture of row {} ({}) can not be decoded",
            row.index, row.key
        ),
        error.to_string(),
        "check the corpus with `mks2 data verify`, and import it again",
    )
}

/// A stage and all stages that it builds on, oldest first.
///
/// # Errors
/// When the job has no such stage.
pub fn ancestry(job: &Job, name: &str) -> Result<Vec<String>, Failure> {
    let stages = job.ancestry(name);
    if stages.is_empty() {
        return Err(Failure::settings(
            format!("there is no stage '{name}'"),
            "the evaluate stage names it",
            "name a stage of this job file",
        ));
    }
    Ok(stages.iter().map(|stage| stage.name.clone()).collect())
}

impl Evaluator<'_> {
    /// Computes blocks of rows together with the other workers; all get all shares, in the order of
    /// blocks.
    fn in_blocks<T>(
        &self,
        rows: &[T],
        collective: &mut dyn Collective,
        mut compute: impl FnMut(&[T]) -> Result<Share, Failure>,
    ) -> Result<Vec<Share>, Setback> {
        let mut workers = Workers {
            control: self.control,
            collective,
        };
        workers.shares(rows.len(), &mut |block| compute(&rows[block]))
    }

    /// What a stage has trained, to be asked.
    fn speaker(&self, stage: &str) -> Result<Speaker, Failure> {
        Speaker::of_stage(self.job, stage, self.lineage, (self.device, &self.runtime))
    }
}
