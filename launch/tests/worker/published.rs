//! Jobs that start from published models: folders as transformers writes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::evaluating::sample_tasks;
use crate::lab::{Ended, Lab, awaited, digests, ended, mks2, root, signal, workers_of};

/// The stages behind the models. Steps: 4 and 3.
const STAGES: &str = r#"
name = "published"
seed = 1
lanes = 4

[model.memory]
width = 48

[model.retrieval]
dim = 16

[checkpoint]
every_steps = 2

[[stage]]
name = "base"
kind = "pretrained"

[[stage]]
name = "memory"
kind = "memory"
from = ["base"]
steps = 4
batch_size = 8
data = [{ corpus = "emoji" }]

[[stage]]
name = "experts"
kind = "experts"
from = ["base", "memory"]
steps = 3
batch_size = 8
data = [{ corpus = "colors-train" }]
experts = { memories = ["memory"], lora_rank = 4, pictures = true }

[[stage]]
name = "evaluate"
kind = "evaluate"
from = ["base", "memory", "experts"]

[stage.evaluate]
memory = "memory"
corpus = "emoji"
retrieval_text = "{caption}"
examples = 2
questions = "colors-test"
compare = { mks2 = "experts" }
"#;
const STEPS: usize = 7;

fn model(name: &str) -> PathBuf {
    root().join("worker/tests/fixtures/pretrained").join(name)
}

/// `mks2 model show FOLDER --job`
fn tables(folder: &Path) -> String {
    let mut show = mks2(&["model", "show", "--job"]);
    let shown = Ended::from(show.arg(folder).output().expect("mks2 runs"));
    shown.done();
    shown.out
}

/// A run from two folders.
struct Models {
    decoder: PathBuf,
    vision: PathBuf,
}

impl Models {
    fn published() -> Self {
        Self {
            decoder: model("base-decoder"),
            vision: model("base-vision"),
        }
    }

    fn train(&self, lab: &Lab, run: &str, workers: u32, more: &[&str]) -> Command {
        self.train_stages(lab, STAGES, run, workers, more)
    }

    fn train_stages(
        &self,
        lab: &Lab,
        stages: &str,
        run: &str,
        workers: u32,
        more: &[&str],
    ) -> Command {
        let (decoder, vision) = (
            tables(&model("base-decoder")),
            tables(&model("base-vision")),
        );
        let at = stages.find("[model.memory]").expect("there");
        let (top, rest) = stages.split_at(at);
        let job = lab.path("published.toml");
        std::fs::write(&job, format!("{top}{decoder}{vision}{rest}")).expect("written");
        let mut command = mks2(&["train"]);
        command.arg(job).arg("--run").arg(lab.path(run));
        command.arg("--workers").arg(workers.to_string());
        let mut set = |setting: String| {
            command.arg("--set").arg(setting);
        };
        set("model.decoder.max_text_tokens=16".into());
        set(format!(
            "stage.base.pretrained.decoder={}",
            self.decoder.display()
        ));
        set(format!(
            "stage.base.pretrained.vision={}",
            self.vision.display()
        ));
        for name in ["emoji", "colors-train", "colors-test"] {
            set(format!("data.{name}.url={}", lab.path(name).display()));
        }
        if stages.contains("[stage.evaluate]") {
            set(sample_tasks());
        }
        for setting in more {
            set((*setting).to_owned());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A copy of a model with one file changed.
fn changed(lab: &Lab, name: &str, file: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> PathBuf {
    let copy = lab.path(&format!("changed-{name}"));
    if copy.exists() {
        std::fs::remove_dir_all(&copy).expect("removed");
    }
    std::fs::create_dir_all(&copy).expect("a folder");
    for entry in std::fs::read_dir(model(name)).expect("there") {
        let from = entry.expect("read").path();
        let to = copy.join(from.file_name().expect("a name"));
        std::fs::copy(from, to).expect("copied");
    }
    let bytes = std::fs::read(copy.join(file)).expect("there");
    std::fs::write(copy.join(file), change(bytes)).expect("written");
    copy
}

/// Starts a run of two workers, and stops it in its midst.
fn stopped(models: &Models, lab: &Lab, run: &str) {
    let mut launcher = models.train(lab, run, 2, &[]).spawn().expect("mks2 starts");
    assert!(lab.reaches(run, 2, &mut launcher));
    signal(launcher.id(), "INT");
    awaited(launcher).stopped(&[]);
}

#[test]
fn runs_from_published_models_have_the_same_bits_whoever_takes_part() {
    let lab = Lab::enter();
    let models = Models::published();
    ended(models.train(&lab, "published", 1, &[])).done();
    assert_eq!(lab.steps("published").len(), STEPS);
    lab.has_a_ledger_that_holds("published");
    // One of three dies, and another one comes.
    let mut launcher = models
        .train(&lab, "published-3", 3, &[])
        .spawn()
        .expect("mks2 starts");
    assert!(lab.reaches("published-3", 2, &mut launcher));
    signal(workers_of(launcher.id())[1], "KILL");
    awaited(launcher).done();
    // Another one is stopped and goes on.
    stopped(&models, &lab, "published-2");
    ended(models.train(&lab, "published-2", 1, &[])).done();
    let quiet = lab.report("published");
    let tasks = quiet["evaluation"]["tasks"].as_array();
    assert_eq!(tasks.map(Vec::len), Some(4), "the sample tasks");
    for run in ["published-2", "published-3"] {
        let report = lab.report(run);
        assert_eq!(digests(&report), digests(&quiet), "{run}");
        assert_eq!(report["evaluation"], quiet["evaluation"], "{run}");
        lab.has_a_ledger_that_holds(run);
    }
    let stored = ["published", "published-3"].map(|run| exported(&lab, run));
    assert_eq!(stored[0]["id"], stored[1]["id"]);
    assert_eq!(stored[0]["base"]["kind"], "pretrained");
    attaching_is_as_good_as_storing(&lab, &models);
}

/// Whoever has the same models gets the same mixture of a memory that was stored elsewhere.
fn attaching_is_as_good_as_storing(lab: &Lab, models: &Models) {
    let (before, behind) = STAGES.split_once("kind = \"memory\"").expect("there");
    let (_, experts) = behind.split_once("[[stage]]").expect("there");
    let (experts, _) = experts.split_once("[[stage]]").expect("there");
    let attach = "kind = \"attach\"\nfrom = [\"base\"]\n\n[[stage]]";
    let stages = [before, attach, experts].concat();
    let memory = lab.path("published-memory").display().to_string();
    let memory = format!("stage.memory.attach.memory={memory}");
    ended(models.train_stages(lab, &stages, "attached", 2, &[&memory])).done();
    let (stored, attached) = (lab.report("published"), lab.report("attached"));
    assert_eq!(digests(&attached), digests(&stored)[1..]);
    lab.has_a_ledger_that_holds("attached");
}

/// What `mks2 memory export` says of the memory of a run.
fn exported(lab: &Lab, run: &str) -> Value {
    let to = lab.path(&format!("{run}-memory"));
    let mut export = mks2(&["memory", "export", "--json"]);
    export.arg(lab.path(run)).arg("--out").arg(to);
    let said = Ended::from(export.output().expect("mks2 runs"));
    serde_json::from_str(&said.done().out).expect("JSON")
}

#[test]
fn a_run_goes_on_from_the_models_that_it_began_with_alone() {
    let lab = Lab::enter();
    let models = Models::published();
    stopped(&models, &lab, "faithful");
    // The same models elsewhere are the same run; one bit of a weight is another one.
    let moved = |change: fn(Vec<u8>) -> Vec<u8>| Models {
        vision: changed(
            &lab,
            "base-vision",
            "model-00002-of-00002.safetensors",
            change,
        ),
        ..Models::published()
    };
    let flipped = moved(|mut bytes| {
        *bytes.last_mut().expect("a byte") ^= 1;
        bytes
    });
    let refused = ended(flipped.train(&lab, "faithful", 2, &[]));
    refused.refused(8, &["base"]);
    let same = moved(|bytes| bytes);
    ended(same.train(&lab, "faithful", 2, &[])).done();
    lab.has_a_ledger_that_holds("faithful");
}

/// The settings of `base-q-former`, as `mks2 model show --job` prints them.
fn q_former() -> Vec<String> {
    let shown = tables(&model("base-q-former"));
    let lines = shown.lines().filter_map(|line| line.split_once(" = "));
    let settings = lines.map(|(key, value)| format!("model.bridge.{key}={value}"));
    settings.collect()
}

/// Digests of weights in the checkpoint of a stage behind so many of its steps.
fn weights_at(lab: &Lab, run: &str, stage: &str, step: u64) -> BTreeMap<String, String> {
    let manifests = lab.manifests(run);
    let manifest = manifests
        .iter()
        .find(|manifest| manifest["stage"] == stage && manifest["stage_step"] == step)
        .expect("a checkpoint");
    let parts = manifest["parts"].as_array().expect("parts").iter();
    let tensors = parts.flat_map(|part| part["tensors"].as_array().expect("tensors"));
    let weights = tensors.filter(|tensor| tensor["kind"] == "weights");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    weights
        .map(|tensor| (text(&tensor["name"]), text(&tensor["digest"])))
        .collect()
}

#[test]
fn a_q_former_is_trained_from_initial_values_or_comes_frozen() {
    let lab = Lab::enter();
    let models = Models::published();
    let mut settings = q_former();
    assert_eq!(settings.len(), 9, "{settings:?}");
    settings.push("checkpoint.keep_last=9".into());
    let url = format!(
        "stage.base.pretrained.q_former={}",
        model("base-q-former").display()
    );
    let train = |run: &str, more: &[&str]| {
        let settings = settings
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied());
        let settings: Vec<&str> = settings.collect();
        ended(models.train(&lab, run, 1, &settings))
    };
    let is_of_q_former = |name: &str| name.starts_with("qformer.") || name == "query_tokens";
    // What the keys add to all scores alike has no gradient.
    let can_move = |name: &str| !name.ends_with(".key.bias");
    for (run, more) in [
        ("frozen", &[url.as_str()][..]),
        ("trained", &["model.bridge.train_q_former=true"]),
    ] {
        train(run, more).done();
        lab.has_a_ledger_that_holds(run);
        let (earlier, later) = (
            weights_at(&lab, run, "memory", 2),
            weights_at(&lab, run, "memory", 4),
        );
        let of_q_former = later.keys().filter(|name| is_of_q_former(name)).count();
        assert_eq!(of_q_former, if run == "trained" { 45 } else { 0 });
        for (name, digest) in &later {
            assert!(
                *digest != earlier[name] || !can_move(name),
                "{name} has not moved"
            );
        }
    }
    // What cannot be is said before anything starts.
    train("never-begun", &[]).refused(3, &["must come from somewhere", "BLIP-2 folder"]);
    let both = [url.as_str(), "model.bridge.train_q_former=true"];
    train("never-begun", &both).refused(3, &["trains one from initial values"]);
    let wider = [url.as_str(), "model.bridge.hidden_size=24"];
    train("never-begun", &wider).refused(3, &["hidden_size is 24, and 12 there"]);
}

#[test]
fn models_that_are_not_what_the_job_says_are_refused_before_anything_starts() {
    let lab = Lab::enter();
    let models = Models::published();
    let refused = |models: &Models, more: &[&str], code, words: &[&str]| {
        ended(models.train(&lab, "never-begun", 1, more)).refused(code, words);
        assert!(!lab.path("never-begun").exists(), "nothing was begun");
    };
    refused(
        &models,
        &["model.decoder.intermediate_size=64"],
        3,
        &[
            "intermediate_size is 64, and 48 there",
            "mks2 model show",
            "--job",
        ],
    );
    refused(
        &models,
        &["tokenizer.vocab_size=300"],
        3,
        &["tokenizer.vocab_size is 300, and 320 there"],
    );
    refused(
        &models,
        &["model.decoder.max_text_tokens=129"],
        3,
        &["max_text_tokens is 129, and at most 128 there"],
    );
    let exchanged = Models {
        decoder: models.vision.clone(),
        vision: models.decoder.clone(),
    };
    refused(&exchanged, &[], 3, &["a language model is wanted"]);
    let index = "model.safetensors.index.json";
    let lacking = Models {
        decoder: changed(&lab, "base-decoder", index, |bytes| {
            let text = String::from_utf8(bytes).expect("text");
            text.replace("layers.1.mlp.up_proj", "layers.1.mlp.upper")
                .into_bytes()
        }),
        ..Models::published()
    };
    refused(&lacking, &[], 8, &["layers.1.mlp.upper"]);
    let mute = Models {
        decoder: changed(&lab, "base-decoder", "tokenizer.json", |bytes| bytes),
        ..Models::published()
    };
    std::fs::remove_file(mute.decoder.join("tokenizer.json")).expect("removed");
    refused(
        &mute,
        &[],
        8,
        &["there is no tokenizer.json", "AutoTokenizer"],
    );
    refused(&models, &["stage.base.steps=3"], 3, &["trains nothing"]);
}
