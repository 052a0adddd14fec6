//! `mks2 data`: import a corpus, look at it, prove that it is whole.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use mks2_dataset::import::{Options, Progress, Summary, import};
use mks2_dataset::inspect::{Inspection, inspect};
use mks2_dataset::manifest::{DEFAULT_ROW_GROUP_ROWS, DEFAULT_ROW_GROUPS_PER_SHARD};
use mks2_dataset::picture::Limits;
use mks2_dataset::row::Row;
use mks2_dataset::verify::{Verification, verify};
use mks2_proto::failure::Failure;

use crate::output::Output;
use crate::units;

mod thumbnail;

/// Time between two lines of progress where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Characters of a text that `inspect` shows.
const MAX_TEXT: usize = 300;

const IMPORT_HELP: &str = "\
A WebDataset tar holds samples as consecutive files of one stem: a picture (.png, .jpg, .jpeg,
.webp), its caption (.txt) and its metadata (.json, which may also give caption, question and
answer). A JSON lines file holds one object per line: image (a path relative to the file; without
it the row is text only), caption, question, answer, key or id; everything else is metadata.

Bad samples are left out, counted, and listed with place and reason in URL/quarantine.jsonl.
An import that was interrupted is simply started again.

Credentials come from the environment: AWS_*, GOOGLE_*, AZURE_*.

Examples:
  mks2 data import 'train-{00000..00099}.tar' --out data/train
  mks2 data import s3://bucket/questions.jsonl --out s3://bucket/corpora/questions";

/// What can be done with corpora.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Make a corpus of WebDataset tars and JSON lines
    #[command(after_help = IMPORT_HELP)]
    Import(ImportArgs),
    /// Show what a corpus holds, and a few of its rows
    Inspect(InspectArgs),
    /// Check digests, rows and keys, and decode every picture
    Verify(VerifyArgs),
}

/// `mks2 data import`
#[derive(Clone, Debug, Args)]
pub(crate) struct ImportArgs {
    /// Paths or URLs of .tar and .jsonl files; {00000..00003} counts, {a,b} lists
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// Path or URL of the corpus
    #[arg(long, value_name = "URL")]
    out: String,
    /// Replace a corpus of other content that is there
    #[arg(long)]
    overwrite: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// Rows of a row group, the unit of reading
    #[arg(long, value_name = "N", default_value_t = DEFAULT_ROW_GROUP_ROWS)]
    row_group_rows: u32,
    /// Row groups of a shard
    #[arg(long, value_name = "N", default_value_t = DEFAULT_ROW_GROUPS_PER_SHARD)]
    row_groups_per_shard: u32,
    /// Largest encoded picture, bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().max_bytes)]
    max_picture_bytes: u64,
    /// Largest picture, pixels
    #[arg(long, value_name = "PIXELS", default_value_t = Limits::default().max_pixels)]
    max_pixels: u64,
}

/// `mks2 data inspect`
#[derive(Clone, Debug, Args)]
pub(crate) struct InspectArgs {
    /// Path or URL of the corpus
    url: String,
    /// Rows to show, spread over the corpus
    #[arg(long, value_name = "N", default_value_t = 3)]
    samples: u64,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// `mks2 data verify`
#[derive(Clone, Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Path or URL of the corpus
    url: String,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
///
/// # Errors
/// Exit 4 for sources and corpora that can not be used, exit 5 for trouble with a store.
pub(crate) async fn run(command: DataCommand, output: &Output) -> Result<(), Failure> {
    match command {
        DataCommand::Import(args) => run_import(args, output).await,
        DataCommand::Inspect(args) => run_inspect(&args, output).await,
        DataCommand::Verify(args) => run_verify(&args, output).await,
    }
}

async fn run_import(args: ImportArgs, output: &Output) -> Result<(), Failure> {
    let limits = Limits {
        max_bytes: args.max_picture_bytes,
        max_pixels: args.max_pixels,
        ..Limits::default()
    };
    let options = Options {
        sources: args.sources,
        out: args.out,
        overwrite: args.overwrite,
        row_group_rows: args.row_group_rows,
        row_groups_per_shard: args.row_groups_per_shard,
        limits,
    };
    let meter = Meter::new(output, "{bar:32} {bytes}/{total_bytes} {msg} {eta}");
    let watch = |now: &Progress| {
        let words = match now.quarantined {
            0 => units::plural(now.rows, "row"),
            bad => format!(
                "{}, {} left out",
                units::plural(now.rows, "row"),
                units::count(bad)
            ),
        };
        meter.show(now.bytes, now.bytes_total, &words);
    };
    let summary = import(&options, &watch).await;
    meter.finish();
    let summary = summary?;
    if args.json {
        output.result(&to_json(&summary)?);
    } else {
        output.result(&summary_text(&summary));
    }
    Ok(())
}

/// The summary for people.
fn summary_text(summary: &Summary) -> String {
    let mut text = if summary.identical {
        format!(
            "{} holds this corpus already, nothing was written: ",
            summary.out
        )
    } else {
        format!("imported into {}: ", summary.out)
    };
    text.push_str(&format!(
        "{} in {}, {}, {:.1} s\n",
        units::plural(summary.rows, "row"),
        units::plural(summary.shards, "shard"),
        units::bytes(summary.bytes),
        summary.seconds
    ));
    if summary.quarantined > 0 {
        let bad = units::plural(summary.quarantined, "bad sample");
        text.push_str(&format!(
            "{bad} left out, listed in {}/quarantine.jsonl:\n",
            summary.out
        ));
        for (reason, count) in &summary.reasons {
            text.push_str(&format!("  {:>8}  {reason}\n", units::count(*count)));
        }
    }
    text.push_str(&cut_off(&summary.without_end));
    text
}

/// A remark on tars that may lack their end.
fn cut_off(tars: &[String]) -> String {
    let Some(first) = tars.first() else {
        return String::new();
    };
    let more = match tars.len() {
        1 => String::new(),
        all => format!(" and {} more", all - 1),
    };
    format!("{first}{more} has no end mark: if it was cut short, the samples behind are missing\n")
}

async fn run_inspect(args: &InspectArgs, output: &Output) -> Result<(), Failure> {
    let look = inspect(&args.url, args.samples).await?;
    if args.json {
        output.result(&inspection_json(&look)?);
        return Ok(());
    }
    output.result(&inspection_text(&look));
    let pictures = thumbnail::can_show();
    for row in &look.samples {
        if pictures && let Some(lines) = thumbnail::render(row) {
            output.result(&lines);
        }
        output.result(&row_text(row));
    }
    Ok(())
}

/// The look at a corpus for people, without its rows.
fn inspection_text(look: &Inspection) -> String {
    let columns = look.columns;
    let mut text = format!(
        "{}\n  {} in {}, {}\n  row groups of {}, {} of them in a shard\n  digest {}\n",
        look.url,
        units::plural(look.rows, "row"),
        units::plural(look.shards, "shard"),
        units::bytes(look.bytes),
        units::plural(look.row_group_rows.into(), "row"),
        look.row_groups_per_shard,
        look.digest,
    );
    text.push_str("\ncolumn      type                rows\n");
    for (name, kind) in &look.schema {
        let rows = match name.as_str() {
            "image" => columns.image,
            "caption" => columns.caption,
            "question" => columns.question,
            "answer" => columns.answer,
            _ => look.rows,
        };
        text.push_str(&format!(
            "{name:<10}  {kind:<8}  {:>14}\n",
            units::count(rows)
        ));
    }
    text.push_str(&format!(
        "\nfields for templates: {}\n",
        look.fields.join(", ")
    ));
    if look.quarantine.rows > 0 {
        let bad = units::plural(look.quarantine.rows, "bad sample");
        text.push_str(&format!("{bad} left out at import: see quarantine.jsonl\n"));
    }
    text
}

/// A row for people.
fn row_text(row: &Row) -> String {
    let mut text = format!("row {} ({})\n", row.index, row.key);
    let mut line = |name: &str, value: &str| {
        text.push_str(&format!(
            "  {name}: {}\n",
            thumbnail::plain(value, MAX_TEXT)
        ));
    };
    if let Some(image) = &row.image {
        line("image", &units::bytes(image.len() as u64));
    }
    for (name, value) in [
        ("caption", &row.caption),
        ("question", &row.question),
        ("answer", &row.answer),
    ] {
        if let Some(value) = value {
            line(name, value);
        }
    }
    for (name, value) in &row.metadata {
        match row.field(name) {
            Some(value) => line(name, &value),
            None => line(name, &value.to_string()),
        }
    }
    text
}

fn inspection_json(look: &Inspection) -> Result<String, Failure> {
    let mut json = serde_json::to_value(look).map_err(|error| unprintable(&error))?;
    let samples = look.samples.iter().map(|row| {
        serde_json::json!({
            "index": row.index, "key": row.key, "caption": row.caption, "question": row.question,
            "answer": row.answer, "metadata": row.metadata,
            "image_bytes": row.image.as_ref().map(|image| image.len()),
        })
    });
    json["samples"] = samples.collect();
    to_json(&json)
}

async fn run_verify(args: &VerifyArgs, output: &Output) -> Result<(), Failure> {
    let meter = Meter::new(output, "{bar:32} {pos}/{len} rows {msg} {eta}");
    let found = verify(&args.url, &|rows, total| meter.show(rows, total, "checked")).await;
    meter.finish();
    let found = found?;
    if args.json {
        output.result(&to_json(&found)?);
    } else {
        output.result(&verification_text(&found));
    }
    match found.problems.first() {
        None => Ok(()),
        Some(first) => Err(Failure::data(
            format!("the corpus at {} is damaged", found.url),
            format!(
                "{}; the first: {first}",
                units::plural(found.problems_total, "problem")
            ),
            "import it again with --overwrite, or bring back the files from a copy",
        )),
    }
}

/// What a verification has found, for people.
fn verification_text(found: &Verification) -> String {
    let mut text = format!(
        "{}: {}, {} decoded, {} hashed, {:.1} s: {}\n",
        found.url,
        units::plural(found.rows, "row"),
        units::plural(found.pictures, "picture"),
        units::plural(found.shards, "shard"),
        found.seconds,
        match found.problems_total {
            0 => "all is well".to_owned(),
            count => units::plural(count, "problem"),
        }
    );
    for problem in &found.problems {
        text.push_str(&format!("  {problem}\n"));
    }
    if found.problems_total > found.problems.len() as u64 {
        text.push_str("  ...\n");
    }
    text
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| unprintable(&error))
}

fn unprintable(error: &serde_json::Error) -> Failure {
    Failure::internal("the answer cannot be printed", error.to_string())
}

/// A bar on a terminal, a plain line now and then elsewhere.
struct Meter<'a> {
    output: &'a Output,
    bar: ProgressBar,
    last_line: Mutex<Instant>,
}

impl<'a> Meter<'a> {
    fn new(output: &'a Output, template: &str) -> Self {
        let bar = output.bars().add(ProgressBar::new(0));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            output,
            bar,
            last_line: Mutex::new(Instant::now()),
        }
    }

    fn show(&self, done: u64, total: u64, words: &str) {
        if self.output.shows_bars() {
            self.bar.set_length(total);
            self.bar.set_position(done);
            self.bar.set_message(words.to_owned());
            return;
        }
        let Ok(mut last_line) = self.last_line.lock() else {
            return;
        };
        if last_line.elapsed() >= LINE_EVERY {
            *last_line = Instant::now();
            let share = done as f64 / total.max(1) as f64;
            self.output
                .note(&format!("{} {words}", units::percent(share)));
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
