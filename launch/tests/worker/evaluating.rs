//! `mks2 eval` and the tasks of an `evaluate` stage.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::lab::{Ended, Lab, ended, mks2, root};

/// The sample tasks, in the order in which the evaluated run has them.
const TASKS: [&str; 4] = ["colors", "captions", "retrieval", "vqa"];

/// The file of a sample task.
fn task(name: &str) -> String {
    let tasks = root().join("examples/emoji/tasks");
    tasks
        .join(name)
        .with_extension("toml")
        .display()
        .to_string()
}

/// The setting that has an evaluation measure the sample tasks.
pub(crate) fn sample_tasks() -> String {
    let files = TASKS.map(|name| format!("{:?}", task(name)));
    format!("stage.evaluate.evaluate.tasks=[{}]", files.join(", "))
}

/// `mks2 eval` of this model.
fn eval(model: impl AsRef<Path>, options: &[&str]) -> Ended {
    let mut command = mks2(&["eval"]);
    command.arg(model.as_ref()).args(options);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    ended(command)
}

fn published() -> PathBuf {
    root().join("worker/tests/fixtures/pretrained/base-decoder")
}

fn json_of(path: &Path) -> Value {
    let bytes = std::fs::read(path).expect("it is there");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// The samples of a task.
fn samples(folder: &Path, task: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(format!("samples_{task}.jsonl")));
    let text = text.expect("it is there");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// A folder that is not there yet.
fn new_folder(lab: &Lab, name: &str) -> PathBuf {
    let folder = lab.path(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("removed");
    }
    folder
}

#[test]
fn a_run_is_measured_from_outside_as_by_its_own_evaluation() {
    let lab = Lab::enter();
    let run = lab.evaluated();
    assert!(run.done().out.contains("colors: acc_norm"), "{}", run.out);
    let own = json_of(&lab.path("evaluated/evaluation.json"));
    let out = new_folder(&lab, "results");
    let (files, folder) = (TASKS.map(task), out.display().to_string());
    let mut options = vec!["--batch", "32", "--out", &folder, "--task"];
    options.extend(files.iter().map(String::as_str));
    let measured = eval(lab.path("evaluated"), &options);
    assert!(
        measured.done().out.contains("text_to_image_r10"),
        "{}",
        measured.out
    );
    let results = json_of(&out.join("results.json"));
    for (name, of_run) in TASKS.iter().zip(own["tasks"].as_array().expect("tasks")) {
        assert_eq!(of_run["task"], *name);
        let found = &results["results"][name];
        let metrics = of_run["metrics"].as_array().expect("metrics");
        assert!(!metrics.is_empty());
        for metric in metrics {
            let key = format!("{},none", metric["name"].as_str().expect("a name"));
            assert_eq!(found[&key], metric["value"], "{name} {key}");
            let interval = &results["confidence_intervals"][name][&key];
            assert_eq!(*interval, metric["interval"], "{name} {key}");
            let (low, high) = (number(&interval[0]), number(&interval[1]));
            assert!(low <= number(&found[&key]) + 1e-9 && number(&found[&key]) <= high + 1e-9);
        }
        assert_eq!(results["configs"][name]["stage"], of_run["stage"]);
        assert_eq!(results["task_hashes"][name], of_run["digest"]);
        let items = if *name == "colors" { 93 } else { 24 };
        assert_eq!(results["n-samples"][name]["effective"], items);
        assert_eq!(samples(&out, name).len(), items);
    }
    // The same questions as in the comparison of the stages, put in the same words.
    assert_eq!(
        results["results"]["colors"]["acc,none"],
        own["questions"]["mks2"]
    );
    check_samples(&out);
}

/// What is in the samples of the sample tasks.
fn check_samples(out: &Path) {
    for sample in samples(out, "colors") {
        let sums = sample["filtered_resps"].as_array().expect("a list");
        assert_eq!(sums.len(), 9);
        let best = (0..9)
            .rev()
            .max_by(|a, b| number(&sums[*a][0]).total_cmp(&number(&sums[*b][0])));
        let right = best.map(|best| json!(best)) == Some(sample["target"].clone());
        assert_eq!(number(&sample["acc"]), f64::from(right));
    }
    for sample in samples(out, "captions") {
        assert_eq!(sample["target"].as_array().map(Vec::len), Some(2));
        assert!(sample["filtered_resps"][0].is_string() && sample["cider"].is_number());
    }
    for sample in samples(out, "retrieval") {
        let rank = sample["image_to_text_rank"].as_u64().expect("a rank");
        assert!((1..=48).contains(&rank), "{sample}");
    }
    for sample in samples(out, "vqa") {
        let is_right = sample["filtered_resps"][0] == sample["target"][0];
        assert_eq!(number(&sample["vqa_accuracy"]), f64::from(is_right));
    }
}

#[test]
fn a_published_model_finds_choices_as_likely_as_in_transformers() {
    let lab = Lab::enter();
    let cases = root().join("worker/tests/fixtures/metrics/choices.json");
    let cases = json_of(&cases);
    let cases = cases.as_array().expect("cases");
    let rows = cases.iter().map(|case| {
        let row = json!({"prompt": case["prompt"], "choices": case["continuations"], "gold": 0});
        format!("{row}\n")
    });
    std::fs::write(lab.path("choices.jsonl"), rows.collect::<String>()).expect("written");
    let toml = "kind = \"multiple-choice\"\ndata = \"choices.jsonl\"\nprompt = \"{prompt}\"\n\
        answer = \"gold\"\nseparator = \"\"\n";
    std::fs::write(lab.path("choices.toml"), toml).expect("written");
    let (out, file) = (new_folder(&lab, "of-folder"), lab.path("choices.toml"));
    let (folder, file) = (out.display().to_string(), file.display().to_string());
    let measured = eval(published(), &["--task", &file, "--out", &folder, "--json"]);
    let shown: Value = serde_json::from_str(&measured.done().out).expect("JSON");
    assert_eq!(shown, json_of(&out.join("results.json")));
    let (mut first, samples) = (0, samples(&out, "choices"));
    assert_eq!(samples.len(), cases.len());
    for (sample, case) in samples.iter().zip(cases) {
        let right = case["log_likelihoods"].as_array().expect("a list");
        let found = sample["filtered_resps"].as_array().expect("a list");
        assert_eq!(found.len(), right.len());
        for (found, right) in found.iter().zip(right) {
            let apart = (number(&found[0]) - number(right)).abs();
            assert!(apart < 1e-3, "{found}, expected {right} in {case}");
        }
        let others = right.iter().all(|other| number(other) <= number(&right[0]));
        first += usize::from(others);
    }
    let acc = number(&shown["results"]["choices"]["acc,none"]);
    assert!((acc - first as f64 / cases.len() as f64).abs() < 1e-12);
    let two = eval(published(), &["--task", &file, "--limit", "2", "--json"]);
    let shown: Value = serde_json::from_str(&two.done().out).expect("JSON");
    assert_eq!(
        shown["n-samples"]["choices"],
        json!({"original": cases.len(), "effective": 2})
    );
}

/// A task with its data.
fn bad(folder: &Path, name: &str, toml: &str, data: &str) {
    std::fs::create_dir_all(folder).expect("a folder");
    let toml = toml.replace("NAME", name);
    std::fs::write(folder.join(name).with_extension("toml"), toml).expect("written");
    let data = data.replace("NAME", name);
    std::fs::write(folder.join(name).with_extension("json"), data).expect("written");
}

/// Tasks that cannot be measured, called after what is wrong with them.
fn write_bad_tasks(folder: &Path) {
    let choices = "kind = \"multiple-choice\"\ndata = \"NAME.json\"\n";
    let row = r#"{"question": "Q?", "choices": ["a", "b"], "answer": "a"}"#;
    bad(folder, "typo", &format!("{choices}promt = \"x\"\n"), row);
    let lacking = format!("{row}\n{}\n", row.replace("answer", "anwser"));
    bad(folder, "lacking", choices, &lacking);
    bad(folder, "empty", choices, "");
    let long = format!("{row}\n{}\n", row.replace("Q?", &"fox ".repeat(99)));
    bad(folder, "long", choices, &long);
    let captions = "kind = \"captions\"\ndata = \"NAME.json\"\nimages = \".\"\n";
    let captioned = r#"{"images": [{"filename": "NAME.png", "sentences": [{"raw": "a fox"}]}]}"#;
    bad(folder, "gone", captions, captioned);
    bad(folder, "broken", captions, captioned);
    std::fs::write(folder.join("broken.png"), b"\x89PNG\r\n\x1a\n and no more").expect("written");
    bad(
        folder,
        "wrong",
        &format!("{captions}prompt = 3\n"),
        captioned,
    );
}

/// A task of this name, among the bad ones or the sample ones; other words are what they are.
fn named(folder: &Path, word: &str) -> String {
    let bad = folder.join(word).with_extension("toml");
    match (bad.is_file(), TASKS.contains(&word)) {
        (true, _) => bad.display().to_string(),
        (_, true) => task(word),
        _ => word.to_owned(),
    }
}

#[test]
fn what_cannot_be_measured_is_refused_and_nothing_is_left() {
    let lab = Lab::enter();
    lab.evaluated().done();
    let folder = new_folder(&lab, "bad-tasks");
    write_bad_tasks(&folder);
    let out = new_folder(&lab, "never");
    let refuses = |model: &Path, options: &str, code, words: &[&str]| {
        let place = out.display().to_string();
        let words_of = options.split(' ').map(|word| named(&folder, word));
        let options: Vec<String> = words_of.collect();
        let mut all = vec!["--out", &place, "--task"];
        all.extend(options.iter().map(String::as_str));
        let refused = eval(model, &all);
        refused.refused(code, words);
        assert!(refused.out.is_empty() && !out.exists(), "{words:?}");
    };
    let of_run: [(&str, i32, &[&str]); 10] = [
        ("nowhere.toml", 3, &["no task file nowhere.toml"]),
        ("typo", 3, &["typo.toml", "unknown field `promt`"]),
        (
            "colors lacking",
            4,
            &["lacking.json, line 2", "no answer in"],
        ),
        ("empty", 4, &["empty.json", "has no item"]),
        ("gone", 4, &["gone.json, item 1", "gone.png"]),
        ("colors colors", 2, &["two tasks are called 'colors'"]),
        ("broken", 4, &["broken.json, item 1", "cannot be read"]),
        ("long --stage memory", 2, &["long.json, item 2", "too long"]),
        (
            "retrieval --stage experts",
            2,
            &["'retrieval'", "no retrieval head"],
        ),
        (
            "captions --stage bootstrap",
            2,
            &["'captions'", "cannot be shown"],
        ),
    ];
    for (options, code, words) in of_run {
        refuses(&lab.path("evaluated"), options, code, words);
    }
    refuses(
        &published(),
        "captions",
        2,
        &["'captions'", "cannot be shown"],
    );
    refuses(&published(), "retrieval", 2, &["no retrieval head"]);
    let left = std::fs::read_dir(out.parent().expect("a folder")).expect("read");
    let names = left.map(|entry| entry.expect("read").file_name().display().to_string());
    assert!(
        names
            .into_iter()
            .all(|name| !name.starts_with(".mks2-eval-"))
    );
    let (taken, colors) = (folder.display().to_string(), task("colors"));
    let refused = eval(published(), &["--task", &colors, "--out", &taken]);
    refused.refused(2, &["bad-tasks", "the folder is not empty"]);
}

#[test]
fn a_job_with_bad_tasks_is_refused_before_anything_starts() {
    let lab = Lab::enter();
    let folder = new_folder(&lab, "bad-tasks-of-a-job");
    write_bad_tasks(&folder);
    let file = named(&folder, "wrong");
    let key = "stage.evaluate.evaluate";
    let with = |settings: &[String]| {
        let mut command = lab.train_and_evaluate("never-measured", 1);
        for setting in settings {
            command.arg("--set").arg(format!("{key}.{setting}"));
        }
        ended(command)
    };
    with(&[format!("tasks=[\"{file}\"]")]).refused(3, &["wrong.toml", "prompt"]);
    with(&["tasks=[\"nowhere.toml\"]".into()]).refused(3, &["no task file", "nowhere.toml"]);
    assert!(!lab.path("never-measured").exists(), "nothing was begun");
}
