//! Which model a path or URL means.

use mks2_coordinator::journal::{self, Place};
use mks2_coordinator::state::Checkpoint;
use mks2_dataset::pretrained::Folder;
use mks2_dataset::pretrained::config::{self, Described};
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Source, Trained};
use mks2_proto::job::{Job, MKS2, StageKind, load};

use crate::train::located;

/// A model that can be asked.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) source: Source,
    /// Where no stage was named: the one for captions and retrieval.
    pub(crate) memory: Option<String>,
    /// For a person.
    pub(crate) words: String,
    /// Where a published model is.
    pub(super) folder: Option<Folder>,
}

/// The model at `named`: of a run, or a published one. `stage` chooses among those of a run.
///
/// # Errors
/// Neither of both (exit 2), a stage that cannot be asked (2), storage (5).
pub(crate) async fn find(named: &str, stage: Option<&str>) -> Result<Found, Failure> {
    let (store, root) = store::open(named)?;
    let place = Place { store, root };
    let path = place.root.clone().join("config.resolved.toml");
    let job = store::get_if_there(&*place.store, &path).await;
    let job = job.map_err(|error| located(error.into(), named))?;
    match (job, stage) {
        (Some(toml), _) => {
            let toml = String::from_utf8_lossy(&toml).into_owned();
            of_run(named, place, toml, stage).await
        }
        (None, Some(_)) => Err(nothing_at(named, "there is no config.resolved.toml in it")),
        (None, None) => {
            let folder = Folder::open(named).map_err(Failure::from)?;
            let config = folder.text(config::FILE_NAME).await?;
            match config {
                Some(json) => Ok(Found {
                    words: format!("the model in {}", folder.location()),
                    memory: None,
                    source: Source::Folder {
                        url: named.to_owned(),
                        strict: true,
                    },
                    // One that was trained here answers as its stage did, not by a chat template.
                    folder: match config::read(&json, config::FILE_NAME) {
                        Ok(Described::Mks2(_)) => None,
                        _ => Some(folder),
                    },
                }),
                None => Err(nothing_at(
                    named,
                    "there is neither config.resolved.toml nor config.json in it",
                )),
            }
        }
    }
}

async fn of_run(
    named: &str,
    place: Place,
    job_toml: String,
    wanted: Option<&str>,
) -> Result<Found, Failure> {
    let job = load::parse(&job_toml)?;
    let replayed = journal::replay(place).await;
    let replayed = replayed.map_err(|error| located(error.into(), named))?;
    let checkpoints = &replayed.history.checkpoints;
    let newest: Vec<&Checkpoint> = job
        .stages
        .iter()
        .filter_map(|stage| checkpoints.newest_of(&stage.name))
        .collect();
    let stage = match wanted {
        Some(name) => known(&job, name)?.to_owned(),
        None => usual(&job, &newest).ok_or_else(|| {
            Failure::usage(
                format!("{} cannot be asked yet", store::shown(named)),
                "no stage of it is finished",
                "name one that has a checkpoint with --stage, or wait",
            )
        })?,
    };
    let memory = match wanted {
        Some(_) => None,
        None => usual_memory(&job, &newest),
    };
    let step = newest.iter().find(|one| one.stage == stage);
    let step = match step {
        Some(one) if !one.is_final => format!(", unfinished, after step {} of the run", one.step),
        _ => String::new(),
    };
    let words = format!("stage '{stage}' of {}{step}", store::shown(named));
    let trained = newest.into_iter().map(|one| Trained {
        stage: one.stage.clone(),
        manifest_path: one.manifest_path.clone(),
        manifest_digest: one.manifest_digest.clone(),
    });
    Ok(Found {
        source: Source::Run {
            trained: trained.collect(),
            job_toml,
            url: named.to_owned(),
            stage,
        },
        memory,
        words,
        folder: None,
    })
}

/// A stage that can be asked.
fn known<'a>(job: &Job, name: &'a str) -> Result<&'a str, Failure> {
    let models = job.stages.iter();
    let models = models.filter(|stage| stage.kind.trains() || stage.kind.is_brought());
    let names: Vec<&str> = models.map(|stage| stage.name.as_str()).collect();
    match names.contains(&name) {
        true => Ok(name),
        false => Err(Failure::usage(
            format!("'{name}' is no stage that can be asked"),
            "the run's job has no stage of this name that trains or reads a model",
            format!("name one of: {}", names.join(", ")),
        )),
    }
}

fn is_finished(newest: &[&Checkpoint], name: &str) -> bool {
    newest
        .iter()
        .any(|checkpoint| checkpoint.is_final && checkpoint.stage == name)
}

/// The memory stage that is asked where none is named: the one that is evaluated, or else the last one.
fn usual_memory(job: &Job, newest: &[&Checkpoint]) -> Option<String> {
    let stages = job.stages.iter();
    let mut evaluated = stages.filter_map(|stage| stage.evaluate.as_ref()?.memory.as_ref());
    let evaluated = evaluated.find(|name| is_finished(newest, name));
    let memories = job.stages.iter().rev();
    let memories = memories.filter(|stage| stage.kind == StageKind::Memory);
    let mut memories = memories.map(|stage| &stage.name);
    evaluated
        .or_else(|| memories.find(|name| is_finished(newest, name)))
        .cloned()
}

/// The stage that is asked where none is named.
fn usual(job: &Job, newest: &[&Checkpoint]) -> Option<String> {
    let evaluations = job
        .stages
        .iter()
        .filter_map(|stage| stage.evaluate.as_ref());
    let mut full = evaluations.filter_map(|evaluation| evaluation.compare.get(MKS2));
    let full = full.find(|name| is_finished(newest, name)).cloned();
    full.or_else(|| {
        let stages = job.stages.iter().rev();
        let mut names = stages.map(|stage| &stage.name);
        names.find(|name| is_finished(newest, name)).cloned()
    })
}

fn nothing_at(named: &str, why: &str) -> Failure {
    Failure::usage(
        format!("there is no model at {}", store::shown(named)),
        why,
        "give the directory of a run, or a folder with config.json, safetensors and tokenizer.json",
    )
}
