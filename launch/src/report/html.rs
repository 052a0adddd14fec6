//! `report.html`: one file that needs no network and no script.

use std::fmt::Write;
use std::time::Duration;

use mks2_coordinator::journal::Ending;
use mks2_proto::job::{Stage, StageKind};
use serde_json::Value;

use super::text::{escape, moment, short};
use super::{Report, Sources, curves, evaluation, time};
use crate::units::{clock, count, percent, plural};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn page(sources: &Sources, report: &Report) -> String {
    let body = [
        head(sources, report),
        note(sources),
        tiles(sources, report),
        evaluation::claim(sources),
        evaluation::retrieval(sources),
        evaluation::captions(sources),
        evaluation::tasks(sources),
        evaluation::router(sources),
        stages(sources, report),
        time::time(sources),
        curves::curves(sources),
        job(sources, report),
    ];
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{} · mks2 report</title><style>{STYLE}</style></head><body>{}</body></html>\n",
        escape(&sources.job.name),
        body.concat()
    )
}

/// A titled part of the page; nothing if it has no content.
pub(super) fn section(title: &str, explanation: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<h2>{title}</h2><p>{explanation}</p>{content}")
}

fn run_text(sources: &Sources, key: &str) -> String {
    escape(sources.run_json[key].as_str().unwrap_or("unknown"))
}

fn steps_done(sources: &Sources) -> u64 {
    sources
        .metrics
        .last()
        .and_then(|line| line["step"].as_u64())
        .unwrap_or(0)
}

fn steps_planned(sources: &Sources) -> u64 {
    sources.job.stages.iter().map(|stage| stage.steps).sum()
}

fn head(sources: &Sources, report: &Report) -> String {
    let (class, state) = match sources.past.ending {
        Some(Ending::Finished) => ("done", "✓ finished"),
        Some(Ending::Failed) => ("failed", "✗ failed"),
        Some(Ending::Stopped) => ("open", "stopped"),
        None => ("open", "not finished"),
    };
    let started = sources.run_json["started_ms"].as_u64();
    let mut facts = vec![format!("Run <code>{}</code>", run_text(sources, "run_id"))];
    facts.extend(started.map(|ms| format!("started {}", moment(ms))));
    facts.push(plural(report.workers, "worker"));
    facts.push(plural(sources.job.lanes.into(), "lane"));
    facts.push(format!(
        "{} reduction",
        format!("{:?}", report.reduction).to_lowercase()
    ));
    facts.push(format!("seed {}", sources.job.seed));
    facts.extend((report.failures > 0).then(|| plural(report.failures, "failure")));
    let interruptions = report.interruptions;
    facts.extend((interruptions > 0).then(|| plural(interruptions, "interruption")));
    format!(
        "<h1>{} <span class=\"state {class}\">{state}</span></h1><p class=soft>{}</p>",
        escape(&sources.job.name),
        facts.join(" · ")
    )
}

/// What is not there yet, and why.
fn note(sources: &Sources) -> String {
    if let (Some(Ending::Failed), Some((what, why))) = (sources.past.ending, &sources.past.failure)
    {
        return format!(
            "<div class=\"note failed\"><b>{}</b><br>{}</div>",
            escape(what),
            escape(why)
        );
    }
    if sources.past.ending == Some(Ending::Finished) {
        return String::new();
    }
    let missing = match sources.evaluation {
        None => " There is no evaluation yet.",
        Some(_) => "",
    };
    format!(
        "<div class=note>The run is at step {} of {}.{missing} <code>mks2 report</code> makes this page again from \
         what is there by then.</div>",
        count(steps_done(sources)),
        count(steps_planned(sources))
    )
}

fn tile(name: &str, value: &str, beside: &str) -> String {
    format!("<div class=tile><span>{name}</span><b>{value}</b><small>{beside}</small></div>")
}

/// The few numbers that say how it went.
fn tiles(sources: &Sources, report: &Report) -> String {
    let nothing = Value::Null;
    let found = report.evaluation.as_ref().unwrap_or(&nothing);
    let share = |value: &Value| value.as_f64().map(percent);
    let (questions, recall, caption) =
        (&found["questions"], &found["retrieval"], &found["caption"]);
    let mut tiles = String::new();
    if let Some(right) = share(&questions["mks2"]) {
        let others = [("LoRA alone", "lora"), ("majority", "majority")];
        let others = others
            .iter()
            .filter_map(|(name, key)| Some(format!("{name} {}", share(&questions[*key])?)));
        tiles += &tile(
            "Held-out answers",
            &right,
            &others.collect::<Vec<_>>().join(", "),
        );
    }
    if let Some(first) = share(&recall["r1"]) {
        let beside = format!(
            "among {} pictures",
            count(recall["n"].as_u64().unwrap_or(0))
        );
        tiles += &tile("Retrieval R@1", &first, &beside);
    }
    if let Some(loss) = caption["loss"].as_f64() {
        let without = caption["loss_without_image"]
            .as_f64()
            .map(short)
            .unwrap_or_default();
        tiles += &tile(
            "Caption loss",
            &short(loss),
            &format!("{without} without the picture"),
        );
    }
    let seconds: f64 = sources
        .metrics
        .iter()
        .filter_map(|line| line["step_seconds"].as_f64())
        .sum();
    if !sources.metrics.is_empty() {
        let steps = plural(steps_done(sources), "step");
        tiles += &tile("Training time", &clock(duration(seconds)), &steps);
    }
    format!("<div class=tiles>{tiles}</div>")
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn stages(sources: &Sources, report: &Report) -> String {
    let rows: String = sources
        .job
        .stages
        .iter()
        .map(|stage| stage_row(stage, sources, report))
        .collect();
    if rows.is_empty() {
        return rows;
    }
    let table = format!(
        "<div class=wide><table class=stages><thead><tr><th>stage<th class=k>kind<th class=n>steps<th class=n>time<th class=n>last loss\
         <th class=w>weights</thead><tbody>{rows}</tbody></table></div>"
    );
    section(
        "Stages",
        "In order; each starts from the last checkpoints of the stages that it names.",
        &table,
    )
}

fn stage_row(stage: &Stage, sources: &Sources, report: &Report) -> String {
    let kind = format!("{:?}", stage.kind).to_lowercase();
    let mut row = format!("<tr><td><b>{}</b><td class=k>{kind}", escape(&stage.name));
    let lines = sources
        .metrics
        .iter()
        .filter(|line| line["stage"] == stage.name.as_str());
    let (steps, last) = lines.fold((0, None), |(steps, _), line| (steps + 1, Some(line)));
    let written = match report.stages.iter().find(|done| done.name == stage.name) {
        Some(done) => write!(
            row,
            "<td class=n>{}<td class=n>{}<td class=n>{}<td class=w><code>{}</code>",
            count(done.steps),
            clock(duration(done.seconds)),
            done.loss.map_or_else(|| "–".into(), short),
            escape(done.weights_digest.get(..12).unwrap_or_default()),
        ),
        None if stage.kind.is_brought() => {
            let whose = match stage.kind {
                StageKind::Attach => "of another run",
                _ => "published",
            };
            write!(
                row,
                "<td class=n>–<td class=n>–<td class=n>–<td class=soft>{whose}"
            )
        }
        None if stage.kind == StageKind::Evaluate => {
            let state = if sources.evaluation.is_some() {
                "measured"
            } else {
                "not yet"
            };
            let time = report
                .evaluation_seconds
                .map_or_else(|| "–".into(), |seconds| clock(duration(seconds)));
            write!(
                row,
                "<td class=n>–<td class=n>{time}<td class=n>–<td class=soft>{state}"
            )
        }
        None => write!(
            row,
            "<td class=n>{steps} of {}<td class=n>–<td class=n>{}<td class=soft>{}",
            count(stage.steps),
            last.and_then(|line| line["loss"].as_f64())
                .map_or_else(|| "–".into(), short),
            if steps > 0 { "begun" } else { "not yet" },
        ),
    };
    match written {
        Ok(()) => row,
        Err(_) => String::new(),
    }
}

fn job(sources: &Sources, report: &Report) -> String {
    let mut rows = String::new();
    let mut fact = |name: &str, value: &str| {
        let _ = write!(rows, "<tr><th>{name}<td><code>{value}</code>");
    };
    for program in programs(sources) {
        fact("trained by", &escape(&program));
    }
    fact(
        "reported by",
        &format!("mks2 {}", env!("CARGO_PKG_VERSION")),
    );
    fact("device", &escape(&sources.job.device));
    fact("job digest", &run_text(sources, "job_digest"));
    fact(
        "weights digest",
        &escape(report.weights_digest.as_deref().unwrap_or("none yet")),
    );
    for (name, digest) in sources.run_json["corpora"]
        .as_object()
        .into_iter()
        .flatten()
    {
        fact(
            &format!("corpus {}", escape(name)),
            &escape(digest.as_str().unwrap_or_default()),
        );
    }
    let content = format!(
        "<table class=facts><tbody>{rows}</tbody></table>\
         <details class=job><summary>The job with every setting (config.resolved.toml)</summary><pre>{}</pre></details>",
        escape(&sources.job_toml)
    );
    section(
        "The exact job",
        "What it takes to make this run again.",
        &content,
    )
}

/// What the stages were computed with, each once; before the first is finished, the version that
/// created the run.
fn programs(sources: &Sources) -> Vec<String> {
    let stages = sources.finished.iter();
    let mut programs: Vec<String> = stages.map(|stage| stage.made_with.clone()).collect();
    programs.dedup();
    programs.retain(|program| !program.is_empty());
    if programs.is_empty() {
        let version = sources.run_json["program_version"].as_str();
        programs.push(format!("mks2 {}", version.unwrap_or("unknown")));
    }
    programs
}
