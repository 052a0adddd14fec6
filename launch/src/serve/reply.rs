//! Answers as one object or as a stream of events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::response::sse::{Event as Sse, Sse as Stream};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use mks2_proto::generate::{End, Event, Scored};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Server;
use super::hub::Answer;
use super::refusal::Refusal;

/// Texts that may end an answer.
const MOST_STOPS: usize = 16;

/// One or several texts that end an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Stop {
    One(String),
    Several(Vec<String>),
}

impl Stop {
    pub(super) fn texts(stop: Option<Self>) -> Result<Vec<String>, Refusal> {
        let mut texts = match stop {
            None => Vec::new(),
            Some(Self::One(text)) => vec![text],
            Some(Self::Several(texts)) => texts,
        };
        texts.retain(|text| !text.is_empty());
        match texts.len() <= MOST_STOPS {
            true => Ok(texts),
            false => {
                let message = format!("there may be at most {MOST_STOPS} stop texts");
                Err(Refusal::field("stop", message))
            }
        }
    }
}

/// Options of a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) text: String,
    pub(super) end: End,
    pub(super) scores: Vec<Scored>,
    pub(super) usage: Usage,
}

/// How many tokens there were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    prompt: u64,
    answer: u64,
}

impl Usage {
    pub(super) fn add(&mut self, other: Self) {
        self.prompt += other.prompt;
        self.answer += other.answer;
    }

    pub(super) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
        })
    }
}

pub(super) fn reason(end: End) -> &'static str {
    match end {
        End::Stop => "stop",
        End::Length => "length",
    }
}

/// Waits for all of an answer.
pub(super) async fn complete(mut answer: Answer) -> Result<Complete, Refusal> {
    let mut text = String::new();
    loop {
        match answer.next().await? {
            Event::Text { text: more, .. } => text.push_str(&more),
            event => return done(event, text),
        }
    }
}

fn done(event: Event, text: String) -> Result<Complete, Refusal> {
    match event {
        Event::Done {
            end,
            prompt_tokens,
            tokens,
            scores,
            ..
        } => Ok(Complete {
            text,
            end,
            scores,
            usage: Usage {
                prompt: prompt_tokens.into(),
                answer: tokens.len() as u64,
            },
        }),
        _ => Err(Refusal::closed()),
    }
}

/// A part of a streamed answer.
pub(super) enum Part {
    /// Some of its text.
    Text(String),
    /// It is complete.
    End(End),
}

/// Streams answers side by side: `shape` makes the object of a part from the answer's place and the part,
/// and `usage` the last one, if it is wanted.
pub(super) fn stream(
    answers: Vec<Answer>,
    options: StreamOptions,
    shape: impl Fn(usize, Part) -> Value + Send + Sync + 'static,
    usage: impl Fn(Usage) -> Value + Send + 'static,
) -> Response {
    let shape = Arc::new(shape);
    let streams = answers.into_iter().enumerate().map(|(place, answer)| {
        let shape = Arc::clone(&shape);
        let objects = parts(answer).map(move |part| match part {
            Ok((part, usage)) => (shape(place, part), usage),
            Err(refusal) => (refusal.body(), Usage::default()),
        });
        objects.boxed()
    });
    let mut behind = vec![Behind::Done];
    if options.include_usage.unwrap_or(false) {
        behind.push(Behind::Usage);
    }
    let state = (stream::select_all(streams), Usage::default(), behind, usage);
    let data = stream::unfold(state, async |(mut parts, mut total, mut behind, usage)| {
        let data = match parts.next().await {
            Some((object, more)) => {
                total.add(more);
                object.to_string()
            }
            None => match behind.pop()? {
                Behind::Usage => usage(total).to_string(),
                Behind::Done => "[DONE]".to_owned(),
            },
        };
        Some((data, (parts, total, behind, usage)))
    });
    let events = data.map(|data| Ok::<_, Infallible>(Sse::default().data(data)));
    Stream::new(events).into_response()
}

/// What stands behind all parts, the last first.
enum Behind {
    Usage,
    Done,
}

/// The parts of an answer, and what its end says of its tokens.
fn parts(answer: Answer) -> BoxStream<'static, Result<(Part, Usage), Refusal>> {
    let next = async |state: Option<Answer>| {
        let mut answer = state?;
        match answer.next().await {
            Ok(Event::Text { text, .. }) => {
                Some((Ok((Part::Text(text), Usage::default())), Some(answer)))
            }
            Ok(event) => {
                let part = done(event, String::new());
                Some((part.map(|done| (Part::End(done.end), done.usage)), None))
            }
            Err(refusal) => Some((Err(refusal), None)),
        }
    };
    stream::unfold(Some(answer), next).boxed()
}

impl Server {
    /// Whether `model` is what a request may call this one.
    pub(super) fn is_called(&self, model: Option<&str>) -> Result<(), Refusal> {
        match model {
            Some(asked) if asked != self.model.name => {
                Err(Refusal::no_such_model(asked, &self.model.name))
            }
            _ => Ok(()),
        }
    }
}
