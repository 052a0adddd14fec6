//! Whole stages as the trainer runs them, from rows on disk to the weights after the last step, beside
//! the reference (`make_training.py`), which sees each global batch as one and knows no lanes.

use std::cell::RefCell;
use std::sync::Arc;

use mks2_dataset::import::{Options, import};
use mks2_dataset::loader::{self, Loader};
use mks2_dataset::plan::{CorpusShape, Plan};
use mks2_dataset::reader::Corpus;
use mks2_proto::failure::Failure;
use mks2_proto::job::{Job, Recompute, StageKind};
use mks2_proto::params::trained_by;
use mks2_proto::v1::{Phase, StepMetrics};
use mks2_worker::control::Control;
use mks2_worker::exact::Reducer;
use mks2_worker::flat::{Buffer, FlatLayout, FlatState};
use mks2_worker::model::Weights;
use mks2_worker::objective::Objective;
use mks2_worker::objective::experts::ExpertsObjective;
use mks2_worker::objective::memory::MemoryObjective;
use mks2_worker::replica::Replica;
use mks2_worker::team::Team;
use mks2_worker::text::TextEncoder;
use mks2_worker::train::{Settings, Trainer};
use serde_json::json;
use tch::{Device, Tensor};
use tokio::runtime::Runtime;

use crate::fixture::{Fixture, assert_close, folder};

/// Largest relative error of what a step says: losses, norm of the gradient, learning rate.
const LOSS_TOLERANCE: f64 = 1e-5;
/// Largest error of a weight after 50 steps, relative to the largest of its tensor.
const WEIGHT_TOLERANCE: f64 = 1e-4;

/// A stage of one of the fixtures.
struct Case {
    fixture: Fixture,
    job: Job,
    runtime: Runtime,
    corpus: Corpus,
    _folder: tempfile::TempDir,
}

/// What comes of training.
struct Course {
    /// Of each step.
    metrics: Vec<StepMetrics>,
    /// The first step's, as they were applied.
    gradients: Vec<(String, Tensor)>,
    weights: Vec<(String, Tensor)>,
}

/// Writes down what each step says.
#[derive(Default)]
struct Diary(RefCell<Vec<StepMetrics>>);

impl Control for Diary {
    fn set_phase(&self, _: Phase, _: u64) {}

    fn step_committed(&self, _: u64, _: u64, told: Option<StepMetrics>) -> Result<(), Failure> {
        self.0.borrow_mut().extend(told);
        Ok(())
    }
}

impl Case {
    /// The case, its rows imported as a user imports them.
    fn load(name: &str) -> Self {
        let fixture = Fixture::load(&format!("training/{name}"));
        let job = fixture.case.job.clone().unwrap();
        let target = tempfile::tempdir().unwrap();
        let out = target.path().join("rows").display().to_string();
        let files = fixture.case.files.iter();
        let files = files.map(|file| folder().join("training").join(file).display().to_string());
        let options = Options::new(files.collect(), out.as_str());
        let runtime = Runtime::new().unwrap();
        let corpus = runtime.block_on(async {
            let summary = import(&options, &|_| {}).await.unwrap();
            assert_eq!(summary.quarantined, 0);
            Corpus::open(&out).await.unwrap()
        });
        assert_eq!(corpus.rows(), u64::from(job.stages[0].batch_size));
        Self {
            fixture,
            job,
            runtime,
            corpus,
            _folder: target,
        }
    }

    /// Trains the stage in this process, all `lanes` being held.
    fn train(&self, lanes: u32, recompute: Recompute) -> Course {
        // Models this small only wait for a second thread.
        tch::set_num_threads(1);
        let job = Job {
            lanes,
            recompute,
            ..self.job.clone()
        };
        let stage = &job.stages[0];
        let specs = trained_by(&job.model, self.fixture.case.vocab_size, stage);
        let layout = Arc::new(FlatLayout::new(&specs).unwrap());
        let mut state = FlatState::new(layout, Device::Cpu).unwrap();
        let mut weights = Fixture::load("training/base").weights();
        weights.extend(self.fixture.weights());
        let leaves = trained_leaves(&mut weights, &mut state);
        let (encoder, device) = (self.encoder(), Device::Cpu);
        match stage.kind {
            StageKind::Memory => {
                let new = MemoryObjective::new(&job, stage, &encoder, &weights, device);
                self.run(&job, new.unwrap(), state, (leaves, weights.frozen()))
            }
            StageKind::Experts => {
                let new = ExpertsObjective::new(&job, stage, &encoder, &weights, device);
                self.run(&job, new.unwrap(), state, (leaves, weights.frozen()))
            }
            other => panic!("no fixture trains a stage of kind {}", other.name()),
        }
    }

    fn run<O: Objective>(
        &self,
        job: &Job,
        objective: O,
        state: FlatState,
        tensors: (Vec<Tensor>, Vec<Tensor>),
    ) -> Course {
        let stage = &job.stages[0];
        let reducer = Reducer::new(
            Arc::clone(state.layout()),
            job.reduction,
            job.lanes,
            Device::Cpu,
        );
        let settings = Settings {
            stage: &stage.name,
            bases: blake3::hash(&[]),
            seed: job.seed,
            steps: stage.steps,
            first_step: 0,
            lanes: job.lanes,
            optimizer: &stage.optimizer,
            audit: &job.audit,
        };
        let replica = Replica::new(state, reducer.unwrap());
        let held: Vec<u32> = (0..job.lanes).collect();
        let data = self.data(job, &held);
        let mut trainer = Trainer::new(settings, objective, data, replica, tensors);
        let (mut team, diary) = (Team::alone(held), Diary::default());
        let mut gradients = Vec::new();
        while !trainer.is_done() {
            trainer.step(&diary, &mut team).unwrap();
            if gradients.is_empty() {
                gradients = copies(trainer.state(), Buffer::Grads);
            }
        }
        Course {
            metrics: diary.0.into_inner(),
            gradients,
            weights: copies(trainer.state(), Buffer::Weights),
        }
    }

    fn data(&self, job: &Job, held: &[u32]) -> (Plan, Loader) {
        let stage = &job.stages[0];
        let manifest = self.corpus.manifest();
        let shape = CorpusShape {
            rows: manifest.rows,
            group_rows: manifest.row_group_rows,
        };
        let microbatch = stage.batch_size / job.lanes;
        let plan = Plan::new(
            job.seed,
            &stage.name,
            &[(shape, 1.0)],
            job.lanes,
            microbatch,
        );
        let plan = plan.unwrap();
        let settings = loader::Settings {
            side: Some(job.model.vision.image_size),
            ..loader::Settings::default()
        };
        let (corpora, steps) = (vec![self.corpus.clone()], 0..stage.steps);
        let runtime = self.runtime.handle().clone();
        let loader = Loader::new(corpora, plan.clone(), held, steps, &settings, runtime);
        (plan, loader.unwrap())
    }

    /// Every word is a number, and stands for the token of that number.
    fn encoder(&self) -> TextEncoder {
        let words = (0..self.fixture.case.vocab_size).map(|id| (id.to_string(), json!(id)));
        let vocab: serde_json::Map<String, serde_json::Value> = words.collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "0"},
        });
        let length = self.job.model.decoder.max_text_tokens as usize;
        TextEncoder::from_json(tokenizer.to_string().as_bytes(), length).unwrap()
    }
}

/// Moves the weights that `state` trains into its buffers; gives them as leaves, in its order.
fn trained_leaves(weights: &mut Weights, state: &mut FlatState) -> Vec<Tensor> {
    let layout = Arc::clone(state.layout());
    let mut leaves = Vec::new();
    for span in layout.spans() {
        let given = weights.get(&span.name).unwrap().detach().flatten(0, -1);
        let values = Vec::<f32>::try_from(given).unwrap();
        state.load(Buffer::Weights, &span.name, &values).unwrap();
        weights.insert_trained(&span.name, &state.view(&span.name).unwrap());
        leaves.push(weights.get(&span.name).unwrap());
    }
    leaves
}

fn copies(state: &FlatState, which: Buffer) -> Vec<(String, Tensor)> {
    let spans = state.layout().spans().iter();
    let copy = |name: &str| state.view_of(which, name).unwrap().copy();
    spans
        .map(|span| (span.name.clone(), copy(&span.name)))
        .collect()
}

/// Every trained tensor's gradient is the reference's.
fn check_gradients(fixture: &Fixture, course: &Course) {
    let wanted: Vec<&str> = fixture.group("grad/").map(|(name, _)| name).collect();
    let mut found: Vec<&str> = course.gradients.iter().map(|(name, _)| &**name).collect();
    found.sort_unstable();
    assert_eq!(found, wanted, "what is trained");
    for (name, ours) in &course.gradients {
        assert_close(name, ours, &fixture.get(&format!("grad/{name}")));
    }
}

/// Every step says what the reference says of it; gives the largest relative difference.
fn check_steps(fixture: &Fixture, course: &Course) -> f64 {
    type Told = fn(&StepMetrics) -> Option<f64>;
    let told: [(&str, Told); 6] = [
        ("loss", |step| Some(step.loss)),
        ("caption", |step| step.loss_caption),
        ("retrieval", |step| step.loss_retrieval),
        ("language", |step| step.loss_language),
        ("grad_norm", |step| Some(step.grad_norm)),
        ("lr", |step| Some(step.lr)),
    ];
    let mut largest = 0.0_f64;
    for (name, theirs) in fixture.group("output/") {
        let of_step = told.iter().find(|(told, _)| *told == name).unwrap().1;
        let theirs = Vec::<f32>::try_from(theirs).unwrap();
        assert_eq!(theirs.len(), course.metrics.len());
        for (number, (step, &theirs)) in course.metrics.iter().zip(&theirs).enumerate() {
            let (ours, theirs) = (of_step(step).unwrap(), f64::from(theirs));
            let error = (ours - theirs).abs() / theirs.abs();
            assert!(
                error < LOSS_TOLERANCE,
                "{name} of step {number}: {ours}, {theirs}"
            );
            largest = largest.max(error);
        }
    }
    largest
}

/// The weights behind the last step are the reference's; gives the largest relative difference.
fn check_weights(fixture: &Fixture, course: &Course) -> f64 {
    let largest = |x: Tensor| x.abs().max().double_value(&[]);
    let (mut worst, mut moved) = (0.0_f64, 0.0_f64);
    for (name, ours) in &course.weights {
        let (before, theirs) = ["weight", "final"]
            .map(|group| fixture.get(&format!("{group}/{name}")))
            .into();
        let scale = largest(theirs.shallow_clone());
        let error = largest(ours - &theirs) / scale;
        assert!(error < WEIGHT_TOLERANCE, "{name}: {error:e}");
        worst = worst.max(error);
        moved = moved.max(largest(before - theirs) / scale);
    }
    // The comparison is about something.
    assert!(moved > 100.0 * WEIGHT_TOLERANCE, "{moved}");
    worst
}

#[test]
fn fifty_steps_are_the_references_whatever_the_lanes_and_what_is_recomputed() {
    for name in ["memory", "experts"] {
        let case = Case::load(name);
        for (lanes, recompute) in [(2, Recompute::None), (4, Recompute::Blocks)] {
            let course = case.train(lanes, recompute);
            assert_eq!(course.metrics.len(), 50);
            check_gradients(&case.fixture, &course);
            let steps = check_steps(&case.fixture, &course);
            let weights = check_weights(&case.fixture, &course);
            println!("{name}, {lanes} lanes: differs by {steps:.1e}, weights by {weights:.1e}");
        }
    }
}

#[test]
fn every_trained_tensor_has_the_references_gradient() {
    for name in ["memory_fixed", "experts_text", "experts_lora"] {
        let case = Case::load(name);
        let course = case.train(2, Recompute::None);
        check_gradients(&case.fixture, &course);
        check_steps(&case.fixture, &course);
    }
}
