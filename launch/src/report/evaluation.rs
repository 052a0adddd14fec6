//! What the `evaluate` stage has found, as parts of the page.

use std::fmt::Write;

use serde_json::Value;

use super::Sources;
use super::html::section;
use super::text::escape;
use crate::units::{count, percent};

/// The models of the claim, with their names for people; the first is the method's own.
const MODELS: [(&str, &str); 4] = [
    ("mks2", "MKS2"),
    ("lora", "LoRA alone"),
    ("shuffled", "MKS2, memory shuffled"),
    ("majority", "Always the commonest answer"),
];
/// Kinds of tokens in the router's table.
const TOKENS: [(&str, &str); 4] = [
    ("begin", "begin"),
    ("question", "question"),
    ("end", "end"),
    ("answer", "answer"),
];

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn found(sources: &Sources) -> &Value {
    sources.evaluation.as_ref().unwrap_or(&Value::Null)
}

/// A bar of a share, with the standard error of `n` trials.
struct Bar<'a> {
    name: &'a str,
    share: Option<f64>,
    n: Option<u64>,
    /// A line across, for comparison.
    mark: Option<f64>,
    main: bool,
}

impl<'a> Bar<'a> {
    fn new(name: &'a str, share: &Value) -> Self {
        Self {
            name,
            share: share.as_f64(),
            n: None,
            mark: None,
            main: false,
        }
    }
}

fn bars(bars: &[Bar<'_>]) -> String {
    let mut html = String::new();
    for bar in bars {
        let Some(share) = bar.share else { continue };
        let class = if bar.main { " class=main" } else { "" };
        let _ = write!(
            html,
            "<span{class}>{}</span><div class=bar><i style=\"width:{:.1}%\"></i>",
            escape(bar.name),
            100.0 * share.clamp(0.0, 1.0)
        );
        if let Some(mark) = bar.mark {
            let _ = write!(
                html,
                "<u style=\"left:{:.1}%\"></u>",
                100.0 * mark.clamp(0.0, 1.0)
            );
        }
        let _ = write!(html, "</div><b>{}", percent(share));
        if let Some(n) = bar.n.filter(|n| *n > 0) {
            let error = (share * (1.0 - share) / n as f64).max(0.0).sqrt();
            let _ = write!(html, " <small>± {:.1}</small>", 100.0 * error);
        }
        html.push_str("</b>");
    }
    if html.is_empty() {
        html
    } else {
        format!("<div class=bars>{html}</div>")
    }
}

/// The method's claim beside what it is to be compared with.
pub(super) fn claim(sources: &Sources) -> String {
    let (questions, probes) = (&found(sources)["questions"], &found(sources)["probes"]);
    let (n, mark) = (questions["n"].as_u64(), questions["majority"].as_f64());
    let of_model = |(key, name): (&'static str, &'static str)| Bar {
        n: n.filter(|_| key != "majority"),
        mark,
        main: key == "mks2",
        ..Bar::new(name, &questions[key])
    };
    let mut content = bars(&MODELS.map(of_model));
    let probed = bars(&[
        Bar {
            mark,
            ..Bar::new("The picture's feature", &probes["image"])
        },
        Bar {
            mark,
            ..Bar::new("Language model with memory", &probes["with_memory"])
        },
        Bar {
            mark,
            ..Bar::new("Language model without memory", &probes["without_memory"])
        },
    ]);
    if !probed.is_empty() {
        let _ = write!(
            content,
            "<h3>Linear probes</h3><p class=soft>How well a linear classifier reads the same answers from a \
             state. It shows what is there, and is no limit of what a model can answer.</p>{probed}"
        );
    }
    content.push_str(&answers(list(&questions["details"])));
    let explanation = format!(
        "{} held-out questions, asked in text alone, whose answers training showed only in pictures. Share of \
         right answers, ± one standard error; the dashed line is the share of the commonest answer.",
        count(n.unwrap_or(0))
    );
    section(
        "Knowledge from pictures, asked in text",
        &explanation,
        &content,
    )
}

fn answers(details: &[Value]) -> String {
    let Some(given) = details.first().and_then(|first| first["given"].as_object()) else {
        return String::new();
    };
    let known = |key: &&str| given.contains_key(*key);
    let models: Vec<&str> = MODELS.iter().map(|(key, _)| *key).filter(known).collect();
    let name = |key: &str| {
        MODELS
            .iter()
            .find(|(model, _)| *model == key)
            .map_or("", |(_, name)| *name)
    };
    let heads: String = models
        .iter()
        .map(|model| format!("<th>{}", name(model)))
        .collect();
    let mut rows = String::new();
    for detail in details {
        let _ = write!(
            rows,
            "<tr><td>{}<td><b>{}</b>",
            text(&detail["question"]),
            text(&detail["answer"])
        );
        for model in &models {
            let given = &detail["given"][*model];
            let (class, mark) = if *given == detail["answer"] {
                ("done", " ✓")
            } else {
                ("soft", "")
            };
            let _ = write!(rows, "<td class={class}>{}{mark}", text(given));
        }
    }
    format!(
        "<details class=answers><summary>All {} questions with their answers</summary><div class=wide><table>\
         <thead><tr><th>question<th>right{heads}</thead><tbody>{rows}</tbody></table></div></details>",
        details.len()
    )
}

/// An inline picture, or nothing: other addresses would need the network.
fn picture(value: &Value) -> String {
    let inline = |url: &&str| {
        [
            "data:image/png;base64,",
            "data:image/jpeg;base64,",
            "data:image/webp;base64,",
        ]
        .iter()
        .any(|kind| url.starts_with(kind))
    };
    let alt = text(&value["key"]);
    match value["picture"].as_str().filter(inline) {
        Some(url) => format!("<img alt=\"{alt}\" src=\"{}\">", escape(url)),
        None => String::new(),
    }
}

/// Recall, and what a few texts find.
pub(super) fn retrieval(sources: &Sources) -> String {
    let recall = &found(sources)["retrieval"];
    let mut content = bars(&[
        Bar {
            main: true,
            ..Bar::new("The first is right (R@1)", &recall["r1"])
        },
        Bar::new("Among the first 5 (R@5)", &recall["r5"]),
        Bar::new("Among the first 10 (R@10)", &recall["r10"]),
    ]);
    let mut pairs = String::new();
    for example in list(&found(sources)["examples"]) {
        let nearest = list(&example["nearest"]);
        if !nearest.is_empty() {
            let figures: String = nearest.iter().map(neighbour).collect();
            let _ = write!(
                pairs,
                "<div class=pair><b>{}</b><div class=found>{figures}</div></div>",
                text(&example["query"])
            );
        }
    }
    if !pairs.is_empty() {
        let _ = write!(
            content,
            "<h3>Five nearest pictures</h3><p class=soft>Nearest first, with their cosine similarities; the \
             text's own picture is framed and ticked.</p><div class=pairs>{pairs}</div>"
        );
    }
    let n = recall["n"].as_u64().unwrap_or(0);
    let chance = if n > 0 {
        format!(" Chance is {:.2} % at R@1.", 100.0 / n as f64)
    } else {
        String::new()
    };
    let explanation = format!(
        "Each text looks for its own picture among {}.{chance}",
        count(n)
    );
    section("Text-to-image retrieval", &explanation, &content)
}

fn neighbour(found: &Value) -> String {
    let (class, mark) = if found["own"] == Value::Bool(true) {
        (" class=hit", " ✓")
    } else {
        ("", "")
    };
    let similarity = found["similarity"]
        .as_f64()
        .map(|value| format!("{value:.2}"));
    format!(
        "<figure{class}>{}<figcaption>{}{mark}</figcaption></figure>",
        picture(found),
        similarity.unwrap_or_default()
    )
}

/// Caption loss, and generated captions beside their pictures.
pub(super) fn captions(sources: &Sources) -> String {
    let loss = &found(sources)["caption"];
    let mut content = String::new();
    if let (Some(with), Some(without)) =
        (loss["loss"].as_f64(), loss["loss_without_image"].as_f64())
    {
        let _ = write!(
            content,
            "<table><thead><tr><th>Loss per token<th class=n>nats</thead><tbody><tr><td>with the picture<td class=n>\
             {with:.3}<tr><td>without the picture<td class=n>{without:.3}</tbody></table>"
        );
    }
    let mut pairs = String::new();
    for example in list(&found(sources)["examples"]) {
        let generated = match example["generated"].as_str().map(str::trim) {
            Some("") | None => "<i>(nothing)</i>".to_owned(),
            Some(words) => escape(words),
        };
        let _ = write!(
            pairs,
            "<div class=pair><div class=own>{}<div><b>{generated}</b><br><span class=soft>{}</span></div></div></div>",
            picture(example),
            text(&example["caption"])
        );
    }
    if !pairs.is_empty() {
        let _ = write!(content, "<div class=pairs>{pairs}</div>");
    }
    section(
        "Captions",
        "What the model writes about a picture, always taking the likeliest token, in bold; the corpus' own caption below it.",
        &content,
    )
}

/// What tasks in files of their own have come to.
pub(super) fn tasks(sources: &Sources) -> String {
    let mut rows = String::new();
    for task in list(&found(sources)["tasks"]) {
        for (number, metric) in list(&task["metrics"]).iter().enumerate() {
            let first = |words: String| match number {
                0 => words,
                _ => String::new(),
            };
            let number = |value: &Value| format!("{:.4}", value.as_f64().unwrap_or_default());
            let _ = write!(
                rows,
                "<tr><td>{}<td>{}<td>{}<td class=n>{}<td class=n>{} to {}<td class=n>{}",
                first(format!("<b>{}</b>", text(&task["task"]))),
                first(text(&task["stage"])),
                text(&metric["name"]),
                number(&metric["value"]),
                number(&metric["interval"][0]),
                number(&metric["interval"][1]),
                first(count(task["measured"].as_u64().unwrap_or(0))),
            );
        }
    }
    let table = match rows.is_empty() {
        true => rows,
        false => format!(
            "<div class=wide><table><thead><tr><th>task<th>stage<th>metric<th class=n>value<th class=n>95 % interval\
             <th class=n>items</thead><tbody>{rows}</tbody></table></div>"
        ),
    };
    section(
        "Tasks",
        "Metrics as other programs have them, with confidence intervals by the bootstrap over the items.",
        &table,
    )
}

/// Share of the memories per block and kind of token.
pub(super) fn router(sources: &Sources) -> String {
    let mut rows = String::new();
    for block in list(&found(sources)["router"]) {
        let _ = write!(rows, "<tr><th>{}", block["block"].as_u64().unwrap_or(0));
        for (kind, _) in TOKENS {
            let _ = match block[kind].as_f64() {
                // Half the colour at most: the number on it stays readable.
                Some(share) => write!(
                    rows,
                    "<td style=\"--share:{:.0}%\">{}",
                    45.0 * share.clamp(0.0, 1.0),
                    percent(share)
                ),
                None => write!(rows, "<td>–"),
            };
        }
    }
    if rows.is_empty() {
        return rows;
    }
    let heads: String = TOKENS
        .iter()
        .map(|(_, name)| format!("<th>{name}"))
        .collect();
    section(
        "The router's use of memory",
        "Share of the visual memory in each block's mixture at the begin token, the question, the end token behind it and the answer; the rest is the block's own MLP.",
        &format!(
            "<div class=wide><table class=heat><thead><tr><th>block{heads}</thead><tbody>{rows}</tbody></table></div>"
        ),
    )
}
