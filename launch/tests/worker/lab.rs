//! A folder with the imported sample corpus and a small job, and runs in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::evaluating::sample_tasks;
use crate::servers::{Kind, Server};

/// Steps of the stages, and of a whole run.
const STEPS: [(&str, usize); 5] = [
    ("bootstrap", 8),
    ("memory", 8),
    ("experts", 4),
    ("shuffled", 4),
    ("lora", 4),
];
pub(crate) const TOTAL: usize = 28;
/// Checkpoints inside stages that stay.
pub(crate) const KEEP_LAST: usize = 2;
/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The folder. Whoever holds it has the machine for itself.
pub(crate) struct Lab {
    folder: PathBuf,
    server: Option<Server>,
    quiet: OnceLock<Value>,
    evaluated: OnceLock<Ended>,
    /// Held for as long as this process lives: another one that wants the folder waits.
    _alone: File,
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The checkout.
pub(crate) fn root() -> &'static Path {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"));
    crates.parent().expect("a checkout")
}

/// The program under test, in the checkout.
pub(crate) fn mks2(arguments: &[&str]) -> Command {
    program("mks2-worker");
    let mut command = program("mks2");
    command.args(arguments);
    command
}

/// A program of this workspace.
pub(crate) fn program(name: &str) -> Command {
    let path = Path::new(env!("CARGO_BIN_EXE_mks2")).with_file_name(name);
    let built = path.is_file();
    assert!(built, "build {name} first: cargo build --workspace");
    let mut command = Command::new(path);
    command.current_dir(root());
    for name in ["MKS2_WORKER", "MKS2_LOG", "MKS2_LOG_FORMAT", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

impl Lab {
    /// The one lab of this process, for one test at a time.
    pub(crate) fn enter() -> MutexGuard<'static, Self> {
        static LAB: OnceLock<Mutex<Lab>> = OnceLock::new();
        let lab = LAB.get_or_init(|| Mutex::new(Self::furnish()));
        let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
        lab.server = None;
        lab
    }

    /// The same with a server of an object store beside it, if there is one.
    pub(crate) fn enter_with(kind: Kind) -> Option<MutexGuard<'static, Self>> {
        let mut lab = Self::enter();
        lab.server = Some(Server::start(kind)?);
        Some(lab)
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().expect("a lab with a server")
    }

    /// What programs must know of the server.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        self.server.as_ref().map_or(Vec::new(), Server::variables)
    }

    fn furnish() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("runs");
        let alone = File::create(folder.with_extension("lock")).expect("a lock");
        alone.lock().expect("alone");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).expect("the last lab is removed");
        }
        std::fs::create_dir_all(&folder).expect("a folder");
        let lab = Self {
            folder,
            server: None,
            quiet: OnceLock::new(),
            evaluated: OnceLock::new(),
            _alone: alone,
        };
        lab.import("emoji", "emoji-{00000..00003}.tar");
        lab.import("colors-train", "color-questions-train.jsonl");
        lab.import("colors-test", "color-questions-test.jsonl");
        let quick = root().join("examples/emoji/quick.toml");
        let quick = std::fs::read_to_string(quick).expect("the quick job");
        let evaluate = quick.find("[[stage]]\nname = \"evaluate\"");
        let training = &quick[..evaluate.expect("it evaluates")];
        std::fs::write(lab.path("small.toml"), training).expect("written");
        lab
    }

    fn import(&self, name: &str, source: &str) {
        let source = format!("examples/emoji/corpus/{source}");
        let to = self.path(name).display().to_string();
        let mut command = mks2(&["data", "import", &source, "--out", &to]);
        Ended::from(command.output().expect("mks2 runs")).done();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where a run is: below this folder, or at a URL of the server.
    pub(crate) fn location(&self, run: &str) -> String {
        match run.contains("://") {
            true => run.to_owned(),
            false => self.path(run).display().to_string(),
        }
    }

    /// Where the words of a run's process go.
    pub(crate) fn log_of(&self, run: &str, who: &str) -> PathBuf {
        let plain = run.replace([':', '/'], "-");
        self.path(&format!("{plain}-{who}.log"))
    }

    /// A file of a run, if it is there.
    fn read(&self, run: &str, name: &str) -> Option<Vec<u8>> {
        match run.contains("://") {
            true => self.server().read(&format!("{run}/{name}")),
            false => std::fs::read(self.path(run).join(name)).ok(),
        }
    }

    /// Names of the files in a folder of a run, in order, with those deeper down.
    fn files(&self, run: &str, folder: &str) -> Vec<String> {
        if run.contains("://") {
            let urls = self.server().list(&format!("{run}/{folder}"));
            let name = |url: &String| url[run.len() + 1..].to_owned();
            return urls.iter().map(name).collect();
        }
        let mut names = Vec::new();
        let entries = std::fs::read_dir(self.path(run).join(folder));
        for entry in entries.into_iter().flatten() {
            let entry = entry.expect("read");
            let name = format!("{folder}/{}", entry.file_name().display());
            match entry.path().is_dir() {
                true => names.extend(self.files(run, &name)),
                false => names.push(name),
            }
        }
        names.sort();
        names
    }

    fn json(&self, run: &str, name: &str) -> Value {
        let bytes = self.read(run, name).expect("it is there");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// `mks2 train` of the job without its evaluation.
    pub(crate) fn train(
        &self,
        run: &str,
        workers: impl std::fmt::Display,
        more: &[&str],
    ) -> Command {
        self.train_job(&self.path("small.toml"), run, workers, more)
    }

    /// `mks2 train` of the whole quick job, with the sample tasks.
    pub(crate) fn train_and_evaluate(&self, run: &str, workers: impl std::fmt::Display) -> Command {
        let quick = root().join("examples/emoji/quick.toml");
        self.train_job(&quick, run, workers, &[&sample_tasks()])
    }

    fn train_job(
        &self,
        job: &Path,
        run: &str,
        workers: impl std::fmt::Display,
        more: &[&str],
    ) -> Command {
        let mut command = mks2(&["train"]);
        command.arg(job);
        self.complete(&mut command, run, workers);
        for setting in more {
            command.arg("--set").arg(setting);
        }
        command
    }

    /// A coordinator for the job without its evaluation, as a process of its own.
    pub(crate) fn coordinate(
        &self,
        run: &str,
        workers: impl std::fmt::Display,
        listen: &str,
    ) -> Command {
        let mut command = program("mks2-coordinator");
        command.arg("--job").arg(self.path("small.toml"));
        command.args(["--listen", listen]);
        self.complete(&mut command, run, workers);
        command
    }

    /// What every run of the small job is told.
    fn complete(&self, command: &mut Command, run: &str, workers: impl std::fmt::Display) {
        command.arg("--run").arg(self.location(run));
        command.envs(self.variables());
        command.arg("--workers").arg(workers.to_string());
        let mut set = |setting: String| {
            command.arg("--set").arg(setting);
        };
        for name in ["emoji", "colors-train", "colors-test"] {
            set(format!("data.{name}.url={}", self.path(name).display()));
        }
        for (stage, steps) in STEPS {
            set(format!("stage.{stage}.steps={steps}"));
            set(format!("stage.{stage}.batch_size=16"));
        }
        set("checkpoint.every_steps=3".into());
        set("audit.every_steps=3".into());
        set(format!("checkpoint.keep_last={KEEP_LAST}"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// The report of a run that nobody disturbed.
    pub(crate) fn quiet(&self) -> &Value {
        self.quiet.get_or_init(|| {
            ended(self.train("quiet", 2, &[])).done();
            self.report("quiet")
        })
    }

    /// How the whole quick job ended that nobody disturbed; its run is `evaluated`.
    pub(crate) fn evaluated(&self) -> &Ended {
        self.evaluated
            .get_or_init(|| ended(self.train_and_evaluate("evaluated", 2)))
    }

    pub(crate) fn report(&self, run: &str) -> Value {
        self.json(run, "report.json")
    }

    /// The steps in the metrics, line by line.
    pub(crate) fn steps(&self, run: &str) -> Vec<u64> {
        let metrics = self.read(run, "metrics.jsonl").unwrap_or_default();
        let metrics = String::from_utf8(metrics).expect("text");
        // A line that is being written has no end yet.
        let whole = metrics.rfind('\n').map_or("", |end| &metrics[..end]);
        let step = |line| serde_json::from_str::<Value>(line).expect("JSON")["step"].as_u64();
        whole
            .lines()
            .map(|line| step(line).expect("a step"))
            .collect()
    }

    /// A finished run has every step once, and the weights of the quiet one in every stage.
    #[track_caller]
    pub(crate) fn equals_quiet(&self, run: &str) {
        let steps: Vec<u64> = (1..=TOTAL as u64).collect();
        assert_eq!(self.steps(run), steps, "each step is in the metrics once");
        let report = self.report(run);
        assert_eq!(digests(&report), digests(self.quiet()));
        assert_eq!(report["weights_digest"], self.quiet()["weights_digest"]);
    }

    /// As [`Lab::equals_quiet`], for a run that has no report.
    #[track_caller]
    pub(crate) fn has_weights_of_quiet(&self, run: &str) {
        let steps: Vec<u64> = (1..=TOTAL as u64).collect();
        assert_eq!(self.steps(run), steps, "each step is in the metrics once");
        let finals = |run| {
            let mut manifests = self.manifests(run);
            manifests.retain(|manifest| manifest["final"] == true);
            let digest = |manifest: &Value| manifest["weights_digest"].clone();
            manifests.iter().map(digest).collect::<Vec<_>>()
        };
        self.quiet();
        assert_eq!(finals(run).len(), STEPS.len());
        assert_eq!(finals(run), finals("quiet"));
    }

    /// Journal, metrics and checkpoints prove that every step counts once, and who computed it.
    #[track_caller]
    pub(crate) fn has_a_ledger_that_holds(&self, run: &str) {
        let mut verify = mks2(&["ledger", "verify", &self.location(run)]);
        let verified = verify.envs(self.variables()).output();
        Ended::from(verified.expect("mks2 runs")).done();
    }

    /// The records of a run's journal, without its snapshots.
    pub(crate) fn records(&self, run: &str) -> Vec<Value> {
        let mut names = self.files(run, "journal");
        // What a store writes has another name until it is whole.
        names.retain(|name| name.ends_with(".json"));
        let records = names.iter().map(|name| self.json(run, name));
        records
            .filter(|record| record["entry"].is_object())
            .collect()
    }

    /// The server's key is in none of the logs of a run and in none of its files.
    #[track_caller]
    pub(crate) fn shows_no_secret(&self, run: &str) {
        let plain = run.replace([':', '/'], "-");
        let secret = self.server().secret();
        let mut searched = 0;
        for entry in std::fs::read_dir(&self.folder).expect("the lab") {
            let path = entry.expect("read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&plain) && path.is_file() {
                let log = std::fs::read_to_string(&path).expect("text");
                assert!(!log.contains(secret), "{} shows the key", path.display());
                searched += 1;
            }
        }
        assert!(searched > 0, "no log of {run}");
        let files = self.files(run, "journal");
        let names = ["run.json", "config.resolved.toml"].map(str::to_owned);
        for name in files.iter().chain(&names) {
            let file = self.read(run, name).unwrap_or_default();
            let file = String::from_utf8_lossy(&file);
            assert!(!file.contains(secret), "{name} shows the key");
        }
    }

    /// The entries of one kind in a run's journal.
    pub(crate) fn journal(&self, run: &str, kind: &str) -> Vec<Value> {
        let records = self.records(run).into_iter();
        let entries = records.map(|record| record["entry"].clone());
        entries.filter(|entry| entry["kind"] == kind).collect()
    }

    /// Manifests of the checkpoints, by ascending steps.
    pub(crate) fn manifests(&self, run: &str) -> Vec<Value> {
        let mut names = self.files(run, "checkpoints");
        names.retain(|name| name.ends_with("/manifest.json"));
        names.iter().map(|name| self.json(run, name)).collect()
    }

    /// Waits until a run has a step, or its launcher has ended: then false.
    pub(crate) fn reaches(&self, run: &str, step: usize, launcher: &mut Child) -> bool {
        let deadline = Instant::now() + LIMIT;
        // A server has other work to do.
        let pause = Duration::from_millis(if run.contains("://") { 50 } else { 5 });
        loop {
            if self.steps(run).len() >= step {
                return true;
            }
            if launcher.try_wait().expect("waited").is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "step {step} was not reached");
            std::thread::sleep(pause);
        }
    }
}

/// Name, steps and weights of each stage.
pub(crate) fn digests(report: &Value) -> Vec<(String, u64, String)> {
    let stages = report["stages"].as_array().expect("stages");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    stages
        .iter()
        .map(|stage| {
            let steps = stage["steps"].as_u64().expect("steps");
            (text(&stage["name"]), steps, text(&stage["weights_digest"]))
        })
        .collect()
}

/// Runs a command to its end.
pub(crate) fn ended(mut command: Command) -> Ended {
    let child = command.spawn().expect("mks2 starts");
    awaited(child)
}

/// Waits for the end of a run.
pub(crate) fn awaited(mut child: Child) -> Ended {
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().expect("waited").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("killed");
            let said = Ended::from(child.wait_with_output().expect("read"));
            panic!("mks2 did not end: {}", said.err);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ended::from(child.wait_with_output().expect("read"))
}

/// Sends a signal; whoever has ended already does not mind.
pub(crate) fn signal(pid: u32, name: &str) {
    let _gone = crate::signals::send(pid, name);
}

/// The workers of a launcher, oldest first.
pub(crate) fn workers_of(launcher: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{launcher}/task")).expect("its threads") {
        let path = task.expect("read").path().join("children");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        children.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
    }
    children.sort_unstable();
    children
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn done(&self) -> &Self {
        self.with_code(0)
    }

    #[track_caller]
    pub(crate) fn with_code(&self, code: i32) -> &Self {
        let (out, err) = (&self.out, &self.err);
        assert_eq!(self.code, Some(code), "stdout:\n{out}\nstderr:\n{err}");
        self
    }

    /// Stopped on request, which is no error.
    #[track_caller]
    pub(crate) fn stopped(&self, words: &[&str]) {
        self.with_code(130);
        assert!(!self.err.contains("error:"), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "'{word}' is not in:\n{}", self.err);
        }
    }

    /// Three lines (what, why, what to do) at the end of standard error, holding the words.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        self.with_code(code);
        let lines: Vec<&str> = self.err.trim_end().lines().collect();
        let last = &lines[lines.len().saturating_sub(3)..];
        let starts = ["error: ", "  why: ", "  fix: "];
        let fits = last.len() == 3 && last.iter().zip(starts).all(|(line, s)| line.starts_with(s));
        assert!(fits, "no three-line error at the end of:\n{}", self.err);
        let text = last.join("\n");
        for word in words {
            assert!(text.contains(word), "'{word}' is not in:\n{text}");
        }
    }
}
