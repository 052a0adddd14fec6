//! Nobody is taken for dead too soon: one core is kept busy, and workers stand still for moments.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::lab::{Lab, awaited, signal, workers_of};

/// How long a worker stands still; 0.8 s of silence make one lost.
const PAUSE: Duration = Duration::from_millis(500);

/// A process that computes on the machine's first core for as long as it lives.
struct Hog(Child);

impl Hog {
    fn start() -> Self {
        let mut command = Command::new("taskset");
        command.args(["-c", "0", "sh", "-c", "while :; do :; done"]);
        Self(command.stdin(Stdio::null()).spawn().expect("taskset runs"))
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn for_a_while_nobody_is_lost_without_reason() {
    patient(Duration::from_secs(10));
}

#[test]
#[ignore = "takes ten minutes; CONTRIBUTING.md has the command"]
fn for_ten_minutes_nobody_is_lost_without_reason() {
    patient(Duration::from_secs(600));
}

#[expect(clippy::print_stdout, reason = "what was met belongs to the test")]
fn patient(time: Duration) {
    let lab = Lab::enter();
    let (run, mut chance) = ("patient", Chance::new());
    let mut command = lab.train(run, 4, &["stage.memory.steps=1000000"]);
    command.args(["--restarts", "0"]);
    let mut launcher = command.spawn().expect("mks2 starts");
    assert!(lab.reaches(run, 9, &mut launcher), "it ended by itself");
    let workers = workers_of(launcher.id());
    assert_eq!(workers.len(), 4);
    let (hog, began, mut pauses) = (Hog::start(), Instant::now(), 0);
    while began.elapsed() < time {
        let worker = workers[chance.below(workers.len())];
        signal(worker, "STOP");
        std::thread::sleep(PAUSE);
        signal(worker, "CONT");
        pauses += 1;
        std::thread::sleep(Duration::from_millis(chance.below(2000) as u64));
        assert!(launcher.try_wait().expect("waited").is_none(), "it ended");
    }
    drop(hog);
    signal(launcher.id(), "INT");
    awaited(launcher).stopped(&[]);
    let formed = lab.journal(run, "generation-formed");
    println!("{pauses} pauses of {PAUSE:?} in {:?}", began.elapsed());
    assert_eq!(formed.len(), 1, "somebody was lost: {formed:?}");
}
