//! The corpora of a run, held against the journal, and the plans of its stages.

use std::collections::BTreeMap;

use mks2_coordinator::journal::Origin;
use mks2_coordinator::ledger::{Leg, Violation};
use mks2_dataset::plan::{CorpusShape, Plan};
use mks2_dataset::reader::Corpus;
use mks2_proto::failure::Failure;
use mks2_proto::job::Job;

use crate::train::used_corpora;

/// Corpora by name.
#[derive(Debug, Default)]
pub(super) struct Corpora {
    opened: BTreeMap<String, Corpus>,
}

impl Corpora {
    /// Opens every corpus that the job uses. What cannot be opened, or is another one than when the
    /// run began, is left out and named.
    pub(super) async fn open(
        job: &Job,
        origin: &Origin,
        moved: &[(String, String)],
    ) -> (Self, Vec<Violation>) {
        let (mut corpora, mut violations) = (Self::default(), Vec::new());
        for name in used_corpora(job) {
            let moved = moved.iter().rev().find(|(of, _)| of == name);
            let Some(url) = moved
                .map(|(_, url)| url)
                .or(job.data.get(name).map(|corpus| &corpus.url))
            else {
                continue;
            };
            let cure = format!(
                "bring it back as it was when the run began, or say where it lies: --corpus \
                 {name}=URL"
            );
            match Corpus::open(url).await {
                Err(error) => {
                    let failure = Failure::from(error);
                    let what = format!("{}: {}", failure.what, failure.why);
                    violations.push(Violation::new(format!("corpus '{name}'"), what, cure));
                }
                Ok(corpus) if origin.corpora.get(name) != Some(&corpus.manifest().digest()) => {
                    let what = format!("{} is another one than when the run began", corpus.url());
                    violations.push(Violation::new(format!("corpus '{name}'"), what, cure));
                }
                Ok(corpus) => drop(corpora.opened.insert(name.to_owned(), corpus)),
            }
        }
        (corpora, violations)
    }

    /// The same, where the answer needs all of them.
    ///
    /// # Errors
    /// The first that is not there (exit 4).
    pub(super) async fn open_all(
        job: &Job,
        origin: &Origin,
        moved: &[(String, String)],
    ) -> Result<Self, Failure> {
        let (corpora, violations) = Self::open(job, origin, moved).await;
        match violations.into_iter().next() {
            None => Ok(corpora),
            Some(first) => Err(Failure::data(
                format!("{} of the run cannot be used", first.place),
                first.what,
                first.cure,
            )),
        }
    }

    /// All of them by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Corpus)> {
        self.opened.iter()
    }

    /// One of them.
    pub(super) fn get(&self, name: &str) -> Option<&Corpus> {
        self.opened.get(name)
    }

    /// The plan of a stage, as its workers make it; none while one of its corpora is not there.
    ///
    /// # Errors
    /// Numbers that no plan can be made from.
    pub(super) fn plan(&self, job: &Job, leg: &Leg) -> Result<Option<Plan>, Failure> {
        let Some(stage) = job.stages.iter().find(|stage| stage.name == leg.name) else {
            return Ok(None);
        };
        let source = |source: &mks2_proto::job::Source| {
            let manifest = self.get(&source.corpus)?.manifest();
            let shape = CorpusShape {
                rows: manifest.rows,
                group_rows: manifest.row_group_rows,
            };
            Some((shape, source.weight))
        };
        let Some(sources) = stage.data.iter().map(source).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let microbatch = stage.batch_size / job.lanes.max(1);
        let plan = Plan::new(job.seed, &stage.name, &sources, job.lanes, microbatch)?;
        Ok(Some(plan))
    }
}
