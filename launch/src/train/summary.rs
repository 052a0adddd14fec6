//! The closing table: `report.json` of the run directory, as far as it is there.

use mks2_dataset::store;
use mks2_proto::failure::Failure;
use serde_json::Value;

use crate::output::Output;
use crate::table::Table;
use crate::units::{clock, count, percent};

/// Prints stages, evaluation and where the report is.
///
/// # Errors
/// When the run directory cannot be read (exit 5).
pub(crate) async fn print(run_url: &str, output: &Output) -> Result<(), Failure> {
    let (place, root) = store::open(run_url)?;
    let report = store::get_if_there(&*place, &root.clone().join("report.json")).await?;
    let page = store::size(&*place, &root.join("report.html")).await?;
    let report: Option<Value> = report.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(report) = &report {
        if output.is_json() {
            output.result(&report.to_string());
            return Ok(());
        }
        output.result(&render(report));
    }
    let file = if page.is_some() { "report.html" } else { "report.json" };
    if report.is_some() {
        output.note(&format!("report: {}/{file}", store::shown(run_url).trim_end_matches('/')));
    }
    Ok(())
}

fn render(report: &Value) -> String {
    let mut text = String::new();
    for part in [stages(report), evaluation(report), footing(report)] {
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
            stage["loss"].as_f64().map(|loss| format!("{loss:.4}")).unwrap_or_default(),
            digest.chars().take(12).collect(),
        ]);
    }
    if table.is_empty() { String::new() } else { table.render() }
}

fn evaluation(report: &Value) -> String {
    let results = &report["evaluation"];
    let mut table = Table::new(&["evaluation", ">result"]);
    for (key, label) in [("r1", "retrieval R@1"), ("r5", "retrieval R@5"), ("r10", "retrieval R@10")] {
        add_share(&mut table, label, &results["retrieval"][key]);
    }
    for (key, label) in [("loss", "caption loss"), ("loss_without_image", "caption loss, no image")] {
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
    if table.is_empty() { String::new() } else { table.render() }
}

fn add_share(table: &mut Table, label: &str, share: &Value) {
    if let Some(share) = share.as_f64() {
        table.row([label.to_owned(), percent(share)]);
    }
}

fn footing(report: &Value) -> String {
    let mut parts = Vec::new();
    parts.extend(report["reduction"].as_str().map(|mode| format!("reduction {mode}")));
    parts.extend(report["workers"].as_u64().map(|workers| format!("workers {workers}")));
    let digest = report["weights_digest"].as_str();
    parts.extend(digest.map(|digest| format!("weights {digest}")));
    parts.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_becomes_a_table_and_missing_parts_are_left_out() {
        let report = serde_json::json!({
            "weights_digest": "abc",
            "stages": [{"name": "memory", "steps": 1200, "seconds": 61.2, "loss": 0.5,
                        "weights_digest": "0123456789abcdef"}],
            "evaluation": {"retrieval": {"r1": 0.93, "n": 1580}},
            "reduction": "exact",
            "workers": 2,
        });
        let text = render(&report);
        assert!(text.contains("memory  1,200  1:01  0.5000  0123456789ab"), "{text}");
        assert!(text.contains("retrieval R@1  93.0 %"), "{text}");
        assert!(!text.contains("R@5") && !text.contains("caption"), "{text}");
        assert!(text.contains("reduction exact  workers 2  weights abc"), "{text}");
        assert_eq!(render(&serde_json::json!({})), "");
    }
}
