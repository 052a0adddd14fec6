//! A checkpoint of a large state, as a run makes it: what it keeps the step loop from, and how much
//! memory it takes. Its peer is `xtask/peers/async_save.py`.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;
use mks2_dataset::store;
use mks2_proto::failure::Failure;
use mks2_proto::job::Optimizer;
use mks2_proto::params::{Init, ParamSpec};
use serde_json::{Value, json};
use tch::{Device, Tensor, no_grad};
use tokio::runtime::Runtime;

use super::process::{memory, reset_peak};
use crate::app::io_runtime;
use crate::checkpoint::{CheckpointStore, Facts, Pool, Table};
use crate::device;
use crate::flat::{FlatLayout, FlatState};
use crate::generator::normal;
use crate::optim::AdamW;
use crate::saver::{Content, Original, table_of};

/// Parameters' tensors.
const TENSORS: usize = 64;
/// Side of the matrices whose products are the compute of a step.
const SIDE: i64 = 512;
/// Steps between two checkpoints, so that uploads have their time.
const STEPS_BETWEEN: u64 = 6;

/// What to save and how.
#[derive(Debug, Args)]
pub(super) struct Save {
    /// Weights and both moments together, MiB.
    #[arg(long, default_value_t = 512)]
    mebibytes: usize,
    /// Checkpoints that are measured, after a first one that is not.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Milliseconds of compute in a step.
    #[arg(long, default_value_t = 500)]
    step_ms: u64,
    /// Where to; it must not exist.
    #[arg(long)]
    folder: PathBuf,
}

/// Saves again and again between steps that compute and update.
///
/// # Errors
/// When libtorch or the folder refuses.
pub(super) fn measure(settings: &Save) -> Result<Value, Failure> {
    device::prepare(1);
    let mut bench = Bench::new(settings)?;
    let resident = memory("VmRSS:");
    bench.pool.warm(&bench.table);
    reset_peak();
    let mut stops = Vec::new();
    let mut uploads = Vec::new();
    for repetition in 0..=settings.repetitions {
        let (stop, upload) = bench.save()?;
        if repetition > 0 {
            stops.push(stop);
            uploads.push(upload);
        }
    }
    let extra = memory("VmHWM:").saturating_sub(resident);
    std::fs::remove_dir_all(&settings.folder)
        .map_err(|e| Failure::io("the measured checkpoints cannot be removed", e))?;
    Ok(json!({
        "bench": "save", "bytes": 12 * bench.state.layout().parameters(), "repetitions": stops.len(),
        "blocked_ms": super::median_ms(&mut stops), "upload_ms": super::median_ms(&mut uploads),
        "extra_bytes": extra,
    }))
}

struct Bench<'a> {
    settings: &'a Save,
    state: FlatState,
    table: Arc<Table>,
    optimizer: AdamW,
    pool: Pool,
    store: CheckpointStore,
    runtime: Runtime,
    factor: Tensor,
    step: u64,
}

impl<'a> Bench<'a> {
    fn new(settings: &'a Save) -> Result<Self, Failure> {
        let elements = (settings.mebibytes << 20) / 12 / TENSORS;
        let spec = |number| ParamSpec {
            name: format!("{number:02}.weight"),
            shape: vec![1, elements],
            init: Init::Zeros,
        };
        let specs: Vec<_> = (0..TENSORS).map(spec).collect();
        let layout = Arc::new(FlatLayout::new(&specs)?);
        let mut state = FlatState::new(layout, Device::Cpu)?;
        no_grad(|| {
            let _filled = state.weights.normal_(0.0, 1.0);
            let _filled = state.grads.normal_(0.0, 1.0);
        });
        let folder = settings.folder.display().to_string();
        Ok(Self {
            settings,
            table: table_of(state.layout())?,
            state,
            optimizer: AdamW::new(&Optimizer::default()),
            pool: Pool::default(),
            store: CheckpointStore::open(&folder)?,
            runtime: io_runtime()?,
            factor: normal(1, &[SIDE, SIDE], Device::Cpu),
            step: 0,
        })
    }

    /// A checkpoint and the steps after it: how long the loop was kept, and how long it took.
    fn save(&mut self) -> Result<(Duration, Duration), Failure> {
        let waited = self.state.waited_for_readers();
        let began = Instant::now();
        let thread = self.begin()?;
        let begun = began.elapsed();
        for _ in 0..STEPS_BETWEEN {
            self.compute();
            self.optimizer.apply(&mut self.state, self.step, 1e-3)?;
            self.step += 1;
        }
        let ended = thread.join();
        let ended = ended.unwrap_or_else(|_| Err(Failure::internal("no copy", "it panicked")));
        Ok((begun + (self.state.waited_for_readers() - waited), ended?))
    }

    /// What the trainer does for a checkpoint, and what goes on behind its back.
    fn begin(&self) -> Result<JoinHandle<Result<Duration, Failure>>, Failure> {
        let original = Original::of(Content {
            state: &self.state,
            table: Arc::clone(&self.table),
            reducer: Vec::new(),
            tokenizer: None,
            facts: Facts {
                step: self.step,
                ..Facts::default()
            },
        })?;
        let (store, pool) = (self.store.clone(), self.pool.clone());
        let (runtime, folder) = (self.runtime.handle().clone(), self.settings.folder.clone());
        Ok(std::thread::spawn(move || {
            let began = Instant::now();
            let (snapshot, facts) = original.copied(&pool)?;
            runtime.block_on(async {
                let uploaded = store.upload(snapshot, facts).await?;
                // The commit, which is the coordinator's in a run.
                let (place, root) = store::open(&folder.display().to_string())?;
                let path = store::under(&root, &uploaded.path)?;
                store::put_create_only(&*place, &path, uploaded.bytes).await?;
                Ok::<_, Failure>(())
            })?;
            Ok(began.elapsed())
        }))
    }

    fn compute(&self) {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(self.settings.step_ms) {
            let _product = self.factor.matmul(&self.factor);
        }
    }
}
