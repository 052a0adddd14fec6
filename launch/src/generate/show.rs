//! Answers as text or JSON, in the order of the prompts.

use mks2_proto::failure::Failure;
use mks2_proto::generate::{End, Event};
use serde::Serialize;

use super::prompts::Asked;
use crate::output::Output;

/// The answers that have come.
pub(super) struct Answers<'a> {
    asked: &'a [Asked],
    json: bool,
    output: &'a Output,
    answers: Vec<Answer>,
    /// Those before it are shown.
    shown: usize,
    first_failure: Option<Failure>,
}

/// One of them.
#[derive(Clone, Debug, Default)]
struct Answer {
    text: String,
    /// How much of the text is on the terminal.
    shown: usize,
    end: Option<Ended>,
}

#[derive(Clone, Debug)]
enum Ended {
    Done {
        end: End,
        prompt_tokens: u32,
        tokens: Vec<u32>,
    },
    Refused(Failure),
}

/// A line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    prompt: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<End>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(asked: &'a [Asked], json: bool, output: &'a Output) -> Self {
        Self {
            asked,
            json,
            output,
            answers: vec![Answer::default(); asked.len()],
            shown: 0,
            first_failure: None,
        }
    }

    /// Takes in an event and shows what can be shown: as text, the answer that is next goes on while it
    /// is generated.
    ///
    /// # Errors
    /// When the answer has no JSON.
    pub(super) fn take(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Text { id, text } => {
                if let Some(answer) = self.answers.get_mut(id as usize) {
                    answer.text.push_str(&text);
                }
            }
            Event::Done {
                id,
                end,
                prompt_tokens,
                tokens,
                ..
            } => self.ended(
                id,
                Ended::Done {
                    end,
                    prompt_tokens,
                    tokens,
                },
            ),
            Event::Refused { id, why } => self.ended(id, Ended::Refused(why.into())),
            _ => return Ok(()),
        }
        self.show()
    }

    /// Whether all prompts are answered or refused.
    pub(super) fn are_complete(&self) -> bool {
        self.shown == self.answers.len()
    }

    /// What did not go well.
    ///
    /// # Errors
    /// The first prompt that could not be answered.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.first_failure {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn ended(&mut self, id: u64, ended: Ended) {
        if let Some(answer) = self.answers.get_mut(id as usize) {
            answer.end = Some(ended);
        }
    }

    fn show(&mut self) -> Result<(), Failure> {
        while let Some(answer) = self.answers.get_mut(self.shown) {
            if !self.json {
                self.output.raw(&answer.text[answer.shown..]);
                answer.shown = answer.text.len();
            }
            let Some(end) = answer.end.clone() else {
                return Ok(());
            };
            let asked = &self.asked[self.shown];
            if self.json {
                self.output.result(&line(asked, answer, &end)?);
            } else if !matches!(end, Ended::Refused(_)) {
                self.output.raw("\n");
            }
            if let Ended::Refused(mut failure) = end {
                if self.asked.len() > 1 {
                    failure.what = format!("{}: {}", asked.name, failure.what);
                }
                match self.first_failure {
                    // It is told last.
                    None => self.first_failure = Some(failure),
                    Some(_) => self.output.problem(&failure),
                }
            }
            self.shown += 1;
        }
        Ok(())
    }
}

fn line(asked: &Asked, answer: &Answer, end: &Ended) -> Result<String, Failure> {
    let bare = Line {
        prompt: asked.prompt.what.text(),
        text: &answer.text,
        end: None,
        prompt_tokens: None,
        tokens: None,
        error: None,
    };
    let line = match end {
        Ended::Done {
            end,
            prompt_tokens,
            tokens,
        } => Line {
            end: Some(*end),
            prompt_tokens: Some(*prompt_tokens),
            tokens: Some(tokens),
            ..bare
        },
        Ended::Refused(failure) => Line {
            error: Some(format!("{}: {}", failure.what, failure.why)),
            ..bare
        },
    };
    serde_json::to_string(&line)
        .map_err(|error| Failure::internal("an answer has no JSON", error.to_string()))
}
