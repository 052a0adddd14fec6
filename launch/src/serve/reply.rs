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
use super::request::Fields;

/// Texts that may end an answer.
const MOST_STOPS: usize = 16;
/// Bytes of each of them: they are looked for behind every token.
const MOST_STOP_BYTES: usize = 1 << 10;

/// One or several texts that end an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Stop {
    One(String),
    Several(Vec<String>),
}

impl Stop {
    /// The texts of a request.
    pub(super) fn of(fields: &mut Fields) -> Result<Vec<String>, Refusal> {
        let stop = fields.take("stop", "a text or a list of texts")?;
        let mut texts = match stop {
            None => Vec::new(),
            Some(Self::One(text)) => vec![text],
            Some(Self::Several(texts)) => texts,
        };
        texts.retain(|text| !text.is_empty());
        if texts.len() > MOST_STOPS {
            let message = format!("there may be at most {MOST_STOPS} stop texts");
            return Err(Refusal::field("stop", message));
        }
        if let Some(long) = texts.iter().find(|text| text.len() > MOST_STOP_BYTES) {
            let bytes = long.len();
            let message =
                format!("a stop text may have {MOST_STOP_BYTES} bytes, and one has {bytes}");
            return Err(Refusal::field("stop", message));
        }
        Ok(texts)
    }
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streaming {
    /// Its last event says how many tokens there were.
    with_usage: bool,
}

#[derive(Default, Deserialize)]
struct Options {
    include_usage: Option<bool>,
}

impl Streaming {
    /// Whether a request wants a stream, and how.
    pub(super) fn of(fields: &mut Fields) -> Result<Option<Self>, Refusal> {
        let right = "an object in which include_usage is true or false";
        let options: Option<Options> = fields.take("stream_options", right)?;
        let is_stream = fields.is("stream")?;
        let with_usage = options.unwrap_or_default().include_usage;
        let with_usage = with_usage.unwrap_or(false);
        Ok(is_stream.then_some(Self { with_usage }))
    }
}

/// What tells an answer from all others, of this server and of others.
pub(super) fn label() -> String {
    let [one, other] = [(); 2].map(|()| any_number());
    format!("{one:016x}{other:016x}")
}

/// A number that nobody can foresee.
pub(super) fn any_number() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
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
///
/// # Errors
/// When the first that is said is that a prompt cannot be answered: what has begun has a good status.
pub(super) async fn stream(
    answers: Vec<Answer>,
    Streaming { with_usage }: Streaming,
    shape: impl Fn(usize, Part) -> Value + Send + Sync + 'static,
    usage: impl Fn(Usage) -> Value + Send + 'static,
) -> Result<Response, Refusal> {
    let shape = Arc::new(shape);
    let streams = answers.into_iter().enumerate().map(|(place, answer)| {
        let shape = Arc::clone(&shape);
        let objects = parts(answer).map(move |part| {
            let (part, usage) = part?;
            let mut object = shape(place, part);
            if with_usage {
                object["usage"] = Value::Null;
            }
            Ok::<_, Refusal>((object, usage))
        });
        objects.boxed()
    });
    let mut behind = vec![Behind::Done];
    if with_usage {
        behind.push(Behind::Usage);
    }
    let mut parts = stream::select_all(streams);
    let first = parts.next().await.transpose()?;
    let parts = stream::iter(first.map(Ok)).chain(parts);
    let parts = parts.map(|part| match part {
        Ok(part) => part,
        Err(refusal) => (Refusal::body(&refusal), Usage::default()),
    });
    let state = (parts.boxed(), Usage::default(), behind, usage);
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
    Ok(Stream::new(events).into_response())
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
    /// Whether a request calls the model as it may, or not at all.
    pub(super) fn is_called(&self, fields: &mut Fields) -> Result<(), Refusal> {
        match fields.take::<String>("model", "a text")? {
            Some(asked) if asked != self.model.name => {
                Err(Refusal::no_such_model(&asked, &self.model.name))
            }
            _ => Ok(()),
        }
    }
}
