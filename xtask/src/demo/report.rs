//! The closing table of a run, from its report.json.

use serde_json::Value;

use crate::ui;

/// The figures of a report that are compared between runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// What is measured and its value, a share between 0 and 1 or a loss.
    pub(crate) values: Vec<(&'static str, f64)>,
}

/// Names of figures and where they are in the report.
const FIGURES: [(&str, &str); 9] = [
    ("retrieval R@1", "/evaluation/retrieval/r1"),
    ("retrieval R@5", "/evaluation/retrieval/r5"),
    ("retrieval R@10", "/evaluation/retrieval/r10"),
    ("caption loss with picture", "/evaluation/caption/loss"),
    (
        "caption loss without picture",
        "/evaluation/caption/loss_without_image",
    ),
    (
        "colour questions: majority answer",
        "/evaluation/questions/majority",
    ),
    ("colour questions: LoRA alone", "/evaluation/questions/lora"),
    ("colour questions: MKS2", "/evaluation/questions/mks2"),
    (
        "colour questions: MKS2, memory shuffled",
        "/evaluation/questions/shuffled",
    ),
];

impl Figures {
    /// Those that the report holds.
    pub(crate) fn read(report: &Value) -> Self {
        let found =
            |(name, place): (&'static str, &str)| Some((name, report.pointer(place)?.as_f64()?));
        Self {
            values: FIGURES.into_iter().filter_map(found).collect(),
        }
    }
}

/// A share as a percentage, anything that is called a loss as it is.
pub(crate) fn percent(name: &str, value: f64) -> String {
    if name.contains("loss") {
        format!("{value:.3}")
    } else {
        format!("{:.1} %", value * 100.0)
    }
}

/// What a person wants to see at the end.
pub(super) fn closing_table(report: &Value, peak_bytes: u64) -> String {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let stages = report["stages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let rows: Vec<Vec<String>> = stages
        .iter()
        .map(|stage| {
            let number = |key: &str, digits: usize| {
                stage[key]
                    .as_f64()
                    .map_or_else(|| "-".into(), |n| format!("{n:.digits$}"))
            };
            vec![
                text(&stage["name"]),
                text(&stage["steps"]),
                number("seconds", 1),
                number("loss", 3),
            ]
        })
        .collect();
    let mut facts: Vec<Vec<String>> = Figures::read(report)
        .values
        .iter()
        .map(|(name, value)| vec![(*name).to_owned(), percent(name, *value)])
        .collect();
    facts.push(vec![
        "workers, reduction".into(),
        format!("{}, {}", report["workers"], text(&report["reduction"])),
    ]);
    facts.push(vec![
        "weights digest".into(),
        text(&report["weights_digest"]).chars().take(16).collect(),
    ]);
    facts.push(vec![
        "largest memory of all processes".into(),
        format!("{:.2} GiB", peak_bytes as f64 / f64::from(1 << 30)),
    ]);
    let stages = ui::table(&["stage", "steps", "seconds", "loss at the end"], &rows);
    format!("\n{stages}\n\n{}", ui::table(&["result", "value"], &facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_with_parts_missing_still_gives_a_table() {
        let report = serde_json::json!({
            "stages": [{"name": "memory", "steps": 10, "seconds": 1.5, "loss": 2.0}],
            "evaluation": {"retrieval": {"r1": 0.92}, "questions": {"mks2": 0.6}},
            "workers": 2, "reduction": "exact", "weights_digest": "abcdef",
        });
        let table = closing_table(&report, 1 << 30);
        assert!(
            table.contains("92.0 %") && table.contains("1.00 GiB"),
            "{table}"
        );
        assert!(
            !table.contains("LoRA"),
            "what was not measured is not shown"
        );
    }
}
