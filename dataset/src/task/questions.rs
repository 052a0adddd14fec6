//! Questions about pictures, with the answers of several people: VQAv2's files.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;

use super::captions::Id;
use super::rows::File;
use super::{Result, Vqa};

/// A question about a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What the data call it.
    pub key: String,
    /// What is asked.
    pub question: String,
    /// The picture's file, relative to the folder of pictures.
    pub file: String,
    /// What people answered; at least one.
    pub answers: Vec<String>,
}

#[derive(Deserialize)]
struct Question {
    question_id: Id,
    image_id: Id,
    question: String,
}

#[derive(Deserialize)]
struct Annotation {
    question_id: Id,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    answer: String,
}

/// The questions of a file with the answers of another one.
pub(super) fn read(
    settings: &Vqa,
    name: &str,
    bytes: &[u8],
    annotations: &[(String, Bytes)],
) -> Result<Vec<Asked>> {
    let file = File { name };
    let mut answers = BTreeMap::new();
    for (name, bytes) in annotations {
        let other = File { name };
        let rows: Vec<Annotation> = other.list(&mut other.json(bytes)?, "annotations")?;
        answers.extend(rows.into_iter().map(|row| (row.question_id, row.answers)));
    }
    let questions: Vec<Question> = file.list(&mut file.json(bytes)?, "questions")?;
    let asked = (1..).zip(questions).map(|(number, question)| {
        let key = question.question_id.to_string();
        let own = answers.remove(&question.question_id).unwrap_or_default();
        if own.is_empty() {
            let at = format!("question {number} ({key})");
            return Err(file.refuse_row(at, "nobody has answered it in the annotations"));
        }
        let picture = picture(&settings.file, &question.image_id);
        Ok(Asked {
            key,
            question: question.question,
            file: picture.ok_or_else(|| {
                file.refuse(format!(
                    "\"{}\" names no picture: it must hold {{image_id}} or {{image_id:012}}",
                    settings.file
                ))
            })?,
            answers: own.into_iter().map(|answer| answer.answer).collect(),
        })
    });
    asked.collect()
}

/// The name of a picture's file.
fn picture(template: &str, id: &Id) -> Option<String> {
    let (before, rest) = template.split_once("{image_id")?;
    let (width, after) = rest.split_once('}')?;
    let id = id.to_string();
    let digits: usize = match width {
        "" => 0,
        _ => width
            .strip_prefix(":0")?
            .parse()
            .ok()
            .filter(|n| *n < 100)?,
    };
    let zeros = "0".repeat(digits.saturating_sub(id.len()));
    Some(format!("{before}{zeros}{id}{after}"))
}
