//! The chat template of a language model: how its authors write a dialogue as one text.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::tokens::{SETTINGS, Token, optional};
use super::{Folder, Result};

/// A template in a file of its own, which goes before the one in `tokenizer_config.json`.
const FILE_NAME: &str = "chat_template.jinja";
/// Of several templates, the one for dialogues without anything else.
const USUAL: &str = "default";
/// Largest template, bytes: the longest that is known has 25 thousand.
const MOST: usize = 1 << 20;

/// A template, not yet looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    /// Jinja.
    pub text: String,
    /// What messages call the file that it stands in.
    pub file: String,
    /// The texts of the special tokens, by the names that templates have for them: `bos_token`.
    pub tokens: BTreeMap<String, String>,
}

/// What a model comes with for dialogues, as its authors have written it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// The text of its chat template, whether it can be used or not.
    pub template: Option<String>,
    /// The texts of the special tokens, by their names.
    pub tokens: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Settings {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    names: Names,
}

#[derive(Default, Deserialize)]
struct Names {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    sep_token: Option<Token>,
    pad_token: Option<Token>,
    cls_token: Option<Token>,
    mask_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// Reads what a folder says of dialogues. A template that is damaged is none.
///
/// # Errors
/// When `tokenizer_config.json` is damaged.
pub async fn words(folder: &Folder) -> Result<Words> {
    let settings: Option<Settings> = optional(folder, SETTINGS).await?;
    let found = read(folder).await.ok().flatten();
    Ok(Words {
        template: found.map(|found| found.text),
        tokens: settings.unwrap_or_default().names.texts(),
    })
}

/// Reads the chat template of a folder, if it has one.
///
/// # Errors
/// When a file is damaged or too large, or has templates for other ends alone.
pub async fn read(folder: &Folder) -> Result<Option<ChatTemplate>> {
    let settings: Option<Settings> = optional(folder, SETTINGS).await?;
    let settings = settings.unwrap_or_default();
    let (text, name) = match folder.text(FILE_NAME).await? {
        Some(bytes) => {
            let text = String::from_utf8(bytes.into());
            let text = text.map_err(|error| folder.refuse(FILE_NAME, error.to_string()))?;
            (text, FILE_NAME)
        }
        None => match settings.chat_template {
            None => return Ok(None),
            Some(templates) => (usual(folder, templates)?, SETTINGS),
        },
    };
    if text.len() > MOST {
        let why = format!(
            "its chat template has {} bytes, more than {MOST}",
            text.len()
        );
        return Err(folder.refuse(name, why));
    }
    Ok(Some(ChatTemplate {
        text,
        file: folder.name_of(name),
        tokens: settings.names.texts(),
    }))
}

fn usual(folder: &Folder, templates: Templates) -> Result<String> {
    let several = match templates {
        Templates::One(text) => return Ok(text),
        Templates::Several(several) => several,
    };
    let names: Vec<String> = several.iter().map(|one| one.name.clone()).collect();
    let usual = several.into_iter().find(|one| one.name == USUAL);
    usual.map(|one| one.template).ok_or_else(|| {
        let names = names.join(", ");
        let why = format!("of its chat templates, none is called '{USUAL}': {names}");
        folder.refuse(SETTINGS, why)
    })
}

impl Names {
    fn texts(self) -> BTreeMap<String, String> {
        let named = [
            ("bos_token", self.bos_token),
            ("eos_token", self.eos_token),
            ("unk_token", self.unk_token),
            ("sep_token", self.sep_token),
            ("pad_token", self.pad_token),
            ("cls_token", self.cls_token),
            ("mask_token", self.mask_token),
        ];
        let there = named
            .into_iter()
            .filter_map(|(name, token)| Some((name.to_owned(), token?.text())));
        there.collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read_from(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let folder = Folder::open(folder.path().to_str().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(read(&folder))
    }

    fn settings(template: Value) -> String {
        json!({"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>",
               "pad_token": null, "legacy": true})
        .to_string()
    }

    #[test]
    fn a_template_comes_from_its_own_file_or_from_the_settings() {
        let several =
            json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        for (template, own, expected) in [
            (json!("one"), None, Some("one")),
            (json!("one"), Some("own"), Some("own")),
            (several, None, Some("d")),
            (Value::Null, Some("own"), Some("own")),
            (Value::Null, None, None),
        ] {
            let settings = settings(template);
            let mut files = vec![(SETTINGS, settings.as_str())];
            files.extend(own.map(|text| (FILE_NAME, text)));
            let found = read_from(&files).unwrap();
            assert_eq!(found.as_ref().map(|found| found.text.as_str()), expected);
            if let Some(found) = found {
                let tokens: Vec<(&str, &str)> = found
                    .tokens
                    .iter()
                    .map(|(name, text)| (name.as_str(), text.as_str()))
                    .collect();
                assert_eq!(tokens, [("bos_token", "<s>"), ("eos_token", "</s>")]);
            }
        }
        assert_eq!(read_from(&[]).unwrap(), None);
    }

    #[test]
    fn templates_that_are_none_for_dialogues_are_refused() {
        let tools = settings(
            json!([{"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}]),
        );
        let large = settings(json!("x".repeat(MOST + 1)));
        for (text, words) in [(tools, "tool_use, rag"), (large, "more than 1048576")] {
            let refused = read_from(&[(SETTINGS, &text)]).unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
