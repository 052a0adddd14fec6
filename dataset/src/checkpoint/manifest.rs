//! The manifest: what belongs to a checkpoint, and what it was made from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{CheckpointError, Result};

/// Version of the manifest's format.
pub const VERSION: u64 = 3;

/// What a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Trained weights.
    Weights,
    /// First moments of AdamW.
    ExpAvg,
    /// Second moments of AdamW.
    ExpAvgSq,
    /// Anything else that a step depends on, such as the exponents of the exact reduction.
    State,
    /// The tokenizer's file.
    Tokenizer,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Weights,
        Self::ExpAvg,
        Self::ExpAvgSq,
        Self::State,
        Self::Tokenizer,
    ];

    /// What its parts are for.
    #[must_use]
    pub fn group(self) -> Group {
        match self {
            Self::Weights => Group::Weights,
            Self::ExpAvg | Self::ExpAvgSq | Self::State => Group::Training,
            Self::Tokenizer => Group::Tokenizer,
        }
    }

    /// What a tensor called `name` is called in its file, which may hold several kinds.
    #[must_use]
    pub fn in_file(self, name: &str) -> Cow<'_, str> {
        match self {
            Self::Weights | Self::Tokenizer => name.into(),
            _ => format!("{}.{name}", self.as_str()).into(),
        }
    }

    /// The name in manifests and files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
            Self::State => "state",
            Self::Tokenizer => "tokenizer",
        }
    }
}

/// What parts are for. Small ones cost a store as much as large ones, so a part has all kinds that are
/// needed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The weights, under their global names: what other programs read.
    Weights,
    /// What training goes on with: both moments, and the rest of its state.
    Training,
    /// The tokenizer's file.
    Tokenizer,
}

impl Group {
    /// All groups, in the order in which parts stand in a manifest.
    pub const ALL: [Self; 3] = [Self::Weights, Self::Training, Self::Tokenizer];

    /// How the names of its parts begin.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Training => "training",
            Self::Tokenizer => "tokenizer",
        }
    }
}

/// What the trainer knows about a checkpoint beside its tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Steps since the beginning of the run, over all stages.
    pub step: u64,
    /// The members' copies of the state were not compared before it was saved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub uncompared: bool,
    /// The stage.
    pub stage: String,
    /// Steps since the beginning of the stage.
    pub stage_step: u64,
    /// The last checkpoint of its stage.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The generation whose first rank saved it.
    pub generation: u64,
    /// The job's seed.
    pub seed: u64,
    /// Digest of the job: [`mks2_proto::job::load::digest`].
    pub config_digest: String,
    /// Digests of the corpora's manifests, by their names in the job.
    pub corpora: BTreeMap<String, String>,
    /// `weights_digest` of the stages that this one started from, by name.
    pub bases: BTreeMap<String, String>,
    /// Loss of the last step; absent if it is no finite number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Seconds of training since the beginning of the stage.
    pub seconds: f64,
    /// Samples since the beginning of the stage.
    pub samples: u64,
    /// Tokens since the beginning of the stage.
    pub tokens: u64,
    /// The programs that computed it: `mks2 0.1.0, libtorch 2.11.0, cpu`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub made_with: String,
}

/// A checkpoint's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub version: u64,
    /// What the trainer knew.
    #[serde(flatten)]
    pub facts: Facts,
    /// Digest of the trained parameters' names and shapes.
    pub model_digest: String,
    /// blake3 over the trained parameters' values in name order, as fp32 little endian.
    pub weights_digest: String,
    /// The parts, weights first.
    pub parts: Vec<Part>,
}

/// One stored safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Group and number: `weights-00000`.
    pub name: String,
    /// Where it lies in the run directory: `objects/GENERATION-DIGEST`.
    pub path: String,
    /// blake3 of the file in hex.
    pub digest: String,
    /// Size of the file.
    pub bytes: u64,
    /// Its tensors, in ascending order of kinds and names.
    pub tensors: Vec<TensorEntry>,
}

/// One tensor of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// What it is.
    pub kind: Kind,
    /// Global name.
    pub name: String,
    /// Element type in safetensors' words: `F32`, `I32`, `U8`.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// blake3 of these bytes, in hex.
    pub digest: String,
}

impl Manifest {
    /// The manifest as it is stored.
    ///
    /// # Errors
    /// [`CheckpointError::Internal`] if a number can not be written as JSON.
    pub fn to_bytes(&self) -> Result<Bytes> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| CheckpointError::Internal(format!("manifest: {error}")))?;
        bytes.push(b'\n');
        Ok(bytes.into())
    }

    /// Reads a manifest; `path` is for messages.
    ///
    /// # Errors
    /// [`CheckpointError::Manifest`] if it is cut off or no manifest, [`CheckpointError::Version`]
    /// if its format is another one.
    pub fn parse(path: &str, bytes: &[u8]) -> Result<Self> {
        let damaged = |error: serde_json::Error| {
            let cut = if error.is_eof() {
                "it is cut off: "
            } else {
                ""
            };
            CheckpointError::manifest(path, format!("{cut}{error}"))
        };
        let json: serde_json::Value = serde_json::from_slice(bytes).map_err(damaged)?;
        let version = json.get("version").and_then(serde_json::Value::as_u64);
        match version {
            Some(VERSION) => serde_json::from_value(json).map_err(damaged),
            Some(found) => Err(CheckpointError::Version {
                path: path.to_owned(),
                found,
            }),
            None => Err(CheckpointError::manifest(path, "it has no version")),
        }
    }

    /// Names and shapes of the trained parameters.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let tensors = self.parts.iter().flat_map(|part| &part.tensors);
        tensors
            .filter(|entry| entry.kind == Kind::Weights)
            .map(|entry| (entry.name.as_str(), &entry.shape[..]))
    }
}

/// blake3 in hex: of a manifest's bytes, what the coordinator's journal holds.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
