//! NCCL between ranks, each a process of its own.
//!
//! NCCL refuses two ranks on one GPU, unless they seem to be on two hosts: each process gets a host
//! name of its own (`NCCL_HOSTID`) and they talk through loopback sockets. That shows that sums are
//! right; it says nothing about bandwidth.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use clap::Args;
use mks2_proto::failure::Failure;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::table::Check;
use crate::collectives::nccl::NcclMesh;
use crate::collectives::{AbortFlag, Collective, CollectiveError, Limits, schedule};
use crate::device;
use crate::rehearsal::mesh;

/// Elements of the summed buffers: no multiple of any world.
const LEN: usize = 1_000_003;
/// What a rank's NCCL is told: ranks of one GPU talk through sockets of the loopback.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("NCCL_SOCKET_IFNAME", "lo"),
    ("NCCL_IB_DISABLE", "1"),
    ("NCCL_P2P_DISABLE", "1"),
    ("NCCL_SHM_DISABLE", "1"),
    ("NCCL_MAX_NCHANNELS", "2"),
];

/// One rank's part.
#[derive(Debug, Args)]
pub(super) struct Rank {
    /// Its number.
    #[arg(long)]
    rank: usize,
    /// Where each rank listens.
    #[arg(long, value_delimiter = ',', required = true)]
    addresses: Vec<SocketAddr>,
    /// Number of the GPU that all ranks share.
    #[arg(long)]
    gpu: usize,
}

/// What a rank prints, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    version: i32,
    /// Elements that are not what they should be, by operation.
    wrong_fp32_sums: usize,
    wrong_int64_sums: usize,
    wrong_gathered: usize,
    milliseconds: f64,
}

/// What the rows are about.
pub(super) fn title(world: usize) -> String {
    match world {
        1 => "NCCL, one rank".into(),
        _ => format!("NCCL, {world} ranks on one GPU"),
    }
}

/// Rows for `world` ranks on GPU number `gpu`.
pub(super) fn check(gpu: usize, world: usize) -> Vec<Check> {
    let title = title(world);
    let reports = match together(gpu, world) {
        Ok(reports) => reports,
        Err(failure) => return vec![super::undone(title, &failure)],
    };
    let row = |operation: &str, of: fn(&Report) -> usize| {
        let wrong: usize = reports.iter().map(of).sum();
        let what = format!("{title}: {operation}");
        let found = format!("{wrong} of {} elements wrong", LEN * world);
        Check::new(what, found, "0 wrong".into(), wrong == 0)
    };
    let mut rows = vec![
        row("fp32 all-reduce", |report| report.wrong_fp32_sums),
        row("int64 reduce-scatter", |report| report.wrong_int64_sums),
        row("fp32 all-gather", |report| report.wrong_gathered),
    ];
    if let Some(first) = reports.first() {
        let found = format!("NCCL {}, {:.1} ms", first.version, first.milliseconds);
        rows.push(Check::noted(format!("{title}: the three together"), found));
    }
    rows
}

/// Starts all ranks and gives their reports.
fn together(gpu: usize, world: usize) -> Result<Vec<Report>, Failure> {
    let addresses = mesh::addresses(world)?;
    let ranks: Vec<Child> = (0..world)
        .map(|rank| start(gpu, rank, &addresses))
        .collect::<Result<_, _>>()?;
    // Each rank has deadlines of its own for everything it waits for.
    let outputs = ranks.into_iter().map(Child::wait_with_output);
    let outputs: Vec<std::io::Result<Output>> = outputs.collect();
    outputs.into_iter().enumerate().map(report_of).collect()
}

fn start(gpu: usize, rank: usize, addresses: &[SocketAddr]) -> Result<Child, Failure> {
    let fault = |error| Failure::io("a rank of the NCCL check cannot start", error);
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Command::new(std::env::current_exe().map_err(fault)?)
        .args(["gpu-check", "rank", "--rank", &rank.to_string()])
        .args(["--gpu", &gpu.to_string()])
        .args(["--addresses", &addresses.join(",")])
        .envs(ENVIRONMENT)
        .env("NCCL_HOSTID", format!("mks2-rank-{rank}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(fault)
}

fn report_of((rank, output): (usize, std::io::Result<Output>)) -> Result<Report, Failure> {
    let output = output.map_err(|e| Failure::io(format!("rank {rank} cannot be waited for"), e))?;
    let told = serde_json::from_slice(&output.stdout);
    told.ok()
        .filter(|_| output.status.success())
        .ok_or_else(|| {
            Failure::internal(
                format!("rank {rank} did not end well"),
                format!("it ended with {}; its words are above", output.status),
            )
        })
}

/// One rank: forms the mesh, joins NCCL, and compares what comes out with what must.
pub(super) fn run(rank: &Rank, out: &mut dyn Write) -> Result<(), Failure> {
    let device = device::choose(&format!("cuda:{}", rank.gpu), 0)?;
    let (limits, abort) = (Limits::default(), AbortFlag::new());
    let mesh = mesh::form_at(rank.rank, &rank.addresses, &limits, &abort)?;
    let mut nccl = NcclMesh::new(mesh, rank.gpu, &limits, &abort)?;
    let report = exchange(&mut nccl, device)?;
    let line = serde_json::to_string(&report)
        .map_err(|e| Failure::internal("the report cannot be written", e.to_string()))?;
    writeln!(out, "{line}").map_err(|e| Failure::io("the report cannot be written", e))
}

fn exchange(nccl: &mut NcclMesh, device: Device) -> Result<Report, CollectiveError> {
    let (world, rank) = (nccl.world(), nccl.rank());
    let version = nccl.version()?;
    let began = Instant::now();
    let mut sums = Tensor::from_slice(&floats(rank)).to(device);
    nccl.all_reduce_tensor(&mut sums)?;
    let shard = nccl.reduce_scatter_tensor(&Tensor::from_slice(&integers(rank)).to(device))?;
    let own = nccl.own_shard(LEN);
    // Everyone knows the right values of his own shard alone.
    let mut gathered = vec![0f32; LEN];
    gathered[own.clone()].copy_from_slice(&floats(rank)[own.clone()]);
    let mut gathered = Tensor::from_slice(&gathered).to(device);
    nccl.all_gather_tensor(&mut gathered)?;
    let milliseconds = began.elapsed().as_secs_f64() * 1e3;
    let all_floats: Vec<Vec<f32>> = (0..world).map(floats).collect();
    let all_integers: Vec<Vec<i64>> = (0..world).map(integers).collect();
    let float_sum = |at: usize| all_floats.iter().map(|values| values[at]).sum::<f32>();
    let integer_sum = |at: usize| all_integers.iter().map(|values| values[at]).sum::<i64>();
    let owner = |at: usize| (0..world).find(|&r| schedule::shard(LEN, world, r).contains(&at));
    Ok(Report {
        version,
        wrong_fp32_sums: wrong(&host::<f32>(&sums)?, 0, float_sum),
        wrong_int64_sums: wrong(&host::<i64>(&shard)?, own.start, integer_sum),
        wrong_gathered: wrong(&host::<f32>(&gathered)?, 0, |at| {
            owner(at).map_or(f32::NAN, |owner| all_floats[owner][at])
        }),
        milliseconds,
    })
}

/// A rank's fp32 values: integers, so that sums are exact in any order.
fn floats(rank: usize) -> Vec<f32> {
    (0..LEN)
        .map(|at| ((at % 1009) * (rank + 1)) as f32)
        .collect()
}

/// A rank's int64 values, most of them beyond 32 bits.
fn integers(rank: usize) -> Vec<i64> {
    let sign = if rank.is_multiple_of(2) { 1 } else { -3 };
    (0..LEN as i64).map(|at| sign * (at << 24)).collect()
}

fn host<T>(tensor: &Tensor) -> Result<Vec<T>, CollectiveError>
where
    Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
{
    let values = Vec::<T>::try_from(tensor.to(Device::Cpu));
    Ok(values.map_err(crate::flat::FlatError::from)?)
}

/// How many of `values`, the first of which is number `first`, are not what they should be.
fn wrong<T: PartialEq>(values: &[T], first: usize, right: impl Fn(usize) -> T) -> usize {
    let numbered = values.iter().enumerate();
    numbered
        .filter(|(at, value)| **value != right(first + at))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_element_is_counted() {
        assert_eq!(wrong(&[7, 8, 10], 7, |at| at), 1);
        assert_eq!(wrong(&[f32::NAN], 0, |_| f32::NAN), 1);
    }

    #[test]
    fn sums_of_the_values_are_exact() {
        let (first, second) = (floats(0), floats(1));
        assert_eq!(first[1008] + second[1008], 3.0 * 1008.0);
        assert_eq!(integers(1)[LEN - 1], -3 * ((LEN as i64 - 1) << 24));
    }

    /// Here without a GPU; the GPU's own answer is what the check is for.
    #[test]
    fn a_rank_that_cannot_start_is_a_row_of_the_table() {
        let output = Command::new("false").output();
        let failure = report_of((1, output)).unwrap_err();
        assert!(failure.what.contains("rank 1"), "{failure}");
    }
}
