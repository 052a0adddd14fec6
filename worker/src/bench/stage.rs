//! Steps of a real stage, measured in this process: the job's model and corpora, all lanes, the
//! trainer of a run. Only the weights are fresh, those of the stages before included.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mks2_dataset::reader::Corpus;
use mks2_proto::failure::Failure;
use mks2_proto::job::load::{self, Overrides};
use mks2_proto::job::{Job, Stage, StageKind};
use mks2_proto::params::trained_by;
use mks2_proto::v1::{Phase, StepMetrics};
use serde_json::{Value, json};
use tch::{Device, Tensor};
use tokio::runtime::Runtime;

use crate::checkpoint::{CheckpointStore, Facts, Pool};
use crate::collectives::tcp::Mesh;
use crate::control::Control;
use crate::evaluate::ancestry;
use crate::exact::Reducer;
use crate::flat::{Buffer, FlatLayout, FlatState};
use crate::model::Weights;
use crate::objective::Objective;
use crate::objective::bootstrap::BootstrapObjective;
use crate::objective::experts::ExpertsObjective;
use crate::objective::memory::MemoryObjective;
use crate::saver::{Content, copied, table_of};
use crate::sources::{Sources, open_corpora};
use crate::text::TextEncoder;
use crate::train::{Progress, Settings, Trainer};
use crate::{app, device};

/// Steps before the measured ones: exponents settle and memory is touched for the first time.
const WARM_UP: u64 = 4;
/// Measured steps.
const STEPS: u64 = 12;

/// What is asked about a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measured {
    /// Seconds of a step.
    Step,
    /// Seconds of a step beside its compute, and of loading its samples.
    Overhead,
    /// Seconds for which a checkpoint stops the step loop.
    Checkpoint,
}

/// Measures the first stage of `kind` in the job at `path`.
///
/// # Errors
/// When the job has no such stage, or it cannot be trained.
pub(super) fn measure(path: &Path, kind: StageKind, measured: Measured) -> Result<Value, Failure> {
    let bench = Bench::open(path, kind)?;
    let encoder = bench.encoder()?;
    let (weights, trained) = bench.weights(encoder.vocab_size())?;
    let Bench {
        job, stage, device, ..
    } = &bench;
    match kind {
        StageKind::Memory => {
            let objective = MemoryObjective::new(job, stage, &encoder, &weights, *device)?;
            bench.drive(objective, trained, measured)
        }
        StageKind::Experts => {
            let objective = ExpertsObjective::new(job, stage, &encoder, &weights, *device)?;
            bench.drive(objective, trained, measured)
        }
        StageKind::Bootstrap => {
            let objective = BootstrapObjective::new(job, stage, &encoder, &weights, *device)?;
            bench.drive(objective, trained, measured)
        }
        StageKind::Evaluate => Err(missing(path, kind)),
    }
}

fn missing(path: &Path, kind: StageKind) -> Failure {
    Failure::settings(
        format!("{} has no stage to measure", path.display()),
        format!("none is of kind {kind:?}, over a memory where it is a mixture"),
        "name a job file with such a stage",
    )
}

/// Whether a stage is one that `kind` asks for: of several mixtures the one with a memory.
fn is_wanted(stage: &Stage, kind: StageKind) -> bool {
    let remembers = |stage: &Stage| {
        stage
            .experts
            .as_ref()
            .is_some_and(|e| !e.memories.is_empty())
    };
    stage.kind == kind && (kind != StageKind::Experts || remembers(stage))
}

struct Bench {
    job: Job,
    stage: Stage,
    /// Stages that it builds on, oldest first.
    base: Vec<Stage>,
    corpora: BTreeMap<String, Corpus>,
    runtime: Runtime,
    device: Device,
}

/// The trained buffers and their leaves.
type Trained = (FlatState, Vec<Tensor>);

impl Bench {
    fn open(path: &Path, kind: StageKind) -> Result<Self, Failure> {
        let job = load::load(path, &Overrides::default())?.job;
        let wanted = job.stages.iter().find(|stage| is_wanted(stage, kind));
        let mut stage = wanted.cloned().ok_or_else(|| missing(path, kind))?;
        stage.steps = WARM_UP + STEPS;
        let names = ancestry(&job, &stage.name)?;
        let is_base = |other: &&Stage| other.name != stage.name && names.contains(&other.name);
        let base = job.stages.iter().filter(is_base).cloned().collect();
        let device = device::choose(&job.device, 0)?;
        device::prepare(job.threads);
        let runtime = app::io_runtime()?;
        let corpora = runtime.block_on(open_corpora(&job))?;
        Ok(Self {
            job,
            stage,
            base,
            corpora,
            runtime,
            device,
        })
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            job: &self.job,
            corpora: &self.corpora,
            runtime: self.runtime.handle(),
        }
    }

    /// The tokenizer that the job's run would train.
    fn encoder(&self) -> Result<TextEncoder, Failure> {
        let mut lineage = self.base.iter().chain([&self.stage]);
        let first = lineage
            .find(|stage| stage.kind == StageKind::Bootstrap)
            .ok_or_else(|| {
                Failure::settings(
                    format!("stage '{}' has no tokenizer", self.stage.name),
                    "none of the stages it starts from is a bootstrap",
                    "name a bootstrap stage in its `from`",
                )
            })?;
        let texts = self.sources().tokenizer_texts(first)?;
        let vocab_size = self.job.tokenizer.vocab_size as usize;
        TextEncoder::train(
            &texts,
            vocab_size,
            self.job.model.decoder.max_text_tokens as usize,
        )
    }

    /// Initial values of the stage's lineage, frozen, and of the stage itself, to be trained.
    fn weights(&self, vocab_size: u32) -> Result<(Weights, Trained), Failure> {
        let (job, mut weights) = (&self.job, Weights::new());
        for stage in &self.base {
            let specs = trained_by(&job.model, vocab_size, stage);
            weights.extend(Weights::initial(&specs, job.seed, self.device));
        }
        let specs = trained_by(&job.model, vocab_size, &self.stage);
        let layout = Arc::new(FlatLayout::new(&specs)?);
        let mut state = FlatState::new(Arc::clone(&layout), self.device)?;
        for spec in &specs {
            state.load(Buffer::Weights, &spec.name, &spec.initial_values(job.seed))?;
        }
        let mut leaves = Vec::with_capacity(layout.spans().len());
        for span in layout.spans() {
            weights.insert_trained(&span.name, &state.view(&span.name)?);
            leaves.push(weights.get(&span.name)?);
        }
        Ok((weights, (state, leaves)))
    }

    fn drive<O: Objective>(
        &self,
        objective: O,
        (state, leaves): Trained,
        measured: Measured,
    ) -> Result<Value, Failure> {
        let (job, stage) = (&self.job, &self.stage);
        let held: Vec<u32> = (0..job.lanes).collect();
        let layout = Arc::clone(state.layout());
        let reducer = Reducer::new(Arc::clone(&layout), job.reduction, job.lanes, self.device)?;
        let settings = Settings {
            stage: &stage.name,
            seed: job.seed,
            steps: stage.steps,
            first_step: 0,
            lanes: job.lanes,
            held: &held,
            optimizer: &stage.optimizer,
        };
        let load_seconds = match measured {
            Measured::Overhead => Some(self.loading(&held)?),
            _ => None,
        };
        let data = self.sources().data(stage, &held, 0)?;
        let progress = Progress::default();
        let mut trainer = Trainer::new(
            settings,
            objective,
            data,
            (state, leaves),
            reducer,
            progress,
        );
        let mut saving = match measured {
            Measured::Checkpoint => Some(Saving::new(&layout)?),
            _ => None,
        };
        let mut laps = Laps::default();
        while !trainer.is_done() {
            laps.step(&mut trainer)?;
            if let Some(saving) = &mut saving {
                saving.save(&trainer, &self.runtime)?;
            }
        }
        let mut found = laps.found(stage, measured);
        found["parameters"] = layout.parameters().into();
        found["loss"] = trainer.progress().loss.into();
        if let Some(seconds) = load_seconds {
            found["load_seconds"] = seconds.into();
        }
        if let Some(saving) = saving {
            found["stop_seconds"] = median(saving.stops).into();
        }
        Ok(match measured {
            Measured::Step if stage.kind == StageKind::Memory => json!({ "memory": found }),
            Measured::Step => json!({ "experts": found }),
            _ => found,
        })
    }

    /// Mean seconds in which the loader alone gives a step's samples, nothing of them being kept
    /// from before.
    fn loading(&self, held: &[u32]) -> Result<f64, Failure> {
        let began = Instant::now();
        let (_, loader) = self.sources().data(&self.stage, held, 0)?;
        for step in 0..self.stage.steps {
            for &lane in held {
                loader.next(step, lane)?;
            }
        }
        Ok(began.elapsed().as_secs_f64() / self.stage.steps as f64)
    }
}

/// Copies of the state, as a run makes them; they are stored in memory, behind the measurement.
struct Saving {
    store: CheckpointStore,
    pool: Pool,
    layout: Arc<FlatLayout>,
    stops: Vec<f64>,
}

impl Saving {
    fn new(layout: &Arc<FlatLayout>) -> Result<Self, Failure> {
        let pool = Pool::default();
        pool.warm(&*table_of(layout)?);
        let (store, layout) = (CheckpointStore::open("memory://bench")?, Arc::clone(layout));
        Ok(Self {
            store,
            pool,
            layout,
            stops: Vec::new(),
        })
    }

    fn save<O: Objective>(
        &mut self,
        trainer: &Trainer<O>,
        runtime: &Runtime,
    ) -> Result<(), Failure> {
        let step = trainer.progress().step;
        let table = table_of(&self.layout)?;
        let began = Instant::now();
        let content = Content {
            state: trainer.state(),
            table,
            reducer: trainer.reducer_state(),
            tokenizer: None,
            facts: Facts {
                step,
                stage_step: step,
                ..Facts::default()
            },
        };
        let (snapshot, facts) = copied(&self.pool, content)?;
        if step > WARM_UP {
            self.stops.push(began.elapsed().as_secs_f64());
        }
        runtime.block_on(self.store.upload(snapshot, facts))?;
        Ok(())
    }
}

/// Seconds of the measured steps.
#[derive(Default)]
struct Laps {
    watch: Stopwatch,
    seconds: Vec<f64>,
    /// All but gradients and the update.
    beside: Vec<f64>,
    phases: BTreeMap<Phase, Vec<f64>>,
}

impl Laps {
    fn step<O: Objective>(&mut self, trainer: &mut Trainer<O>) -> Result<(), Failure> {
        let began = Instant::now();
        trainer.step(&self.watch, &mut Mesh::alone())?;
        let seconds = began.elapsed().as_secs_f64();
        let spent = self.watch.take();
        if trainer.progress().step <= WARM_UP {
            return Ok(());
        }
        let of = |phase| spent.get(&phase).map_or(0.0, Duration::as_secs_f64);
        self.seconds.push(seconds);
        self.beside
            .push(seconds - of(Phase::Computing) - of(Phase::Updating));
        for (phase, time) in &spent {
            self.phases
                .entry(*phase)
                .or_default()
                .push(time.as_secs_f64());
        }
        Ok(())
    }

    fn found(self, stage: &Stage, measured: Measured) -> Value {
        let step_seconds = median(self.seconds);
        let mut found = json!({
            "stage": stage.name, "batch": stage.batch_size, "threads": tch::get_num_threads(),
            "step_seconds": step_seconds,
            "samples_per_second": f64::from(stage.batch_size) / step_seconds,
        });
        if measured == Measured::Overhead {
            let phases = self.phases.into_iter().map(|(phase, seconds)| {
                let name = phase
                    .as_str_name()
                    .trim_start_matches("PHASE_")
                    .to_lowercase();
                (name, median(seconds).into())
            });
            found["phases"] = Value::Object(phases.collect());
            found["overhead_seconds"] = median(self.beside).into();
        }
        found
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Directs a step by doing nothing but to note the time at each change of phase.
#[derive(Default)]
struct Stopwatch {
    phase: Cell<Option<(Phase, Instant)>>,
    spent: RefCell<BTreeMap<Phase, Duration>>,
}

impl Stopwatch {
    fn turn(&self, next: Option<Phase>) {
        let now = Instant::now();
        if let Some((phase, since)) = self.phase.replace(next.map(|phase| (phase, now))) {
            *self.spent.borrow_mut().entry(phase).or_default() += now - since;
        }
    }

    /// Time spent in each phase since the last call.
    fn take(&self) -> BTreeMap<Phase, Duration> {
        self.spent.take()
    }
}

impl Control for Stopwatch {
    fn set_phase(&self, phase: Phase, _collective: u64) {
        self.turn(Some(phase));
    }

    fn stop_requested(&self) -> bool {
        false
    }

    fn step_committed(&self, _step: u64, _metrics: Option<StepMetrics>) -> Result<(), Failure> {
        self.turn(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_that_comes_twice_is_added_up() {
        let watch = Stopwatch::default();
        for phase in [Phase::Computing, Phase::Reducing, Phase::Computing] {
            watch.set_phase(phase, 0);
            std::thread::sleep(Duration::from_millis(2));
        }
        watch.step_committed(1, None).unwrap();
        let spent = watch.take();
        assert!(spent[&Phase::Computing] >= Duration::from_millis(4));
        assert!(spent[&Phase::Reducing] >= Duration::from_millis(2));
        assert!(watch.take().is_empty());
    }
}
