//! The hidden `mks2-worker eval`: measures tasks alone, for `mks2 eval` (see [`mks2_proto::evaluate`]).

use std::io::{BufRead, Write};

use mks2_dataset::task::Task;
use mks2_proto::evaluate::{Event, Measured, Opening};
use mks2_proto::failure::Failure;
use mks2_proto::generate::{Source, Words};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::blocks::Alone;
use super::tasks::Measurement;
use crate::app::io_runtime;
use crate::device;
use crate::dispatch::check_libtorch;
use crate::generate::{Speaker, parse, tell, unheard};
use crate::team::Setback;

/// Measures what the first line of `input` asks for. What goes wrong is the last line.
///
/// # Errors
/// When a model or task cannot be read or measured, or nobody reads the output.
pub fn run(mut input: impl BufRead, output: &mut impl Write) -> Result<(), Failure> {
    let ended = tch::no_grad(|| {
        check_libtorch()?;
        let mut line = String::new();
        input.read_line(&mut line).map_err(unheard)?;
        let opening: Opening = parse(&line)?;
        device::prepare(opening.threads);
        measure(&opening, output)
    });
    if let Err(failure) = &ended {
        let why = Words::from(failure);
        // Nobody may be there to read it.
        let _ = tell(output, &[Event::Failed { why }]);
    }
    ended
}

fn measure(opening: &Opening, output: &mut impl Write) -> Result<(), Failure> {
    let device = device::choose_by_option(&opening.device)?;
    let runtime = io_runtime()?;
    let mut open: Option<(Source, Speaker)> = None;
    for asked in &opening.tasks {
        let task = runtime.block_on(Task::read(&asked.url))?;
        let task = task.limited(opening.limit);
        let source = source(&opening.model, asked.stage.as_deref());
        // Another one goes before the next one comes: there is room for one.
        let speaker = match open.take().filter(|(of, _)| *of == source) {
            Some((_, speaker)) => speaker,
            None => {
                let place = (opening.precision, device);
                let mut speaker = Speaker::open(&source, place, runtime.handle())?;
                speaker.cache_bytes = opening.cache_bytes;
                speaker
            }
        };
        let (mut result, samples) = one(opening, (&task, &speaker), &runtime, output)?;
        if let Source::Run { stage, .. } = &source {
            result.stage = Some(stage.clone());
        }
        for sample in samples {
            tell(output, &[Event::Sample { sample }])?;
        }
        tell(output, &[Event::Measured { result }])?;
        open = Some((source, speaker));
    }
    Ok(())
}

/// The result of one task and its samples, while its progress is told.
fn one(
    opening: &Opening,
    (task, speaker): (&Task, &Speaker),
    runtime: &Runtime,
    output: &mut impl Write,
) -> Result<(Measured, Vec<Value>), Failure> {
    let batch = opening.batch.max(1) as usize;
    let measurement = Measurement {
        task,
        speaker,
        batch,
        runtime: runtime.handle(),
    };
    let mut told = |done: usize| {
        let progress = Event::Progress {
            task: task.name.clone(),
            done: done as u64,
            of: task.items.len() as u64,
        };
        tell(output, &[progress])
    };
    told(0)?;
    let measured = measurement.run(&mut Alone {
        size: batch,
        told: &mut told,
    });
    measured.map_err(alone)
}

/// The model with another stage of the same run.
fn source(model: &Source, other: Option<&str>) -> Source {
    let mut source = model.clone();
    if let (Source::Run { stage, .. }, Some(other)) = (&mut source, other) {
        other.clone_into(stage);
    }
    source
}

/// Here are no peers that could be lost.
fn alone(setback: Setback) -> Failure {
    match setback {
        Setback::Fatal(failure) => failure,
        Setback::Peers(_) => Failure::internal("the evaluation broke off", "a peer was lost"),
    }
}
