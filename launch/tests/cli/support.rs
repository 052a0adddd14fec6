//! A folder with a job, corpora and a worker of its own, and what a run of `mks2` left behind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mks2_dataset::manifest::{Manifest, ShardEntry, VERSION};
use tempfile::TempDir;

/// The job that tests change.
pub(crate) const JOB: &str = include_str!("../../../proto/src/job/sample.toml");

/// A worker that says where it is and then waits for ever.
pub(crate) const SLEEPER: &str =
    "mkdir -p \"$0.pids\"; echo $$ > \"$0.pids/$MKS2_MEMBER_ID\"; exec sleep 600";

/// A place for one test.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    /// With `job.toml`, its corpora (manifests alone) and no worker.
    pub(crate) fn new() -> Self {
        Self::with_job(JOB)
    }

    /// With another job file.
    pub(crate) fn with_job(job: &str) -> Self {
        let place = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let job = job.replace("s3://bucket/colors", "corpora/colors");
        place.write("job.toml", &job);
        for corpus in ["emoji", "colors"] {
            place.write_corpus(corpus, 160);
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, text).expect("written");
        path
    }

    /// A manifest without its shards: enough for everything but reading rows.
    pub(crate) fn write_corpus(&self, name: &str, rows: u64) {
        let shard = ShardEntry {
            path: "shards/part-00000.parquet".into(),
            rows,
            bytes: 5000,
            ..ShardEntry::default()
        };
        let manifest = Manifest {
            version: VERSION,
            rows,
            row_group_rows: 128,
            row_groups_per_shard: 64,
            shards: if rows == 0 { Vec::new() } else { vec![shard] },
            ..Manifest::default()
        };
        self.write(
            &format!("corpora/{name}/manifest.json"),
            &manifest.to_json(),
        );
    }

    /// A script in the place of `mks2-worker`.
    pub(crate) fn worker(&self, script: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.write("worker.sh", &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
        path
    }

    /// `mks2` in this folder, with a quiet environment.
    pub(crate) fn mks2(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mks2"));
        command.args(arguments);
        self.settle(&mut command);
        command
    }

    /// Gives a program this folder and a quiet environment.
    pub(crate) fn settle(&self, command: &mut Command) {
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        for name in [
            "MKS2_WORKER",
            "MKS2_TOKEN",
            "MKS2_LOG",
            "MKS2_LOG_FORMAT",
            "RUST_LOG",
        ] {
            command.env_remove(name);
        }
    }

    /// Runs `mks2` to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.mks2(arguments).output().expect("mks2 runs"))
    }

    /// `mks2 train job.toml --run run ...` with a script as worker.
    pub(crate) fn train(&self, script: &str, more: &[&str]) -> Command {
        let worker = self.worker(script);
        let mut command = self.mks2(&["train", "job.toml", "--run", "run"]);
        command.args(more).env("MKS2_WORKER", worker);
        command
    }

    /// Processes of the sleeping workers, once there are so many.
    pub(crate) fn sleepers(&self, number: usize) -> Vec<u32> {
        let folder = self.path("worker.sh.pids");
        eventually("the workers start", || {
            let files = std::fs::read_dir(&folder).ok()?;
            let pids: Vec<u32> = files
                .filter_map(|file| {
                    std::fs::read_to_string(file.ok()?.path())
                        .ok()?
                        .trim()
                        .parse()
                        .ok()
                })
                .collect();
            (pids.len() == number).then_some(pids)
        })
    }
}

/// How `mks2` ended and what it said.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
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
    /// Three lines (what, why, what to do) at the end of standard error, holding the words.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.out,
            self.err
        );
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

    /// Stopped on request, which is no error: what and why, and then how to go on.
    #[track_caller]
    pub(crate) fn stopped(&self, words: &[&str]) {
        assert_eq!(self.code, Some(130), "stderr:\n{}", self.err);
        assert!(!self.err.contains("error:"), "{}", self.err);
        let lines: Vec<&str> = self.err.trim_end().lines().collect();
        let text = lines[lines.len().saturating_sub(2)..].join("\n");
        for word in words.iter().chain(&["stopped", "go on with: mks2 train"]) {
            assert!(text.contains(word), "'{word}' is not in:\n{text}");
        }
    }

    #[track_caller]
    pub(crate) fn done(&self) -> &Self {
        assert_eq!(
            self.code,
            Some(0),
            "stdout:\n{}\nstderr:\n{}",
            self.out,
            self.err
        );
        self
    }
}

/// Waits for a child that was told to end.
pub(crate) fn ended(mut child: Child) -> Ended {
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().expect("waited").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("killed");
            panic!(
                "mks2 did not end: {}",
                Ended::from(child.wait_with_output().expect("read")).err
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ended::from(child.wait_with_output().expect("read"))
}

/// Asks again and again, for at most 30 s.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = Path::new("/proc").join(pid.to_string()).join("stat");
    std::fs::read_to_string(stat).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with('Z'))
    })
}

/// Sends a signal to a process that is there.
#[track_caller]
pub(crate) fn signal(pid: u32, name: &str) {
    assert!(crate::signals::send(pid, name), "process {pid} is gone");
}

/// Starts with pipes.
pub(crate) fn start(mut command: Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mks2 starts")
}
