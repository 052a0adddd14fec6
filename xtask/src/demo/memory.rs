//! The memory of this process' descendants, watched while they run.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(500);

/// Samples until it is stopped.
pub(super) struct Meter {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Meter {
    pub(super) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let peak = Arc::new(AtomicU64::new(0));
        let (ended, largest) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                largest.fetch_max(used_by_descendants(), Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        });
        Self { stop, peak, thread }
    }

    /// The largest sum that was seen, in bytes.
    pub(super) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // The thread only reads files; it has nothing to fail with.
        let _ = self.thread.join();
        self.peak.load(Ordering::Relaxed)
    }
}

/// Bytes of all descendants; pages that they share are counted once, in parts (PSS).
fn used_by_descendants() -> u64 {
    let parents: HashMap<u32, u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, parent(pid)?)))
        .collect();
    let me = std::process::id();
    let below_me = |pid: &u32| {
        let mut up = std::iter::successors(Some(*pid), |pid| parents.get(pid).copied()).take(64);
        *pid != me && up.any(|ancestor| ancestor == me)
    };
    parents
        .keys()
        .filter(|pid| below_me(pid))
        .filter_map(|pid| proportional(*pid))
        .sum()
}

/// The fourth field of `/proc/PID/stat`, after the name in brackets.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

fn proportional(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_counted_while_it_lives() {
        let child = std::process::Command::new("sleep").arg("5").spawn();
        let mut child = child.expect("sleep is everywhere");
        let pid = child.id();
        assert_eq!(parent(pid), Some(std::process::id()));
        assert!(used_by_descendants() > 0);
        child.kill().expect("it still runs");
        child.wait().expect("it ends");
    }
}
