//! What kinds of stages there are, and what they have in common.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kinds of stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StageKind {
    /// Takes a published language model and visual encoder; trains nothing.
    Pretrained,
    /// No pretrained weights at hand: tokenizer, small LLM and small CLIP from scratch.
    Bootstrap,
    /// Stage 1 of the paper: visual information storage.
    Memory,
    /// Takes a memory that another run has stored and exported; trains nothing.
    Attach,
    /// Stage 2 of the paper: multimodal knowledge collaboration.
    Experts,
    /// Measures what the stages before it have learned; trains nothing.
    Evaluate,
}

impl StageKind {
    /// Its word in a job file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrained => "pretrained",
            Self::Bootstrap => "bootstrap",
            Self::Memory => "memory",
            Self::Attach => "attach",
            Self::Experts => "experts",
            Self::Evaluate => "evaluate",
        }
    }

    /// Whether such a stage has steps.
    #[must_use]
    pub fn trains(self) -> bool {
        !matches!(self, Self::Pretrained | Self::Attach | Self::Evaluate)
    }

    /// Whether such a stage brings weights that no run of the job has trained: it has neither steps nor
    /// checkpoints, and every worker reads them by itself.
    #[must_use]
    pub fn is_brought(self) -> bool {
        matches!(self, Self::Pretrained | Self::Attach)
    }

    /// Whether such a stage leaves a memory.
    #[must_use]
    pub fn is_memory(self) -> bool {
        matches!(self, Self::Memory | Self::Attach)
    }

    /// Whether such a stage brings the language model, the visual encoder and the tokenizer.
    #[must_use]
    pub fn is_base(self) -> bool {
        matches!(self, Self::Pretrained | Self::Bootstrap)
    }
}
