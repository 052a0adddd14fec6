//! `mks2 eval`: measures a model that a run has trained, or one that was published, on tasks in files.
//!
//! | module | what |
//! |---|---|
//! | [`folder`] | the folder of results |
//! | [`results`] | results in lm-evaluation-harness's layout, and as a table |

mod folder;
mod results;

use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mks2_dataset::task::Task;
use mks2_proto::evaluate::{Asked, Event, Measured};
use mks2_proto::failure::Failure;
use serde_json::json;

use crate::engine::{Answers, Found, ModelArgs};
use crate::output::Output;
use crate::train::Signals;
use folder::Folder;

const EXAMPLES: &str = "\
Examples:
  mks2 eval runs/emoji --task examples/emoji/tasks/*.toml
      Choices are put to what the run's evaluation calls mks2, captions and retrieval to its memory stage.
  mks2 eval runs/emoji --task colors.toml --stage lora --out results/lora
      Another stage; results.json, and samples_TASK.jsonl with every item.
  mks2 eval models/Llama-2-7b-hf --task piqa.toml --limit 100 --json
      A published language model, the first hundred items, as JSON.

docs/cli.md describes task files, metrics and results.";

/// Options of `eval`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Task files (TOML): paths or any object store URLs
    #[arg(long = "task", required = true, num_args = 1.., value_name = "FILE")]
    tasks: Vec<String>,
    /// Measure the first so many items of each task
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroU64>,
    /// Write results.json and a file of samples per task into a new folder
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print results as JSON, in lm-evaluation-harness's layout
    #[arg(long)]
    json: bool,
}

/// Measures, and shows what came out.
///
/// # Errors
/// Options (exit 2), a task file (3), its data (4), no such model (2, 3, 8), storage (5), the machine (6).
pub(crate) async fn run(args: &EvalArgs, output: &Output) -> Result<(), Failure> {
    let tasks = read_tasks(&args.tasks).await?;
    let mut folder = args.out.as_deref().map(Folder::begin).transpose()?;
    let found = args.model.find().await?;
    output.note(&found.words);
    let asked = asked(&args.tasks, &tasks, &found);
    let limit = args.limit.map(NonZeroU64::get);
    let mut signals = Signals::listen()?;
    let said = args.model.measure(found, asked, limit).await?;
    let measured = tokio::select! {
        measured = listen(said, tasks.len(), folder.as_mut(), output) => measured?,
        request = signals.next() => return Err(stopped(request)),
    };
    let run = json!({
        "model": "mks2",
        "model_args": args.model.model,
        "batch_size": args.model.batch(),
        "device": args.model.device(),
        "limit": limit,
    });
    let results = results::results(&measured, run);
    if args.json || output.is_json() {
        output.result(&format!("{results:#}"));
    } else {
        output.result(&results::table(&measured));
    }
    // Last: what was measured is on the screen, whatever happens to the disk.
    folder.map_or(Ok(()), |folder| folder.finish(&results))
}

/// Reads all tasks before anything is started, so that what is wrong with the last one shows at once.
///
/// # Errors
/// A task file (exit 3), its data (4), storage (5); two tasks of one name (2).
pub(crate) async fn read_tasks(files: &[String]) -> Result<Vec<Task>, Failure> {
    let mut tasks: Vec<Task> = Vec::with_capacity(files.len());
    for file in files {
        let task = Task::read(file).await?;
        if tasks.iter().any(|other| other.name == task.name) {
            return Err(Failure::usage(
                format!("two tasks are called '{}'", task.name),
                format!("results are named after tasks; {file} is the second one"),
                "give one of them another name in its file",
            ));
        }
        tasks.push(task);
    }
    Ok(tasks)
}

/// Which stage each task is put to.
fn asked(files: &[String], tasks: &[Task], found: &Found) -> Vec<Asked> {
    let both = files.iter().zip(tasks);
    both.map(|(url, task)| Asked {
        url: url.clone(),
        stage: found.memory.clone().filter(|_| task.is_of_memory()),
    })
    .collect()
}

/// Takes in what the program says until it has measured all tasks.
async fn listen(
    mut said: Answers,
    tasks: usize,
    mut folder: Option<&mut Folder>,
    output: &Output,
) -> Result<Vec<Measured>, Failure> {
    let bar = output.bars().add(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}") {
        bar.set_style(style);
    }
    let mut measured = Vec::with_capacity(tasks);
    while let Some(event) = said.said().await? {
        match event {
            Event::Progress { task, done, of } => {
                bar.set_length(of);
                bar.set_position(done);
                bar.set_message(task);
            }
            Event::Sample { sample } => {
                if let Some(folder) = &mut folder {
                    folder.sample(&sample)?;
                }
            }
            Event::Measured { result } => {
                if let Some(folder) = &mut folder {
                    folder.task(&result.task)?;
                }
                measured.push(result);
            }
            Event::Failed { why } => return Err(why.into()),
        }
    }
    bar.finish_and_clear();
    match measured.len() == tasks {
        true => Ok(measured),
        false => Err(Failure::internal(
            "the program that computes is gone",
            "it ended before it had measured all tasks",
        )),
    }
}

fn stopped(request: &str) -> Failure {
    Failure::stopped(
        "the evaluation was stopped",
        request,
        "nothing was written; the same command begins again",
    )
}
