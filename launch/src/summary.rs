//! The closing table of a run, and `mks2 report`, which makes report and table again.

use mks2_proto::failure::Failure;
use mks2_proto::goodput::TimeSpent;
use serde_json::Value;

use crate::goodput;
use crate::output::Output;
use crate::report;
use crate::table::Table;
use crate::units::{clock, count, percent};

/// Composes the report of a run and prints its numbers: a table, or JSON where that is wanted.
///
/// # Errors
/// When there is no run, or its directory can not be read or written (exit 5).
pub(crate) async fn print(run_url: &str, json: bool, output: &Output) -> Result<(), Failure> {
    let written = report::compose(run_url).await?;
    let numbers = serde_json::to_value(&written.report)
        .map_err(|error| Failure::internal("the report has no JSON", error.to_string()))?;
    if json {
        output.result(&format!("{numbers:#}"));
    } else {
        output.result(&render(&numbers, &written.spent));
        output.note(&format!("report: {}", written.html));
    }
    Ok(())
}

fn render(report: &Value, spent: &TimeSpent) -> String {
    let mut text = String::new();
    for part in [
        stages(report),
        evaluation(report),
        time(spent),
        footing(report),
    ] {
        if !part.is_empty() {
            text.push('\n');
            text.push_str(&part);
        }
    }
    text
}

fn stages(report: &Value) -> String {
    let mut table = Table::new(&["stage", ">steps", ">time", ">loss", "weights"]);
    for stage in report["stages"].as_array().into_iter().flatten() {
        let seconds = stage["seconds"].as_f64().unwrap_or(0.0).clamp(0.0, 1e9);
        let digest = stage["weights_digest"].as_str().unwrap_or("");
        table.row([
            stage["name"].as_str().unwrap_or("?").to_owned(),
            stage["steps"].as_u64().map(count).unwrap_or_default(),
            clock(std::time::Duration::from_secs_f64(seconds)),
            stage["loss"]
                .as_f64()
                .map(|loss| format!("{loss:.4}"))
                .unwrap_or_default(),
            digest.chars().take(12).collect(),
        ]);
    }
    if let Some(seconds) = report["evaluation_seconds"].as_f64() {
        let time = clock(std::time::Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
        table.row([
            "evaluate".to_owned(),
            String::new(),
            time,
            String::new(),
            String::new(),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}

fn evaluation(report: &Value) -> String {
    let results = &report["evaluation"];
    let mut table = Table::new(&["evaluation", ">result"]);
    for (key, label) in [
        ("r1", "retrieval R@1"),
        ("r5", "retrieval R@5"),
        ("r10", "retrieval R@10"),
    ] {
        add_share(&mut table, label, &results["retrieval"][key]);
    }
    for (key, label) in [
        ("loss", "caption loss"),
        ("loss_without_image", "caption loss, no image"),
    ] {
        if let Some(loss) = results["caption"][key].as_f64() {
            table.row([label.to_owned(), format!("{loss:.4}")]);
        }
    }
    for (key, label) in [
        ("majority", "questions: majority's share"),
        ("lora", "questions: LoRA alone"),
        ("shuffled", "questions: shuffled memory"),
        ("mks2", "questions: MKS2"),
    ] {
        add_share(&mut table, label, &results["questions"][key]);
    }
    for (key, label) in [
        ("image", "probe: image feature"),
        ("with_memory", "probe: state with memory"),
        ("without_memory", "probe: state without memory"),
    ] {
        add_share(&mut table, label, &results["probes"][key]);
    }
    for task in results["tasks"].as_array().into_iter().flatten() {
        let name = task["task"].as_str().unwrap_or("?");
        for metric in task["metrics"].as_array().into_iter().flatten() {
            let value = metric["value"].as_f64().unwrap_or_default();
            let label = format!("{name}: {}", metric["name"].as_str().unwrap_or("?"));
            table.row([label, format!("{value:.4}")]);
        }
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}

fn add_share(table: &mut Table, label: &str, share: &Value) {
    if let Some(share) = share.as_f64() {
        table.row([label.to_owned(), percent(share)]);
    }
}

fn time(spent: &TimeSpent) -> String {
    match goodput::words(spent) {
        words if words.is_empty() => words,
        words => format!("time: {words}\n"),
    }
}

fn footing(report: &Value) -> String {
    let mut parts = Vec::new();
    parts.extend(
        report["reduction"]
            .as_str()
            .map(|mode| format!("reduction {mode}")),
    );
    parts.extend(
        report["workers"]
            .as_u64()
            .map(|workers| format!("workers {workers}")),
    );
    let digest = report["weights_digest"].as_str();
    parts.extend(digest.map(|digest| format!("weights {digest}")));
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use mks2_proto::goodput::Activity;

    use super::*;

    #[test]
    fn a_report_becomes_a_table_and_missing_parts_are_left_out() {
        let report = serde_json::json!({
            "weights_digest": "abc",
            "stages": [{"name": "memory", "steps": 1200, "seconds": 61.2, "loss": 0.5,
                        "weights_digest": "0123456789abcdef"}],
            "evaluation": {"retrieval": {"r1": 0.93, "n": 1580}, "probes": {"image": 0.76},
                "tasks": [{"task": "colors", "metrics": [{"name": "acc", "value": 0.61}]}]},
            "reduction": "exact",
            "workers": 2,
            "evaluation_seconds": 12.4,
        });
        let mut spent = TimeSpent::ZERO;
        spent.add(Activity::Useful, 3);
        spent.add(Activity::Data, 1);
        let text = render(&report, &spent);
        assert!(text.contains("evaluate         0:12"), "{text}");
        assert!(
            text.contains("memory    1,200  1:01  0.5000  0123456789ab"),
            "{text}"
        );
        assert!(text.contains("retrieval R@1         93.0 %"), "{text}");
        assert!(text.contains("probe: image feature"), "{text}");
        assert!(text.contains("colors: acc           0.6100"), "{text}");
        assert!(!text.contains("R@5") && !text.contains("caption"), "{text}");
        assert!(
            text.contains("reduction exact  workers 2  weights abc"),
            "{text}"
        );
        assert!(text.contains("time: useful 75.0 %, data 25.0 %"), "{text}");
        assert_eq!(render(&serde_json::json!({}), &TimeSpent::ZERO), "");
    }
}
