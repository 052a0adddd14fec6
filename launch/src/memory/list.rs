//! `mks2 memory list`: the memories in a folder, or the memory stages of a run.

use mks2_dataset::memory::{self, Artefact};
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use serde::Serialize;

use super::run::Run;
use super::show::{licence, short};
use super::{ListArgs, answer};
use crate::output::Output;
use crate::table::Table;
use crate::units::count;

/// A memory of a folder.
#[derive(Debug, Serialize)]
struct Found {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(flatten)]
    card: Option<memory::Card>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// A memory stage of a run.
#[derive(Debug, Serialize)]
struct Stored {
    stage: String,
    kind: &'static str,
    form: &'static str,
    width: u32,
    /// Steps of the stage.
    steps: u64,
    /// Step of the run of its newest checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<u64>,
    /// Whether it can be exported.
    finished: bool,
}

/// Lists what there is.
///
/// # Errors
/// A place with neither a run nor memories (exit 2), storage (5).
pub(super) async fn run(args: &ListArgs, output: &Output) -> Result<(), Failure> {
    if let Some(run) = Run::open(&args.place).await? {
        let stored = stages(&run);
        return answer(args.json, &stored, || of_run(&stored), output);
    }
    let found: Vec<Found> = memory::list(&args.place)
        .await?
        .into_iter()
        .map(|(url, artefact)| found(url, artefact))
        .collect();
    if found.is_empty() {
        return Err(Failure::usage(
            format!("there are no memories in {}", store::shown(&args.place)),
            "neither it nor a folder in it has a memory.json, and it is no run",
            "name a folder that `mks2 memory export` has written, the folder around it, or a run",
        ));
    }
    answer(args.json, &found, || of_folder(&found), output)
}

fn found(url: String, artefact: memory::Result<Artefact>) -> Found {
    match artefact {
        Ok(artefact) => Found {
            url,
            id: Some(artefact.id),
            card: Some(artefact.card),
            problem: None,
        },
        Err(error) => Found {
            url,
            id: None,
            card: None,
            problem: Some(error.to_string()),
        },
    }
}

fn of_folder(found: &[Found]) -> String {
    let mut table = Table::new(&[
        "memory", "id", "base", "form", ">width", ">blocks", ">rows", "licence", "folder",
    ]);
    for one in found {
        let url = one.url.clone();
        match (&one.card, &one.id) {
            (Some(card), Some(id)) => table.row([
                card.name.clone(),
                short(id).to_owned(),
                short(&card.base.digest).to_owned(),
                card.shape.form_name().to_owned(),
                card.shape.width.to_string(),
                card.shape.layers.to_string(),
                count(card.rows),
                licence(card),
                url,
            ]),
            _ => {
                let gap = || "-".to_owned();
                let gaps = [gap(), gap(), gap(), gap(), gap(), gap(), gap()];
                table.row(
                    std::iter::once("damaged".to_owned())
                        .chain(gaps)
                        .chain([url]),
                );
            }
        }
    }
    let problems = found.iter().filter_map(|one| one.problem.as_ref());
    let problems: String = problems.map(|problem| format!("\n{problem}\n")).collect();
    table.render() + &problems
}

fn stages(run: &Run) -> Vec<Stored> {
    let stages = run.job.stages.iter();
    let memories = stages.filter(|stage| stage.kind.is_memory());
    let stored = memories.map(|stage| {
        let shape = memory::card::Shape::of(&run.job.model, &stage.name);
        let newest = run.newest_of(&stage.name);
        Stored {
            stage: stage.name.clone(),
            kind: stage.kind.name(),
            form: shape.form_name(),
            width: shape.width,
            steps: stage.steps,
            checkpoint: newest.map(|newest| newest.step),
            finished: newest.is_some_and(|newest| newest.is_final),
        }
    });
    stored.collect()
}

fn of_run(stored: &[Stored]) -> String {
    let mut table = Table::new(&["stage", "kind", "form", ">width", ">steps", "state"]);
    for one in stored {
        let state = match (one.finished, one.checkpoint) {
            (true, _) => "finished".to_owned(),
            (false, Some(step)) => format!("as of step {step} of the run"),
            (false, None) if one.steps == 0 => "of another run".to_owned(),
            (false, None) => "not yet".to_owned(),
        };
        table.row([
            one.stage.clone(),
            one.kind.to_owned(),
            one.form.to_owned(),
            one.width.to_string(),
            one.steps.to_string(),
            state,
        ]);
    }
    table.render()
}
