//! `mks2 memory`, and jobs that attach memories, as far as nothing has to be trained.

use std::path::PathBuf;

use mks2_dataset::memory::Tensor;
use mks2_dataset::memory::card::{Base, Card, Shape, VERSION, place_of};
use mks2_dataset::memory::write::Writer;
use mks2_proto::job::{Job, MemoryForm, StageKind};
use mks2_proto::params;
use serde_json::Value;

use crate::support::{Ended, JOB, Place, SLEEPER};

/// A stage that attaches a memory to the sample job.
const ATTACH: &str = "\n[[stage]]\nname = \"flowers\"\nkind = \"attach\"\nfrom = [\"bootstrap\"]\n\
    attach = { memory = \"memories/flowers\" }\n";

/// A memory as a run of the sample job with this seed would store it, before its first step. `change`
/// makes another job of it.
fn store(place: &Place, folder: &str, seed: u64, change: impl Fn(&mut Job)) -> String {
    let mut job: Job = toml::from_str(JOB).expect("a job");
    change(&mut job);
    let model = &job.model;
    let mut specs = [
        params::memory(model, "flowers"),
        params::bridge(model),
        params::retrieval(model),
    ]
    .concat();
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    let to = place.path(folder).display().to_string();
    let writing = async {
        let mut writer = Writer::open(&to).await.expect("opened");
        for spec in specs {
            let (group, name) = place_of("flowers", &spec.name).expect("a place");
            let values = spec.initial_values(seed).into_iter();
            let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            let tensor = Tensor {
                name,
                shape: spec.shape,
                data: data.into(),
            };
            writer.add(group, tensor).await.expect("added");
        }
        let describe = |parts| Card {
            version: VERSION,
            name: "flowers".to_owned(),
            license: Some("CC-BY-4.0".to_owned()),
            shape: Shape::of(model, "flowers"),
            base: Base {
                digest: "5".repeat(64),
                kind: StageKind::Bootstrap,
            },
            corpora: [("petals".to_owned(), "7".repeat(64))].into(),
            rows: 480,
            steps: 30,
            seed,
            losses: [("loss".to_owned(), 2.5)].into(),
            made_with: "mks2".to_owned(),
            parts,
        };
        writer.finish(describe).await.expect("written").artefact.id
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(writing)
}

fn plain(_: &mut Job) {}

fn narrow(job: &mut Job) {
    job.model.memory.width = 40;
    job.model.memory.form = MemoryForm::Plain;
}

fn memory(place: &Place, arguments: &[&str]) -> Ended {
    place.run(&[&["memory"][..], arguments].concat())
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.done().out).expect("JSON")
}

/// The largest part of a memory.
fn part(place: &Place, folder: &str) -> PathBuf {
    let parts = std::fs::read_dir(place.path(folder).join("parts")).expect("parts");
    let parts = parts.map(|part| part.expect("read").path());
    let size = |path: &PathBuf| path.metadata().expect("there").len();
    parts.max_by_key(size).expect("a part")
}

#[test]
fn a_memory_is_shown_copied_and_listed() {
    let place = Place::new();
    let id = store(&place, "memories/flowers", 7, plain);
    let shown = memory(&place, &["show", "memories/flowers"]);
    for words in [
        &id,
        "CC-BY-4.0",
        "gated, 96 wide in each of 2 blocks of width 64",
        "480 rows in 30 steps, seed 7",
        "all parts are there",
    ] {
        assert!(shown.done().out.contains(words), "{words}: {}", shown.out);
    }
    let import = ["import", "memories/flowers", "--into", "memories/copy"];
    for _ in 0..2 {
        assert_eq!(
            json(&memory(&place, &[&import[..], &["--json"]].concat()))["id"],
            id
        );
    }
    let shown = json(&memory(
        &place,
        &["show", "memories/copy", "--deep", "--json"],
    ));
    assert_eq!(
        (&shown["id"], &shown["verified"]),
        (&Value::from(id.as_str()), &true.into())
    );
    assert_eq!(shown["parameters"]["memory"], 2 * 3 * 96 * 64);
    let listed = json(&memory(&place, &["list", "memories", "--json"]));
    let names = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["id"]);
    assert_eq!(names.collect::<Vec<_>>(), [&id, &id]);
    let listed = memory(&place, &["list", "memories"]);
    assert!(listed.done().out.contains(&id[..12]), "{}", listed.out);
}

#[test]
fn a_damaged_copy_is_mended_by_importing_again() {
    let place = Place::new();
    let id = store(&place, "a", 7, plain);
    let import = ["import", "a", "--into", "b"];
    memory(&place, &import).done();
    std::fs::write(part(&place, "b"), "damaged").expect("written");
    let again = memory(&place, &import);
    let words = "missing or damaged, and written again: 1 part";
    assert!(again.done().err.contains(words), "{}", again.err);
    let shown = json(&memory(&place, &["show", "b", "--deep", "--json"]));
    assert_eq!(shown["id"], id);
    let again = memory(&place, &import);
    assert!(!again.done().err.contains("damaged"), "{}", again.err);
}

#[test]
fn a_memory_is_never_replaced_by_another_one_of_its_name() {
    let place = Place::new();
    let id = store(&place, "a", 7, plain);
    store(&place, "b", 8, plain);
    let import = memory(&place, &["import", "b", "--into", "a"]);
    import.refused(
        2,
        &["already holds another memory", &id, "choose another folder"],
    );
    assert_eq!(
        json(&memory(&place, &["show", "a", "--deep", "--json"]))["id"],
        id
    );
}

#[test]
fn what_is_no_memory_or_a_damaged_one_is_refused() {
    let place = Place::new();
    place.write("empty/README.md", "no memory");
    memory(&place, &["show", "empty"]).refused(8, &["no memory.json", "mks2 memory export"]);
    memory(&place, &["list", "empty"]).refused(2, &["no memories", "it is no run"]);
    memory(&place, &["export", "empty", "--out", "x"]).refused(2, &["there is no run"]);
    store(&place, "a", 7, plain);
    let part = part(&place, "a");
    let mut bytes = std::fs::read(&part).expect("read");
    *bytes.last_mut().expect("a byte") ^= 1;
    std::fs::write(&part, bytes).expect("written");
    memory(&place, &["show", "a"]).done();
    memory(&place, &["show", "a", "--deep"]).refused(8, &["its digest is"]);
    memory(&place, &["import", "a", "--into", "b"]).refused(8, &["its digest is"]);
    memory(&place, &["show", "b"]).refused(8, &["no memory.json"]);
    memory(&place, &["diff", "a", "a"]).refused(8, &["its digest is"]);
    std::fs::remove_file(&part).expect("removed");
    memory(&place, &["show", "a"]).refused(8, &["it is not there", "from a copy"]);
    let card = place.path("a/memory.json");
    let text = std::fs::read_to_string(&card).expect("read");
    std::fs::write(&card, text.replace("\"version\": 1", "\"version\": 9")).expect("written");
    memory(&place, &["show", "a"]).refused(8, &["format version 9", "version of mks2"]);
    let listed = memory(&place, &["list", "a"]);
    assert!(
        listed.done().out.contains("format version 9"),
        "{}",
        listed.out
    );
}

#[test]
fn differences_are_those_of_cards_and_weights() {
    let place = Place::new();
    store(&place, "a", 7, plain);
    store(&place, "b", 8, plain);
    store(&place, "narrow", 7, narrow);
    let same = json(&memory(&place, &["diff", "a", "a", "--json"]));
    assert_eq!(
        (&same["same"], &same["card"]),
        (&true.into(), &Value::Array(Vec::new()))
    );
    for weights in same["weights"].as_array().expect("weights") {
        assert_eq!(weights["distance"], 0.0);
    }
    let other = json(&memory(&place, &["diff", "a", "b", "--json"]));
    assert_eq!(other["card"][0]["what"], "trained");
    let weights = other["weights"].as_array().expect("weights");
    let names = weights
        .iter()
        .map(|one| one["what"].as_str().expect("text"));
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["block 1", "block 2", "bridge", "retrieval"]
    );
    // Independent draws of the same variance: nearly at a right angle.
    let distance = weights[0]["distance"].as_f64().expect("a number");
    assert!((distance - 2_f64.sqrt()).abs() < 0.05, "{distance}");
    assert!(weights[0]["cosine"].as_f64().expect("a number").abs() < 0.05);
    let shaped = memory(&place, &["diff", "a", "narrow"]);
    let words = "the weights of the memory cannot be compared: 'layers.0.down_proj.weight'";
    assert!(shaped.done().out.contains(words), "{}", shaped.out);
    assert!(
        shaped
            .out
            .contains("[64, 96] in one and [64, 40] in the other"),
        "{}",
        shaped.out
    );
}

#[test]
fn a_job_gets_the_memory_that_it_names_or_is_refused_before_anything_starts() {
    let place = Place::with_job(&format!("{JOB}{ATTACH}"));
    let train = |more: &[&str]| {
        let ended = place.train(SLEEPER, more).output().expect("mks2 runs");
        assert!(!place.path("run").exists(), "nothing was begun");
        Ended::from(ended)
    };
    train(&[]).refused(8, &["no memory.json"]);
    let id = store(&place, "memories/flowers", 7, narrow);
    let wrong = train(&[]);
    wrong.refused(3, &["plain and 40 wide", "'flowers' is gated and 96 wide"]);
    // What it says is to be done is enough.
    let (_, cure) = wrong.err.split_once("fix: set ").expect("a cure");
    let (key, table) = cure.trim().split_once(" = ").expect("a table");
    let shape = format!("{key}={table}");
    let pin = |id: &str| format!("stage.flowers.attach.id={id}");
    let other = "0".repeat(64);
    train(&["--set", &shape, "--set", &pin(&other)]).refused(8, &[&id, &other]);
    train(&["--set", &shape, "--set", "seed=8"]).refused(
        8,
        &[
            "another language model",
            "trained with seed 7, the job has 8",
        ],
    );
    let dim = "model.retrieval.dim=16";
    let bridge = train(&["--set", &shape, "--set", dim]);
    bridge.refused(
        3,
        &[
            "bridge or retrieval head",
            "stage.flowers.attach.bridge = false",
        ],
    );
    let layers = "model.decoder.num_hidden_layers=3";
    train(&["--set", &shape, "--set", layers]).refused(8, &["3 blocks of width 64"]);
    std::fs::remove_file(part(&place, "memories/flowers")).expect("removed");
    train(&["--set", &shape, "--set", &pin(&id)]).refused(8, &["it is not there"]);
}

#[test]
fn the_tables_that_a_memory_prints_make_a_job_of_it() {
    let place = Place::new();
    let id = store(&place, "memories/flowers", 7, narrow);
    let shown = memory(&place, &["show", "memories/flowers", "--job"]);
    let tables = &shown.done().out;
    place.write(
        "job.toml",
        &format!("{}\n{tables}", JOB.replace("s3://bucket/", "corpora/")),
    );
    let plan = json(&place.run(&["plan", "job.toml", "--json"]));
    let attached = plan["stages"]
        .as_array()
        .expect("stages")
        .last()
        .expect("one");
    assert_eq!(
        (&attached["kind"], &attached["steps"]),
        (&"attach".into(), &0.into())
    );
    let of_memory = &attached["parameters"][0];
    assert_eq!(of_memory["module"], "memory.flowers");
    assert_eq!(of_memory["parameters"], 2 * 2 * 40 * 64);
    let resolved = place.run(&["config", "show", "job.toml", "--toml"]);
    for words in [&id, &place.path("memories/flowers").display().to_string()] {
        assert!(resolved.done().out.contains(words.as_str()), "{words}");
    }
}
