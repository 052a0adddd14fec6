//! Settings of stages that measure.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of an `evaluate` stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Evaluate {
    /// The `memory` or `attach` stage to measure (retrieval, captions).
    pub memory: Option<String>,
    /// Corpus of the retrieval and caption measurements.
    pub corpus: Option<String>,
    /// Text of the retrieval queries, as a template.
    pub retrieval_text: Option<String>,
    /// Pictures for which captions are written and the five nearest shown.
    pub examples: u32,
    /// Corpus of held-out questions.
    pub questions: Option<String>,
    /// Corpus of the questions that were trained on, for the majority's share and the probes.
    pub train_questions: Option<String>,
    /// The `experts` stages to compare on the questions: `mks2`, `lora`, `shuffled`.
    pub compare: BTreeMap<String, String>,
    /// Task files, as for `mks2 eval`. Captions and retrieval are asked of `memory`, all else of what
    /// `compare` calls `mks2`; where there is only one of both, of that one.
    pub tasks: Vec<String>,
}

/// What `compare` calls the full method.
pub const MKS2: &str = "mks2";

impl Evaluate {
    /// The stage that a task is put to, if the settings name any: `of_memory` is for what a memory stage
    /// learns, captions and retrieval.
    #[must_use]
    pub fn asked(&self, of_memory: bool) -> Option<&str> {
        let (full, memory) = (self.compare.get(MKS2), self.memory.as_ref());
        let (first, second) = match of_memory {
            true => (memory, full),
            false => (full, memory),
        };
        first.or(second).map(String::as_str)
    }
}
