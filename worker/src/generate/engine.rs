//! Many answers side by side: whenever one is complete, another prompt takes its place.
//!
//! ```text
//! admit     prompts are read together, each gets its first token
//! advance   one more token for every answer
//! ```
//!
//! Keys and values have a limit ([`room`]): a prompt waits until there is room for it.

mod room;

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mks2_proto::failure::Failure;
use mks2_proto::generate::{End, Event, Prompt, Sampling, Score, Scored, What, Words};
use tch::Tensor;

use super::sample::choose;
use super::score;
use super::speaker::Speaker;
use super::writer::Writer;
use super::{no_numbers, refused};
use crate::model::{Cache, Parked, ROOM, Wanted};
use crate::objective::to_floats;
use crate::text::to_tokens;

/// The answers under way.
pub(crate) struct Engine<'a> {
    speaker: &'a Speaker,
    cache: Cache,
    /// In the order of the cache's rows.
    answers: Vec<Answer<'a>>,
    /// Answers that have made room for older ones.
    parked: VecDeque<(Answer<'a>, Parked)>,
    /// Prompts for which there was no room yet.
    waiting: VecDeque<Ready>,
    /// Positions of all rows together for which there may be room.
    most_positions: i64,
    /// Answers that have begun.
    begun: u64,
}

/// One of them.
struct Answer<'a> {
    id: u64,
    /// How many have begun before.
    age: u64,
    sampling: Sampling,
    writer: Writer<'a>,
    prompt_tokens: u32,
    most: usize,
    /// Special tokens that end it, beside those that always do.
    ends: Vec<u32>,
    tokens: Vec<u32>,
    score: Option<Score>,
    scores: Vec<Scored>,
    /// Characters of the prompt that stand before it.
    echoed: u32,
    is_over: Option<End>,
}

/// What reading prompts gives.
struct Read {
    /// The states of their last positions.
    last_b1d: Tensor,
    /// The scores of the tokens of each, where they were asked for.
    scores: Vec<Vec<Scored>>,
}

/// A prompt that can be read.
struct Ready {
    prompt: Prompt,
    ids: Vec<i64>,
    picture: Option<Vec<u8>>,
    /// Tokens that are generated at most.
    most: usize,
    /// Positions, those of the picture included.
    length: i64,
}

impl<'a> Engine<'a> {
    /// An engine that answers `batch` prompts side by side.
    pub(crate) fn new(speaker: &'a Speaker, batch: usize) -> Self {
        let most_positions = room::most_positions(speaker, batch);
        Self {
            speaker,
            cache: speaker.decoder.cache(most_positions),
            answers: Vec::new(),
            parked: VecDeque::new(),
            waiting: VecDeque::new(),
            most_positions,
            begun: 0,
        }
    }

    /// Answers under way, those that wait for room included.
    pub(crate) fn len(&self) -> usize {
        self.answers.len() + self.parked.len() + self.waiting.len()
    }

    /// Takes these prompts in, and begins to answer what there is room for.
    ///
    /// # Errors
    /// When the model cannot compute any more.
    pub(crate) fn admit(&mut self, prompts: Vec<Prompt>) -> Result<Vec<Event>, Failure> {
        let mut events = Vec::new();
        for prompt in prompts {
            let id = prompt.id;
            match self.prepare(prompt) {
                Ok(one) => self.waiting.push_back(one),
                Err(failure) => events.push(refusal(id, &failure)),
            }
        }
        self.resume(&mut events);
        let ready = self.next_ready();
        if !ready.is_empty() {
            events.extend(self.begin(ready)?);
        }
        Ok(events)
    }

    /// Begins to answer these.
    fn begin(&mut self, ready: Vec<Ready>) -> Result<Vec<Event>, Failure> {
        let first = self.answers.len();
        let lengths: Vec<i64> = ready.iter().map(|one| one.length).collect();
        let longest = lengths.iter().max().copied().unwrap_or_default();
        let decoder = &self.speaker.decoder;
        let room = decoder.make_room(&mut self.cache, first + ready.len(), longest);
        if let Err(error) = room {
            return self.begin_with_less(ready, error.into());
        }
        let mut events = Vec::new();
        let rows = self.rows(&ready)?;
        let lengths: Vec<i64> = rows.iter().map(|row_td| row_td.size()[0]).collect();
        let longest = lengths.iter().max().copied().unwrap_or_default();
        let padded = rows.iter().map(|row_td| {
            let missing = longest - row_td.size()[0];
            row_td.constant_pad_nd([0, 0, 0, missing])
        });
        let h_btd = Tensor::stack(&padded.collect::<Vec<_>>(), 0);
        let states = self.read(&h_btd, &lengths, &ready)?;
        for (one, scores) in ready.into_iter().zip(states.scores) {
            let id = one.prompt.id;
            let echo = match one.prompt.echo {
                true => self.echo(&one)?,
                false => String::new(),
            };
            let answer = self.answer(one, scores, &echo)?;
            self.answers.push(answer);
            if !echo.is_empty() {
                events.push(Event::Text { id, text: echo });
            }
        }
        events.extend(self.take(&states.last_b1d, first)?);
        Ok(events)
    }

    /// The answer to a prompt, of which nothing is there but the prompt's `echo`.
    fn answer(
        &mut self,
        one: Ready,
        mut scores: Vec<Scored>,
        echo: &str,
    ) -> Result<Answer<'a>, Failure> {
        let encoder = &self.speaker.encoder;
        let echoed = u32::try_from(echo.chars().count()).unwrap_or(u32::MAX);
        if !scores.is_empty() && one.prompt.echo {
            let offsets = score::offsets(encoder, &to_tokens(&one.ids))?;
            for (scored, offset) in scores.iter_mut().rev().zip(offsets.into_iter().rev()) {
                // What stands at the echo's end or behind it is of the answer.
                scored.offset = offset.min(echoed.saturating_sub(1));
            }
        }
        let ends = one.prompt.stop.iter();
        let ends = ends.filter_map(|stop| encoder.special(stop)).collect();
        let age = self.begun;
        self.begun += 1;
        Ok(Answer {
            id: one.prompt.id,
            age,
            sampling: one.prompt.sampling,
            writer: Writer::new(encoder, &one.ids, one.prompt.stop),
            prompt_tokens: u32::try_from(one.length).unwrap_or(u32::MAX),
            most: one.most,
            ends,
            tokens: Vec::new(),
            score: one.prompt.score,
            scores,
            echoed,
            is_over: None,
        })
    }

    /// Reads prompts into the cache.
    fn read(&mut self, h_btd: &Tensor, lengths: &[i64], ready: &[Ready]) -> Result<Read, Failure> {
        let Speaker { decoder, .. } = self.speaker;
        let halves = self.speaker.halves();
        let wanted = |one: &Ready| one.prompt.score.filter(|score| score.prompt > 0);
        if ready.iter().all(|one| wanted(one).is_none()) {
            return Ok(Read {
                last_b1d: decoder.read(h_btd, lengths, (halves, Wanted::Last), &mut self.cache)?,
                scores: vec![Vec::new(); ready.len()],
            });
        }
        let states_btd = decoder.read(h_btd, lengths, (halves, Wanted::All), &mut self.cache)?;
        let (mut last, mut scores) = (Vec::new(), Vec::new());
        for (row, (one, length)) in (0..).zip(ready.iter().zip(lengths)) {
            let states_td = states_btd.get(row).narrow(0, 0, *length);
            last.push(states_td.narrow(0, length - 1, 1));
            scores.push(match wanted(one) {
                None => Vec::new(),
                Some(score) => {
                    score::of_prompt(self.speaker, &states_td, &to_tokens(&one.ids), score)?
                }
            });
        }
        Ok(Read {
            last_b1d: Tensor::stack(&last, 0),
            scores,
        })
    }

    /// The text of a prompt.
    fn echo(&self, one: &Ready) -> Result<String, Failure> {
        match &one.prompt.what {
            What::Text(text) | What::Raw(text) | What::Bare(text) => Ok(text.clone()),
            What::Tokens(tokens) => self.speaker.encoder.plain(tokens),
        }
    }

    /// Nobody waits for this answer any more.
    pub(super) fn cancel(&mut self, id: u64) {
        self.waiting.retain(|one| one.prompt.id != id);
        self.parked.retain(|(answer, _)| answer.id != id);
        if let Some(row) = self.answers.iter().position(|answer| answer.id == id) {
            self.answers.swap_remove(row);
            self.cache.remove(row);
        }
    }

    /// One more token for every answer.
    ///
    /// # Errors
    /// When the model cannot compute any more.
    pub(crate) fn advance(&mut self) -> Result<Vec<Event>, Failure> {
        let mut events = self.make_room();
        if self.answers.is_empty() {
            return Ok(events);
        }
        let last = |answer: &Answer<'_>| answer.tokens.last().copied().unwrap_or_default();
        let ids: Vec<i64> = self.answers.iter().map(|one| last(one).into()).collect();
        let ids_b1 = Tensor::from_slice(&ids)
            .unsqueeze(1)
            .to_device(self.speaker.device);
        let h_b1d = self.speaker.decoder.embed(&ids_b1)?;
        let halves = self.speaker.halves();
        let decoder = &self.speaker.decoder;
        let states_b1d = decoder.advance(&h_b1d, halves, &mut self.cache)?;
        events.extend(self.take(&states_b1d, 0)?);
        Ok(events)
    }

    /// What a prompt needs, before anything is computed.
    fn prepare(&self, prompt: Prompt) -> Result<Ready, Failure> {
        prompt.sampling.check()?;
        let ids = self.speaker.ids(&prompt.what)?;
        let picture = match &prompt.picture {
            None => None,
            Some(text) => {
                let file = STANDARD.decode(text).map_err(|error| {
                    refused(
                        "the picture cannot be read",
                        format!("it is no base64: {error}"),
                        "send the bytes of a PNG, JPEG or WebP file in base64",
                    )
                })?;
                Some(self.speaker.picture(&file)?)
            }
        };
        if ids.is_empty() && picture.is_none() {
            return Err(refused(
                "the prompt is empty",
                "it has no token that an answer could go on from",
                "give a text",
            ));
        }
        let says_something = prompt.echo || prompt.score.is_some_and(|score| score.prompt > 0);
        if prompt.max_tokens == Some(0) && !says_something {
            return Err(refused(
                "nothing is to be generated",
                "the largest number of tokens is 0",
                "ask for one or more",
            ));
        }
        let least = usize::from(prompt.max_tokens != Some(0));
        let positions = self.speaker.positions;
        let Some(room) = positions
            .checked_sub(ids.len())
            .filter(|room| *room >= least)
        else {
            return Err(self.speaker.too_long(&format!("{} tokens", ids.len())));
        };
        let soft = match &picture {
            Some(_) => self.speaker.eyes()?.tokens(),
            None => 0,
        };
        let length = soft + ids.len() as i64;
        let room = room.min(self.room_behind(length, least)?);
        let wanted = prompt.max_tokens.map_or(room, |most| most as usize);
        Ok(Ready {
            most: wanted.min(room),
            prompt,
            ids,
            picture,
            length,
        })
    }

    /// Input embeddings of each prompt, `[t, d]`: a picture stands before the text.
    fn rows(&self, ready: &[Ready]) -> Result<Vec<Tensor>, Failure> {
        let speaker = self.speaker;
        // Questions about one picture often follow each other: it is looked at once.
        let mut pictures: Vec<&[u8]> = Vec::new();
        let seen = ready.iter().map(|one| {
            let picture = one.picture.as_deref()?;
            if pictures.last() != Some(&picture) {
                pictures.push(picture);
            }
            Some(pictures.len() as i64 - 1)
        });
        let seen: Vec<Option<i64>> = seen.collect();
        let soft_bpd = match pictures.is_empty() {
            true => None,
            false => Some(speaker.look(&pictures)?),
        };
        let rows = ready.iter().zip(seen).map(|(one, seen)| {
            let ids_1t = Tensor::from_slice(&one.ids)
                .unsqueeze(0)
                .to_device(speaker.device);
            let text_td = speaker.decoder.embed(&ids_1t)?.squeeze_dim(0);
            Ok(match (&soft_bpd, seen) {
                (Some(soft_bpd), Some(at)) => Tensor::cat(&[soft_bpd.get(at), text_td], 0),
                _ => text_td,
            })
        });
        rows.collect()
    }

    /// The next token of the answers from `first` on, by the states of their last positions; those that
    /// are complete leave.
    fn take(&mut self, states_b1d: &Tensor, first: usize) -> Result<Vec<Event>, Failure> {
        let logits_b1v = self.speaker.decoder.logits(states_b1d);
        let width = logits_b1v.size()[2] as usize;
        let logits = to_floats(&logits_b1v)?;
        let mut events = Vec::new();
        for (answer, logits) in self.answers[first..].iter_mut().zip(logits.chunks(width)) {
            match answer.take(logits) {
                Ok(new) => events.extend(new),
                Err(failure) => {
                    answer.is_over = Some(End::Stop);
                    events.push(refusal(answer.id, &failure));
                }
            }
        }
        for row in (first..self.answers.len()).rev() {
            if self.answers[row].is_over.is_some() {
                self.answers.swap_remove(row);
                self.cache.remove(row);
            }
        }
        Ok(events)
    }
}

/// A prompt that is not answered, or not any more.
fn refusal(id: u64, failure: &Failure) -> Event {
    let why = Words::from(failure);
    Event::Refused { id, why }
}

impl Answer<'_> {
    /// One more token by these logits.
    fn take(&mut self, logits: &[f32]) -> Result<Vec<Event>, Failure> {
        let mut text = String::new();
        if self.most == 0 {
            self.is_over = Some(End::Length);
        } else {
            text = self.go_on(logits)?;
        }
        let mut events = Vec::new();
        if let Some(end) = self.is_over {
            text += &self.writer.finish()?;
            // The last characters may complete a stop text.
            let end = match self.writer.is_over() {
                true => End::Stop,
                false => end,
            };
            events.push(Event::Done {
                id: self.id,
                end,
                prompt_tokens: self.prompt_tokens,
                tokens: std::mem::take(&mut self.tokens),
                scores: std::mem::take(&mut self.scores),
            });
        }
        if !text.is_empty() {
            events.insert(0, Event::Text { id: self.id, text });
        }
        Ok(events)
    }

    /// Chooses the next token; gives the text that is certain with it.
    fn go_on(&mut self, logits: &[f32]) -> Result<String, Failure> {
        let position = self.tokens.len() as u64;
        let read = self.prompt_tokens as usize + self.tokens.len();
        let token = choose(logits, &self.sampling, position);
        let token = token.ok_or_else(|| no_numbers(read))?;
        if let Some(score) = self.score {
            let encoder = self.writer.encoder();
            let mut scored = score::of_token(encoder, logits, token, score.top);
            scored.offset = self.echoed.saturating_add(self.writer.characters());
            self.scores.push(scored);
        }
        // The text of an answer has no special tokens in which a stop text could be found.
        if self.writer.encoder().is_end(token) || self.ends.contains(&token) {
            self.is_over = Some(End::Stop);
            return Ok(String::new());
        }
        self.tokens.push(token);
        let text = self.writer.push(token)?;
        if self.writer.is_over() {
            self.is_over = Some(End::Stop);
        } else if self.tokens.len() >= self.most {
            self.is_over = Some(End::Length);
        }
        Ok(text)
    }
}
