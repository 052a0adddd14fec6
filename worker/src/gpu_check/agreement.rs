//! One step of a stage on the CPU and on the device: losses and gradients side by side.

use std::sync::Arc;

use mks2_proto::failure::Failure;
use mks2_proto::job::{Reduction, StageKind};
use mks2_proto::params::{Init, ParamSpec};
use tch::{Device, Kind, Tensor};

use super::table::{Check, Limit};
use super::training::Undirected;
use super::{measured, undone};
use crate::collectives::tcp::Mesh;
use crate::exact::Reducer;
use crate::flat::{Buffer, FlatLayout, FlatState};
use crate::objective::Objective;
use crate::rehearsal::{Act, Rehearsal};
use crate::team::Team;
use crate::train::Trainer;

/// Largest relative difference of a loss: fp32 sums of some thousand terms in another order.
const LOSS_LIMIT: f64 = 1e-5;
/// Largest relative difference of a tensor's gradient, by Euclidean norms.
const GRADIENT_LIMIT: f64 = 1e-4;
/// A gradient below this share of the whole gradient's norm is compared at that scale: some are
/// zero but for rounding, such as that of a bias on attention keys.
const FLOOR: f64 = 1e-3;
/// Lanes of the exact sum's check.
const LANES: u32 = 8;

/// What a step has computed.
pub(super) struct Outcome {
    loss: f64,
    /// Name and gradient of each trained tensor.
    gradients: Vec<(String, Vec<f32>)>,
}

/// Rows that compare a stage's first step on `device` with the CPU's.
pub(super) fn stage(rehearsal: &Rehearsal, kind: StageKind, device: Device) -> Vec<Check> {
    let name = kind.name();
    let outcomes = first_step(rehearsal, kind, Device::Cpu)
        .and_then(|cpu| Ok((cpu, first_step(rehearsal, kind, device)?)));
    let (cpu, gpu) = match outcomes {
        Ok(both) => both,
        Err(failure) => return vec![undone(format!("{name}: first step"), &failure)],
    };
    let (worst, tensor) = largest_difference(&cpu, &gpu);
    let tensors = cpu.gradients.len();
    vec![
        measured(
            format!("{name}: loss beside the CPU's, relative"),
            (gpu.loss - cpu.loss).abs() / cpu.loss.abs(),
            Limit::AtMost(LOSS_LIMIT),
        ),
        Check::measured(
            format!("{name}: gradients of {tensors} tensors, relative"),
            worst,
            Limit::AtMost(GRADIENT_LIMIT),
            format!("({tensor})"),
        ),
    ]
}

fn first_step(rehearsal: &Rehearsal, kind: StageKind, device: Device) -> Result<Outcome, Failure> {
    let mut scene = rehearsal.scene(kind, 1, device)?;
    scene.stage.optimizer.clip_norm = 0.0;
    scene.play(FirstStep)
}

struct FirstStep;

impl Act for FirstStep {
    type Output = Outcome;

    fn play<O: Objective>(
        self,
        mut trainer: Trainer<'_, O>,
        mut team: Team,
    ) -> Result<Outcome, Failure> {
        trainer.step(&Undirected, &mut team)?;
        let (state, loss) = (trainer.state(), trainer.progress().loss);
        let flat = state.host(Buffer::Grads)?;
        let spans = state.layout().spans().iter();
        Ok(Outcome {
            loss: loss.unwrap_or(f64::NAN),
            gradients: spans
                .map(|span| (span.name.clone(), flat[span.range()].to_vec()))
                .collect(),
        })
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The largest relative difference of a tensor's gradient, and the tensor's name.
fn largest_difference(cpu: &Outcome, gpu: &Outcome) -> (f64, String) {
    let all = cpu.gradients.iter().flat_map(|(_, values)| values);
    let floor = FLOOR * norm(all.map(|&value| f64::from(value)));
    let mut worst = (0.0, "all equal".to_owned());
    for ((name, ours), (_, theirs)) in cpu.gradients.iter().zip(&gpu.gradients) {
        let apart = ours.iter().zip(theirs);
        let apart = norm(apart.map(|(&a, &b)| f64::from(a) - f64::from(b)));
        let relative = apart / norm(ours.iter().map(|&value| f64::from(value))).max(floor);
        // What is no number is worst of all.
        if relative > worst.0 || relative.is_nan() {
            worst = (relative, name.clone());
        }
        if relative.is_nan() {
            break;
        }
    }
    worst
}

/// A row for the exact sum over lanes: the same gradients must give the same bits on both devices.
pub(super) fn exact_sum(device: Device) -> Check {
    let what = format!("exact sum over {LANES} lanes, bits beside the CPU's");
    let sums = summed(Device::Cpu).and_then(|cpu| Ok((cpu, summed(device)?)));
    match sums {
        Ok((cpu, gpu)) => {
            let differing = cpu.iter().zip(&gpu).filter(|(a, b)| a != b).count();
            let (found, wanted) = (format!("{differing} of {} differ", cpu.len()), "0 differ");
            Check::new(what, found, wanted.into(), differing == 0)
        }
        Err(failure) => undone(what, &failure),
    }
}

/// Bits of the exact sum of fixed gradients, computed on `device`.
fn summed(device: Device) -> Result<Vec<u32>, Failure> {
    let spec = |name: &str, shape: &[usize]| ParamSpec {
        name: name.into(),
        shape: shape.to_vec(),
        init: Init::Normal { std: 1.0 },
    };
    let specs = [spec("matrix", &[513, 257]), spec("vector", &[1001])];
    let layout = Arc::new(FlatLayout::new(&specs)?);
    let mut state = FlatState::new(Arc::clone(&layout), device)?;
    let mut reducer = Reducer::new(Arc::clone(&layout), Reduction::Exact, LANES, device)?;
    let gradient = |lane: u32, spec: &ParamSpec| {
        let shape: Vec<i64> = spec.shape.iter().map(|&side| side as i64).collect();
        // Magnitudes of all sizes, as gradients have.
        let values: Vec<f32> = spec
            .initial_values(u64::from(lane))
            .iter()
            .map(|value| value.powi(5))
            .collect();
        Tensor::from_slice(&values).view(&shape[..]).to(device)
    };
    // The first time fits the exponents and the second is computed with them.
    for _ in 0..2 {
        reducer.begin_step();
        for lane in 0..LANES {
            let gradients: Vec<Tensor> = layout
                .spans()
                .iter()
                .filter_map(|span| specs.iter().find(|spec| spec.name == span.name))
                .map(|spec| gradient(lane, spec).to_kind(Kind::Float))
                .collect();
            reducer.add_lane(lane, &gradients, 1.0)?;
        }
        reducer.finish(&mut Mesh::alone(), &mut state)?;
    }
    let flat = state.host(Buffer::Grads)?;
    Ok(flat.iter().map(|value| value.to_bits()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(matrix: &[f32], bias: &[f32]) -> Outcome {
        Outcome {
            loss: 1.0,
            gradients: vec![
                ("matrix".into(), matrix.to_vec()),
                ("bias".into(), bias.to_vec()),
            ],
        }
    }

    #[test]
    fn the_worst_tensor_is_named() {
        let cpu = outcome(&[3.0, 4.0], &[1.0]);
        let (worst, name) = largest_difference(&cpu, &outcome(&[3.0, 4.005], &[1.0]));
        assert!((worst - 1e-3).abs() < 1e-6 && name == "matrix");
        let (worst, name) = largest_difference(&cpu, &outcome(&[3.0, 4.0], &[f32::NAN]));
        assert!(worst.is_nan() && name == "bias");
    }

    #[test]
    fn rounding_around_zero_is_compared_with_the_whole_gradient() {
        let cpu = outcome(&[3.0, 4.0], &[1e-9]);
        let (worst, _) = largest_difference(&cpu, &outcome(&[3.0, 4.0], &[-1e-9]));
        assert!(worst < GRADIENT_LIMIT, "{worst}");
    }

    #[test]
    fn the_exact_sum_is_summed_and_not_zero() {
        let sums = summed(Device::Cpu).unwrap();
        assert!(sums.iter().filter(|&&bits| bits != 0).count() > 100_000);
        assert!(!exact_sum(Device::Cpu).has_failed());
    }
}
