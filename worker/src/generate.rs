//! Answers to prompts, by a model that is trained: the hidden `mks2-worker generate`, which `mks2`
//! talks with over standard input and output (see [`mks2_proto::generate`]).
//!
//! ```text
//! lines ──► prompts ──► engine: many answers side by side, keys and values kept ──► events ──► lines
//!                         │
//!                       speaker: the model; sample: the next token; writer: tokens to text
//! ```

mod engine;
mod sample;
mod speaker;
mod writer;

use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::generate::{Event, Opening, Prompt, Words};

use crate::app::io_runtime;
use crate::device;
use crate::dispatch::check_libtorch;
pub(crate) use engine::Engine;
pub(crate) use speaker::Speaker;

/// Prompts that are read before they are needed.
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
    let device = device::choose(&opening.device, 0)?;
    let runtime = io_runtime()?;
    let speaker = Speaker::open(&opening.model, device, runtime.handle())?;
    let ready = Event::Ready {
        positions: u32::try_from(speaker.positions).unwrap_or(u32::MAX),
        sees: speaker.sees(),
    };
    tell(output, &[ready])?;
    let (to, prompts) = sync_channel(AHEAD);
    // It ends with the input, or with the process.
    std::thread::spawn(move || {
        for line in input.lines() {
            let prompt = line.map_err(unheard).and_then(|line| parse(&line));
            let is_last = prompt.is_err();
            if to.send(prompt).is_err() || is_last {
                break;
            }
        }
    });
    let batch = opening.batch.max(1) as usize;
    let mut engine = Engine::new(&speaker);
    loop {
        let new = next(&prompts, batch - engine.len(), engine.len() == 0)?;
        let is_idle = new.is_empty() && engine.len() == 0;
        if is_idle {
            return Ok(());
        }
        if !new.is_empty() {
            tell(output, &engine.admit(new)?)?;
        }
        if engine.len() > 0 {
            tell(output, &engine.advance()?)?;
        }
    }
}

/// Prompts that have come, at most so many. Waits for the first one if there is nothing else to do;
/// none are left then when none come.
fn next(
    prompts: &Receiver<Result<Prompt, Failure>>,
    most: usize,
    waits: bool,
) -> Result<Vec<Prompt>, Failure> {
    let mut new = Vec::new();
    if waits && let Ok(first) = prompts.recv() {
        new.push(first?);
    }
    while new.len() < most {
        match prompts.try_recv() {
            Ok(prompt) => new.push(prompt?),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
        }
    }
    Ok(new)
}

fn tell(output: &mut impl Write, events: &[Event]) -> Result<(), Failure> {
    for event in events {
        let line = serde_json::to_string(event)
            .map_err(|error| Failure::internal("an answer has no JSON", error.to_string()))?;
        writeln!(output, "{line}").map_err(unheard)?;
    }
    output.flush().map_err(unheard)
}

fn parse<T: serde::de::DeserializeOwned>(line: &str) -> Result<T, Failure> {
    serde_json::from_str(line).map_err(|error| {
        Failure::new(
            ExitCode::Usage,
            "a line of the conversation cannot be read",
            error.to_string(),
            "ask through `mks2 generate`",
        )
    })
}

fn unheard(error: std::io::Error) -> Failure {
    Failure::io("the conversation has broken off", error)
}

/// A prompt or model that cannot be had so.
fn refused(what: impl Into<String>, why: impl Into<String>, cure: impl Into<String>) -> Failure {
    Failure::usage(what, why, cure)
}

#[cfg(test)]
mod tests;
