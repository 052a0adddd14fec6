//! `report.html`: one file that needs no network and no script.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::chart::{Curve, chart, escape, short};
use super::{Report, Sources};

const STYLE: &str = include_str!("style.css");

/// Metrics that are drawn, with their names in the legend.
const LOSSES: [(&str, &str); 5] = [
    ("loss", "loss"),
    ("loss_language", "language"),
    ("loss_contrastive", "contrastive"),
    ("loss_caption", "captioning"),
    ("loss_retrieval", "retrieval"),
];

/// The whole page.
pub(super) fn page(sources: &Sources, report: &Report) -> String {
    let name = escape(&sources.job.name);
    let mut body = String::new();
    for part in [
        head(sources, report),
        stages(report),
        claim(sources),
        retrieval(sources),
        captions(sources),
        router(sources),
        curves(sources),
        job(sources),
    ] {
        body.push_str(&part);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>mks2: {name}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )
}

fn head(sources: &Sources, report: &Report) -> String {
    let steps = sources.metrics.last().and_then(|line| line["step"].as_u64()).unwrap_or(0);
    let text = |key: &str| sources.run_json[key].as_str().unwrap_or("unknown").to_owned();
    let digest = report.weights_digest.as_deref().unwrap_or("none yet");
    format!(
        "<h1>{}</h1><p>Run <code>{}</code>, {steps} steps on {} worker{}, {} reduction over {} lanes, \
         seed {}.<br>Weights <code>{}</code></p>",
        escape(&sources.job.name),
        escape(&text("run_id")),
        report.workers,
        if report.workers == 1 { "" } else { "s" },
        format!("{:?}", report.reduction).to_lowercase(),
        sources.job.lanes,
        sources.job.seed,
        escape(&digest.chars().take(16).collect::<String>()),
    )
}

fn section(title: &str, explanation: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<h2>{title}</h2><p>{explanation}</p>{content}")
}

fn stages(report: &Report) -> String {
    if report.stages.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    for stage in &report.stages {
        let _ = write!(
            rows,
            "<tr><td>{}</td><td class=n>{}</td><td class=n>{:.1}</td><td class=n>{}</td><td><code>{}</code></td></tr>",
            escape(&stage.name),
            stage.steps,
            stage.seconds,
            stage.loss.map_or_else(|| "-".into(), short),
            escape(stage.weights_digest.get(..12).unwrap_or_default()),
        );
    }
    let table = format!(
        "<div class=wide><table><tr><th>stage<th class=n>steps<th class=n>seconds<th class=n>last loss<th>weights</tr>{rows}</table></div>"
    );
    section("Stages", "What was trained, in order; each stage starts from checkpoints of those before it.", &table)
}

fn percent(value: &Value) -> Option<String> {
    value.as_f64().map(|share| format!("{:.1} %", 100.0 * share))
}

/// Rows of name and share, drawn as bars.
fn bars(rows: &[(&str, &Value)]) -> String {
    let mut table = String::new();
    for (name, value) in rows {
        if let (Some(share), Some(text)) = (value.as_f64(), percent(value)) {
            let _ = write!(
                table,
                "<tr><td>{name}</td><td><div class=bar><i style=\"width:{:.1}%\"></i><b>{text}</b></div></td></tr>",
                100.0 * share.clamp(0.0, 1.0)
            );
        }
    }
    if table.is_empty() { table } else { format!("<table>{table}</table>") }
}

fn claim(sources: &Sources) -> String {
    let Some(found) = &sources.evaluation else { return String::new() };
    let (questions, probes) = (&found["questions"], &found["probes"]);
    let mut content = bars(&[
        ("MKS2", &questions["mks2"]),
        ("LoRA alone", &questions["lora"]),
        ("MKS2, memory shuffled", &questions["shuffled"]),
        ("always the commonest answer", &questions["majority"]),
    ]);
    let probed = bars(&[
        ("image feature", &probes["image"]),
        ("language model with memory", &probes["with_memory"]),
        ("language model without memory", &probes["without_memory"]),
    ]);
    if !probed.is_empty() {
        let _ = write!(content, "<p>Linear probes of the same answers, for comparison:</p>{probed}");
    }
    content.push_str(&answers(&questions["details"]));
    let explanation = format!(
        "{} held-out questions, asked in text alone, about what only pictures ever showed. Share of right answers.",
        questions["n"].as_u64().unwrap_or(0)
    );
    section("Knowledge from pictures, asked in text", &explanation, &content)
}

fn answers(details: &Value) -> String {
    let Some(details) = details.as_array().filter(|details| !details.is_empty()) else { return String::new() };
    let models: Vec<String> = details[0]["given"].as_object().map(|given| given.keys().cloned().collect()).unwrap_or_default();
    let mut rows = String::new();
    for detail in details {
        let answer = detail["answer"].as_str().unwrap_or_default();
        let _ = write!(rows, "<tr><td>{}</td><td><b>{}</b></td>", escape(detail["question"].as_str().unwrap_or_default()), escape(answer));
        for model in &models {
            let given = detail["given"][model].as_str().unwrap_or_default();
            let mark = if given == answer { " ✓" } else { "" };
            let _ = write!(rows, "<td>{}{mark}</td>", escape(given));
        }
        rows.push_str("</tr>");
    }
    let heads: String = models.iter().map(|model| format!("<th>{}", escape(model))).collect();
    format!(
        "<details><summary>All questions and answers</summary><div class=wide><table><tr><th>question<th>right{heads}</tr>{rows}</table></div></details>"
    )
}

fn examples(sources: &Sources) -> &[Value] {
    sources.evaluation.as_ref().and_then(|found| found["examples"].as_array()).map_or(&[], Vec::as_slice)
}

fn picture(value: &Value) -> String {
    let source = value["picture"].as_str().filter(|url| url.starts_with("data:image/")).unwrap_or_default();
    format!("<img alt=\"{}\" src=\"{}\">", escape(value["key"].as_str().unwrap_or_default()), escape(source))
}

fn retrieval(sources: &Sources) -> String {
    let Some(found) = &sources.evaluation else { return String::new() };
    let recall = &found["retrieval"];
    let mut content = bars(&[("R@1", &recall["r1"]), ("R@5", &recall["r5"]), ("R@10", &recall["r10"])]);
    if !examples(sources).is_empty() {
        content.push_str("<div class=pairs>");
        for example in examples(sources) {
            let _ = write!(content, "<div class=pair><b>{}</b><div class=found>", escape(example["query"].as_str().unwrap_or_default()));
            for found in example["nearest"].as_array().map_or(&[][..], Vec::as_slice) {
                let class = if found["own"] == Value::Bool(true) { " class=hit" } else { "" };
                let similarity = found["similarity"].as_f64().unwrap_or(0.0);
                let _ = write!(content, "<figure{class}>{}<figcaption>{similarity:.2}</figcaption></figure>", picture(found));
            }
            content.push_str("</div></div>");
        }
        content.push_str("</div>");
    }
    let explanation = format!(
        "A text looks for its own picture among {}. Below, the five nearest pictures of a few texts with their cosine similarities; the right one is framed.",
        recall["n"].as_u64().unwrap_or(0)
    );
    section("Text-to-image retrieval", &explanation, &content)
}

fn captions(sources: &Sources) -> String {
    let Some(found) = &sources.evaluation else { return String::new() };
    let loss = &found["caption"];
    let mut content = String::new();
    if let (Some(with), Some(without)) = (loss["loss"].as_f64(), loss["loss_without_image"].as_f64()) {
        let _ = write!(
            content,
            "<table><tr><th>loss per token<th class=n>value</tr><tr><td>with the picture</td><td class=n>{with:.3}</td></tr>\
             <tr><td>without the picture</td><td class=n>{without:.3}</td></tr></table>"
        );
    }
    if !examples(sources).is_empty() {
        content.push_str("<div class=pairs style=\"margin-top:1rem\">");
        for example in examples(sources) {
            let text = |key: &str| escape(example[key].as_str().unwrap_or_default());
            let _ = write!(
                content,
                "<div class=\"pair\"><div class=own>{}<div><b>{}</b><br><span class=soft>{}</span></div></div></div>",
                picture(example),
                text("generated"),
                text("caption")
            );
        }
        content.push_str("</div>");
    }
    section("Captions", "Greedy captions in bold, the corpus' own below them.", &content)
}

fn router(sources: &Sources) -> String {
    let uses = sources.evaluation.as_ref().and_then(|found| found["router"].as_array());
    let Some(uses) = uses.filter(|uses| !uses.is_empty()) else { return String::new() };
    let kinds = [("begin", "begin token"), ("question", "question"), ("end", "end token"), ("answer", "answer")];
    let mut table = String::from("<div class=wide><table><tr><th>block");
    for (_, name) in kinds {
        let _ = write!(table, "<th>{name}");
    }
    for block in uses {
        let _ = write!(table, "<tr><td>{}</td>", block["block"].as_u64().unwrap_or(0));
        for (kind, _) in kinds {
            match (block[kind].as_f64(), percent(&block[kind])) {
                (Some(share), Some(text)) => {
                    let _ = write!(table, "<td><div class=bar><i style=\"width:{:.1}%\"></i><b>{text}</b></div></td>", 100.0 * share);
                }
                _ => table.push_str("<td>-</td>"),
            }
        }
        table.push_str("</tr>");
    }
    table.push_str("</table></div>");
    section("The router's use of memory", "Share of the visual memory in each block's mixture, by kind of token; the rest is the MLP.", &table)
}

fn curves(sources: &Sources) -> String {
    let mut stages: BTreeMap<u64, (String, Vec<&Value>)> = BTreeMap::new();
    for stage in &sources.job.stages {
        let lines: Vec<&Value> = sources.metrics.iter().filter(|line| line["stage"] == stage.name.as_str()).collect();
        if let Some(first) = lines.first().and_then(|line| line["step"].as_u64()) {
            stages.insert(first, (stage.name.clone(), lines));
        }
    }
    let mut content = String::new();
    for (name, lines) in stages.values() {
        let curve = |(key, legend): (&str, &str)| Curve { name: legend.into(), points: points(lines, key) };
        let mut losses: Vec<Curve> = LOSSES.into_iter().map(curve).filter(|c| !c.points.is_empty()).collect();
        if losses.len() == 2 {
            // One part alone is the whole loss.
            losses.pop();
        }
        content.push_str(&chart(&format!("{name}: loss"), &losses));
        content.push_str(&chart(&format!("{name}: gradient norm"), &[curve(("grad_norm", "before clipping"))]));
        let rate = Curve { name: "samples per second".into(), points: rate(lines) };
        content.push_str(&chart(&format!("{name}: speed"), &[rate]));
    }
    section("Curves", "Means over short stretches of steps.", &content)
}

fn points(lines: &[&Value], key: &str) -> Vec<(f64, f64)> {
    lines.iter().filter_map(|line| Some((line["step"].as_f64()?, line[key].as_f64()?))).collect()
}

/// Samples of each step over its seconds.
fn rate(lines: &[&Value]) -> Vec<(f64, f64)> {
    let samples = |line: &Value| line["samples"].as_f64();
    let pairs = lines.windows(2).filter_map(|pair| {
        let batch = samples(pair[1])? - samples(pair[0])?;
        let seconds = pair[1]["step_seconds"].as_f64()?;
        (batch > 0.0 && seconds > 0.0).then(|| Some((pair[1]["step"].as_f64()?, batch / seconds))).flatten()
    });
    pairs.collect()
}

fn job(sources: &Sources) -> String {
    let run = serde_json::to_string_pretty(&sources.run_json).unwrap_or_default();
    let content = format!(
        "<details><summary>config.resolved.toml</summary><pre>{}</pre></details>\
         <details><summary>run.json</summary><pre>{}</pre></details>",
        escape(&sources.job_toml),
        escape(&run)
    );
    section(
        "The exact job",
        &format!("mks2 {}. The resolved job file gives the same run again.", env!("CARGO_PKG_VERSION")),
        &content,
    )
}
