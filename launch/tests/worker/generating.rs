//! `mks2 generate`: answers of models that runs have trained, and of published ones.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::lab::{Ended, Lab, ended, mks2, root};

/// `mks2 generate` of this model.
fn generate(model: impl AsRef<Path>, options: &[&str]) -> Ended {
    let mut command = mks2(&["generate"]);
    command.arg(model.as_ref()).args(options);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    ended(command)
}

/// The lines of JSON that it printed.
fn lines(ended: &Ended) -> Vec<Value> {
    let lines = ended.out.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// A file of prompts.
fn prompts(lab: &Lab, name: &str, lines: &[Value]) -> String {
    let path = lab.path(name);
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn published() -> PathBuf {
    root().join("worker/tests/fixtures/pretrained/base-decoder")
}

/// The examples of an evaluation: a file of each picture, and the caption that was generated there.
fn captions(lab: &Lab) -> Vec<(PathBuf, String)> {
    lab.evaluated().done();
    let found = std::fs::read(lab.path("evaluated").join("evaluation.json")).expect("there");
    let found: Value = serde_json::from_slice(&found).expect("JSON");
    let examples = found["examples"].as_array().expect("examples");
    assert!(examples.len() > 1);
    let pictures = (0..).zip(examples).map(|(number, example)| {
        let url = example["picture"].as_str().expect("a data URL");
        let (_, data) = url.split_once(";base64,").expect("a data URL");
        let path = lab.path(&format!("example-{number}"));
        std::fs::write(&path, STANDARD.decode(data).expect("base64")).expect("written");
        let caption = example["generated"].as_str().expect("a caption").to_owned();
        (path, caption)
    });
    pictures.collect()
}

#[test]
fn a_memory_says_of_pictures_what_its_evaluation_says() {
    let lab = Lab::enter();
    let captions = captions(&lab);
    let asked = captions.iter().map(|(path, _)| json!({"image": path}));
    let asked = prompts(&lab, "pictures.jsonl", &asked.collect::<Vec<_>>());
    let run = lab.path("evaluated");
    for batch in ["1", "8"] {
        let options = [
            "--stage",
            "memory",
            "--prompts",
            &asked,
            "--batch",
            batch,
            "--json",
        ];
        let answered = generate(&run, &options);
        let found = lines(answered.done());
        assert_eq!(found.len(), captions.len());
        for (line, (_, caption)) in found.iter().zip(&captions) {
            assert_eq!(line["text"].as_str().map(str::trim), Some(caption.as_str()));
        }
    }
    // One picture alone, as text.
    let (path, caption) = &captions[1];
    let picture = path.display().to_string();
    let answered = generate(&run, &["--stage", "memory", "--image", &picture]);
    assert_eq!(answered.done().out.trim(), caption);
    assert!(
        answered.err.contains("stage 'memory' of"),
        "{}",
        answered.err
    );
}

#[test]
fn a_run_is_asked_questions_by_what_its_evaluation_calls_mks2() {
    let lab = Lab::enter();
    lab.evaluated().done();
    let run = lab.path("evaluated");
    let asked = ["What color is the fox?", "What color is the whale?"];
    let questions = ["--prompt", asked[0], "--prompt", asked[1]];
    let said = generate(&run, &questions);
    assert!(
        said.done().err.contains("stage 'experts' of"),
        "{}",
        said.err
    );
    let as_json = generate(
        &run,
        &[&questions[..], &["--json", "--batch", "1"]].concat(),
    );
    let found = lines(as_json.done());
    let texts: Vec<&str> = found
        .iter()
        .filter_map(|line| line["text"].as_str())
        .collect();
    assert_eq!(said.out, format!("{}\n{}\n", texts[0], texts[1]));
    assert_eq!(found[1]["prompt"], asked[1]);
    // The question's end token is missing where it is taken as it is.
    let raw = generate(&run, &[&questions[..], &["--json", "--raw"]].concat());
    let tokens = |line: &Value| line["prompt_tokens"].as_u64().expect("a number");
    assert_eq!(tokens(&lines(raw.done())[0]) + 1, tokens(&found[0]));
    // Other stages are other models.
    for stage in ["bootstrap", "memory", "lora"] {
        generate(&run, &[&questions[..], &["--stage", stage]].concat()).done();
    }
}

#[test]
fn a_published_model_goes_on_as_in_transformers() {
    let cases = std::fs::read(published().join("tokens.json")).expect("there");
    let cases: Vec<Value> = serde_json::from_slice(&cases).expect("JSON");
    for case in &cases {
        let text = case["text"].as_str().expect("a text");
        let options = ["--prompt", text, "--max-tokens", "12", "--json"];
        let answered = generate(published(), &options);
        let line = lines(answered.done()).remove(0);
        let right = case["greedy"].as_array().expect("tokens");
        let right = right.iter().take_while(|token| **token != 1);
        assert_eq!(
            line["tokens"],
            Value::from(right.cloned().collect::<Vec<_>>())
        );
        assert_eq!(
            line["prompt_tokens"],
            case["ids"].as_array().map(Vec::len).unwrap_or(0)
        );
    }
}

#[test]
fn draws_can_be_repeated_and_end_at_stop_texts() {
    let draw = |more: &[&str]| {
        let usual = [
            "--prompt",
            "the red fox",
            "--temperature",
            "1.2",
            "--max-tokens",
            "20",
        ];
        generate(published(), &[&usual, more].concat())
            .done()
            .out
            .clone()
    };
    let whole = draw(&["--seed", "4", "--top-p", "0.9"]);
    assert_eq!(draw(&["--seed", "4", "--top-p", "0.9"]), whole);
    assert_ne!(draw(&["--seed", "5", "--top-p", "0.9"]), whole);
    let stop: String = whole.chars().skip(3).take(2).collect();
    let ended = draw(&["--seed", "4", "--top-p", "0.9", "--stop", &stop]);
    let at = whole.find(&stop).expect("a part of it");
    assert_eq!(ended.strip_suffix('\n'), Some(&whole[..at]));
}

#[test]
fn one_prompt_that_cannot_be_answered_stops_no_other() {
    let lab = Lab::enter();
    let captions = captions(&lab);
    let broken = lab.path("broken.png");
    std::fs::write(&broken, b"\x89PNG\r\n\x1a\n and no more").expect("written");
    let lines_of = [
        json!({"image": captions[0].0}),
        json!({"image": broken}),
        json!({"prompt": "fox ".repeat(400)}),
        json!({"image": captions[1].0}),
    ];
    let asked = prompts(&lab, "mixed.jsonl", &lines_of);
    let run = lab.path("evaluated");
    let answered = generate(&run, &["--stage", "memory", "--prompts", &asked, "--json"]);
    answered.refused(4, &["mixed.jsonl, line 2", "picture cannot be read"]);
    assert!(
        answered
            .err
            .contains("mixed.jsonl, line 3: the prompt is too long")
    );
    let found = lines(&answered);
    assert_eq!(found.len(), 4);
    for (at, wanted) in [(0, &captions[0].1), (3, &captions[1].1)] {
        assert_eq!(
            found[at]["text"].as_str().map(str::trim),
            Some(wanted.as_str())
        );
        assert!(found[at].get("error").is_none());
    }
    for at in [1, 2] {
        assert!(found[at]["error"].is_string() && found[at].get("tokens").is_none());
    }
}

/// Each of these options is refused, with the code and the words.
fn refuses(model: &Path, cases: &[(&str, i32, &[&str])]) {
    for (options, code, words) in cases {
        let options: Vec<&str> = options.split(' ').collect();
        generate(model, &options).refused(*code, words);
    }
}

#[test]
fn stages_and_folders_that_cannot_be_asked_are_refused() {
    let lab = Lab::enter();
    lab.evaluated().done();
    let of_run: [(&str, i32, &[&str]); 2] = [
        (
            "-p x --stage nothing",
            2,
            &["'nothing'", "bootstrap, memory"],
        ),
        ("-p x --stage evaluate", 2, &["'evaluate'", "can be asked"]),
    ];
    refuses(&lab.path("evaluated"), &of_run);
    refuses(
        &published(),
        &[("-p x --stage memory", 2, &["no model at"])],
    );
    let empty = tempfile::tempdir().expect("a folder");
    refuses(
        empty.path(),
        &[("-p x", 2, &["no model at", "config.json"])],
    );
    let vision = root().join("worker/tests/fixtures/pretrained/base-vision");
    refuses(
        &vision,
        &[("-p x", 3, &["cannot be asked", "visual encoder"])],
    );
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let lab = Lab::enter();
    let typo = [json!({"prompt": "a"}), json!({"promt": "b"})];
    let typo = format!("--prompts {}", prompts(&lab, "typo.jsonl", &typo));
    let cases: [(&str, i32, &[&str]); 7] = [
        ("--raw", 2, &["nothing is asked", "--prompts FILE"]),
        (&typo, 2, &["typo.jsonl, line 2", "promt"]),
        ("--prompts nowhere.jsonl", 2, &["no file nowhere.jsonl"]),
        ("--image nowhere.png", 2, &["no file nowhere.png"]),
        ("-p x --temperature=-1", 2, &["temperature cannot be -1"]),
        ("-p x --top-p 0", 2, &["top-p cannot be 0"]),
        ("-p x --device tpu", 3, &["'tpu' is no device"]),
    ];
    refuses(&published(), &cases);
}

#[test]
fn a_program_that_dies_is_told() {
    let mut command = mks2(&["generate", "--prompt", "x"]);
    command.arg(published()).env("MKS2_WORKER", "/bin/false");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    ended(command).refused(6, &["the program that computes is gone", "exit code 1"]);
}

#[test]
fn prompts_come_from_standard_input_and_a_reader_may_leave() {
    let mut command = mks2(&["generate"]);
    command
        .arg(published())
        .args(["--prompts", "-", "--json", "--max-tokens", "3"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mks2 starts");
    let mut input = child.stdin.take().expect("connected");
    std::io::Write::write_all(
        &mut input,
        b"{\"prompt\": \"the\"}\n\n{\"prompt\": \"a\"}\n",
    )
    .expect("read");
    drop(input);
    let answered = Ended::from(child.wait_with_output().expect("read"));
    assert_eq!(lines(answered.done()).len(), 2);

    let program = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "{} generate {} --prompt the --max-tokens 100 | head -c 1",
            env!("CARGO_BIN_EXE_mks2"),
            published().display()
        ))
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&program.stderr);
    assert!(!said.contains("error") && !said.contains("panic"), "{said}");
}
