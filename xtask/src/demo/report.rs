//! The figures of a run, from its report.json.

use serde_json::Value;

/// The figures of a report that are compared between runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    /// What is measured and its value, a share between 0 and 1 or a loss.
    pub(crate) values: Vec<(&'static str, f64)>,
}

/// Names of figures and where they are in the report.
const FIGURES: [(&str, &str); 12] = [
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
    ("colour probe: image feature", "/evaluation/probes/image"),
    (
        "colour probe: state with memory",
        "/evaluation/probes/with_memory",
    ),
    (
        "colour probe: state without memory",
        "/evaluation/probes/without_memory",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_report_lacks_is_left_out() {
        let report = serde_json::json!({
            "evaluation": {"retrieval": {"r1": 0.92}, "caption": {"loss": 3.5}},
        });
        let values = Figures::read(&report).values;
        assert_eq!(
            values,
            [("retrieval R@1", 0.92), ("caption loss with picture", 3.5)]
        );
        assert_eq!(percent(values[0].0, values[0].1), "92.0 %");
        assert_eq!(percent(values[1].0, values[1].1), "3.500");
    }
}
