//! The curves of `metrics.jsonl`, stage by stage.

use serde_json::Value;

use super::Sources;
use super::chart::{Axis, Curve, chart};
use super::html::section;
use super::text::escape;

/// Parts of a loss, with their names in the legend.
const PARTS: [(&str, &str); 4] = [
    ("loss_language", "language"),
    ("loss_contrastive", "contrastive"),
    ("loss_caption", "captioning"),
    ("loss_retrieval", "retrieval"),
];

/// All stages that have a step, in the order of the job.
pub(super) fn curves(sources: &Sources) -> String {
    let mut content = String::new();
    for stage in &sources.job.stages {
        let of_stage = |line: &&Value| line["stage"] == stage.name.as_str();
        let lines: Vec<&Value> = sources.metrics.iter().filter(of_stage).collect();
        let charts = charts(&lines);
        if !charts.is_empty() {
            content.push_str(&format!(
                "<h3>{}</h3><div class=charts>{charts}</div>",
                escape(&stage.name)
            ));
        }
    }
    section(
        "Curves",
        "Over the steps of the whole run; where there are many, means over short stretches of them. \
         Behind each name its last value.",
        &content,
    )
}

fn charts(lines: &[&Value]) -> String {
    let waits = [
        ("data_wait_seconds", "data"),
        ("comm_wait_seconds", "other workers"),
    ];
    let waits = waits.map(|(key, name)| Curve {
        name: name.into(),
        points: share_of_step(lines, key),
    });
    let speed = Curve {
        name: "samples per second".into(),
        points: speed(lines),
    };
    let norm = Curve {
        name: "before clipping".into(),
        points: points(lines, "grad_norm"),
    };
    [
        chart("Loss", &losses(lines), Axis::LogIfWide),
        chart("Gradient norm", &[norm], Axis::LogIfWide),
        chart("Speed", &[speed], Axis::Linear),
        chart("Waiting, % of a step", &waits, Axis::Linear),
    ]
    .concat()
}

/// The loss and its parts; one part alone is the whole loss.
fn losses(lines: &[&Value]) -> Vec<Curve> {
    let parts = PARTS.map(|(key, name)| Curve {
        name: name.into(),
        points: points(lines, key),
    });
    let parts: Vec<Curve> = parts
        .into_iter()
        .filter(|part| !part.points.is_empty())
        .collect();
    let name = match parts.as_slice() {
        [only] => only.name.clone(),
        _ => "total".into(),
    };
    let whole = Curve {
        name,
        points: points(lines, "loss"),
    };
    match parts.len() {
        1 => vec![whole],
        _ => std::iter::once(whole).chain(parts).collect(),
    }
}

/// (step, value) where the line has the key; null, a value that JSON cannot hold, is not a number.
fn points(lines: &[&Value], key: &str) -> Vec<(f64, f64)> {
    let point = |line: &&Value| {
        let value = line.get(key)?;
        Some((line["step"].as_f64()?, value.as_f64().unwrap_or(f64::NAN)))
    };
    lines.iter().filter_map(point).collect()
}

/// Per cent of each step's seconds.
fn share_of_step(lines: &[&Value], key: &str) -> Vec<(f64, f64)> {
    let point = |line: &&Value| {
        let seconds = line["step_seconds"]
            .as_f64()
            .filter(|seconds| *seconds > 0.0)?;
        Some((
            line["step"].as_f64()?,
            100.0 * line[key].as_f64()? / seconds,
        ))
    };
    lines.iter().filter_map(point).collect()
}

/// Samples of each step over its seconds.
fn speed(lines: &[&Value]) -> Vec<(f64, f64)> {
    let point = |pair: &[&Value]| {
        let samples = pair[1]["samples"].as_f64()? - pair[0]["samples"].as_f64()?;
        let seconds = pair[1]["step_seconds"].as_f64()?;
        let speed = (samples > 0.0 && seconds > 0.0).then(|| samples / seconds)?;
        Some((pair[1]["step"].as_f64()?, speed))
    };
    lines.windows(2).filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_part_alone_is_the_whole_loss_and_null_is_a_gap() {
        let lines = [
            json!({"step": 1, "loss": 2.0, "loss_language": 2.0}),
            json!({"step": 2, "loss": null, "loss_language": null}),
        ];
        let lines: Vec<&Value> = lines.iter().collect();
        let losses = losses(&lines);
        assert_eq!(losses.len(), 1);
        assert_eq!(losses[0].name, "language");
        assert_eq!(losses[0].points[0], (1.0, 2.0));
        assert!(losses[0].points[1].1.is_nan());
    }

    #[test]
    fn speed_and_waits_are_those_of_a_step() {
        let line = |step: u64, samples: u64| json!({"step": step, "samples": samples, "step_seconds": 0.5, "data_wait_seconds": 0.05});
        let lines = [line(1, 64), line(2, 128)];
        let lines: Vec<&Value> = lines.iter().collect();
        assert_eq!(speed(&lines), [(2.0, 128.0)]);
        let waits = share_of_step(&lines, "data_wait_seconds");
        assert!(waits.len() == 2 && (waits[0].1 - 10.0).abs() < 1e-9);
    }
}
