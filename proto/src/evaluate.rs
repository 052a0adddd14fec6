//! How `mks2 eval` has the program that computes measure tasks: one line of JSON to it, then lines of JSON
//! from it; and what it has measured, which is also what an `evaluate` stage writes down.
//!
//! ```text
//! mks2 ──► Opening
//!      ◄── for each task: Progress, Sample ..., Measured; or Failed, at any time
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generate::{Source, Words};
use crate::job::Precision;

/// What is to be measured, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// The model. A task may be put to another stage of the same run.
    pub model: Source,
    /// The tasks, in order.
    pub tasks: Vec<Asked>,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// What it computes in; none: as the run did, or fp32.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// Threads of libtorch.
    pub threads: u32,
    /// Items that are computed together.
    pub batch: u32,
    /// Bytes of keys and values that are kept at most; none: as the model's positions and the batch need.
    #[serde(default)]
    pub cache_bytes: Option<u64>,
    /// So many items of each task, from its beginning; none: all.
    pub limit: Option<u64>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Its file.
    pub url: String,
    /// The stage of the run that it is put to.
    pub stage: Option<String>,
}

/// What is told while tasks are measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// So much of a task is done.
    Progress {
        /// The task's name.
        task: String,
        /// Items that are done.
        done: u64,
        /// Items in all.
        of: u64,
    },
    /// One item of a task, as lm-evaluation-harness logs samples.
    Sample {
        /// The item.
        sample: Value,
    },
    /// The task whose samples these were is done.
    Measured {
        /// What came out.
        result: Measured,
    },
    /// Nothing can be measured any more.
    Failed {
        /// Why not.
        why: Words,
    },
}

/// What a task has come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The task's name.
    pub task: String,
    /// The stage that was asked, of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Version of the task, as its file says it.
    pub version: String,
    /// blake3 of the task's file and its data, in hex.
    pub digest: String,
    /// Items of the task.
    pub items: u64,
    /// Those that were measured.
    pub measured: u64,
    /// The metrics, in their usual order.
    pub metrics: Vec<Metric>,
    /// The settings of the task.
    pub settings: Value,
}

/// A number and how certain it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its name: `acc`, `cider`, ...
    pub name: String,
    /// The number.
    pub value: f64,
    /// Standard error: of a mean by its formula, of another number by the bootstrap.
    pub stderr: f64,
    /// Bounds of the 95 % confidence interval, by the bootstrap.
    pub interval: [f64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_survives_a_line() {
        let result = Measured {
            task: "colors".into(),
            stage: Some("experts".into()),
            version: "1".into(),
            digest: "00".into(),
            items: 93,
            measured: 10,
            metrics: vec![Metric {
                name: "acc".into(),
                value: 0.1 + 0.2,
                stderr: 0.01,
                interval: [0.2, 0.4],
            }],
            settings: serde_json::json!({"kind": "multiple-choice"}),
        };
        for event in [
            Event::Measured { result },
            Event::Sample {
                sample: serde_json::json!({"doc_id": 0}),
            },
        ] {
            let line = serde_json::to_string(&event).expect("JSON");
            assert_eq!(serde_json::from_str::<Event>(&line).expect("read"), event);
        }
    }
}
