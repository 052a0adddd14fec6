//! Questions with choices.

use serde_json::Value;

use super::rows::{self, File};
use super::{MultipleChoice, Result};
use crate::row::{Row, render};

/// A question with choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The row that it is from.
    pub row: Row,
    /// What can be chosen.
    pub choices: Vec<String>,
    /// The place of the right one.
    pub right: usize,
}

impl Choice {
    /// The question of a row, whose fields `choices` and `answer` hold what can be chosen and the right
    /// one: its text, or its place from 0.
    ///
    /// # Errors
    /// What the row lacks.
    pub fn of(row: Row, choices: &str, answer: &str) -> Result<Self, String> {
        let Some(Value::Array(listed)) = row.metadata.get(choices) else {
            return Err(format!("it has no list \"{choices}\""));
        };
        let texts: Option<Vec<String>> = listed
            .iter()
            .map(|choice| choice.as_str().map(str::to_owned))
            .collect();
        let texts = texts.ok_or_else(|| format!("a choice in \"{choices}\" is no text"))?;
        if texts.iter().any(String::is_empty) {
            return Err(format!("a choice in \"{choices}\" is empty"));
        }
        let right = match row.metadata.get(answer).and_then(Value::as_u64) {
            Some(place) => usize::try_from(place).ok().filter(|at| *at < texts.len()),
            None => {
                let text = row.field(answer);
                let text = text.ok_or_else(|| format!("it has no answer in \"{answer}\""))?;
                texts.iter().position(|choice| *choice == *text)
            }
        };
        let right = right.ok_or("its answer is not among its choices")?;
        Ok(Self {
            row,
            choices: texts,
            right,
        })
    }
}

/// The questions of a file.
pub(super) fn read(settings: &MultipleChoice, name: &str, bytes: &[u8]) -> Result<Vec<Choice>> {
    let file = File { name };
    let objects = (0..).zip(file.objects(bytes)?);
    let read = objects.map(|(index, (at, fields))| {
        let row = rows::row(index, fields);
        let choice = Choice::of(row, &settings.choices, &settings.answer);
        let choice = choice.map_err(|why| file.refuse_row(&at, why))?;
        render(&settings.prompt, &choice.row)
            .map_err(|error| file.refuse_row(&at, error.to_string()))?;
        Ok(choice)
    });
    read.collect()
}
