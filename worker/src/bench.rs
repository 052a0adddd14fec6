//! Measurements of the data plane, for comparison with its peers.
//!
//! Each function repeats its work, prints nothing itself and gives a [`serde_json::Value`] with
//! medians in milliseconds (`_ms`) or seconds, so that `mks2-worker bench` prints one line of JSON that the comparing
//! script reads. Peers: `xtask/peers/gloo_allreduce.py`, `xtask/peers/adamw_bits.py`.

pub mod cli;
mod generate;
mod loss;
mod process;
mod save;
mod stage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mks2_proto::job::Optimizer;
use mks2_proto::params::{Init, ParamSpec};
use serde_json::{Value, json};
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, no_grad};

use crate::collectives::tcp::Mesh;
use crate::collectives::{AbortFlag, Collective, Limits};
use crate::exact::{ReduceError, reduce_slices};
use crate::flat::{Buffer, FlatLayout, FlatState};
use crate::optim::{AdamW, OptimError};
use crate::rehearsal::mesh;

/// Ranks and sizes of a measurement of collectives.
#[derive(Clone, Debug)]
pub struct CollectiveBench {
    /// This process' rank.
    pub rank: usize,
    /// Where each rank listens; its length is the world.
    pub addresses: Vec<SocketAddr>,
    /// Bytes of fp32 to sum.
    pub bytes: usize,
    /// Measured repetitions of each mode.
    pub repetitions: usize,
    /// Allow shared memory between ranks of one machine.
    pub shared_memory: bool,
}

/// Sums `bytes` of fp32 over all ranks, in fast mode (fp32 all-reduce) and in exact mode (from
/// int64 sums: reduce-scatter, conversion, all-gather). Every rank must call it.
///
/// # Errors
/// When the ranks can not connect or exchange, or a sum is wrong.
pub fn collectives(bench: &CollectiveBench) -> Result<Value, ReduceError> {
    let limits = Limits {
        shared_memory: bench.shared_memory,
        ..Limits::default()
    };
    let mut mesh = mesh::form_at(bench.rank, &bench.addresses, &limits, &AbortFlag::new())?;
    let world = mesh.world() as f32;
    let len = bench.bytes / 4;
    let layout = FlatLayout::new(&[ParamSpec {
        name: "w".into(),
        shape: vec![len],
        init: Init::Zeros,
    }])?;
    let sums = vec![i64::from(1i32 << 20); layout.total()];
    let mut grads = vec![0f32; layout.total()];
    let (mut fast, mut exact) = (Vec::new(), Vec::new());
    for repetition in 0..bench.repetitions + 3 {
        grads.fill(1.0);
        let fast_time = timed(&mut mesh, |mesh| Ok(mesh.all_reduce_f32(&mut grads)?))?;
        let fast_sum = grads[len - 1];
        let scale = [2f64.powi(-20)];
        let exact_time = timed(&mut mesh, |mesh| {
            reduce_slices(&sums, &scale, &layout, mesh, &mut grads)
        })?;
        if fast_sum != world || grads[len - 1] != world {
            return Err(ReduceError::Usage(format!(
                "sums are {fast_sum} and {} instead of {world}",
                grads[len - 1]
            )));
        }
        // The first repetitions touch the memory for the first time.
        if repetition >= 3 {
            fast.push(fast_time);
            exact.push(exact_time);
        }
    }
    Ok(json!({
        "bench": "collectives", "rank": bench.rank, "world": mesh.world(), "bytes": bench.bytes,
        "shared_links": mesh.shared_links(), "repetitions": bench.repetitions,
        "fast_ms": median_ms(&mut fast), "exact_ms": median_ms(&mut exact),
    }))
}

/// The time of one operation that all ranks begin together.
fn timed(
    mesh: &mut Mesh,
    operation: impl FnOnce(&mut Mesh) -> Result<(), ReduceError>,
) -> Result<Duration, ReduceError> {
    mesh.barrier()?;
    let start = Instant::now();
    operation(mesh)?;
    Ok(start.elapsed())
}

/// The median, milliseconds.
fn median_ms(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times
        .get(times.len() / 2)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// Shapes of a small transformer with about `millions` of parameters: as many tensors as a real
/// one has.
fn transformer(millions: usize) -> Vec<ParamSpec> {
    let blocks = 8;
    let width = (millions * 1_000_000 / (blocks * 12)).isqrt();
    let spec = |name: String, shape: Vec<usize>| ParamSpec {
        name,
        shape,
        init: Init::Normal { std: 0.02 },
    };
    let mut specs = Vec::new();
    for block in 0..blocks {
        for matrix in ["q", "k", "v", "o"] {
            specs.push(spec(format!("{block}.{matrix}.weight"), vec![width, width]));
        }
        specs.push(spec(format!("{block}.up.weight"), vec![4 * width, width]));
        specs.push(spec(format!("{block}.down.weight"), vec![width, 4 * width]));
        specs.push(spec(format!("{block}.norm1.weight"), vec![width]));
        specs.push(spec(format!("{block}.norm2.weight"), vec![width]));
    }
    specs
}

/// AdamW over flat buffers against `tch::nn`'s own AdamW over the same tensors, interleaved.
///
/// # Errors
/// When libtorch refuses.
pub fn adamw(millions: usize, repetitions: usize) -> Result<Value, OptimError> {
    let specs = transformer(millions);
    let mut state = FlatState::new(Arc::new(FlatLayout::new(&specs)?), Device::Cpu)?;
    let settings = Optimizer::default();
    let fused = AdamW::new(&settings);
    let store = tch::nn::VarStore::new(Device::Cpu);
    let variables: Vec<Tensor> = specs
        .iter()
        .map(|spec| {
            let shape: Vec<i64> = spec.shape.iter().map(|&side| side as i64).collect();
            store.root().f_zeros(&spec.name.replace('.', "_"), &shape)
        })
        .collect::<Result<_, _>>()?;
    let mut peer = tch::nn::adamw(settings.beta1, settings.beta2, settings.weight_decay)
        .build(&store, settings.lr)?;
    let loss = variables
        .iter()
        .map(|variable| variable.sum(Kind::Float))
        .reduce(|a, b| a + b);
    loss.map_or(Ok(()), |loss| loss.f_backward())?;
    let _ = no_grad(|| state.grads.f_fill_(1.0))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for repetition in 0..repetitions + 2 {
        let start = Instant::now();
        fused.apply(&mut state, repetition as u64, settings.lr)?;
        let middle = Instant::now();
        peer.step();
        if repetition >= 2 {
            ours.push(middle - start);
            theirs.push(middle.elapsed());
        }
    }
    let (flat_ms, tch_ms) = (median_ms(&mut ours), median_ms(&mut theirs));
    Ok(json!({
        "bench": "adamw", "parameters": state.layout().parameters(), "tensors": specs.len(),
        "threads": tch::get_num_threads(), "flat_ms": flat_ms, "tch_ms": tch_ms, "ratio": tch_ms / flat_ms,
    }))
}

/// Digest of the weights after `steps` of AdamW on `len` weights, for the bits' comparison with
/// PyTorch: weight i starts at `(i % 1009) / 1009 - 0.5`, its gradient at step s is
/// `((i * 31 + s * 17) % 2003) / 2003 - 0.5`, in fp32.
///
/// # Errors
/// When libtorch refuses.
pub fn adamw_bits(len: usize, steps: u64) -> Result<Value, OptimError> {
    let spec = ParamSpec {
        name: "w".into(),
        shape: vec![1, len],
        init: Init::Zeros,
    };
    let mut state = FlatState::new(Arc::new(FlatLayout::new(&[spec])?), Device::Cpu)?;
    let start: Vec<f32> = (0..len)
        .map(|at| (at % 1009) as f32 / 1009.0 - 0.5)
        .collect();
    state.load(Buffer::Weights, "w", &start)?;
    let settings = Optimizer::default();
    for step in 0..steps {
        let grad = |at: usize| ((at * 31 + step as usize * 17) % 2003) as f32 / 2003.0 - 0.5;
        state.load(
            Buffer::Grads,
            "w",
            &(0..len).map(grad).collect::<Vec<f32>>(),
        )?;
        AdamW::new(&settings).apply(&mut state, step, settings.lr)?;
    }
    let digest = |which| -> Result<String, OptimError> {
        Ok(
            blake3::hash(crate::flat::le_bytes(&state.host(which)?[..len]))
                .to_hex()
                .to_string(),
        )
    };
    Ok(json!({
        "bench": "adamw-bits", "len": len, "steps": steps, "weights": digest(Buffer::Weights)?,
        "exp_avg": digest(Buffer::ExpAvg)?, "exp_avg_sq": digest(Buffer::ExpAvgSq)?,
    }))
}
