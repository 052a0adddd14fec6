//! Steps of a real stage, measured in this process.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mks2_proto::failure::Failure;
use mks2_proto::job::{Stage, StageKind};
use mks2_proto::v1::{Phase, StepMetrics};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::process::memory;
use crate::checkpoint::{CheckpointStore, Facts, Pool};
use crate::control::Control;
use crate::device;
use crate::flat::{FlatLayout, FlatState};
use crate::objective::Objective;
use crate::rehearsal::{Act, Rehearsal, Scene};
use crate::saver::{Content, Original, table_of};
use crate::team::Team;
use crate::train::Trainer;

/// Steps before the measured ones: exponents settle and memory is touched for the first time.
const WARM_UP: u64 = 4;
/// Measured steps.
const STEPS: u64 = 12;
/// The same where every other one has a checkpoint: so many that a hundredth of a step can be seen.
const STEPS_WITH_CHECKPOINTS: u64 = 1200;

/// What is asked about a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measured {
    /// Seconds of a step.
    Step,
    /// Seconds of a step beside its compute, and of loading its samples.
    Overhead,
    /// Seconds for which a checkpoint stops the step loop, and of a step with and without one.
    Checkpoint,
    /// Seconds of a digest of the state, and its share of each step.
    Audit,
}

/// Measures the first stage of `kind` in the job at `path`.
///
/// # Errors
/// When the job has no such stage, or it cannot be trained.
pub(super) fn measure(path: &Path, kind: StageKind, measured: Measured) -> Result<Value, Failure> {
    let rehearsal = Rehearsal::open(path)?;
    let job = rehearsal.job();
    let device = device::choose(&job.device, 0)?;
    device::prepare(job.threads);
    let steps = match measured {
        Measured::Checkpoint => STEPS_WITH_CHECKPOINTS,
        _ => STEPS,
    };
    let mut scene = rehearsal.scene(kind, WARM_UP + steps, device)?;
    if let Some(memory) = &mut scene.stage.memory {
        // The peers look at every picture in every step.
        memory.keep_features = false;
    }
    let load_seconds = match measured {
        Measured::Overhead => Some(loading(&scene)?),
        _ => None,
    };
    let mut found = scene.play(Measurement {
        stage: &scene.stage,
        runtime: rehearsal.runtime(),
        every_steps: job.audit.every_steps,
        measured,
    })?;
    if let Some(seconds) = load_seconds {
        found["load_seconds"] = seconds.into();
    }
    Ok(match measured {
        Measured::Step if kind == StageKind::Memory => json!({ "memory": found }),
        Measured::Step => json!({ "experts": found }),
        _ => found,
    })
}

/// Mean seconds in which the loader alone gives a step's samples, nothing of them being kept from
/// before.
fn loading(scene: &Scene<'_>) -> Result<f64, Failure> {
    let began = Instant::now();
    let (_, loader) = scene.data()?;
    for step in 0..scene.stage.steps {
        for &lane in scene.held() {
            loader.next(step, lane)?;
        }
    }
    Ok(began.elapsed().as_secs_f64() / scene.stage.steps as f64)
}

/// Trains the rehearsed steps and notes their times.
struct Measurement<'a> {
    stage: &'a Stage,
    runtime: &'a Runtime,
    /// Steps between two comparisons.
    every_steps: u64,
    measured: Measured,
}

impl Act for Measurement<'_> {
    type Output = Value;

    fn play<O: Objective>(
        self,
        mut trainer: Trainer<'_, O>,
        mut team: Team,
    ) -> Result<Value, Failure> {
        let layout = Arc::clone(trainer.state().layout());
        let mut saving = match self.measured {
            Measured::Checkpoint => Some(Saving::new(&layout)?),
            _ => None,
        };
        let mut laps = Laps::default();
        let mut digests = Vec::new();
        while !trainer.is_done() {
            let begun = saving.as_ref().and_then(Saving::begun);
            laps.step(&mut trainer, &mut team, begun)?;
            if self.measured == Measured::Audit {
                let began = Instant::now();
                trainer.digest()?;
                digests.push(began.elapsed().as_secs_f64());
            }
            if let Some(saving) = &mut saving {
                saving.go_on(&trainer, self.runtime)?;
            }
        }
        let mut found = laps.found(self.stage, self.measured);
        found["parameters"] = layout.parameters().into();
        found["peak_bytes"] = memory("VmHWM:").into();
        found["loss"] = trainer.progress().loss.into();
        if self.measured == Measured::Audit {
            let seconds = median(digests);
            found["digest_seconds"] = seconds.into();
            found["every_steps"] = self.every_steps.into();
            found["per_step_seconds"] = (seconds / self.every_steps.max(1) as f64).into();
        }
        if let Some(saving) = saving {
            found["stop_seconds"] = saving.end()?.into();
        }
        Ok(found)
    }
}

/// Checkpoints as a run makes them, on the disk, behind every other step.
struct Saving {
    folder: PathBuf,
    store: CheckpointStore,
    pool: Pool,
    layout: Arc<FlatLayout>,
    pending: Option<Pending>,
    stops: Vec<f64>,
}

/// One that is copied and uploaded behind the next step.
struct Pending {
    thread: JoinHandle<Result<(), Failure>>,
    /// What it has cost the loop so far.
    begun: Duration,
    /// How long the update had waited before for copies.
    waited: Duration,
}

impl Saving {
    fn new(layout: &Arc<FlatLayout>) -> Result<Self, Failure> {
        let pool = Pool::default();
        pool.warm(&*table_of(layout)?);
        let folder = std::env::temp_dir().join(format!("mks2-bench-{}", std::process::id()));
        let store = CheckpointStore::open(&folder.display().to_string())?;
        let layout = Arc::clone(layout);
        Ok(Self {
            folder,
            store,
            pool,
            layout,
            pending: None,
            stops: Vec::new(),
        })
    }

    /// What the checkpoint behind the next step has cost the loop so far.
    fn begun(&self) -> Option<Duration> {
        self.pending.as_ref().map(|pending| pending.begun)
    }

    /// The median of the stops.
    fn end(self) -> Result<f64, Failure> {
        std::fs::remove_dir_all(&self.folder)
            .map_err(|e| Failure::io("the measured checkpoints cannot be removed", e))?;
        Ok(median(self.stops))
    }

    /// Between two steps: ends the checkpoint before, or begins one.
    fn go_on<O: Objective>(
        &mut self,
        trainer: &Trainer<O>,
        runtime: &Runtime,
    ) -> Result<(), Failure> {
        let step = trainer.progress().step;
        if self.pending.is_some() || trainer.is_done() {
            return self.settle(step, trainer.state());
        }
        let table = table_of(&self.layout)?;
        let began = Instant::now();
        let original = Original::of(Content {
            state: trainer.state(),
            table,
            reducer: trainer.reducer_state(),
            tokenizer: None,
            facts: Facts {
                step,
                stage_step: step,
                ..Facts::default()
            },
        })?;
        let (store, pool) = (self.store.clone(), self.pool.clone());
        let runtime = runtime.handle().clone();
        let thread = std::thread::spawn(move || {
            let (snapshot, facts) = original.copied(&pool)?;
            runtime.block_on(store.upload(snapshot, facts))?;
            Ok(())
        });
        self.pending = Some(Pending {
            thread,
            begun: began.elapsed(),
            waited: trainer.state().waited_for_readers(),
        });
        Ok(())
    }

    /// What the checkpoint before the latest step has cost.
    fn settle(&mut self, step: u64, state: &FlatState) -> Result<(), Failure> {
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        let stop = pending.begun + (state.waited_for_readers() - pending.waited);
        if step > WARM_UP {
            self.stops.push(stop.as_secs_f64());
        }
        let ended = pending.thread.join();
        ended.unwrap_or_else(|_| Err(Failure::internal("the copy failed", "it panicked")))
    }
}

/// Seconds of the measured steps.
#[derive(Default)]
struct Laps {
    watch: Stopwatch,
    seconds: Vec<f64>,
    /// What a checkpoint before the step has cost the loop, where there was one.
    begun: Vec<Option<Duration>>,
    /// All but gradients and the update.
    beside: Vec<f64>,
    phases: BTreeMap<Phase, Vec<f64>>,
}

impl Laps {
    fn step<O: Objective>(
        &mut self,
        trainer: &mut Trainer<O>,
        team: &mut Team,
        begun: Option<Duration>,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        trainer.step(&self.watch, team)?;
        let seconds = began.elapsed().as_secs_f64();
        let spent = self.watch.take();
        if trainer.progress().step <= WARM_UP {
            return Ok(());
        }
        let of = |phase| spent.get(&phase).map_or(0.0, Duration::as_secs_f64);
        self.seconds.push(seconds);
        self.begun.push(begun);
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

    /// What a checkpoint adds to a step: the median of what steps with one take more than those beside
    /// them. A machine's speed drifts by more than that from one second to the next.
    fn added_by_checkpoint(&self) -> f64 {
        let laps = self.seconds.windows(3).zip(self.begun.windows(3));
        let added = laps.filter_map(|(seconds, begun)| match (seconds, begun) {
            ([before, with, after], [None, Some(begun), None]) => {
                Some(with + begun.as_secs_f64() - (before + after) / 2.0)
            }
            _ => None,
        });
        median(added.collect())
    }

    fn found(self, stage: &Stage, measured: Measured) -> Value {
        let without = self.seconds.iter().zip(&self.begun);
        let without = without.filter(|(_, begun)| begun.is_none());
        let step_seconds = median(without.map(|(seconds, _)| *seconds).collect());
        let mut found = json!({
            "stage": stage.name, "batch": stage.batch_size, "threads": tch::get_num_threads(),
            "step_seconds": step_seconds,
            "samples_per_second": f64::from(stage.batch_size) / step_seconds,
        });
        if measured == Measured::Checkpoint {
            let seconds = step_seconds + self.added_by_checkpoint();
            found["step_with_checkpoint_seconds"] = seconds.into();
        }
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

pub(super) fn median(mut seconds: Vec<f64>) -> f64 {
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

    fn step_committed(
        &self,
        _generation: u64,
        _step: u64,
        _metrics: Option<StepMetrics>,
    ) -> Result<(), Failure> {
        self.turn(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_held_against_the_steps_beside_it() {
        let begun = |number| (number % 2 == 1).then(|| Duration::from_millis(2));
        let laps = Laps {
            // Ever slower, and 5 ms with a checkpoint.
            seconds: (0..9)
                .map(|number| 0.1 * f64::from(number) + if number % 2 == 1 { 0.005 } else { 0.0 })
                .collect(),
            begun: (0..9).map(begun).collect(),
            ..Laps::default()
        };
        assert!((laps.added_by_checkpoint() - 0.007).abs() < 1e-9);
    }

    #[test]
    fn a_phase_that_comes_twice_is_added_up() {
        let watch = Stopwatch::default();
        for phase in [Phase::Computing, Phase::Reducing, Phase::Computing] {
            watch.set_phase(phase, 0);
            std::thread::sleep(Duration::from_millis(2));
        }
        watch.step_committed(0, 1, None).unwrap();
        let spent = watch.take();
        assert!(spent[&Phase::Computing] >= Duration::from_millis(4));
        assert!(spent[&Phase::Reducing] >= Duration::from_millis(2));
        assert!(watch.take().is_empty());
    }
}
