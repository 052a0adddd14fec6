//! A server as a process on a core of its own, and what it takes of the machine.

use std::{
    ffi::OsStr,
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;

/// The unit of times in `/proc`, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A file for what the server logs; without it nobody reads that.
const LOG: &str = "MKS2_CROWD_LOG";

/// Killed when it is dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
}

/// What was used between two moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    pub(crate) wall: Duration,
    pub(crate) cpu_seconds: f64,
}

impl Used {
    /// The share of one core.
    pub(crate) fn share(self) -> f64 {
        self.cpu_seconds / self.wall.as_secs_f64()
    }
}

/// A moment to measure from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    began: Instant,
    cpu_seconds: f64,
}

impl Server {
    /// Starts a program on the first core. The crowd's own processes run wherever there is room.
    pub(crate) fn start(
        words: &[impl AsRef<OsStr>],
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0"]).args(words);
        command.envs(variables.iter().copied());
        let log = match std::env::var_os(LOG) {
            Some(path) => fs::File::create(path)?.into(),
            None => Stdio::null(),
        };
        command.stdout(Stdio::piped()).stderr(log);
        let child = command.spawn().context("taskset cannot be started")?;
        Ok(Self { child })
    }

    /// What it has computed so far, in all threads.
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is a name in parentheses that may hold anything.
        let fields = text.rsplit(')').next().unwrap_or_default();
        let mut fields = fields.split_whitespace().skip(11);
        let mut ticks = || -> anyhow::Result<f64> {
            let field = fields.next().context("a short /proc/PID/stat")?;
            Ok(field.parse()?)
        };
        Ok((ticks()? + ticks()?) / TICKS_PER_SECOND)
    }

    pub(crate) fn now(&self) -> anyhow::Result<Since> {
        Ok(Since {
            began: Instant::now(),
            cpu_seconds: self.cpu_seconds()?,
        })
    }

    pub(crate) fn used(&self, since: Since) -> anyhow::Result<Used> {
        Ok(Used {
            wall: since.began.elapsed(),
            cpu_seconds: self.cpu_seconds()? - since.cpu_seconds,
        })
    }

    /// The most memory that it has held.
    pub(crate) fn peak_mib(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let words = line.and_then(|line| line.split_whitespace().next());
        let kib: f64 = words.context("no VmHWM in /proc/PID/status")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
