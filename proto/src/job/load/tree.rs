//! A TOML document whose nodes know where they came from.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::{Origin, Setting};
use crate::failure::Failure;

/// A value with its origin.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) origin: Origin,
}

/// Kinds of values.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    Leaf(toml::Value),
}

impl Node {
    pub(super) fn table(origin: Origin) -> Self {
        Self {
            kind: Kind::Table(BTreeMap::new()),
            origin,
        }
    }

    /// The text under `key`, if this is a table that has one.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match &self.kind {
            Kind::Table(entries) => match &entries.get(key)?.kind {
                Kind::Leaf(toml::Value::String(text)) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// The plain value, without origins.
    pub(super) fn to_toml(&self) -> toml::Value {
        match &self.kind {
            Kind::Leaf(value) => value.clone(),
            Kind::Array(items) => toml::Value::Array(items.iter().map(Self::to_toml).collect()),
            Kind::Table(entries) => toml::Value::Table(
                entries
                    .iter()
                    .map(|(key, node)| (key.clone(), node.to_toml()))
                    .collect(),
            ),
        }
    }

    /// How messages call an element of a list of tables: by its name, else by its number.
    pub(super) fn label(&self, index: usize) -> String {
        self.text("name")
            .map_or_else(|| index.to_string(), str::to_owned)
    }

    /// Origin of the value under a dotted key, if it was given.
    fn origin_of(&self, path: &[String]) -> Option<&Origin> {
        let Some((first, rest)) = path.split_first() else {
            return Some(&self.origin);
        };
        let child = match &self.kind {
            Kind::Table(entries) => entries.get(first),
            Kind::Array(items) => items
                .iter()
                .enumerate()
                .find(|(i, n)| n.label(*i) == *first)
                .map(|(_, n)| n),
            Kind::Leaf(_) => None,
        };
        child?.origin_of(rest)
    }
}

/// Reads a TOML document.
pub(super) fn parse(text: &str, file: &str) -> Result<Node, Failure> {
    let lines = Lines::new(text);
    let document = DeTable::parse(text).map_err(|error| {
        let place = error.span().map_or(1, |span| lines.of(span.start));
        Failure::settings(
            format!("{file} is no valid TOML"),
            format!("line {place}: {}", error.message()),
            "correct that line",
        )
    })?;
    table(document.get_ref(), Origin::File(1), &lines)
}

/// Reads one TOML value that came from the command line or the environment.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Option<Node> {
    let parsed = DeValue::parse(text).ok()?;
    value(
        parsed.get_ref(),
        origin.clone(),
        &Lines::fixed(origin.clone()),
    )
    .ok()
}

fn table(entries: &DeTable<'_>, origin: Origin, lines: &Lines) -> Result<Node, Failure> {
    let mut children = BTreeMap::new();
    for (key, child) in entries {
        let place = lines.origin(key.span().start);
        children.insert(
            key.get_ref().to_string(),
            value(child.get_ref(), place, lines)?,
        );
    }
    Ok(Node {
        kind: Kind::Table(children),
        origin,
    })
}

fn value(value: &DeValue<'_>, origin: Origin, lines: &Lines) -> Result<Node, Failure> {
    let leaf = match value {
        DeValue::Table(entries) => return table(entries, origin, lines),
        DeValue::Array(items) => {
            let items = items
                .iter()
                .map(|item| self::value(item.get_ref(), lines.origin(item.span().start), lines))
                .collect::<Result<_, _>>()?;
            return Ok(Node {
                kind: Kind::Array(items),
                origin,
            });
        }
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Boolean(flag) => toml::Value::Boolean(*flag),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(toml::Value::Integer)
            .map_err(|_| too_large(number.as_str(), &origin))?,
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map(toml::Value::Float)
            .map_err(|_| too_large(number.as_str(), &origin))?,
    };
    Ok(Node {
        kind: Kind::Leaf(leaf),
        origin,
    })
}

fn too_large(number: &str, origin: &Origin) -> Failure {
    Failure::settings(
        format!("{number} is too large"),
        format!(
            "{}: numbers end at {}",
            origin.describe("the job file"),
            i64::MAX
        ),
        "write a smaller number",
    )
}

/// Byte offsets to line numbers.
struct Lines {
    starts: Vec<usize>,
    fixed: Option<Origin>,
}

impl Lines {
    fn new(text: &str) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            starts: std::iter::once(0).chain(after_breaks).collect(),
            fixed: None,
        }
    }

    /// For a value outside a file: every part has the same origin.
    fn fixed(origin: Origin) -> Self {
        Self {
            starts: Vec::new(),
            fixed: Some(origin),
        }
    }

    fn of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset).max(1)
    }

    fn origin(&self, offset: usize) -> Origin {
        self.fixed
            .clone()
            .unwrap_or_else(|| Origin::File(self.of(offset)))
    }
}

/// Every value of the resolved job in file order, with the origin that `given` knows for it.
pub(super) fn settings(resolved: &Node, given: &Node) -> Vec<Setting> {
    let mut leaves = Vec::new();
    collect(resolved, &mut Vec::new(), &mut leaves);
    leaves.sort_by_key(|(line, _, _)| *line);
    leaves
        .into_iter()
        .map(|(_, path, value)| Setting {
            origin: given.origin_of(&path).cloned().unwrap_or(Origin::Default),
            key: path.join("."),
            value,
        })
        .collect()
}

fn collect(node: &Node, path: &mut Vec<String>, leaves: &mut Vec<(usize, Vec<String>, String)>) {
    let mut descend = |key: String, child: &Node| {
        path.push(key);
        collect(child, path, leaves);
        path.pop();
    };
    match &node.kind {
        Kind::Table(entries) => {
            entries
                .iter()
                .for_each(|(key, child)| descend(key.clone(), child));
        }
        Kind::Array(items) if items.iter().any(|item| matches!(item.kind, Kind::Table(_))) => {
            items
                .iter()
                .enumerate()
                .for_each(|(i, child)| descend(child.label(i), child));
        }
        _ => {
            let line = if let Origin::File(line) = node.origin {
                line
            } else {
                0
            };
            leaves.push((line, path.clone(), node.to_toml().to_string()));
        }
    }
}
