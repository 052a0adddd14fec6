//! `mks2 ledger row`: what a row has touched so far, and which checkpoints are free of it.

use futures::{StreamExt, TryStreamExt, stream};
use mks2_coordinator::ledger::{Course, Leg};
use mks2_dataset::reader::Corpus;
use mks2_dataset::row::Row;
use mks2_proto::failure::Failure;
use mks2_proto::ids::is_digest;
use mks2_proto::job::{Job, StageKind};
use serde::Serialize;

use super::corpora::Corpora;
use super::read::{Look, RunDir};
use super::{RowArgs, show};
use crate::output::Output;
use crate::table::Table;
use crate::units::plural;

/// Row groups that are read at a time.
const AT_ONCE: usize = 8;
/// Rows of each corpus, from its beginning, that a bootstrap stage evens its image features out
/// with, if it does.
const EVENED_ROWS: u64 = 2048;

/// What a row has touched.
#[derive(Clone, Debug, Serialize)]
struct RowAnswer {
    corpus: String,
    /// Index in the corpus.
    row: u64,
    key: String,
    /// See [`Row::digest`].
    digest: String,
    /// The steps that used it, in their order.
    steps: Vec<UseAnswer>,
    /// Uses of steps that are not committed yet.
    planned: u64,
    /// What else was made from it, outside of steps.
    other_uses: Vec<OtherUse>,
    /// The checkpoints that contain it and are there.
    checkpoints: Vec<u64>,
    /// The last checkpoint before it was first used, and still there.
    last_before: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct UseAnswer {
    stage: String,
    /// The step, from 1 over all stages.
    step: u64,
    lane: u32,
    /// Pass over the corpus within the stage, from 1.
    pass: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct OtherUse {
    stage: String,
    /// Checkpoints behind this step contain it.
    after_step: u64,
    what: &'static str,
}

/// Shows a row.
///
/// # Errors
/// No run or no such row (exit 2), corpora (4), storage (5), a ledger that does not hold (8).
pub(super) async fn run(args: &RowArgs, output: &Output) -> Result<(), Failure> {
    let look = RunDir::open(&args.run.run)?.proved().await?;
    let corpora = Corpora::open_all(&look.job, &look.origin, &args.run.corpora).await?;
    let mut answers = Vec::new();
    for (name, row) in find(&corpora, &args.row, output).await? {
        answers.push(answer(&look, &corpora, &name, &row)?);
    }
    if answers.is_empty() {
        return Err(Failure::usage(
            format!("the run has no row '{}'", args.row),
            "no row of its corpora has this key, or this digest",
            "give a key, or the 64 characters of a digest; `mks2 ledger step RUN N` shows both",
        ));
    }
    let text = |answers: &Vec<RowAnswer>| {
        let texts: Vec<String> = answers.iter().map(text).collect();
        texts.join("\n")
    };
    show(&answers, text, args.run.json, output)
}

/// The rows that are meant, at most one of each corpus: by key, which reads the keys alone, and only
/// if there is none by digest, which reads everything.
async fn find(
    corpora: &Corpora,
    meant: &str,
    output: &Output,
) -> Result<Vec<(String, Row)>, Failure> {
    let mut found = Vec::new();
    for (name, corpus) in corpora.iter() {
        if let Some(index) = by_key(corpus, meant).await? {
            found.push((name.clone(), corpus.read_row(index).await?));
        }
    }
    let digest = meant.to_ascii_lowercase();
    if !found.is_empty() || !is_digest(&digest) {
        return Ok(found);
    }
    for (name, corpus) in corpora.iter() {
        output.note(&format!(
            "looking through {} of corpus '{name}'",
            plural(corpus.rows(), "row")
        ));
        let row = by_digest(corpus, &digest).await?;
        found.extend(row.map(|row| (name.clone(), row)));
    }
    Ok(found)
}

async fn by_key(corpus: &Corpus, meant: &str) -> Result<Option<u64>, Failure> {
    let group_rows = u64::from(corpus.manifest().row_group_rows);
    let keys = (0..corpus.groups()).map(|group| async move {
        let keys = corpus.read_keys(group).await?;
        let place = keys.iter().position(|key| key == meant);
        Ok::<_, Failure>(place.map(|place| group * group_rows + place as u64))
    });
    let mut read = stream::iter(keys).buffered(AT_ONCE);
    while let Some(found) = read.try_next().await? {
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

async fn by_digest(corpus: &Corpus, digest: &str) -> Result<Option<Row>, Failure> {
    let rows = (0..corpus.groups()).map(|group| async move {
        let rows = corpus.read_group(group).await?;
        Ok::<_, Failure>(rows.into_iter().find(|row| row.digest() == digest))
    });
    let mut read = stream::iter(rows).buffered(AT_ONCE);
    while let Some(found) = read.try_next().await? {
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn answer(look: &Look, corpora: &Corpora, name: &str, row: &Row) -> Result<RowAnswer, Failure> {
    let (course, steps) = (&look.books.course, &look.books.steps);
    let (mut used, mut planned, mut other_uses) = (Vec::new(), 0, Vec::new());
    for leg in &course.legs {
        let plan = corpora.plan(&look.job, leg)?;
        let sources = (0_u16..).zip(&leg.corpora);
        for (source, _) in sources.filter(|(_, corpus)| *corpus == name) {
            let uses = plan
                .iter()
                .flat_map(|plan| plan.uses(source, row.index, leg.steps));
            for found in uses {
                let step = leg.before + found.step + 1;
                if !steps.committed.contains_key(&step) {
                    planned += 1;
                    continue;
                }
                used.push(UseAnswer {
                    stage: leg.name.clone(),
                    step,
                    lane: found.lane,
                    pass: found.epoch + 1,
                });
            }
        }
        let done = steps.within(leg.before, leg.last_step());
        other_uses.extend(others(&look.job, leg, name, row.index, done));
    }
    used.sort_by_key(|used| (used.step, used.lane));
    let touched: Vec<(u64, &str)> = used
        .iter()
        .map(|used| (used.step - 1, used.stage.as_str()))
        .chain(
            other_uses
                .iter()
                .map(|other| (other.after_step, other.stage.as_str())),
        )
        .collect();
    Ok(RowAnswer {
        corpus: name.to_owned(),
        row: row.index,
        key: row.key.clone(),
        digest: row.digest(),
        planned,
        checkpoints: containing(look, course, &touched),
        last_before: last_before(look, &touched),
        steps: used,
        other_uses,
    })
}

/// What a stage makes of a corpus' first rows beside its steps.
fn others(job: &Job, leg: &Leg, corpus: &str, row: u64, done: u64) -> Vec<OtherUse> {
    let stage = job.stages.iter().find(|stage| stage.name == leg.name);
    let bootstrap = stage.filter(|stage| stage.kind == StageKind::Bootstrap);
    let Some(stage) = bootstrap.filter(|_| leg.corpora.iter().any(|name| name == corpus)) else {
        return Vec::new();
    };
    let evens_out = stage.bootstrap.as_ref().is_some_and(|b| b.whiten > 0.0);
    let used = |what, after_step| OtherUse {
        stage: leg.name.clone(),
        after_step,
        what,
    };
    let mut others = Vec::new();
    if done > 0 && row < job.tokenizer.sample_rows {
        others.push(used("its texts trained the tokenizer", leg.before));
    }
    if done == leg.steps && evens_out && row < EVENED_ROWS {
        let last = leg.last_step().saturating_sub(1);
        others.push(used("its picture evened out the image features", last));
    }
    others
}

/// Checkpoints behind a use, of its stage or of one that builds on it.
fn containing(look: &Look, course: &Course, touched: &[(u64, &str)]) -> Vec<u64> {
    let contains = |checkpoint: &&mks2_coordinator::state::Checkpoint| {
        touched.iter().any(|(after, stage)| {
            checkpoint.step > *after && course.builds_on(&checkpoint.stage, stage)
        })
    };
    let kept = look.books.timeline.kept().filter(contains);
    kept.map(|checkpoint| checkpoint.step).collect()
}

fn last_before(look: &Look, touched: &[(u64, &str)]) -> Option<u64> {
    let first = touched.iter().map(|(after, _)| *after).min()?;
    let steps = look.books.timeline.kept().map(|checkpoint| checkpoint.step);
    steps.filter(|step| *step <= first).last()
}

fn text(answer: &RowAnswer) -> String {
    let mut text = format!(
        "row          {} of corpus '{}' (key {})\ndigest       {}\nused         {}{}\n",
        answer.row,
        answer.corpus,
        answer.key,
        answer.digest,
        plural(answer.steps.len() as u64, "time"),
        match answer.planned {
            0 => String::new(),
            more => format!(", {more} more planned"),
        }
    );
    for other in &answer.other_uses {
        let (what, stage) = (other.what, &other.stage);
        text.push_str(&format!("also         {what} of stage '{stage}'\n"));
    }
    let steps: Vec<String> = answer.checkpoints.iter().map(u64::to_string).collect();
    text.push_str(&match steps.is_empty() {
        true => "contained    in no checkpoint\n".to_owned(),
        false => format!(
            "contained    in the checkpoints of the steps {}\n",
            steps.join(", ")
        ),
    });
    let touched = !(answer.steps.is_empty() && answer.other_uses.is_empty());
    if touched {
        text.push_str(&match answer.last_before {
            Some(step) => format!("last before  the checkpoint of step {step}\n"),
            None => "last before  none: the beginning of the run\n".to_owned(),
        });
    }
    if !answer.steps.is_empty() {
        let mut table = Table::new(&["stage", ">step", ">lane", ">pass"]);
        for used in &answer.steps {
            table.row([
                used.stage.clone(),
                used.step.to_string(),
                used.lane.to_string(),
                used.pass.to_string(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    text
}
