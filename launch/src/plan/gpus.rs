//! GPUs by their public names, and which stages fit on them.

use serde::Serialize;

use super::StagePlan;

/// Names and memory of GPUs, in units of 10^9 bytes as their makers count.
const GPUS: [(&str, u64); 5] = [
    ("GeForce RTX 4090, L4, A10", 24),
    ("A100 40GB", 40),
    ("RTX 6000 Ada, L40S", 48),
    ("A100 80GB, H100", 80),
    ("H200", 141),
];

/// Left to driver, libtorch's kernels and workspaces, and the gaps between blocks of memory: 2 GB,
/// and a twentieth of the stage's own.
const RESERVE_BYTES: u64 = 2_000_000_000;
const RESERVE_SHARE: u64 = 20;

/// A GPU, or several with as much memory.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Gpu {
    pub(super) name: &'static str,
    pub(super) bytes: u64,
    /// Names of the training stages that fit.
    pub(super) fits: Vec<String>,
}

/// All of them, for one worker on each.
pub(super) fn table(stages: &[StagePlan]) -> Vec<Gpu> {
    let gpu = |(name, gigabytes): (&'static str, u64)| {
        let bytes = gigabytes * 1_000_000_000;
        let fitting = stages
            .iter()
            .filter(|stage| stage.steps > 0 && needed(stage) <= bytes);
        Gpu {
            name,
            bytes,
            fits: fitting.map(|stage| stage.name.clone()).collect(),
        }
    };
    GPUS.into_iter().map(gpu).collect()
}

/// Bytes of a device that a stage wants.
fn needed(stage: &StagePlan) -> u64 {
    let total = stage.memory.total;
    total + total / RESERVE_SHARE + RESERVE_BYTES
}
