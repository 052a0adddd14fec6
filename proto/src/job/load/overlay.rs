//! Laying `--set` and environment variables over the tree of the job file.
//!
//! A stage is addressed by its name (`stage.memory.steps`), an unnamed list element by its
//! number. A variable's parts are separated by two underscores and compared without case, with
//! `-` written as `_`: `MKS2__STAGE__MEMORY__STEPS`.

use serde_json::Value;

use super::{
    Origin,
    schema::{Schema, Shape, join, listed, nearest},
    tree::{self, Kind, Node},
};
use crate::env::SETTING_PREFIX;
use crate::failure::Failure;

/// Applies one `key=value` of `--set`.
pub(super) fn set(tree: &mut Node, schema: &Schema, text: &str) -> Result<(), Failure> {
    let Some((key, value)) = text
        .split_once('=')
        .filter(|(key, _)| !key.trim().is_empty())
    else {
        return Err(Failure::usage(
            format!("--set {text} cannot be understood"),
            "it is not of the form key=value",
            "write for example --set stage.memory.steps=100",
        ));
    };
    let path: Vec<&str> = key.trim().split('.').collect();
    let order = Order {
        path: &path,
        value: value.trim(),
        origin: Origin::Set,
        fold: false,
    };
    order.apply(tree, schema, schema.root(), 0)
}

/// Applies one environment variable.
pub(super) fn variable(
    tree: &mut Node,
    schema: &Schema,
    name: &str,
    value: &str,
) -> Result<(), Failure> {
    let key = name.strip_prefix(SETTING_PREFIX).unwrap_or(name);
    let path: Vec<&str> = key.split("__").collect();
    let origin = Origin::Environment(name.to_owned());
    Order {
        path: &path,
        value,
        origin,
        fold: true,
    }
    .apply(tree, schema, schema.root(), 0)
}

/// One value and where it goes.
struct Order<'a> {
    path: &'a [&'a str],
    value: &'a str,
    origin: Origin,
    /// Compare names without case, `-` as `_`.
    fold: bool,
}

impl Order<'_> {
    /// Goes down one part of the path; creates tables on the way.
    fn apply(
        &self,
        node: &mut Node,
        schema: &Schema,
        at: &Value,
        depth: usize,
    ) -> Result<(), Failure> {
        let Some(part) = self.path.get(depth).copied() else {
            *node = self.read(schema.shape(at));
            return Ok(());
        };
        match schema.shape(at) {
            Shape::Table { properties, .. } => {
                let Some(name) = properties.keys().find(|name| self.same(name, part)) else {
                    let part = if self.fold {
                        part.to_lowercase()
                    } else {
                        part.to_owned()
                    };
                    let complaint =
                        schema.unknown(&self.upto(depth), &part, properties, &self.origin);
                    return Err(complaint.failure(""));
                };
                let inner = &properties[name];
                self.apply(self.child(node, name), schema, inner, depth + 1)
            }
            Shape::Named(inner) => {
                let name = self.user_name(node, part);
                self.apply(self.child(node, &name), schema, inner, depth + 1)
            }
            Shape::List(inner) => match self.element(node, part) {
                Some(item) => self.apply(item, schema, inner, depth + 1),
                None => Err(self.no_element(node, part, depth)),
            },
            _ => Err(self.too_deep(depth)),
        }
    }

    fn same(&self, name: &str, part: &str) -> bool {
        if self.fold {
            folded(name) == folded(part)
        } else {
            name == part
        }
    }

    fn upto(&self, depth: usize) -> String {
        let path = self.path[..depth].join(".");
        if self.fold { path.to_lowercase() } else { path }
    }

    /// The entry of a table, made when it is not there.
    fn child<'n>(&self, node: &'n mut Node, name: &str) -> &'n mut Node {
        if !matches!(node.kind, Kind::Table(_)) {
            *node = Node::table(self.origin.clone());
        }
        match node.kind {
            Kind::Table(ref mut entries) => entries
                .entry(name.to_owned())
                .or_insert_with(|| Node::table(self.origin.clone())),
            _ => node,
        }
    }

    /// The spelling of a name that the user chose.
    fn user_name(&self, node: &Node, part: &str) -> String {
        let known = match &node.kind {
            Kind::Table(entries) => entries.keys().find(|name| self.same(name, part)).cloned(),
            _ => None,
        };
        let fallback = if self.fold {
            part.to_lowercase()
        } else {
            part.to_owned()
        };
        known.unwrap_or(fallback)
    }

    /// An element of a list of tables, by name, else by number.
    fn element<'n>(&self, node: &'n mut Node, part: &str) -> Option<&'n mut Node> {
        let Kind::Array(items) = &mut node.kind else {
            return None;
        };
        let by_name = items
            .iter()
            .position(|item| item.text("name").is_some_and(|n| self.same(n, part)));
        let index = by_name.or_else(|| part.parse().ok())?;
        items.get_mut(index)
    }

    /// The value as the schema wants it: text needs no quotes, all else is TOML. What is no TOML
    /// stays text, and the schema's check complains about it with its origin.
    fn read(&self, shape: Shape<'_>) -> Node {
        let quoted = self.value.starts_with(['"', '\'']);
        let plain = matches!(shape, Shape::Text | Shape::Words(_)) && !quoted;
        let parsed = if plain {
            None
        } else {
            tree::parse_value(self.value, &self.origin)
        };
        let text = toml::Value::String(self.value.to_owned());
        parsed.unwrap_or(Node {
            kind: Kind::Leaf(text),
            origin: self.origin.clone(),
        })
    }

    fn no_element(&self, node: &Node, part: &str, depth: usize) -> Failure {
        let names: Vec<String> = match &node.kind {
            Kind::Array(items) => items.iter().enumerate().map(|(i, n)| n.label(i)).collect(),
            _ => Vec::new(),
        };
        let list = self.upto(depth);
        let cure = match nearest(&part.to_lowercase(), names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean '{near}'?"),
            None if names.is_empty() => "add one to the job file".into(),
            None => format!("known there: {}", listed(names.iter())),
        };
        Failure::settings(
            format!("there is no {list} '{part}'"),
            format!("{} sets {}", self.origin.describe(""), join(&list, part)),
            cure,
        )
    }

    fn too_deep(&self, depth: usize) -> Failure {
        let key = self.upto(depth);
        Failure::settings(
            format!("{key} has nothing below it"),
            format!("{} sets {}", self.origin.describe(""), self.path.join(".")),
            format!("set {key} itself"),
        )
    }
}

fn folded(name: &str) -> String {
    name.to_lowercase().replace('-', "_")
}
