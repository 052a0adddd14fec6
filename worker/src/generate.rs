//! Answers to prompts, by a model that is trained: the hidden `mks2-worker generate`, which `mks2`
//! talks with over standard input and output (see [`mks2_proto::generate`]).
//!
//! ```text
//! lines ──► desk ──► engine: many answers side by side, keys and values kept ──► events ──► lines
//!                      │
//!                    speaker: the model; sample: the next token; score: how likely it is;
//!                    writer: tokens to text; search: texts beside pictures
//! ```

mod engine;
mod sample;
mod score;
mod search;
mod speaker;
mod writer;

use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::generate::{Ask, Event, Opening, Prompt, Scored, Words};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::io_runtime;
use crate::device;
use crate::dispatch::check_libtorch;
pub(crate) use engine::Engine;
pub(crate) use speaker::Speaker;

/// Lines that are read before they are taken in.
const AHEAD: usize = 64;

/// Answers the prompts of `input` until it ends. What goes wrong is the last line.
///
/// # Errors
/// When the model cannot be read, a line is none of the conversation, or nobody reads the output.
pub fn run(input: impl BufRead + Send + 'static, output: &mut impl Write) -> Result<(), Failure> {
    run_with(input, output, device::prepare)
}

/// The same; `prepare` sets libtorch's threads, which a process can do once.
fn run_with(
    mut input: impl BufRead + Send + 'static,
    output: &mut impl Write,
    prepare: impl FnOnce(u32),
) -> Result<(), Failure> {
    let ended = tch::no_grad(|| {
        check_libtorch()?;
        let mut line = String::new();
        input.read_line(&mut line).map_err(unheard)?;
        let opening: Opening = parse(&line)?;
        prepare(opening.threads);
        converse(&opening, input, output)
    });
    if let Err(failure) = &ended {
        let why = Words::from(failure);
        // Nobody may be there to read it.
        let _ = tell(output, &[Event::Failed { why }]);
    }
    ended
}

fn converse(
    opening: &Opening,
    input: impl BufRead + Send + 'static,
    output: &mut impl Write,
) -> Result<(), Failure> {
    let device = device::choose_by_option(&opening.device)?;
    let runtime = io_runtime()?;
    // Whoever asks decides when it is over, by the end of the input. A signal to all processes of a
    // service must not end this one before.
    let _kept_away =
        runtime.block_on(async { [SignalKind::terminate(), SignalKind::hangup()].map(signal) });
    let mut speaker = Speaker::open(
        &opening.model,
        (opening.precision, device),
        runtime.handle(),
    )?;
    speaker.cache_bytes = opening.cache_bytes;
    tell(output, &[speaker.ready()])?;
    let (to, asked) = sync_channel(AHEAD);
    // It ends with the input, or with the process.
    std::thread::spawn(move || {
        for line in input.lines() {
            let ask = line.map_err(unheard).and_then(|line| parse(&line));
            let is_last = ask.is_err();
            if to.send(ask).is_err() || is_last {
                break;
            }
        }
    });
    let batch = opening.batch.max(1) as usize;
    let mut desk = Desk {
        engine: Engine::new(&speaker, batch),
        speaker: &speaker,
        waiting: VecDeque::new(),
    };
    while desk.hear(&asked, output)? {
        let free = batch - desk.engine.len();
        let new: Vec<Prompt> = desk.waiting.drain(..free.min(desk.waiting.len())).collect();
        tell(output, &desk.engine.admit(new)?)?;
        tell(output, &desk.engine.advance()?)?;
    }
    Ok(())
}

/// Where what is asked comes in.
struct Desk<'a> {
    engine: Engine<'a>,
    speaker: &'a Speaker,
    /// Prompts for which there is no room yet. Whoever asks decides how many may wait.
    waiting: VecDeque<Prompt>,
}

impl Desk<'_> {
    /// Takes in what has been asked meanwhile, or waits for it where there is nothing else to do. False
    /// when nothing is left and nothing will come.
    fn hear(
        &mut self,
        asked: &Receiver<Result<Ask, Failure>>,
        output: &mut impl Write,
    ) -> Result<bool, Failure> {
        loop {
            let is_idle = self.waiting.is_empty() && self.engine.len() == 0;
            let ask = match is_idle {
                true => asked.recv().map_err(|_| TryRecvError::Disconnected),
                false => asked.try_recv(),
            };
            match ask {
                Ok(ask) => self.take(ask?, output)?,
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => return Ok(!is_idle),
            }
        }
    }

    fn take(&mut self, ask: Ask, output: &mut impl Write) -> Result<(), Failure> {
        let (id, answer) = match ask {
            Ask::Prompt(prompt) => {
                self.waiting.push_back(prompt);
                return Ok(());
            }
            Ask::Cancel { id } => {
                self.waiting.retain(|prompt| prompt.id != id);
                self.engine.cancel(id);
                return Ok(());
            }
            Ask::Tokenize { id, text, special } => {
                let tokens = self.speaker.tokenize(&text, special);
                (id, tokens.map(|tokens| Event::Tokens { id, tokens }))
            }
            Ask::Detokenize { id, tokens } => {
                let text = self.speaker.detokenize(&tokens);
                (id, text.map(|text| Event::Plain { id, text }))
            }
        };
        let event = answer.unwrap_or_else(|failure| Event::Refused {
            id,
            why: Words::from(&failure),
        });
        tell(output, &[event])
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What was generated, without the end token.
    pub(crate) tokens: Vec<u32>,
    /// Probabilities, as far as they were asked for.
    pub(crate) scores: Vec<Scored>,
}

/// The answers to prompts, or why there is none, `batch` side by side; a prompt's id is its place.
///
/// # Errors
/// When the model cannot compute any more.
pub(crate) fn answers(
    speaker: &Speaker,
    prompts: Vec<Prompt>,
    batch: usize,
) -> Result<Vec<Result<Answer, Failure>>, Failure> {
    let mut found: Vec<_> = prompts.iter().map(|_| None).collect();
    let mut waiting: VecDeque<Prompt> = prompts.into();
    let batch = batch.max(1);
    let mut engine = Engine::new(speaker, batch);
    while !waiting.is_empty() || engine.len() > 0 {
        let free = batch.saturating_sub(engine.len());
        let new: Vec<Prompt> = waiting.drain(..free.min(waiting.len())).collect();
        let mut events = engine.admit(new)?;
        events.extend(engine.advance()?);
        for event in events {
            let (id, answer) = match event {
                Event::Done {
                    id, tokens, scores, ..
                } => (id, Ok(Answer { tokens, scores })),
                Event::Refused { id, why } => (id, Err(Failure::from(why))),
                _ => continue,
            };
            if let Some(place) = found.get_mut(id as usize) {
                *place = Some(answer);
            }
        }
    }
    let unanswered = || Failure::internal("a prompt has no answer", "its id is not its place");
    let found = found.into_iter();
    Ok(found
        .map(|answer| answer.unwrap_or_else(|| Err(unanswered())))
        .collect())
}

/// Writes events, a line each.
///
/// # Errors
/// When nobody reads them.
pub(crate) fn tell(output: &mut impl Write, events: &[impl Serialize]) -> Result<(), Failure> {
    for event in events {
        let line = serde_json::to_string(event)
            .map_err(|error| Failure::internal("an answer has no JSON", error.to_string()))?;
        writeln!(output, "{line}").map_err(unheard)?;
    }
    output.flush().map_err(unheard)
}

/// A line of a conversation.
///
/// # Errors
/// When it is none.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(line: &str) -> Result<T, Failure> {
    serde_json::from_str(line).map_err(|error| {
        Failure::new(
            ExitCode::Usage,
            "a line of the conversation cannot be read",
            error.to_string(),
            "ask through `mks2`",
        )
    })
}

/// Nobody speaks, or listens, any more.
pub(crate) fn unheard(error: std::io::Error) -> Failure {
    Failure::io("the conversation has broken off", error)
}

/// A prompt or model that cannot be had so.
fn refused(what: impl Into<String>, why: impl Into<String>, cure: impl Into<String>) -> Failure {
    Failure::usage(what, why, cure)
}

/// The model is damaged.
fn no_numbers(position: usize) -> Failure {
    Failure::checkpoint(
        "the model cannot say how a text goes on",
        format!("its logits after {position} tokens are no numbers"),
        "look for infinite or undefined weights in the model",
    )
}

#[cfg(test)]
mod tests;
