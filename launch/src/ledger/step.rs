//! `mks2 ledger step`: the rows of one step, who computed them, and where they went.

use std::collections::BTreeMap;

use mks2_coordinator::ledger::{Books, Committed, Leg};
use mks2_dataset::plan::{Plan, RowRef};
use mks2_dataset::row::Row;
use mks2_proto::failure::Failure;
use serde::Serialize;

use super::corpora::Corpora;
use super::read::RunDir;
use super::{StepArgs, show};
use crate::output::Output;
use crate::table::Table;
use crate::units::count;

/// What a step used.
#[derive(Clone, Debug, Serialize)]
struct StepAnswer {
    /// The step, from 1 over all stages.
    step: u64,
    stage: String,
    /// The step, from 1 within its stage.
    stage_step: u64,
    /// It is done; else its rows are only planned.
    committed: bool,
    /// The generation under which it was committed.
    generation: Option<u64>,
    /// The coordinator's term of that generation.
    term: Option<u64>,
    /// The first checkpoint that contains it.
    checkpoint: Option<CheckpointAnswer>,
    rows: Vec<RowAnswer>,
}

/// A checkpoint.
#[derive(Clone, Copy, Debug, Serialize)]
struct CheckpointAnswer {
    step: u64,
    /// The retention policy has let it go since.
    released: bool,
}

impl From<&Committed> for CheckpointAnswer {
    fn from(committed: &Committed) -> Self {
        Self {
            step: committed.checkpoint.step,
            released: committed.released_by.is_some(),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct RowAnswer {
    lane: u32,
    /// Who computed the lane.
    member: Option<String>,
    host: Option<String>,
    corpus: String,
    /// Index of the row in its corpus.
    row: u64,
    /// Pass over the corpus within the stage, from 1.
    pass: u64,
    key: String,
    /// See [`Row::digest`].
    digest: String,
}

/// Shows a step.
///
/// # Errors
/// No run or no such step (exit 2), corpora (4), storage (5), a ledger that does not hold (8).
pub(super) async fn run(args: &StepArgs, output: &Output) -> Result<(), Failure> {
    let look = RunDir::open(&args.run.run)?.proved().await?;
    let (step, course) = (args.step, &look.books.course);
    let leg = course.leg_of(step).ok_or_else(|| {
        Failure::usage(
            format!("there is no step {step}"),
            format!("the job has {} steps", count(course.total_steps())),
            format!("name one of 1 to {}", course.total_steps()),
        )
    })?;
    let corpora = Corpora::open_all(&look.job, &look.origin, &args.run.corpora).await?;
    let plan = corpora.plan(&look.job, leg)?;
    let drawn = plan.map_or_else(Vec::new, |plan| drawn(&plan, step - leg.before - 1));
    let rows = fetch(&corpora, leg, &drawn).await?;
    let answer = answer(&look.books, leg, step, &drawn, &rows);
    show(&answer, text, args.run.json, output)
}

/// All rows of a step of a stage, counted from 0, lane by lane.
fn drawn(plan: &Plan, step: u64) -> Vec<(u32, RowRef)> {
    (0..plan.lanes())
        .flat_map(|lane| plan.rows(step, lane).map(move |row| (lane, row)))
        .collect()
}

/// Key and digest by source and row.
type Names = BTreeMap<(u16, u64), (String, String)>;

/// Reads each row group that the rows lie in once.
async fn fetch(corpora: &Corpora, leg: &Leg, drawn: &[(u32, RowRef)]) -> Result<Names, Failure> {
    let mut groups: BTreeMap<(u16, u64), Vec<u64>> = BTreeMap::new();
    for (_, row) in drawn {
        let Some((_, corpus)) = source(corpora, leg, row.source) else {
            continue;
        };
        let group = row.row / u64::from(corpus.manifest().row_group_rows);
        groups.entry((row.source, group)).or_default().push(row.row);
    }
    let mut names = Names::new();
    for ((number, group), wanted) in groups {
        let Some((_, corpus)) = source(corpora, leg, number) else {
            continue;
        };
        let rows: Vec<Row> = corpus.read_group(group).await?;
        for row in rows.iter().filter(|row| wanted.contains(&row.index)) {
            names.insert((number, row.index), (row.key.clone(), row.digest()));
        }
    }
    Ok(names)
}

fn source<'a>(
    corpora: &'a Corpora,
    leg: &'a Leg,
    number: u16,
) -> Option<(&'a String, &'a mks2_dataset::reader::Corpus)> {
    let name = leg.corpora.get(usize::from(number))?;
    Some((name, corpora.get(name)?))
}

fn answer(
    books: &Books,
    leg: &Leg,
    step: u64,
    drawn: &[(u32, RowRef)],
    names: &Names,
) -> StepAnswer {
    let line = books.steps.committed.get(&step);
    let formed = line.and_then(|line| books.timeline.generation(line.generation));
    let row = |(lane, row): &(u32, RowRef)| {
        let holder = books.holder(step, *lane).map(|(_, member)| member);
        let named = names.get(&(row.source, row.row)).cloned();
        let (key, digest) = named.unwrap_or_default();
        RowAnswer {
            lane: *lane,
            member: holder.map(|holder| holder.member.to_string()),
            host: holder.map(|holder| holder.host.clone()),
            corpus: leg
                .corpora
                .get(usize::from(row.source))
                .cloned()
                .unwrap_or_default(),
            row: row.row,
            pass: row.epoch + 1,
            key,
            digest,
        }
    };
    StepAnswer {
        step,
        stage: leg.name.clone(),
        stage_step: step - leg.before,
        committed: line.is_some(),
        generation: line.map(|line| line.generation.0),
        term: formed.map(|formed| formed.term.0),
        checkpoint: books.timeline.first_with(step).map(CheckpointAnswer::from),
        rows: drawn.iter().map(row).collect(),
    }
}

fn text(answer: &StepAnswer) -> String {
    let state = match (answer.generation, answer.term) {
        (Some(generation), Some(term)) => {
            format!("committed under generation {generation} (term {term})")
        }
        _ => "not committed yet: these rows are planned".to_owned(),
    };
    let checkpoint = match answer.checkpoint {
        Some(CheckpointAnswer {
            step,
            released: false,
        }) => format!("step {step}"),
        Some(CheckpointAnswer {
            step,
            released: true,
        }) => {
            format!("step {step}, which the retention policy has let go since")
        }
        None => "none yet".to_owned(),
    };
    let mut table = Table::new(&[
        ">lane", "member", "corpus", ">row", ">pass", "key", "digest",
    ]);
    for row in &answer.rows {
        table.row([
            row.lane.to_string(),
            row.member.clone().unwrap_or_default(),
            row.corpus.clone(),
            row.row.to_string(),
            row.pass.to_string(),
            row.key.clone(),
            row.digest.clone(),
        ]);
    }
    format!(
        "step        {}: step {} of stage '{}'\nstate       {state}\ncheckpoint  {checkpoint}\n\n{}",
        answer.step,
        answer.stage_step,
        answer.stage,
        table.render()
    )
}
