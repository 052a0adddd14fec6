//! `mks2 ledger verify`: everything that a run's files prove, or what they contradict.

use mks2_coordinator::journal::Ending;
use mks2_coordinator::ledger::Violation;
use mks2_proto::failure::Failure;
use serde::Serialize;

use super::corpora::Corpora;
use super::read::{Checkpoints, Look, RunDir, is_at_rest, settled};
use super::usage::{StageUsage, of_stage};
use super::{VerifyArgs, refusal, show};
use crate::output::Output;
use crate::table::Table;
use crate::units::{bytes, count, plural};

/// What was looked at, and what is wrong.
#[derive(Clone, Debug, Serialize)]
struct Audit {
    run_id: String,
    job: String,
    run_url: String,
    /// `finished`, `stopped`, `failed`, or `unfinished`: at work, or killed.
    state: &'static str,
    /// Nothing is wrong.
    holds: bool,
    /// Records of the journal.
    records: u64,
    terms: u64,
    generations: u64,
    steps: StepCounts,
    checkpoints: CheckpointCounts,
    stages: Vec<StageUsage>,
    violations: Vec<Violation>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct StepCounts {
    committed: u64,
    /// Steps of the job.
    planned: u64,
    /// Up to the latest checkpoint: a run that dies now goes on from there.
    safe: u64,
    /// Computed before the run was taken back, and not cut off yet.
    void: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct CheckpointCounts {
    /// Those that count.
    kept: u64,
    /// Those that the retention policy let go.
    released: u64,
    /// Different files of those that count.
    parts: u64,
    bytes: u64,
    /// The files were read, and not only looked for.
    hashed: bool,
}

/// Verifies a run.
///
/// # Errors
/// No run (exit 2), storage (5), a ledger that does not hold (8).
pub(super) async fn run(args: &VerifyArgs, output: &Output) -> Result<(), Failure> {
    let audit = examine(&args.run.run, &args.run.corpora, args.deep).await?;
    show(&audit, text, args.run.json, output)?;
    refusal(
        &audit.run_url,
        &audit.violations,
        "see each of them above, with what to do".to_owned(),
    )
}

/// What is wrong with a run; nothing: its ledger holds.
///
/// # Errors
/// No run (exit 2), storage (5).
pub(super) async fn violations(run: &str) -> Result<Vec<Violation>, Failure> {
    Ok(examine(run, &[], true).await?.violations)
}

async fn examine(run: &str, moved: &[(String, String)], deep: bool) -> Result<Audit, Failure> {
    let dir = RunDir::open(run)?;
    let both = async || {
        let look = dir.look().await?;
        let checkpoints = dir.checkpoints(&look, deep).await?;
        Ok((look, checkpoints))
    };
    let is_settled = |(look, checkpoints): &(Look, Checkpoints)| {
        let fine = look.books.violations.is_empty() && checkpoints.violations.is_empty();
        fine || is_at_rest(look)
    };
    let (look, checkpoints) = settled(both, is_settled).await?;
    let (corpora, missing) = Corpora::open(&look.job, &look.origin, moved).await;
    audit(&dir, &look, checkpoints, (&corpora, missing), deep)
}

fn audit(
    dir: &RunDir,
    look: &Look,
    checkpoints: Checkpoints,
    (corpora, missing): (&Corpora, Vec<Violation>),
    hashed: bool,
) -> Result<Audit, Failure> {
    let (books, timeline) = (&look.books, &look.books.timeline);
    let mut stages = Vec::new();
    for leg in &books.course.legs {
        let plan = corpora.plan(&look.job, leg)?;
        stages.push(of_stage(leg, &books.steps, plan.as_ref()));
    }
    let mut violations = books.violations.clone();
    violations.extend(checkpoints.violations);
    violations.extend(missing);
    let kept = timeline.kept().count();
    Ok(Audit {
        run_id: look.origin.run_id.to_string(),
        job: look.origin.job_name.clone(),
        run_url: dir.location.clone(),
        state: match timeline.history.ending {
            Some(Ending::Finished) => "finished",
            Some(Ending::Stopped) => "stopped",
            Some(Ending::Failed) => "failed",
            None => "unfinished",
        },
        holds: violations.is_empty(),
        records: books.chain.records.len() as u64,
        terms: timeline.terms,
        generations: timeline.generations.len() as u64,
        steps: StepCounts {
            committed: books.steps.committed.len() as u64,
            planned: books.course.total_steps(),
            safe: timeline.safe_step(),
            void: books.steps.void,
        },
        checkpoints: CheckpointCounts {
            kept: kept as u64,
            released: (timeline.checkpoints.len() - kept) as u64,
            parts: checkpoints.parts,
            bytes: checkpoints.bytes,
            hashed,
        },
        stages,
        violations,
    })
}

fn text(audit: &Audit) -> String {
    let (steps, checkpoints) = (audit.steps, audit.checkpoints);
    let mut text = format!(
        "run          {} (job '{}'), {}\ndirectory    {}\njournal      {} of {}, {}\n",
        audit.run_id,
        audit.job,
        audit.state,
        audit.run_url,
        plural(audit.records, "record"),
        plural(audit.terms, "term"),
        plural(audit.generations, "generation"),
    );
    text.push_str(&format!(
        "steps        {} of {} committed, {} in checkpoints{}\n",
        count(steps.committed),
        count(steps.planned),
        count(steps.safe),
        match steps.void {
            0 => String::new(),
            void => format!("; {} more will be computed again", count(void)),
        }
    ));
    text.push_str(&format!(
        "checkpoints  {} there, {} let go by the retention policy; {} of {} {}\n\n",
        count(checkpoints.kept),
        count(checkpoints.released),
        plural(checkpoints.parts, "part"),
        bytes(checkpoints.bytes),
        match checkpoints.hashed {
            true => "read, digests compared",
            false => "there (--deep also compares digests)",
        }
    ));
    text.push_str(&stages(audit));
    text.push('\n');
    text.push_str(&conclusion(audit));
    text
}

fn stages(audit: &Audit) -> String {
    let mut table = Table::new(&[
        "stage",
        ">steps",
        ">rows planned",
        ">rows used",
        "corpus",
        ">rows",
        ">times each",
        ">in the last pass",
    ]);
    for stage in &audit.stages {
        let mut head = [
            stage.stage.clone(),
            format!("{} of {}", count(stage.committed), count(stage.steps)),
            count(stage.rows_planned),
            count(stage.rows_used),
        ];
        if stage.corpora.is_empty() {
            table.row(head.clone());
        }
        for corpus in &stage.corpora {
            let times = match (corpus.times_min, corpus.times_max) {
                (Some(min), Some(max)) => format!("{min}..{max}"),
                _ => format!("about {:.1}", corpus.used as f64 / corpus.rows as f64),
            };
            let tail = [
                corpus.corpus.clone(),
                count(corpus.rows),
                times,
                count(corpus.rows_of_last_pass),
            ];
            // A second corpus stands below the first one of its stage.
            table.row(head.into_iter().chain(tail));
            head = Default::default();
        }
    }
    table.render()
}

fn conclusion(audit: &Audit) -> String {
    if audit.holds {
        return "the ledger holds: every row was used as planned, every step committed once"
            .to_owned();
    }
    let violation = |v: &Violation| format!("{}: {}\n  fix: {}\n", v.place, v.what, v.cure);
    audit.violations.iter().map(violation).collect()
}
