//! Real runs with the real worker on the sample corpus: deaths and requests to stop change no bit
//! of the result. `cargo xtask test` builds the worker first.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a parent")
        .to_path_buf()
}

/// `mks2`, with the worker that was built beside it.
fn mks2(arguments: &[&str]) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_mks2"));
    let worker = program.with_file_name("mks2-worker");
    assert!(
        worker.is_file(),
        "build mks2-worker first: cargo build -p mks2-worker"
    );
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(root())
        .env_remove("MKS2_WORKER");
    command
}

fn run(arguments: &[&str]) -> Output {
    let output = mks2(arguments).output().expect("mks2 runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "mks2 {arguments:?}:\n{err}");
    output
}

/// The sample corpus, imported, and how `train` finds it.
struct Corpora {
    folder: tempfile::TempDir,
}

impl Corpora {
    fn import() -> Self {
        let corpora = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let sources = [
            ("emoji", "examples/emoji/corpus/emoji-{00000..00003}.tar"),
            (
                "colors-train",
                "examples/emoji/corpus/color-questions-train.jsonl",
            ),
            (
                "colors-test",
                "examples/emoji/corpus/color-questions-test.jsonl",
            ),
        ];
        for (name, source) in sources {
            run(&["data", "import", source, "--out", &corpora.url(name)]);
        }
        corpora
    }

    fn url(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `mks2 train` of the quick job into a run directory beside the corpora.
    fn train(&self, run: &str, workers: u32) -> Command {
        let mut command = mks2(&[
            "train",
            "examples/emoji/quick.toml",
            "--run",
            &self.url(run),
        ]);
        command.arg("--workers").arg(workers.to_string());
        for name in ["emoji", "colors-train", "colors-test"] {
            command
                .arg("--set")
                .arg(format!("data.{name}.url={}", self.url(name)));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn steps(&self, run: &str) -> usize {
        let metrics = self.folder.path().join(run).join("metrics.jsonl");
        std::fs::read_to_string(metrics).map_or(0, |text| text.lines().count())
    }

    fn report(&self, run: &str) -> serde_json::Value {
        let report = self.folder.path().join(run).join("report.json");
        let text = std::fs::read(report).expect("a finished run has a report");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Starts a run, waits for a step and interrupts it; gives exit code and standard error.
    fn interrupted(&self, run: &str, workers: u32, at: usize, how: Interruption) -> (i32, String) {
        let child = self.train(run, workers).spawn().expect("mks2 starts");
        let deadline = Instant::now() + Duration::from_secs(240);
        while self.steps(run) < at {
            assert!(Instant::now() < deadline, "step {at} was not reached");
            std::thread::sleep(Duration::from_millis(20));
        }
        match how {
            Interruption::Request => signal(child.id(), "INT"),
            Interruption::DeathOfAWorker => signal(youngest_child(child.id()), "KILL"),
            Interruption::DeathOfAll => signal(child.id(), "KILL"),
        }
        let output = child.wait_with_output().expect("waited");
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

#[derive(Clone, Copy)]
enum Interruption {
    /// Ctrl-C.
    Request,
    /// kill -9 of one worker.
    DeathOfAWorker,
    /// kill -9 of the launcher, with which the workers die.
    DeathOfAll,
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(sent.expect("kill runs").success());
}

fn youngest_child(pid: u32) -> u32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(path).expect("the kernel lists children");
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .max()
        .expect("a worker")
}

#[test]
fn deaths_and_requests_to_stop_change_no_bit() {
    let corpora = Corpora::import();
    let quiet = corpora.train("quiet", 2).output().expect("mks2 runs");
    let err = String::from_utf8_lossy(&quiet.stderr);
    assert!(quiet.status.success(), "{err}");
    let table = String::from_utf8_lossy(&quiet.stdout).into_owned();
    assert!(
        table.contains("stage") && table.contains("weights"),
        "{table}"
    );
    let total = corpora.steps("quiet");

    let (code, err) = corpora.interrupted("stormy", 2, total / 5, Interruption::DeathOfAWorker);
    assert_eq!(code, 7, "{err}");
    assert!(
        err.contains("was lost") && err.contains("logs/worker-"),
        "{err}"
    );
    let (code, err) = corpora.interrupted("stormy", 3, total * 2 / 5, Interruption::Request);
    assert_eq!(code, 130, "{err}");
    assert!(err.contains("go on with: mks2 train"), "{err}");
    let (code, _) = corpora.interrupted("stormy", 1, total * 3 / 5, Interruption::DeathOfAll);
    assert_eq!(code, -1);
    let last = corpora.train("stormy", 4).output().expect("mks2 runs");
    assert!(
        last.status.success(),
        "{}",
        String::from_utf8_lossy(&last.stderr)
    );

    let (quiet, stormy) = (corpora.report("quiet"), corpora.report("stormy"));
    assert!(quiet["weights_digest"].is_string());
    assert_eq!(quiet["weights_digest"], stormy["weights_digest"]);
    assert_eq!(
        corpora.steps("stormy"),
        total,
        "each step is in the metrics once"
    );
}
