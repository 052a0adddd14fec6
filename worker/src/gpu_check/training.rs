//! A short training run on the device, beside the same on the CPU.

use std::time::Instant;

use mks2_proto::failure::Failure;
use mks2_proto::job::StageKind;
use mks2_proto::v1::Phase;
use tch::Device;

use super::table::{Check, Limit};
use super::{measured, undone};
use crate::control::Control;
use crate::objective::Objective;
use crate::rehearsal::{Act, Rehearsal};
use crate::team::Team;
use crate::train::Trainer;

/// Largest relative difference of the last loss: rounding grows from step to step.
const LOSS_LIMIT: f64 = 1e-2;

/// Rows for `steps` steps of a stage, twice on `device` and once on the CPU.
pub(super) fn stage(
    rehearsal: &Rehearsal,
    kind: StageKind,
    device: Device,
    steps: u64,
) -> Vec<Check> {
    let name = kind.name();
    let train = |device| rehearsal.scene(kind, steps, device)?.play(Course);
    let runs = train(device).and_then(|first| Ok((first, train(device)?, train(Device::Cpu)?)));
    let (first, second, cpu) = match runs {
        Ok(runs) => runs,
        Err(failure) => return vec![undone(format!("{name}: training"), &failure)],
    };
    let digest = |run: &Trained| run.digest[..12].to_owned();
    vec![
        Check::measured(
            format!("{name}: loss in the last third of {steps} steps"),
            first.late,
            Limit::Below(first.early),
            String::new(),
        ),
        measured(
            format!("{name}: that loss beside the CPU's, relative"),
            (first.late - cpu.late).abs() / cpu.late.abs(),
            Limit::AtMost(LOSS_LIMIT),
        ),
        Check::new(
            format!("{name}: weights of a second run"),
            digest(&second),
            format!("{}, the first's", digest(&first)),
            first.digest == second.digest,
        ),
        Check::noted(
            format!("{name}: speed"),
            format!(
                "{:.0} samples/s, {:.0} tokens/s; CPU {:.0} samples/s",
                second.samples_per_second, second.tokens_per_second, cpu.samples_per_second
            ),
        ),
    ]
}

/// Trains to the end of the stage.
struct Course;

struct Trained {
    /// Mean loss of the first third of the steps, and of the last.
    early: f64,
    late: f64,
    digest: String,
    samples_per_second: f64,
    /// Of tokens with a loss.
    tokens_per_second: f64,
}

impl Act for Course {
    type Output = Trained;

    fn play<O: Objective>(
        self,
        mut trainer: Trainer<'_, O>,
        mut team: Team,
    ) -> Result<Trained, Failure> {
        // The first step touches memory for the first time and is not timed.
        trainer.step(&Undirected, &mut team)?;
        let before = trainer.progress().clone();
        let mut losses = vec![before.loss.unwrap_or(f64::NAN)];
        let began = Instant::now();
        while !trainer.is_done() {
            trainer.step(&Undirected, &mut team)?;
            losses.push(trainer.progress().loss.unwrap_or(f64::NAN));
        }
        // The digest waits for the device.
        let digest = trainer.state().weights_digest()?.to_hex().to_string();
        let seconds = began.elapsed().as_secs_f64();
        let (after, third) = (trainer.progress(), losses.len().div_ceil(3));
        Ok(Trained {
            early: mean(&losses[..third]),
            late: mean(&losses[losses.len() - third..]),
            digest,
            samples_per_second: (after.samples - before.samples) as f64 / seconds,
            tokens_per_second: (after.tokens - before.tokens) as f64 / seconds,
        })
    }
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// Nobody directs the checks.
pub(super) struct Undirected;

impl Control for Undirected {
    fn set_phase(&self, _phase: Phase, _collective: u64) {}
}
