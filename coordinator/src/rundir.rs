//! Taking over a run directory: is it ours, where does the run go on, what is void.
//!
//! Order matters, so that a crash between any two steps leaves a directory that can be opened
//! again: look and refuse (nothing is written), take the term, write what describes the run,
//! record the decisions, and only then delete what no record speaks of.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use bytes::Bytes;
use futures::TryStreamExt;
use mks2_dataset::{error::Error, store};
use mks2_proto::{
    failure::Failure,
    ids::{Incarnation, RunId},
    job::{Job, load},
};
use object_store::path::Path;
use serde::Serialize;

mod difference;

use crate::{
    journal::{Ending, Entry, History, Journal, Origin, Place, Replayed, Working, replay},
    lock::make_folder,
    metrics::Sink,
};

/// What to do with a run directory that holds a run already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// Go on from the latest checkpoint, or begin.
    #[default]
    Auto,
    /// Begin; a run that is there is refused.
    Never,
    /// Go on from the checkpoint of this step; later ones become void.
    Step(u64),
}

impl FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            step => step
                .parse()
                .map(Self::Step)
                .map_err(|_| format!("'{step}' is neither auto nor never nor a step number")),
        }
    }
}

/// What a run is, as far as the directory must agree.
#[derive(Clone, Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) run_url: &'a str,
    pub(crate) job: &'a Job,
    pub(crate) job_toml: &'a str,
    pub(crate) corpora: &'a BTreeMap<String, String>,
    pub(crate) resume: Resume,
    /// Members of an earlier term may be alive.
    pub(crate) reunite: bool,
    pub(crate) writer: Incarnation,
}

/// A run directory in our hands.
#[derive(Debug)]
pub(crate) struct RunDir {
    pub(crate) place: Place,
    pub(crate) journal: Journal,
    pub(crate) metrics: Sink,
    pub(crate) run_id: RunId,
    /// An earlier term had ended the job.
    pub(crate) was_finished: bool,
    /// The generation that may be at work, and the last step in the metrics.
    pub(crate) restored: Option<(Working, u64)>,
}

/// `run.json`.
#[derive(Serialize)]
struct Description<'a> {
    run_id: &'a RunId,
    job: &'a str,
    job_digest: &'a str,
    corpora: &'a BTreeMap<String, String>,
    program_version: &'a str,
    /// Milliseconds since 1970.
    started_ms: u64,
}

impl RunDir {
    /// Takes the directory over.
    ///
    /// # Errors
    /// Another job's run (exit 8), a run where none may be (2), no such checkpoint (8), another
    /// coordinator at the same moment (7), storage (5).
    pub(crate) async fn open(claim: &Claim<'_>) -> Result<Self, Failure> {
        let (store, root) = store::open(claim.run_url)?;
        let local = store::local_path(claim.run_url);
        // At once, so that a missing permission shows before the workers start.
        local.as_deref().map(make_folder).transpose()?;
        Self::take(claim, Place { store, root }, local.as_deref()).await
    }

    /// The same, where the directory is a place in a store, and a local folder perhaps.
    pub(crate) async fn take(
        claim: &Claim<'_>,
        place: Place,
        local: Option<&std::path::Path>,
    ) -> Result<Self, Failure> {
        let digest = load::digest(claim.job)?;
        let replayed = replay(place.clone()).await?;
        check(claim, &digest, &replayed.history, &place).await?;
        let was_finished = replayed.history.ending == Some(Ending::Finished);
        let mut journal = take_term(replayed, claim.writer).await?;
        let may_work = claim.reunite && claim.resume == Resume::Auto;
        let working = journal.history().working.clone().filter(|_| may_work);
        // Members that are alive may be writing their parts at this moment.
        let folders: &[&str] = match working {
            Some(_) => &["journal", "checkpoints"],
            None => &["journal", "checkpoints", "objects", "tokenizers"],
        };
        for folder in folders {
            local
                .iter()
                .for_each(|run| delete_staged(&run.join(folder)));
        }
        let run_id = describe(claim, &digest, &place, &mut journal).await?;
        rewind(claim.resume, &mut journal).await?;
        delete_void(&place, &journal).await?;
        let step = journal
            .history()
            .checkpoints
            .latest()
            .map_or(0, |latest| latest.step);
        // Steps after the checkpoint are void, unless somebody goes on from them.
        let last_step = if working.is_some() { u64::MAX } else { step };
        let (metrics, measured) =
            Sink::open(place.store.clone(), &place.root, local, last_step).await?;
        Ok(Self {
            restored: working.map(|working| (working, measured)),
            place,
            journal,
            metrics,
            run_id,
            was_finished,
        })
    }
}

/// Deletes what a process that was killed while it wrote has left in a local folder: the local
/// store writes `NAME#1` and renames it, and does not list such names. What cannot be deleted is
/// only a waste of space.
fn delete_staged(folder: &std::path::Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() {
            delete_staged(&path);
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let staged = name.and_then(|name| name.rsplit_once('#'));
        let staged = staged.is_some_and(|(_, number)| number.parse::<u64>().is_ok());
        if staged && let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "an interrupted write is left over");
        }
    }
}

/// Refuses what must not be mixed. Nothing is written yet.
async fn check(
    claim: &Claim<'_>,
    digest: &str,
    history: &History,
    place: &Place,
) -> Result<(), Failure> {
    let Some(origin) = &history.origin else {
        return check_step(claim, history);
    };
    if claim.resume == Resume::Never {
        return Err(Failure::usage(
            format!(
                "the run directory {} is in use",
                store::shown(claim.run_url)
            ),
            format!(
                "it holds the run {} of the job '{}'",
                origin.run_id, origin.job_name
            ),
            "choose another one with --run, remove it, or go on with --resume auto",
        ));
    }
    if !gives_way(claim, digest, history) {
        if origin.job_digest != digest {
            return Err(other_job(claim, origin, place).await);
        }
        check_corpora(claim, origin)?;
    }
    check_step(claim, history)
}

async fn other_job(claim: &Claim<'_>, origin: &Origin, place: &Place) -> Failure {
    let differing = difference::between(place, claim.job).await;
    Failure::checkpoint(
        format!(
            "the run directory {} belongs to another job",
            store::shown(claim.run_url)
        ),
        format!(
            "its run {} of the job '{}' has checkpoints made with other settings{differing}",
            origin.run_id, origin.job_name
        ),
        "take the settings back (config.resolved.toml there holds them), or choose another --run",
    )
}

/// Whether the run that is there is another one, and nothing of it would be lost: it has no
/// checkpoint. So a job that was refused or failed at once can be mended and started again.
fn gives_way(claim: &Claim<'_>, digest: &str, history: &History) -> bool {
    let is_other =
        |origin: &Origin| origin.job_digest != digest || check_corpora(claim, origin).is_err();
    history.checkpoints.latest().is_none() && history.origin.as_ref().is_some_and(is_other)
}

fn check_corpora(claim: &Claim<'_>, origin: &Origin) -> Result<(), Failure> {
    for (name, digest) in claim.corpora {
        if origin
            .corpora
            .get(name)
            .is_some_and(|before| before != digest)
        {
            return Err(Failure::checkpoint(
                format!("the run in {} cannot go on", store::shown(claim.run_url)),
                format!("the corpus '{name}' is another one than when the run began"),
                "bring the corpus back as it was, or choose another --run",
            ));
        }
    }
    Ok(())
}

fn check_step(claim: &Claim<'_>, history: &History) -> Result<(), Failure> {
    let Resume::Step(step) = claim.resume else {
        return Ok(());
    };
    if step == 0 || history.checkpoints.at(step).is_some() {
        return Ok(());
    }
    let steps: Vec<_> = history
        .checkpoints
        .steps()
        .map(|step| step.to_string())
        .collect();
    let there = match steps.is_empty() {
        true => "it has no checkpoint".to_owned(),
        false => format!("it has those of the steps {}", steps.join(", ")),
    };
    Err(Failure::checkpoint(
        format!(
            "there is no checkpoint at step {step} in {}",
            store::shown(claim.run_url)
        ),
        there,
        "choose one of them, or --resume auto for the latest",
    ))
}

async fn take_term(replayed: Replayed, writer: Incarnation) -> Result<Journal, Failure> {
    Ok(replayed.take_term(writer).await?)
}

/// Writes the settings, and for a new run what it is; the record in the journal comes last.
async fn describe(
    claim: &Claim<'_>,
    digest: &str,
    place: &Place,
    journal: &mut Journal,
) -> Result<RunId, Failure> {
    let config = Bytes::copy_from_slice(claim.job_toml.as_bytes());
    store::put(
        &*place.store,
        &place.root.clone().join("config.resolved.toml"),
        config,
    )
    .await?;
    match &journal.history().origin {
        Some(origin) if !gives_way(claim, digest, journal.history()) => {
            return Ok(origin.run_id.clone());
        }
        _ => {}
    }
    let run_id = new_run_id(&claim.job.name, claim.writer)?;
    let program_version = env!("CARGO_PKG_VERSION");
    let description = serde_json::to_vec_pretty(&Description {
        run_id: &run_id,
        job: &claim.job.name,
        job_digest: digest,
        corpora: claim.corpora,
        program_version,
        started_ms: crate::clock::wall_ms(),
    })
    .map_err(|error| Failure::internal("run.json cannot be encoded", error.to_string()))?;
    store::put(
        &*place.store,
        &place.root.clone().join("run.json"),
        description.into(),
    )
    .await?;
    let created = Entry::RunCreated {
        run_id: run_id.clone(),
        job_name: claim.job.name.clone(),
        job_digest: digest.to_owned(),
        corpora: claim.corpora.clone(),
        program_version: program_version.to_owned(),
    };
    journal.append(created).await?;
    Ok(run_id)
}

/// `emoji-1f03a9c2`: the job's name, as far as an id may look like it, and chance.
fn new_run_id(job_name: &str, writer: Incarnation) -> Result<RunId, Failure> {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = job_name.chars().take(40).map(plain).collect();
    let chance = u32::try_from(writer.0 & u64::from(u32::MAX)).unwrap_or_default();
    RunId::new(&format!("{name}-{chance:08x}"))
        .map_err(|error| Failure::internal("the run has no id", error.to_string()))
}

/// Makes what came after a chosen checkpoint void. The record is the decision: everything else
/// follows from it, now or when the directory is opened the next time.
async fn rewind(resume: Resume, journal: &mut Journal) -> Result<(), Failure> {
    let Resume::Step(to_step) = resume else {
        return Ok(());
    };
    let dropped: Vec<_> = journal
        .history()
        .checkpoints
        .after(to_step)
        .iter()
        .map(|later| later.step)
        .collect();
    if !dropped.is_empty() {
        journal
            .append(Entry::RunRewound {
                to_step,
                dropped,
                lost: Vec::new(),
            })
            .await?;
    }
    Ok(())
}

/// Deletes manifests that no record speaks of: let go, rewound, or written in the moment between
/// a manifest and its record. Parts are content-addressed and stay for whoever still uses them.
pub(crate) async fn delete_void(place: &Place, journal: &Journal) -> Result<(), Failure> {
    let history = journal.history();
    let kept: BTreeSet<Path> = history
        .checkpoints
        .after(0)
        .iter()
        .filter_map(|kept| store::under(&place.root, &kept.manifest_path).ok())
        .collect();
    let folder = place.root.clone().join("checkpoints");
    let listed: Result<Vec<_>, _> = place.store.list(Some(&folder)).try_collect().await;
    let listed = match listed {
        Err(object_store::Error::NotFound { .. }) => Vec::new(),
        other => other.map_err(|error| Error::store("listed", folder.as_ref(), &error))?,
    };
    for meta in listed {
        let is_manifest = meta.location.filename() == Some("manifest.json");
        let counts = kept.contains(&meta.location) && !planted!(CountedManifestsDeleted);
        if is_manifest && !counts {
            // One that stood still since it took office may have a successor, whose these are.
            if !planted!(VoidDeletedBlindly) {
                journal.check_office().await?;
            }
            tracing::info!(manifest = %meta.location, "deleting a manifest that does not count");
            store::delete(&*place.store, &meta.location).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_writes_are_deleted_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let deeper = folder.path().join("step-00000003");
        std::fs::create_dir(&deeper).expect("made");
        for name in ["aa", "aa#1", "b#side", "step-00000003/manifest.json#12"] {
            std::fs::write(folder.path().join(name), "x").expect("written");
        }
        delete_staged(folder.path());
        let there = |name: &str| folder.path().join(name).exists();
        assert!(there("aa") && there("b#side"));
        assert!(!there("aa#1") && !there("step-00000003/manifest.json#12"));
        delete_staged(&folder.path().join("nothing"));
    }
}
