//! The card of a memory: what it is, what it was made from, and its parts.
//!
//! Invariants, checked when a card is read and before it is written:
//! 1. The tensors of the memory are those of its shape, `layers.<block>.<matrix>.weight`.
//! 2. Parts and their tensors stand in the order of groups and names, and a part has the bytes of its
//!    tensors and of a header.
//! 3. A part is named by its digest, so that no card names a file that is something else; no text has
//!    control characters.

use std::collections::BTreeMap;

use bytes::Bytes;
use mks2_proto::ids::is_digest;
use mks2_proto::job::{MemoryForm, Model, StageKind};
use serde::{Deserialize, Serialize};

use super::{MemoryError, Result};

/// Name of the card inside the folder. It is created last: what has one is whole.
pub const FILE_NAME: &str = "memory.json";
/// The version of the format that this program writes and reads.
pub const VERSION: u64 = 1;
/// Bytes of an fp32 number.
const FP32: u64 = 4;
/// Largest header of a part, bytes.
const MOST_HEADER: u64 = 8 << 20;
/// Longest text of a card, bytes.
const MOST_TEXT: usize = 1000;

/// What a memory is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Version of the format.
    pub version: u64,
    /// What people call it.
    pub name: String,
    /// Under which licence it may be used, as SPDX has it; absent: nobody has said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// The network in each block.
    pub shape: Shape,
    /// The language model and visual encoder with which it was trained.
    pub base: Base,
    /// Digests of the corpora that it has seen, by their names there.
    pub corpora: BTreeMap<String, String>,
    /// Rows that it has seen, each time counted.
    pub rows: u64,
    /// Steps of the optimizer.
    pub steps: u64,
    /// Seed of its initial weights and of the order of rows.
    pub seed: u64,
    /// Losses of the last step, by their names in `metrics.jsonl`.
    pub losses: BTreeMap<String, f64>,
    /// The programs that trained it: `mks2 0.1.0, libtorch 2.11.0, cpu`.
    pub made_with: String,
    /// Its files: the memory's, then those of what was trained beside it.
    pub parts: Vec<Part>,
}

/// The network of a memory, the same in each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Two matrices with GELU, or three with SwiGLU.
    pub form: MemoryForm,
    /// Hidden units.
    pub width: u32,
    /// Width of the language model's residual stream.
    pub hidden_size: u32,
    /// Blocks of the language model.
    pub layers: u32,
}

/// The frozen models around a memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// `weights_digest` of the stage that brought them.
    pub digest: String,
    /// Kind of this stage: `bootstrap` or `pretrained`.
    pub kind: StageKind,
}

/// What a part is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// The memory: `layers.*`.
    Memory,
    /// What lets pictures be shown to it: `bridge.*`, and of a Q-Former that was trained with it
    /// `qformer.*` and `query_tokens`.
    Bridge,
    /// What finds pictures by a text: `retrieval.*`.
    Retrieval,
}

/// One safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What it is for.
    pub group: Group,
    /// Where it lies in the folder: `parts/<blake3>.safetensors`.
    pub path: String,
    /// blake3 of the file, in hex.
    pub digest: String,
    /// Size of the file.
    pub bytes: u64,
    /// Its tensors, all fp32, in ascending order of their names.
    pub tensors: Vec<Entry>,
}

/// One tensor of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name in the file.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
}

impl Group {
    /// All groups, in the order in which parts stand in a card.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Bridge, Self::Retrieval];

    /// Its word in a card.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Bridge => "bridge",
            Self::Retrieval => "retrieval",
        }
    }

    /// Whether a tensor of this name belongs to it.
    fn has(self, name: &str) -> bool {
        let beginnings: &[&str] = match self {
            Self::Memory => &["layers."],
            Self::Bridge => &["bridge.", "qformer.", "query_tokens"],
            Self::Retrieval => &["retrieval."],
        };
        beginnings
            .iter()
            .any(|beginning| name.starts_with(beginning))
    }
}

/// Where a tensor of a job, `memory.<stage>.layers.*` or what was trained beside it, belongs in an
/// artefact, and its name there.
#[must_use]
pub fn place_of(stage: &str, name: &str) -> Option<(Group, String)> {
    let within = name.strip_prefix("memory.");
    let within = within.and_then(|rest| rest.strip_prefix(stage)?.strip_prefix('.'));
    let name = within.unwrap_or(name);
    let group = Group::ALL.into_iter().find(|group| group.has(name))?;
    (within.is_some() == (group == Group::Memory)).then(|| (group, name.to_owned()))
}

/// The name in a job of a tensor of an artefact that the stage called `stage` brings.
#[must_use]
pub fn name_in_job(stage: &str, name: &str) -> String {
    match Group::Memory.has(name) {
        true => format!("memory.{stage}.{name}"),
        false => name.to_owned(),
    }
}

impl Shape {
    /// The shape of the memory that the stage called `stage` has in a model.
    #[must_use]
    pub fn of(model: &Model, stage: &str) -> Self {
        let memory = model.memory_of(stage);
        Self {
            form: memory.form,
            width: memory.width,
            hidden_size: model.decoder.hidden_size,
            layers: model.decoder.num_hidden_layers,
        }
    }

    /// Its matrices in a block: `[out, in]`.
    fn matrices(self) -> Vec<(&'static str, [usize; 2])> {
        let (w, d) = (self.width as usize, self.hidden_size as usize);
        let gate = (self.form == MemoryForm::Gated).then_some(("gate_proj", [w, d]));
        let rest = [("up_proj", [w, d]), ("down_proj", [d, w])];
        gate.into_iter().chain(rest).collect()
    }

    /// Its word in a job file.
    #[must_use]
    pub fn form_name(self) -> &'static str {
        match self.form {
            MemoryForm::Plain => "plain",
            MemoryForm::Gated => "gated",
        }
    }
}

/// Whether a text may stand on a card.
///
/// # Errors
/// Why it may not.
pub fn check_text(text: &str) -> Result<(), String> {
    match text.chars().any(char::is_control) || text.len() > MOST_TEXT {
        true => Err(format!(
            "{text:.40?} has control characters or more than {MOST_TEXT} bytes"
        )),
        false => Ok(()),
    }
}

/// Whether a memory may be called so.
///
/// # Errors
/// Why it may not.
pub fn check_name(name: &str) -> Result<(), String> {
    match name.trim().is_empty() {
        true => Err("its name is empty".to_owned()),
        false => check_text(name),
    }
}

impl Card {
    /// The card as it is stored: these bytes have the memory's id.
    ///
    /// # Errors
    /// [`MemoryError::Internal`] if a rule is broken.
    pub fn to_bytes(&self) -> Result<Bytes> {
        self.check().map_err(MemoryError::Internal)?;
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| MemoryError::Internal(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes.into())
    }

    /// Reads and checks a card; `file` is for messages.
    ///
    /// # Errors
    /// [`MemoryError::Card`] if it is damaged, [`MemoryError::Version`] if it is of another version.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let damaged = |why: String| MemoryError::Card {
            file: file.to_owned(),
            why,
        };
        let Version { version } =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if version != VERSION {
            return Err(MemoryError::Version {
                file: file.to_owned(),
                found: version,
            });
        }
        let card: Self =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        card.check().map_err(damaged)?;
        Ok(card)
    }

    /// Parameters of a group.
    #[must_use]
    pub fn parameters(&self, group: Group) -> u64 {
        let entries = self.entries().filter(|(of, _)| *of == group);
        entries
            .map(|(_, entry)| numbers(&entry.shape).unwrap_or(0))
            .sum()
    }

    /// All tensors with their groups.
    pub fn entries(&self) -> impl Iterator<Item = (Group, &Entry)> {
        let parts = self.parts.iter();
        parts.flat_map(|part| part.tensors.iter().map(|entry| (part.group, entry)))
    }

    /// Checks the invariants.
    ///
    /// # Errors
    /// The first one that does not hold, in words.
    fn check(&self) -> Result<(), String> {
        self.check_texts()?;
        self.parts.iter().try_for_each(Part::check)?;
        let names: Vec<_> = self
            .entries()
            .map(|(of, entry)| (of, &entry.name))
            .collect();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] >= pair[1]) {
            let name = pair[1].1;
            return Err(format!(
                "'{name}' is listed twice, or not in the order of names"
            ));
        }
        self.check_memory()
    }

    fn check_texts(&self) -> Result<(), String> {
        let texts = [&self.name, &self.made_with, &self.base.digest];
        let corpora = self
            .corpora
            .iter()
            .flat_map(|(name, digest)| [name, digest]);
        let texts = texts.into_iter().chain(&self.license).chain(corpora);
        for text in texts.chain(self.losses.keys()) {
            check_text(text)?;
        }
        check_name(&self.name)
    }

    /// The tensors of the memory are those of its shape, in number, name and sizes.
    fn check_memory(&self) -> Result<(), String> {
        let entries = self.entries().filter(|(group, _)| *group == Group::Memory);
        let found: BTreeMap<&str, &[usize]> = entries
            .map(|(_, entry)| (entry.name.as_str(), &entry.shape[..]))
            .collect();
        let matrices = self.shape.matrices();
        let layers = self.shape.layers as usize;
        if layers.checked_mul(matrices.len()) != Some(found.len()) || layers == 0 {
            return Err(format!(
                "a memory of {layers} blocks has {} tensors in each, and {} are listed",
                matrices.len(),
                found.len()
            ));
        }
        for layer in 0..layers {
            for (matrix, shape) in &matrices {
                let name = format!("layers.{layer}.{matrix}.weight");
                match found.get(name.as_str()) {
                    Some(found) if found == shape => {}
                    Some(found) => {
                        return Err(format!("'{name}' is {found:?} and should be {shape:?}"));
                    }
                    None => return Err(format!("'{name}' is not listed")),
                }
            }
        }
        Ok(())
    }
}

/// Where the part with this digest lies in its folder.
pub(super) fn path_of(digest: &str) -> String {
    format!("parts/{digest}.safetensors")
}

impl Part {
    fn check(&self) -> Result<(), String> {
        let (path, digest) = (&self.path, &self.digest);
        if !is_digest(digest) || *path != path_of(digest) {
            return Err(format!(
                "a part is called {path:?}, and not the name of its content: parts/<blake3>.safetensors"
            ));
        }
        let mut values = Some(0_u64);
        for Entry { name, shape } in &self.tensors {
            if !self.group.has(name) || name.chars().any(char::is_control) {
                let group = self.group.name();
                return Err(format!(
                    "{path} has {name:?}, which is no tensor of its {group}"
                ));
            }
            values = values
                .zip(numbers(shape))
                .and_then(|(sum, more)| sum.checked_add(more));
        }
        let least = values.and_then(|values| values.checked_mul(FP32));
        let header = least.and_then(|least| self.bytes.checked_sub(least));
        match header {
            Some(header) if header <= MOST_HEADER => Ok(()),
            _ => Err(format!(
                "{path} cannot have {} bytes with the tensors that are listed for it",
                self.bytes
            )),
        }
    }
}

/// Elements of a tensor, where that is a number.
fn numbers(shape: &[usize]) -> Option<u64> {
    let mut sizes = shape.iter().map(|size| *size as u64);
    sizes.try_fold(1_u64, u64::checked_mul)
}
