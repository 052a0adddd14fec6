//! `mks2 export`: folders for other tools, which `mks2` itself can ask and start from.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::client::Server;
use crate::lab::{Ended, Lab, digests, ended, mks2, root};

/// `mks2` with these words.
fn run(words: &[&str]) -> Ended {
    let mut command = mks2(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    ended(command)
}

/// A folder of the lab that is not there.
fn fresh(lab: &Lab, name: &str) -> PathBuf {
    let path = lab.path(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("removed");
    }
    path
}

/// The run that knows everything.
fn trained(lab: &Lab) -> String {
    lab.evaluated().done();
    lab.path("evaluated").display().to_string()
}

/// `mks2 export` of a stage into a fresh folder.
fn export(lab: &Lab, form: &str, stage: &str, more: &[&str]) -> String {
    let run_folder = trained(lab);
    let to = fresh(lab, &format!("{form}-{stage}")).display().to_string();
    let words = ["export", form, &run_folder, "--stage", stage, "--out", &to];
    run(&[&words, more].concat()).done();
    to
}

/// The tokens of answers.
fn answers(model: &[&str], asked: &[&str]) -> Vec<Value> {
    let said = run(&[&["generate", "--json"], model, asked].concat());
    let lines = said.done().out.lines();
    let tokens = lines.map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["tokens"].clone()
    });
    tokens.collect()
}

fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("read").file_name().display().to_string());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn an_exported_model_answers_as_the_run_does() {
    let lab = Lab::enter();
    let run_folder = trained(&lab);
    let fox = root().join("dataset/tests/fixtures/pictures/rgb.jpg");
    let fox = fox.display().to_string();
    // What is drawn depends on all probabilities.
    let draws = ["--temperature", "1.5", "--max-tokens", "12"];
    let question = [&["-p", "What color is the fox?"], &draws[..]].concat();
    let raw = [&question[..], &["--raw"]].concat();
    let picture = [&["--image", fox.as_str()], &draws[..]].concat();
    let cases: [(&str, &[&str], &[&str]); 4] = [
        ("bootstrap", &[], &question),
        ("memory", &["--max-shard-size", "100KB"], &picture),
        ("experts", &[], &raw),
        ("shuffled", &["--merge"], &question),
    ];
    let mut found = Vec::new();
    for (stage, more, asked) in cases {
        let folder = export(&lab, "hf", stage, more);
        let ours = answers(&[&run_folder, "--stage", stage], asked);
        assert_eq!(answers(&[&folder], asked), ours, "{stage}");
        assert!(!found.contains(&ours), "{stage} is another model");
        found.push(ours);
    }
}

#[test]
fn an_exported_model_is_served_with_its_pictures() {
    let lab = Lab::enter();
    let run_folder = trained(&lab);
    let folder = export(&lab, "hf", "memory", &[]);
    let picture = root().join("dataset/tests/fixtures/pictures/rgb.png");
    let bytes = std::fs::read(&picture).expect("there");
    let url = format!("data:image/png;base64,{}", STANDARD.encode(bytes));
    let part = json!({"type": "image_url", "image_url": {"url": url}});
    let message = json!({"role": "user", "content": [part]});
    let request = json!({"messages": [message], "temperature": 0});
    let server = Server::of(Path::new(&folder), &["--name", "memory"]);
    let answer = server.post("/v1/chat/completions", &request).good();
    let picture = picture.display().to_string();
    let words = [
        "generate",
        &run_folder,
        "--stage",
        "memory",
        "--image",
        &picture,
    ];
    let said = run(&words);
    let content = answer["choices"][0]["message"]["content"].as_str();
    assert_eq!(content.map(str::trim), Some(said.done().out.trim()));
}

#[test]
fn an_exported_folder_has_what_transformers_looks_for() {
    let lab = Lab::enter();
    let memory = export(&lab, "hf", "memory", &["--max-shard-size", "100KB"]);
    let found = names(&memory);
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "modeling_mks2.py",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        assert!(found.iter().any(|one| one == name), "{name} in {found:?}");
    }
    let shards = found.iter().filter(|name| name.ends_with(".safetensors"));
    assert!(shards.count() > 2, "{found:?}");
    let shown = run(&["model", "show", &memory]);
    assert!(
        shown
            .done()
            .out
            .contains("mks2, language model with memories"),
        "{}",
        shown.out
    );
    // A plain decoder needs no code, and adapters fold into it where nothing else is there.
    for (stage, more) in [
        ("bootstrap", &["--dtype", "bf16"][..]),
        ("lora", &["--merge"]),
    ] {
        let plain = export(&lab, "hf", stage, more);
        let config = std::fs::read(Path::new(&plain).join("config.json")).expect("there");
        let config: Value = serde_json::from_slice(&config).expect("JSON");
        assert_eq!(config["model_type"], "llama", "{stage}");
        assert!(!names(&plain).contains(&"modeling_mks2.py".to_owned()));
        run(&["generate", &plain, "-p", "x"]).done();
    }
}

#[test]
fn a_stage_starts_from_exported_adapters() {
    let lab = Lab::enter();
    let adapter = export(&lab, "peft", "lora", &[]);
    assert_eq!(
        names(&adapter),
        ["adapter_config.json", "adapter_model.safetensors"]
    );
    // A step that is too small to change a weight leaves what was taken in.
    let stages = ["bootstrap", "memory", "experts", "shuffled", "lora"];
    let steps = stages.map(|stage| format!("stage.{stage}.steps=1"));
    let from = format!("stage.lora.experts.adapter={adapter}");
    let mut settings: Vec<&str> = steps.iter().map(String::as_str).collect();
    settings.extend([&from, "stage.lora.optimizer.lr=1e-30"]);
    fresh(&lab, "adapted");
    ended(lab.train("adapted", 2, &settings)).done();
    let lora = |run| {
        let digests = digests(&lab.report(run));
        let found = digests.into_iter().find(|(stage, ..)| stage == "lora");
        found.expect("the stage").2
    };
    assert_eq!(lora("adapted"), lora("evaluated"));
    // Adapters of another shape are refused before anything starts.
    for (setting, words) in [
        ("lora_rank=3", "its rank is 4, and lora_rank 3"),
        ("adapt_attention=true", "self_attn.k_proj.lora_A"),
        ("adapter_blocks=[1]", "layers.0.mlp"),
    ] {
        let changed = format!("stage.lora.experts.{setting}");
        let refused = ended(lab.train("never-begun", 1, &[&from, &changed]));
        refused.refused(3, &["adapters cannot be taken in", words, "lora_rank"]);
    }
    let nowhere = lab.path("nowhere").display().to_string();
    let nowhere = format!("stage.lora.experts.adapter={nowhere}");
    let refused = ended(lab.train("never-begun", 1, &[&nowhere]));
    refused.refused(8, &["there is no", "adapter_config.json"]);
    assert!(!lab.path("never-begun").exists(), "nothing was begun");
}

#[test]
fn adapters_of_a_mixture_say_what_is_missing() {
    let lab = Lab::enter();
    let run_folder = trained(&lab);
    let to = fresh(&lab, "peft-mixture").display().to_string();
    let words = [
        "export",
        "peft",
        &run_folder,
        "--stage",
        "experts",
        "--out",
        &to,
    ];
    let said = run(&words);
    assert!(
        said.done().err.contains("without the router"),
        "{}",
        said.err
    );
}

#[test]
fn what_cannot_be_exported_leaves_nothing() {
    let lab = Lab::enter();
    let run_folder = trained(&lab);
    let to = fresh(&lab, "exported-not").display().to_string();
    let full = lab.path("evaluated").join("journal").display().to_string();
    // A run of which nothing but the job is there.
    let begun = fresh(&lab, "begun");
    std::fs::create_dir_all(&begun).expect("a folder");
    let job = "config.resolved.toml";
    std::fs::copy(lab.path("evaluated").join(job), begun.join(job)).expect("copied");
    let begun = begun.display().to_string();
    let published = root().join("worker/tests/fixtures/pretrained/base-decoder");
    let published = published.display().to_string();
    let cases: [(&[&str], &str, i32, &[&str]); 8] = [
        (
            &["hf", &run_folder, "--stage", "nothing"],
            &to,
            2,
            &["'nothing'", "bootstrap, memory"],
        ),
        (
            &["hf", &run_folder, "--stage", "evaluate"],
            &to,
            2,
            &["'evaluate'"],
        ),
        (&["hf", &begun], &to, 2, &["no stage of it is finished"]),
        (
            &["hf", &begun, "--stage", "memory"],
            &to,
            2,
            &["no checkpoint of it so far"],
        ),
        (
            &["peft", &run_folder, "--stage", "memory"],
            &to,
            2,
            &["'memory' has no adapters"],
        ),
        (&["hf", &published], &to, 2, &["there is no run at"]),
        (&["hf", &run_folder], &full, 2, &["the folder is not empty"]),
        (
            &["hf", &run_folder],
            "s3://bucket/model",
            2,
            &["no folder of this machine"],
        ),
    ];
    for (words, to, code, reasons) in cases {
        run(&[&["export"], words, &["--out", to]].concat()).refused(code, reasons);
    }
    assert!(!Path::new(&to).exists());
    let left = names(&lab.path("").display().to_string());
    let left = left.iter().filter(|name| name.starts_with(".mks2-export"));
    assert_eq!(left.count(), 0);
}

#[test]
fn a_damaged_folder_is_refused_by_name() {
    let lab = Lab::enter();
    let folder = export(&lab, "hf", "experts", &[]);
    let change = |file: &str, change: fn(Vec<u8>) -> Vec<u8>, words: &[&str]| {
        let path = Path::new(&folder).join(file);
        let whole = std::fs::read(&path).expect("there");
        std::fs::write(&path, change(whole.clone())).expect("written");
        run(&["generate", &folder, "-p", "x"]).refused(8, words);
        std::fs::write(&path, whole).expect("written");
    };
    let shorter = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() - 5);
        bytes
    };
    let wider = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).expect("text");
        text.replace("\"width\": 192", "\"width\": 193")
            .into_bytes()
    };
    let wide = "memory.0.layers.0.up_proj.weight [192, 64]";
    change(
        "model.safetensors",
        shorter,
        &["model.safetensors", "bytes"],
    );
    change("config.json", shorter, &["config.json"]);
    change("config.json", wider, &[wide]);
}
