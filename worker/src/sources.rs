//! What a stage reads from its job's corpora.

use std::collections::BTreeMap;

use mks2_dataset::loader::{self, Loader};
use mks2_dataset::plan::{CorpusShape, Plan};
use mks2_dataset::reader::Corpus;
use mks2_dataset::row::{Row, render};
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, Stage, StageKind};
use tokio::runtime::Handle;

/// A job's corpora, opened.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// The job.
    pub(crate) job: &'a Job,
    /// Its corpora by name.
    pub(crate) corpora: &'a BTreeMap<String, Corpus>,
    /// Where they are read.
    pub(crate) runtime: &'a Handle,
}

/// Opens all corpora of a job.
///
/// # Errors
/// When one cannot be read.
pub(crate) async fn open_corpora(job: &Job) -> Result<BTreeMap<String, Corpus>, Failure> {
    let mut corpora = BTreeMap::new();
    for (name, corpus) in &job.data {
        corpora.insert(name.clone(), Corpus::open(&corpus.url).await?);
    }
    Ok(corpora)
}

impl<'a> Sources<'a> {
    /// The corpus of this name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn corpus(self, name: &str) -> Result<&'a Corpus, Failure> {
        self.corpora.get(name).ok_or_else(|| {
            Failure::settings(
                format!("there is no corpus '{name}'"),
                "a stage's [[stage.data]] names it",
                "add it to [data], or name another one",
            )
        })
    }

    /// Shows `visit` the first `limit` rows of each of a stage's corpora, group by group.
    ///
    /// # Errors
    /// When a row cannot be read, or what `visit` says.
    pub(crate) fn first_rows(
        self,
        stage: &Stage,
        limit: u64,
        mut visit: impl FnMut(&[Row]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for source in &stage.data {
            let corpus = self.corpus(&source.corpus)?;
            let mut left = limit;
            for group in 0..corpus.manifest().groups() {
                if left == 0 {
                    break;
                }
                let mut rows = self.runtime.block_on(corpus.read_group(group))?;
                rows.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= rows.len() as u64;
                visit(&rows)?;
            }
        }
        Ok(())
    }

    /// All texts of a bootstrap stage's templates over the first rows of its corpora.
    ///
    /// # Errors
    /// When a row cannot be read or lacks a field that a template names.
    pub(crate) fn tokenizer_texts(self, stage: &Stage) -> Result<Vec<String>, Failure> {
        let settings = stage.bootstrap.clone().unwrap_or_default();
        let mut texts = Vec::new();
        self.first_rows(stage, self.job.tokenizer.sample_rows, |rows| {
            for row in rows {
                for template in settings.texts.iter().chain(&settings.clip_texts) {
                    texts.push(render(template, row)?);
                }
            }
            Ok(())
        })?;
        Ok(texts)
    }

    /// The plan of a stage, and the corpora that it reads.
    ///
    /// # Errors
    /// When the corpora cannot fill the stage's batches.
    pub(crate) fn plan(self, stage: &Stage) -> Result<(Plan, Vec<Corpus>), Failure> {
        let mut corpora = Vec::new();
        let mut sources = Vec::new();
        for source in &stage.data {
            let corpus = self.corpus(&source.corpus)?;
            let manifest = corpus.manifest();
            let shape = CorpusShape {
                rows: manifest.rows,
                group_rows: manifest.row_group_rows,
            };
            sources.push((shape, source.weight));
            corpora.push(corpus.clone());
        }
        let (lanes, microbatch) = (self.job.lanes, stage.batch_size / self.job.lanes);
        let plan = Plan::new(self.job.seed, &stage.name, &sources, lanes, microbatch)?;
        Ok((plan, corpora))
    }

    /// The plan of a stage and a loader for the lanes `held`, from a step on.
    ///
    /// # Errors
    /// When the corpora cannot fill the stage's batches.
    pub(crate) fn data(
        self,
        stage: &Stage,
        held: &[u32],
        from_step: u64,
    ) -> Result<(Plan, Loader), Failure> {
        let (plan, corpora) = self.plan(stage)?;
        let sees = match (stage.kind, &stage.experts) {
            (StageKind::Experts, experts) => experts.as_ref().is_some_and(|e| e.pictures),
            _ => true,
        };
        let settings = loader::Settings {
            side: sees.then_some(self.job.model.vision.image_size),
            ..loader::Settings::default()
        };
        let steps = from_step..stage.steps;
        let runtime = self.runtime.clone();
        let loader = Loader::new(corpora, plan.clone(), held, steps, &settings, runtime)?;
        Ok((plan, loader))
    }
}
