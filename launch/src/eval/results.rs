//! Results in the layout of lm-evaluation-harness, which other tools read, and as a table.

use std::time::{SystemTime, UNIX_EPOCH};

use mks2_proto::evaluate::Measured;
use serde_json::{Map, Value, json};

use crate::table::Table;
use crate::units::count;

/// Samples of the bootstrap, as the program that measures draws them.
const BOOTSTRAP: u32 = 1000;

/// `results.json`; `run` says what was measured how.
pub(super) fn results(measured: &[Measured], run: Value) -> Value {
    let mut run = run;
    run["bootstrap_iters"] = BOOTSTRAP.into();
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    json!({
        "results": by_task(measured, values),
        "confidence_intervals": by_task(measured, intervals),
        "group_subtasks": by_task(measured, |_| json!([])),
        "configs": by_task(measured, config),
        "versions": by_task(measured, |one| json!(one.version)),
        "n-shot": by_task(measured, |_| json!(0)),
        "higher_is_better": by_task(measured, higher_is_better),
        "n-samples": by_task(measured, |one| {
            json!({"original": one.items, "effective": one.measured})
        }),
        "task_hashes": by_task(measured, |one| json!(one.digest)),
        "config": run,
        "mks2_version": env!("CARGO_PKG_VERSION"),
        "date": since.map_or(0.0, |since| since.as_secs_f64()),
    })
}

fn by_task(measured: &[Measured], of: impl Fn(&Measured) -> Value) -> Value {
    let tasks = measured.iter().map(|one| (one.task.clone(), of(one)));
    Value::Object(tasks.collect())
}

/// `"acc,none": 0.4, "acc_stderr,none": 0.05`: the harness writes the filter behind the comma.
fn values(one: &Measured) -> Value {
    let mut values = Map::new();
    values.insert("alias".into(), one.task.clone().into());
    for metric in &one.metrics {
        let name = &metric.name;
        values.insert(format!("{name},none"), metric.value.into());
        values.insert(format!("{name}_stderr,none"), metric.stderr.into());
    }
    Value::Object(values)
}

fn intervals(one: &Measured) -> Value {
    let metrics = one.metrics.iter();
    let intervals = metrics.map(|metric| {
        let name = format!("{},none", metric.name);
        (name, json!(metric.interval))
    });
    Value::Object(intervals.collect())
}

fn config(one: &Measured) -> Value {
    let mut config = one.settings.clone();
    config["task"] = one.task.clone().into();
    config["stage"] = json!(one.stage);
    config["metadata"] = json!({"version": one.version});
    config
}

/// All are.
fn higher_is_better(one: &Measured) -> Value {
    let metrics = one.metrics.iter();
    let names = metrics.map(|metric| (metric.name.clone(), Value::Bool(true)));
    Value::Object(names.collect())
}

/// A row per metric.
pub(super) fn table(measured: &[Measured]) -> String {
    let mut table = Table::new(&["task", "metric", ">value", ">±", ">95 % interval", ">items"]);
    for one in measured {
        for (number, metric) in one.metrics.iter().enumerate() {
            let first = |text: String| match number {
                0 => text,
                _ => String::new(),
            };
            let [low, high] = metric.interval;
            table.row([
                first(one.task.clone()),
                metric.name.clone(),
                format!("{:.4}", metric.value),
                format!("{:.4}", metric.stderr),
                format!("{low:.4} to {high:.4}"),
                first(count(one.measured)),
            ]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use mks2_proto::evaluate::Metric;

    use super::*;

    fn measured() -> Measured {
        let metric = |name: &str, value| Metric {
            name: name.into(),
            value,
            stderr: 0.05,
            interval: [value - 0.1, value + 0.1],
        };
        Measured {
            task: "colors".into(),
            stage: Some("experts".into()),
            version: "1".into(),
            digest: "00ff".into(),
            items: 1593,
            measured: 1093,
            metrics: vec![metric("acc", 0.5), metric("acc_norm", 0.25)],
            settings: json!({"kind": "multiple-choice"}),
        }
    }

    #[test]
    fn results_have_the_layout_of_the_harness() {
        let results = results(&[measured()], json!({"model": "mks2"}));
        let colors = &results["results"]["colors"];
        assert_eq!(colors["alias"], "colors");
        assert_eq!(colors["acc,none"], 0.5);
        assert_eq!(colors["acc_norm_stderr,none"], 0.05);
        assert_eq!(results["versions"]["colors"], "1");
        assert_eq!(results["higher_is_better"]["colors"]["acc"], true);
        assert_eq!(results["n-samples"]["colors"]["original"], 1593);
        assert_eq!(results["n-samples"]["colors"]["effective"], 1093);
        assert_eq!(results["n-shot"]["colors"], 0);
        assert_eq!(results["configs"]["colors"]["stage"], "experts");
        assert_eq!(
            results["confidence_intervals"]["colors"]["acc,none"][1],
            0.6
        );
        assert_eq!(results["config"]["bootstrap_iters"], 1000);
    }

    #[test]
    fn the_table_names_a_task_once() {
        let table = table(&[measured()]);
        assert_eq!(table.matches("colors").count(), 1, "{table}");
        assert!(
            table.contains("acc_norm  0.2500  0.0500  0.1500 to 0.3500"),
            "{table}"
        );
        assert!(table.contains("1,093"), "{table}");
    }
}
