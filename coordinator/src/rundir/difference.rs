//! Which settings of two jobs differ, for who comes with another job than the one in a directory.

use std::collections::BTreeMap;

use mks2_proto::job::{Job, load};
use object_store::ObjectStoreExt;
use serde_json::Value;

use crate::journal::Place;

/// How many settings are named.
const NAMED: usize = 5;

/// `: seed is 1 there and 2 here, ...`; nothing where the other job cannot be read.
pub(super) async fn between(place: &Place, job: &Job) -> String {
    let there = there(place).await;
    match there.and_then(|there| Some((flat(&there)?, flat(job)?))) {
        Some((there, here)) => words(&there, &here),
        None => String::new(),
    }
}

/// The job of the run that the directory holds.
async fn there(place: &Place) -> Option<Job> {
    let path = place.root.clone().join("config.resolved.toml");
    let bytes = place.store.get(&path).await.ok()?.bytes().await.ok()?;
    load::parse(std::str::from_utf8(&bytes).ok()?).ok()
}

/// The settings by their full names; elements of lists by their `name`, or else their number.
fn flat(job: &Job) -> Option<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    collect("", &serde_json::to_value(job).ok()?, &mut settings);
    Some(settings)
}

fn collect(at: &str, value: &Value, settings: &mut BTreeMap<String, String>) {
    let below = |key: &str| match at {
        "" => key.to_owned(),
        _ => format!("{at}.{key}"),
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                collect(&below(key), value, settings);
            }
        }
        Value::Array(elements) if elements.iter().any(Value::is_object) => {
            for (number, element) in elements.iter().enumerate() {
                let number = number.to_string();
                let name = element["name"].as_str().unwrap_or(&number);
                collect(&below(name), element, settings);
            }
        }
        // What is not set is not there.
        Value::Null => {}
        other => {
            settings.insert(at.to_owned(), other.to_string());
        }
    }
}

fn words(there: &BTreeMap<String, String>, here: &BTreeMap<String, String>) -> String {
    let mut keys: Vec<&String> = there.keys().chain(here.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.retain(|key| there.get(*key) != here.get(*key));
    let value = |side: &BTreeMap<String, String>, key: &str| {
        side.get(key).cloned().unwrap_or_else(|| "unset".to_owned())
    };
    let named = keys.iter().take(NAMED).map(|key| {
        let (there, here) = (value(there, key), value(here, key));
        format!("{key} is {there} there and {here} here")
    });
    let mut named: Vec<String> = named.collect();
    if keys.len() > NAMED {
        named.push(format!("and {} more", keys.len() - NAMED));
    }
    match named.is_empty() {
        true => String::new(),
        false => format!(": {}", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn differing_settings_are_named_with_both_values() {
        let there = settings(&[("seed", "1"), ("lanes", "8"), ("threads", "1")]);
        let here = settings(&[("seed", "2"), ("lanes", "8")]);
        assert_eq!(
            words(&there, &here),
            ": seed is 1 there and 2 here, threads is 1 there and unset here"
        );
        assert_eq!(words(&there, &there), "");
    }

    #[test]
    fn stages_are_named_and_other_lists_are_one_value() {
        let mut found = BTreeMap::new();
        let job = serde_json::json!({
            "stage": [{"name": "memory", "steps": 5, "blocks": [1, 2]}], "seed": 1, "none": null,
        });
        collect("", &job, &mut found);
        let expected = settings(&[
            ("seed", "1"),
            ("stage.memory.blocks", "[1,2]"),
            ("stage.memory.name", "\"memory\""),
            ("stage.memory.steps", "5"),
        ]);
        assert_eq!(found, expected);
    }
}
