//! A memory's card, for people, programs and job files.

use std::collections::BTreeMap;

use mks2_dataset::memory::card::{Card, Group};
use mks2_dataset::memory::{Artefact, attach};
use mks2_dataset::store;
use serde::Serialize;

use crate::units::{bytes, count, plural};

/// Letters of a digest where a whole one is not needed.
const SHORT: usize = 12;

/// What there is of a memory.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shown {
    url: String,
    id: String,
    /// Whether all parts were read and have their digests.
    verified: bool,
    /// Parameters by group.
    parameters: BTreeMap<&'static str, u64>,
    bytes: u64,
    #[serde(flatten)]
    card: Card,
}

impl Shown {
    /// `verified`: all parts were read, and have their digests.
    pub(super) fn of(artefact: &Artefact, verified: bool) -> Self {
        let card = artefact.card.clone();
        let groups = Group::ALL.map(|group| (group.name(), card.parameters(group)));
        Self {
            url: artefact.location().to_owned(),
            id: artefact.id.clone(),
            verified,
            parameters: groups.into_iter().filter(|(_, count)| *count > 0).collect(),
            bytes: card.parts.iter().map(|part| part.bytes).sum(),
            card,
        }
    }

    pub(super) fn render(&self) -> String {
        let card = &self.card;
        let groups = self.parameters.iter();
        let groups = groups.map(|(group, numbers)| format!("{group} {}", count(*numbers)));
        let rows = [
            ("memory", card.name.clone()),
            ("id", self.id.clone()),
            ("folder", self.url.clone()),
            ("licence", licence(card)),
            ("network", network(card)),
            ("parameters", groups.collect::<Vec<_>>().join(", ")),
            ("base", base(card)),
            ("corpora", corpora(card)),
            ("trained", trained(card)),
            ("losses", losses(card)),
            ("made with", card.made_with.clone()),
            (
                "parts",
                format!(
                    "{}, {}",
                    plural(card.parts.len() as u64, "file"),
                    bytes(self.bytes)
                ),
            ),
        ];
        let lines = rows
            .into_iter()
            .map(|(name, value)| format!("{name:<11} {value}\n"));
        let verdict = match self.verified {
            true => "all parts have their digests",
            false => "all parts are there, with their sizes",
        };
        format!("{}\n{verdict}\n", lines.collect::<String>())
    }
}

/// The beginning of a digest.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..SHORT).unwrap_or(digest)
}

/// The licence, or that there is none.
pub(super) fn licence(card: &Card) -> String {
    card.license
        .clone()
        .unwrap_or_else(|| "not said".to_owned())
}

/// The network of each block.
pub(super) fn network(card: &Card) -> String {
    let shape = card.shape;
    format!(
        "{}, {} wide in each of {} blocks of width {}",
        shape.form_name(),
        shape.width,
        shape.layers,
        shape.hidden_size
    )
}

/// The models beside which it was stored.
pub(super) fn base(card: &Card) -> String {
    format!("{} {}", card.base.kind.name(), card.base.digest)
}

/// What it has seen.
pub(super) fn corpora(card: &Card) -> String {
    let corpora = card.corpora.iter();
    let words = corpora.map(|(name, digest)| format!("{name} {}", short(digest)));
    words.collect::<Vec<_>>().join(", ")
}

/// How long it has seen it.
pub(super) fn trained(card: &Card) -> String {
    let steps = plural(card.steps, "step");
    format!("{} rows in {steps}, seed {}", count(card.rows), card.seed)
}

/// The losses of its last step.
pub(super) fn losses(card: &Card) -> String {
    let losses = card.losses.iter();
    let words = losses.map(|(name, value)| format!("{name} {value:.4}"));
    words.collect::<Vec<_>>().join(", ")
}

/// The tables of a job file that attaches the memory; a path is written as it is from everywhere.
pub(super) fn tables(artefact: &Artefact, url: &str) -> String {
    let stage: String = artefact.card.name.chars().map(plain).collect();
    let path = store::local_path(url).map(|path| path.display().to_string());
    let quoted = |text: &str| toml::Value::from(text).to_string();
    format!(
        "# The stage's name is yours to choose; `from` names the stage that brings the language model.\n\
         # An experts stage names it in its own `from`, and in `memories`.\n\
         [model.memories]\n\
         {stage} = {}\n\n\
         [[stage]]\n\
         name = {}\n\
         kind = \"attach\"\n\
         from = [{}]\n\
         attach = {{ memory = {}, id = \"{}\" }}\n",
        attach::table(artefact.card.shape),
        quoted(&stage),
        quoted(artefact.card.base.kind.name()),
        quoted(path.as_deref().unwrap_or(url)),
        artefact.id,
    )
}

/// A letter as a stage's name may have it.
fn plain(letter: char) -> char {
    match letter.is_ascii_alphanumeric() || letter == '-' || letter == '_' {
        true => letter,
        false => '-',
    }
}
