//! `/v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use mks2_proto::generate::{Prompt, Sampling, Score, Scored, What};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use super::reply::{self, Complete, Part, Stop, StreamOptions, Usage};
use super::{Server, Shared};

/// Likeliest tokens that are told at most, as in OpenAI's API.
const MOST_LOGPROBS: u32 = 5;
/// Tokens that are generated where the request does not say, as in OpenAI's API.
const USUAL_TOKENS: u32 = 16;

/// What is asked. Fields that change nothing here, such as `user`, are not looked at.
#[derive(Deserialize)]
pub(super) struct Request {
    model: Option<String>,
    prompt: Prompts,
    max_tokens: Option<u32>,
    #[serde(flatten)]
    drawing: Drawing,
    stop: Option<Stop>,
    logprobs: Option<u32>,
    echo: Option<bool>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    suffix: Option<String>,
    best_of: Option<u32>,
}

/// How tokens are chosen, and what would change that and is not there.
#[derive(Deserialize)]
pub(super) struct Drawing {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u32>,
    seed: Option<i64>,
    n: Option<u32>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<Map<String, Value>>,
}

/// One prompt or several, as text or as tokens.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

impl Prompts {
    fn all(self) -> Vec<What> {
        match self {
            Self::Text(text) => vec![What::Text(text)],
            Self::Texts(texts) => texts.into_iter().map(What::Text).collect(),
            Self::Tokens(tokens) => vec![What::Tokens(tokens)],
            Self::TokenLists(lists) => lists.into_iter().map(What::Tokens).collect(),
        }
    }
}

impl Drawing {
    /// How tokens are chosen; of several prompts the one at `place`.
    pub(super) fn sampling(&self, place: u64) -> Result<Sampling, Refusal> {
        let absent = "is not supported";
        if self.n.is_some_and(|n| n != 1) {
            return Err(Refusal::field(
                "n",
                format!("n other than 1 {absent}: ask again"),
            ));
        }
        for (name, penalty) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            if penalty.is_some_and(|penalty| penalty != 0.0) {
                return Err(Refusal::field(
                    name,
                    format!("{name} other than 0 {absent}"),
                ));
            }
        }
        if self
            .logit_bias
            .as_ref()
            .is_some_and(|bias| !bias.is_empty())
        {
            return Err(Refusal::field("logit_bias", format!("logit_bias {absent}")));
        }
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            seed: match self.seed {
                Some(seed) => seed.cast_unsigned().wrapping_add(place),
                None => any_seed(),
            },
        };
        sampling.check()?;
        Ok(sampling)
    }
}

/// A seed for those who give none.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

impl Request {
    fn is_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    fn check(&self) -> Result<(), Refusal> {
        if self
            .suffix
            .as_ref()
            .is_some_and(|suffix| !suffix.is_empty())
        {
            return Err(Refusal::field("suffix", "suffix is not supported"));
        }
        if self.best_of.is_some_and(|best| best != 1) {
            return Err(Refusal::field(
                "best_of",
                "best_of other than 1 is not supported",
            ));
        }
        if self.logprobs.is_some_and(|top| top > MOST_LOGPROBS) {
            let message = format!("logprobs can be {MOST_LOGPROBS} at most");
            return Err(Refusal::field("logprobs", message));
        }
        if self.is_stream() && self.logprobs.is_some() {
            let message = "logprobs are not streamed: leave out one of both";
            return Err(Refusal::field("logprobs", message));
        }
        Ok(())
    }

    /// The prompts, at most so many.
    fn prompts(self, most: usize) -> Result<Vec<Prompt>, Refusal> {
        let stop = Stop::texts(self.stop)?;
        let echo = self.echo.unwrap_or(false);
        let score = self.logprobs.map(|top| Score {
            prompt: if echo { u32::MAX } else { 0 },
            top,
        });
        let texts = self.prompt.all();
        if texts.len() > most {
            let message = format!(
                "there are {} prompts, and at most {most} may wait",
                texts.len()
            );
            return Err(Refusal::field("prompt", message));
        }
        let prompts = (0..).zip(texts).map(|(place, what)| {
            Ok(Prompt {
                what,
                echo,
                score,
                max_tokens: Some(self.max_tokens.unwrap_or(USUAL_TOKENS)),
                sampling: self.drawing.sampling(place)?,
                stop: stop.clone(),
                ..Prompt::default()
            })
        });
        let prompts: Vec<Prompt> = prompts.collect::<Result<_, Refusal>>()?;
        match prompts.is_empty() {
            true => Err(Refusal::field("prompt", "there is no prompt")),
            false => Ok(prompts),
        }
    }
}

pub(super) async fn complete(
    State(server): Shared,
    request: Result<Json<Request>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request?;
    server.is_called(request.model.as_deref())?;
    request.check()?;
    let is_stream = request.is_stream();
    let options = request.stream_options.unwrap_or_default();
    let prompts = request.prompts(server.hub.most())?;
    let answers = server.hub.ask_all(prompts).await?;
    let head = head(&server, &answers[0].label());
    if is_stream {
        let (shape_head, usage_head) = (head.clone(), head);
        let shape = move |place, part| {
            let (text, reason) = match part {
                Part::Text(text) => (text, None),
                Part::End(end) => (String::new(), Some(reply::reason(end))),
            };
            let choice = json!({
                "index": place, "text": text, "logprobs": null, "finish_reason": reason,
            });
            object(&shape_head, vec![choice], None)
        };
        let usage = move |usage| object(&usage_head, Vec::new(), Some(usage));
        return Ok(reply::stream(answers, options, shape, usage));
    }
    let complete = try_join_all(answers.into_iter().map(reply::complete)).await?;
    let mut usage = Usage::default();
    let choices = complete.iter().enumerate().map(|(place, complete)| {
        usage.add(complete.usage);
        choice(place, complete)
    });
    let choices = choices.collect();
    Ok(Json(object(&head, choices, Some(usage))).into_response())
}

/// What all objects of a response have in common.
fn head(server: &Arc<Server>, label: &str) -> Map<String, Value> {
    let head = json!({
        "id": format!("cmpl-{label}"),
        "object": "text_completion",
        "created": server.model.created,
        "model": server.model.name,
    });
    match head {
        Value::Object(head) => head,
        _ => Map::new(),
    }
}

fn object(head: &Map<String, Value>, choices: Vec<Value>, usage: Option<Usage>) -> Value {
    let mut object = head.clone();
    object.insert("choices".into(), choices.into());
    if let Some(usage) = usage {
        object.insert("usage".into(), usage.json());
    }
    object.into()
}

fn choice(place: usize, complete: &Complete) -> Value {
    let logprobs = match complete.scores.is_empty() {
        true => Value::Null,
        false => logprobs(&complete.scores),
    };
    json!({
        "index": place,
        "text": complete.text,
        "logprobs": logprobs,
        "finish_reason": reply::reason(complete.end),
    })
}

fn logprobs(scores: &[Scored]) -> Value {
    let offsets: Vec<u32> = scores.iter().map(|scored| scored.offset).collect();
    let top = scores.iter().map(|scored| {
        if scored.token.logprob.is_none() {
            return Value::Null;
        }
        let mut by_text = Map::new();
        for likely in &scored.top {
            // Of several with the same text the likeliest comes first.
            let text = likely.text.clone();
            by_text.entry(text).or_insert_with(|| json!(likely.logprob));
        }
        by_text.into()
    });
    let top: Vec<Value> = top.collect();
    json!({
        "tokens": scores.iter().map(|scored| &scored.token.text).collect::<Vec<_>>(),
        "token_logprobs": scores.iter().map(|scored| scored.token.logprob).collect::<Vec<_>>(),
        "top_logprobs": top,
        "text_offset": offsets,
    })
}
