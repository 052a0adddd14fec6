//! `/v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use mks2_proto::generate::{Prompt, Sampling, Score, Scored, What};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use super::reply::{self, Complete, Part, Stop, Streaming, Usage};
use super::request::Fields;
use super::{Server, Shared};

/// Likeliest tokens that are told at most, as in OpenAI's API.
const MOST_LOGPROBS: u32 = 5;
/// Tokens that are generated where the request does not say, as in OpenAI's API.
const USUAL_TOKENS: u32 = 16;

/// What is asked.
struct Request {
    prompt: Prompts,
    max_tokens: Option<u32>,
    drawing: Drawing,
    stop: Vec<String>,
    logprobs: Option<u32>,
    echo: bool,
    streaming: Option<Streaming>,
}

/// How tokens are chosen.
pub(super) struct Drawing {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: u32,
    seed: Option<i64>,
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
    /// How a request wants tokens chosen. What would change that and is not there is refused.
    pub(super) fn of(fields: &mut Fields) -> Result<Self, Refusal> {
        let absent = "is not supported";
        if fields.count("n")?.is_some_and(|n| n != 1) {
            let message = format!("n other than 1 {absent}: ask again");
            return Err(Refusal::field("n", message));
        }
        for name in ["presence_penalty", "frequency_penalty"] {
            let penalty: Option<f64> = fields.take(name, "a number")?;
            if penalty.is_some_and(|penalty| penalty != 0.0) {
                let message = format!("{name} other than 0 {absent}");
                return Err(Refusal::field(name, message));
            }
        }
        let bias: Option<Map<String, Value>> = fields.take("logit_bias", "an object")?;
        if bias.is_some_and(|bias| !bias.is_empty()) {
            return Err(Refusal::field("logit_bias", format!("logit_bias {absent}")));
        }
        Ok(Self {
            temperature: fields.take("temperature", "a number, 0 or larger")?,
            top_p: fields.take("top_p", "a number larger than 0 and at most 1")?,
            top_k: top_k(fields)?,
            seed: fields.take("seed", "a whole number")?,
        })
    }

    /// How tokens are chosen; of several prompts the one at `place`.
    pub(super) fn sampling(&self, place: u64) -> Result<Sampling, Refusal> {
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k,
            seed: match self.seed {
                Some(seed) => seed.cast_unsigned().wrapping_add(place),
                None => reply::any_number(),
            },
        };
        sampling.check()?;
        Ok(sampling)
    }
}

/// Of how many tokens one is drawn: 0, or -1 as vLLM has it, for all.
fn top_k(fields: &mut Fields) -> Result<u32, Refusal> {
    let right = "a whole number: 1 or larger, or 0 or -1 for all tokens";
    match fields.take::<i64>("top_k", right)? {
        None | Some(-1) => Ok(0),
        // There are never more tokens.
        Some(k) if k >= 0 => Ok(u32::try_from(k).unwrap_or(u32::MAX)),
        Some(k) => {
            let message = format!("top_k must be {right}, not {k}");
            Err(Refusal::field("top_k", message))
        }
    }
}

impl Request {
    fn of(fields: &mut Fields) -> Result<Self, Refusal> {
        let suffix: Option<String> = fields.take("suffix", "a text")?;
        if suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(Refusal::field("suffix", "suffix is not supported"));
        }
        if fields.count("best_of")?.is_some_and(|best| best != 1) {
            let message = "best_of other than 1 is not supported";
            return Err(Refusal::field("best_of", message));
        }
        let logprobs = fields.count("logprobs")?;
        if logprobs.is_some_and(|top| top > MOST_LOGPROBS) {
            let message = format!("logprobs can be {MOST_LOGPROBS} at most");
            return Err(Refusal::field("logprobs", message));
        }
        let streaming = Streaming::of(fields)?;
        if streaming.is_some() && logprobs.is_some() {
            let message = "logprobs are not streamed: leave out one of both";
            return Err(Refusal::field("logprobs", message));
        }
        let right = "a text, a list of texts, a list of tokens, or a list of such lists";
        Ok(Self {
            prompt: fields.need("prompt", right)?,
            max_tokens: fields.count("max_tokens")?,
            drawing: Drawing::of(fields)?,
            stop: Stop::of(fields)?,
            logprobs,
            echo: fields.is("echo")?,
            streaming,
        })
    }

    /// The prompts, at most so many.
    fn prompts(self, most: usize) -> Result<Vec<Prompt>, Refusal> {
        let (stop, echo) = (self.stop, self.echo);
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
    mut fields: Fields,
) -> Result<Response, Refusal> {
    server.is_called(&mut fields)?;
    let request = Request::of(&mut fields)?;
    let streaming = request.streaming;
    let prompts = request.prompts(server.hub.most())?;
    let answers = server.hub.ask_all(prompts, "prompt").await?;
    let head = head(&server);
    if let Some(streaming) = streaming {
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
        return reply::stream(answers, streaming, shape, usage).await;
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
fn head(server: &Arc<Server>) -> Map<String, Value> {
    let head = json!({
        "id": format!("cmpl-{}", reply::label()),
        "object": "text_completion",
        "created": super::now(),
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
        // The token itself is told, too, where it is none of these.
        for likely in scored.top.iter().chain([&scored.token]) {
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

#[cfg(test)]
mod tests {
    use mks2_proto::generate::Likely;

    use super::*;

    fn drawing(fields: Value) -> Result<Sampling, Value> {
        let drawing = Drawing::of(&mut fields.into()).and_then(|drawing| drawing.sampling(3));
        drawing.map_err(|refusal| refusal.body()["error"].clone())
    }

    #[test]
    fn all_tokens_may_be_drawn_in_the_words_of_several_servers() {
        for (top_k, wanted) in [(-1, 0), (0, 0), (7, 7), (1_i64 << 40, u32::MAX)] {
            let sampling = drawing(json!({"top_k": top_k, "seed": -1})).expect("good");
            assert_eq!((sampling.top_k, sampling.seed), (wanted, 2));
        }
        for top_k in [json!(-2), json!("all"), json!(1.5)] {
            let error = drawing(json!({ "top_k": top_k })).expect_err("refused");
            assert_eq!(error["param"], "top_k");
            let message = error["message"].as_str().expect("words");
            assert!(message.contains("0 or -1 for all tokens"), "{message}");
        }
    }

    #[test]
    fn a_prompt_that_is_none_is_told_what_it_may_be() {
        for prompt in [json!(3), json!([1, "a"]), json!({}), Value::Null] {
            let request = Request::of(&mut json!({ "prompt": prompt }).into());
            let error = request.err().expect("refused").body()["error"].clone();
            assert_eq!(error["param"], "prompt");
            let message = error["message"].as_str().expect("words");
            assert!(
                message.contains("a list of texts, a list of tokens"),
                "{message}"
            );
        }
    }

    #[test]
    fn long_stop_texts_are_refused() {
        for (bytes, is_good) in [(1024, true), (1025, false)] {
            let stop = json!(["a", "x".repeat(bytes)]);
            let request = Request::of(&mut json!({"prompt": "a", "stop": stop}).into());
            assert_eq!(request.is_ok(), is_good, "{bytes}");
        }
    }

    #[test]
    fn the_token_that_was_drawn_is_among_those_that_are_told() {
        let likely = |id, text: &str, logprob| Likely {
            id,
            text: text.into(),
            logprob: Some(logprob),
        };
        let of = |token: Likely| {
            let top = vec![likely(1, "a", -0.5)];
            let found = logprobs(&[Scored {
                token,
                offset: 4,
                top,
            }]);
            (
                found["top_logprobs"][0].clone(),
                found["text_offset"].clone(),
            )
        };
        let (top, offsets) = of(likely(2, "b", -2.0));
        assert_eq!((top, offsets), (json!({"a": -0.5, "b": -2.0}), json!([4])));
        assert_eq!(of(likely(1, "a", -0.5)).0, json!({"a": -0.5}));
    }
}
