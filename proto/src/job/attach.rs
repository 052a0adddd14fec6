//! Attaching a memory that another run has stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of an `attach` stage: a memory as `mks2 memory export` writes it. It belongs to one language
/// model, which the stage's `from` must bring. `mks2 memory show URL --job` prints the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Attach {
    /// The folder of the memory: a path or any object store URL.
    pub memory: String,
    /// The memory's id, to take this one and no other; absent: whichever lies there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Brings the bridge and the retrieval head too, which were trained with the memory: pictures can
    /// be shown to it. Of several stages with a bridge, the last one that a stage builds on counts.
    pub bridge: bool,
}

impl Default for Attach {
    fn default() -> Self {
        Self {
            memory: String::new(),
            id: None,
            bridge: true,
        }
    }
}
