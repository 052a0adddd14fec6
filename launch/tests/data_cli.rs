//! `mks2 data` as a user runs it: answers, exit codes, and an import that is killed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic and tell"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "support/rights.rs"]
mod rights;

fn mks2(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mks2"));
    command
        .arg("data")
        .args(arguments)
        .env("NO_COLOR", "1")
        .env_remove("MKS2_LOG_FORMAT");
    command
}

fn run(arguments: &[&str]) -> Output {
    mks2(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The answer of a command that ends well and prints JSON.
fn json(arguments: &[&str]) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn example(name: &str) -> String {
    format!(
        "{}/../examples/emoji/corpus/{name}",
        env!("CARGO_MANIFEST_DIR")
    )
}

/// A tar of `count` samples: the pictures of the sample corpus over and over, under new keys.
fn large_tar(path: &Path, count: usize) {
    let tar = std::fs::read(example("emoji-00003.tar")).unwrap();
    let size = |block: &[u8]| {
        let digits = text(&block[124..135]);
        usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).unwrap()
    };
    let mut pictures = Vec::new();
    let mut at = 0;
    while tar[at] != 0 {
        let bytes = size(&tar[at..]);
        if text(&tar[at..at + 100]).contains(".png") {
            pictures.push(&tar[at + 512..at + 512 + bytes]);
        }
        at += 512 + bytes.next_multiple_of(512);
    }
    let mut made = Vec::new();
    for index in 0..count {
        push(
            &mut made,
            &format!("{index:06}.png"),
            pictures[index % pictures.len()],
        );
        push(
            &mut made,
            &format!("{index:06}.txt"),
            format!("number {index}").as_bytes(),
        );
    }
    made.extend([0; 1024]);
    std::fs::write(path, made).unwrap();
}

fn push(tar: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[148..156].fill(b' ');
    block[156] = b'0';
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend(block);
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// Every file below a folder with its bytes.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in ["", "shards"] {
        for found in std::fs::read_dir(folder.join(name)).unwrap() {
            let path = found.unwrap().path();
            if path.is_file() {
                files.insert(
                    path.strip_prefix(folder).unwrap().into(),
                    std::fs::read(&path).unwrap(),
                );
            }
        }
    }
    files
}

#[test]
fn import_inspect_and_verify_answer_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("emoji").display().to_string();
    let source = example("emoji-{00000..00003}.tar");
    let summary = json(&["import", &source, "--out", &out, "--json"]);
    assert_eq!(summary["rows"], 1580);
    assert_eq!(summary["quarantined"], 0);
    assert_eq!(summary["reasons"], serde_json::json!({}));
    assert_eq!(summary["shards"], 1);
    assert!(summary["bytes"].as_u64().unwrap() > 5_000_000);
    assert!(summary["seconds"].as_f64().unwrap() > 0.0);
    let look = json(&["inspect", &out, "--samples", "2", "--json"]);
    assert_eq!(look["columns"]["image"], 1580);
    assert_eq!(look["samples"][0]["metadata"]["name"], "Sagittarius");
    let found = json(&["verify", &out, "--json"]);
    assert_eq!(
        (&found["rows"], &found["problems_total"]),
        (&1580.into(), &0.into())
    );
    assert_eq!(found["digest"], summary["digest"]);
    foreign_readers(&out);
}

/// The readers of other people show the pictures, where they are installed.
fn foreign_readers(corpus: &str) {
    let script = format!("{}/../dataset/tests/readers.py", env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var("MKS2_PYTHON").unwrap_or_else(|_| "python3".into());
    match Command::new(python).args([&script, corpus]).output() {
        Ok(output) => {
            println!("{}", text(&output.stdout));
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
        Err(error) => println!("skipped foreign readers: no Python ({error})"),
    }
}

#[test]
fn people_get_sentences_and_no_escape_codes() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("q").display().to_string();
    let output = run(&[
        "import",
        &example("color-questions-train.jsonl"),
        "--out",
        &out,
    ]);
    assert!(output.status.success());
    assert!(
        text(&output.stdout).contains("435 rows in 1 shard"),
        "{}",
        text(&output.stdout)
    );
    let output = run(&["inspect", &out]);
    let shown = text(&output.stdout);
    assert!(
        shown.contains("What color is the horizontal traffic light?"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'));
    let output = run(&["verify", &out]);
    assert!(text(&output.stdout).contains("all is well"));
}

#[test]
fn bad_samples_are_counted_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("x.jsonl");
    std::fs::write(
        &source,
        "{\"caption\": \"ok\"}\n{\"caption\": 3}\nrubbish\n",
    )
    .unwrap();
    let (source, out) = (source.display().to_string(), folder.path().join("out"));
    let output = run(&["import", &source, "--out", &out.display().to_string()]);
    let shown = text(&output.stdout);
    assert!(shown.contains("2 bad samples left out"), "{shown}");
    assert!(
        shown.contains("1  field_not_text") && shown.contains("1  json_broken"),
        "{shown}"
    );
    let quarantine = std::fs::read_to_string(out.join("quarantine.jsonl")).unwrap();
    assert_eq!(quarantine.lines().count(), 2);
}

#[test]
fn failures_have_three_lines_and_their_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("empty.tar"), b"").unwrap();
    std::fs::write(at("plain"), b"a file").unwrap();
    let good = example("emoji-00003.tar");
    let other = example("color-questions-train.jsonl");
    assert!(
        run(&["import", &good, "--out", &at("there")])
            .status
            .success()
    );
    let below_a_file = at("plain/corpus");
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("manifest.json"), "rubbish").unwrap();
    let cases: [(&[&str], i32, &str); 10] = [
        (
            &["import", &at("none.tar"), "--out", &at("o")],
            4,
            "none.tar does not exist",
        ),
        (
            &["import", &at("empty.tar"), "--out", &at("o")],
            4,
            "no samples",
        ),
        (
            &["import", &at("plain"), "--out", &at("o")],
            4,
            ".tar, .jsonl",
        ),
        (&["import", &other, "--out", &at("there")], 4, "--overwrite"),
        (&["import", &good, "--out", &below_a_file], 5, "are folders"),
        (&["import", &good], 2, "--out"),
        (&["inspect", &at("none")], 4, "mks2 data import"),
        (&["verify", &at("none")], 4, "mks2 data import"),
        (&["verify", &at("broken")], 4, "bring manifest.json back"),
        (
            &["import", "part-{0..3.tar", "--out", &at("o")],
            4,
            "close each brace",
        ),
    ];
    for (arguments, code, word) in cases {
        let output = run(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 3, "{said}");
        assert!(
            !said.contains("quarantine.jsonl"),
            "nothing bad was found: {said}"
        );
    }
}

#[test]
fn a_place_without_the_right_to_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("x.jsonl");
    std::fs::write(&source, "{\"caption\": \"ok\"}\n").unwrap();
    let mut command = rights::mks2_beside_locked(folder.path());
    command
        .args(["data", "import", "x.jsonl", "--out", "locked/corpus"])
        .current_dir(folder.path())
        .env_remove("MKS2_LOG_FORMAT");
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    for word in ["locked/corpus", "permission denied", "the right to it"] {
        assert!(said.contains(word), "'{word}' is not in: {said}");
    }
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn a_tar_without_its_end_mark_is_remarked_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let whole = std::fs::read(example("emoji-00003.tar")).unwrap();
    let data = whole.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    std::fs::write(at("cut.tar"), &whole[..data.next_multiple_of(512)]).unwrap();
    let output = run(&["import", &at("cut.tar"), "--out", &at("out")]);
    let said = text(&output.stdout);
    assert!(
        output.status.success() && said.contains("cut.tar has no end mark"),
        "{said}"
    );
    let summary = json(&["import", &at("cut.tar"), "--out", &at("out"), "--json"]);
    assert_eq!(summary["without_end"], serde_json::json!([at("cut.tar")]));
}

#[test]
fn verify_names_the_row_of_a_damaged_picture() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let url = out.display().to_string();
    assert!(
        run(&["import", &example("emoji-00003.tar"), "--out", &url])
            .status
            .success()
    );
    let shard = out.join("shards/part-00000.parquet");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xFF;
    std::fs::write(&shard, bytes).unwrap();
    let output = run(&["verify", &url]);
    assert_eq!(output.status.code(), Some(4));
    let shown = text(&output.stdout);
    assert!(shown.contains("part-00000.parquet, row "), "{shown}");
    assert!(text(&output.stderr).contains("is damaged"));
}

#[test]
fn a_killed_import_started_again_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("large.tar");
    large_tar(&source, 6000);
    let source = source.display().to_string();
    let whole = folder.path().join("whole");
    let shape = ["--row-group-rows", "64", "--row-groups-per-shard", "4"];
    let import = |out: &Path| {
        let mut command = mks2(&["import", &source, "--out", &out.display().to_string()]);
        command.args(shape).stdout(Stdio::null());
        command
    };
    assert!(import(&whole).status().unwrap().success());
    let whole = tree(&whole);
    let mut interrupted = 0;
    for (index, shards) in [0, 2, 9].into_iter().enumerate() {
        let out = folder.path().join(format!("killed-{index}"));
        let mut child = import(&out).spawn().unwrap();
        wait_for_shards(&out, shards);
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += u32::from(!out.join("manifest.json").exists());
        assert!(import(&out).status().unwrap().success());
        assert_eq!(tree(&out), whole);
    }
    assert!(
        interrupted >= 2,
        "the imports ended before they could be killed"
    );
}

/// Returns as soon as a corpus has this many whole shards.
fn wait_for_shards(out: &Path, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let shards = || {
        let files = std::fs::read_dir(out.join("shards"))
            .into_iter()
            .flatten()
            .flatten();
        files
            .filter(|file| file.path().extension().is_some_and(|end| end == "parquet"))
            .count()
    };
    while shards() < count {
        assert!(Instant::now() < deadline, "no shard appears");
        std::thread::sleep(Duration::from_millis(2));
    }
}
