//! A run with one worker that only saves, and what its checkpoints must hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mks2_coordinator::journal::{Place, replay};
use mks2_coordinator::state::Checkpoint as Committed;
use mks2_coordinator::{Coordinator, Limits, Resume, Running, Settings, Workers};
use mks2_dataset::store;
use mks2_proto::env::WorkerEnv;
use mks2_proto::ids::Token;
use mks2_proto::params::{Init, ParamSpec};
use mks2_proto::v1::StepMetrics;
use mks2_worker::checkpoint::{CheckpointStore, Expected, Facts, Kind, Table};
use mks2_worker::flat::{FlatLayout, FlatState};
use mks2_worker::saver::{BUFFERS, Content, Saver, table_of};
use mks2_worker::session::Session;
use tch::Device;
use tokio::runtime::Runtime;

const TOKEN: &str = "the-token-of-the-tests";
const STAGE: &str = "memory";
/// Elements of each parameter: its file is a part of its own.
const ELEMENTS: usize = 4096;
const PART_BYTES: usize = 5 * ELEMENTS;
/// Checkpoints that are kept.
const KEEP_LAST: u64 = 2;

/// A coordinator, its only worker, and the worker's saver.
pub(crate) struct Workshop {
    pub(crate) running: Running,
    pub(crate) saver: Saver,
    pub(crate) state: FlatState,
    table: Arc<Table>,
    session: Arc<Session>,
    generation: u64,
    _runtime: Runtime,
}

/// Parts in a run directory of this machine.
pub(crate) fn parts(run: &Path) -> CheckpointStore {
    let store = CheckpointStore::open(run.to_str().expect("text")).expect("a store");
    store.with_part_bytes(PART_BYTES)
}

/// Three parameters: one that each step changes, one that comes back every third step, and one
/// that stays.
fn layout() -> Arc<FlatLayout> {
    let spec = |name: &str| ParamSpec::new(name, &[64, ELEMENTS / 64], Init::Zeros);
    let specs = ["changes.weight", "returns.weight", "stays.weight"].map(spec);
    Arc::new(FlatLayout::new(&specs).expect("a layout"))
}

/// What a buffer holds at a step.
fn values(step: u64, kind: Kind) -> Vec<f32> {
    let value = |at: usize| {
        let of = match at / ELEMENTS {
            0 => step,
            1 => step % 3,
            _ => 0,
        };
        let mixed = (of * 31 + at as u64 * 7 + kind as u64) % 10_007;
        mixed as f32 / 128.0
    };
    (0..3 * ELEMENTS).map(value).collect()
}

fn reducer(step: u64) -> Vec<u8> {
    format!("exponents of step {step}").into_bytes()
}

fn settings(run: &Path) -> Settings {
    let job = serde_json::json!({
        "name": "Saving test",
        "checkpoint": { "keep_last": KEEP_LAST },
        "model": {
            "decoder": {
                "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1, "num_key_value_heads": 1, "max_text_tokens": 8
            },
            "vision": {
                "image_size": 8, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 1, "projection_dim": 8
            },
            "text_tower": {
                "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1
            },
            "memory": { "width": 8 }
        }
    });
    Settings {
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
        run_url: run.to_str().expect("text").to_owned(),
        job: serde_json::from_value(job).expect("a job"),
        job_toml: "name = \"Saving test\"\n".into(),
        corpora: BTreeMap::new(),
        workers: Workers::exactly(1),
        returns: false,
        token: Token::new(TOKEN).expect("good"),
        resume: Resume::Auto,
        reunite: false,
        limits: Limits::default(),
    }
}

impl Workshop {
    pub(crate) fn open(run: &Path, store: CheckpointStore) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let running = runtime.block_on(Coordinator::start(settings(run)));
        let running = running.expect("started");
        let env = WorkerEnv {
            coordinator: running.endpoint(),
            token: TOKEN.into(),
            run_id: running.run_id.to_string(),
            member_id: "worker-0".into(),
            data_address: "127.0.0.1:0".into(),
            data_advertise: String::new(),
            rank: 0,
            local_rank: 0,
            world_size: 1,
            local_world_size: 1,
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        let session = runtime.block_on(Session::connect(&env, address));
        let session = Arc::new(session.expect("joined"));
        let assigned = session.wait_generation(0).expect("a generation");
        session.stage_changed(STAGE, 0, u64::MAX).expect("told");
        let handle = runtime.handle().clone();
        let saver = Saver::new(store, Arc::clone(&session), handle);
        let state = FlatState::new(layout(), Device::Cpu).expect("memory");
        Self {
            table: table_of(state.layout()).expect("a table"),
            running,
            saver,
            state,
            session,
            generation: assigned.generation,
            _runtime: runtime,
        }
    }

    /// A step's update and its checkpoint; how long the trainer was kept.
    pub(crate) fn save(&mut self, step: u64, is_final: bool) -> Duration {
        let metrics = StepMetrics {
            stage: STAGE.into(),
            ..StepMetrics::default()
        };
        let told = self
            .session
            .step_committed(self.generation, step, Some(metrics));
        told.expect("told");
        let began = Instant::now();
        for (buffer, kind) in BUFFERS {
            let loaded = self.state.load_all(buffer, &values(step, kind));
            loaded.expect("loaded");
        }
        let content = Content {
            state: &self.state,
            table: Arc::clone(&self.table),
            reducer: reducer(step),
            tokenizer: None,
            facts: Facts {
                step,
                stage: STAGE.into(),
                stage_step: step,
                is_final,
                generation: self.generation,
                ..Facts::default()
            },
        };
        self.saver.begin(content).expect("begun");
        began.elapsed()
    }

    pub(crate) fn skipped(&self) -> u64 {
        self.running.watch.borrow().checkpoints_skipped
    }

    /// Waits for alarms.
    #[track_caller]
    pub(crate) fn hears_of_skipped(&self, count: u64) {
        let began = Instant::now();
        while self.skipped() < count {
            assert!(began.elapsed() < Duration::from_secs(60), "no alarm");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.skipped(), count);
    }
}

/// The latest checkpoint that counts, which loads and holds exactly what it should.
#[track_caller]
pub(crate) fn whole(run: &Path) -> Option<Committed> {
    let (place, root) = store::open(run.to_str().expect("text")).expect("a store");
    let place = Place { store: place, root };
    let runtime = Runtime::new().expect("a runtime");
    let replayed = runtime.block_on(replay(place)).expect("a whole journal");
    let latest = replayed.history.checkpoints.latest()?.clone();
    let table = table_of(&layout()).expect("a table");
    let expected = Expected {
        model: Some(Arc::clone(&table)),
        ..Expected::default()
    };
    let (path, digest) = (&latest.manifest_path, Some(latest.manifest_digest.as_str()));
    let parts = parts(run);
    let loading = parts.load(path, digest, &expected, &Kind::ALL);
    let checkpoint = runtime.block_on(loading).expect("it loads");
    assert_eq!(checkpoint.manifest.facts.step, latest.step);
    for (_, kind) in BUFFERS {
        let mut found = vec![0.0; 3 * ELEMENTS];
        checkpoint.fill(kind, &table, &mut found).expect("whole");
        assert!(found == values(latest.step, kind), "step {}", latest.step);
    }
    let state = checkpoint.tensor(Kind::State, "reducer").expect("there");
    assert_eq!(state.data, reducer(latest.step));
    Some(latest)
}

/// Objects that no manifest needs, and manifests: all that there are.
pub(crate) fn strays(run: &Path) -> usize {
    let runtime = Runtime::new().expect("a runtime");
    let parts = parts(run);
    let mut needed = Vec::new();
    for entry in runtime.block_on(parts.list()).expect("listed") {
        let manifest = runtime.block_on(parts.manifest(&entry.path, None));
        let parts = manifest.expect("read").parts;
        needed.extend(parts.into_iter().map(|part| part.path));
    }
    let objects = std::fs::read_dir(run.join("objects")).expect("objects");
    let names = objects.map(|entry| entry.expect("read").file_name());
    let paths = names.map(|name| format!("objects/{}", name.to_string_lossy()));
    paths.filter(|path| !needed.contains(path)).count()
}
