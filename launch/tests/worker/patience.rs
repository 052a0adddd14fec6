//! Nobody is taken for dead too soon: one core is kept busy, and workers stand still for moments.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::lab::{Lab, awaited, signal, workers_of};

/// How long a worker stands still; 0.8 s of silence make one lost.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is to be heard otherwise.
const BEAT: Duration = Duration::from_millis(100);
/// A pause, and the time until it is heard again. Where it was longer, this machine stood still, and whoever
/// is lost then was silent for long indeed.
const LONGEST: Duration = Duration::from_millis(700);

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
    let (hog, began, mut pauses, mut unfair) = (Hog::start(), Instant::now(), 0, 0);
    while began.elapsed() < time {
        let worker = workers[chance.below(workers.len())];
        let stopped = Instant::now();
        signal(worker, "STOP");
        std::thread::sleep(PAUSE);
        signal(worker, "CONT");
        std::thread::sleep(BEAT);
        pauses += 1;
        unfair += usize::from(stopped.elapsed() > LONGEST);
        std::thread::sleep(Duration::from_millis(chance.below(2000) as u64));
        if launcher.try_wait().expect("waited").is_some() {
            break;
        }
    }
    drop(hog);
    println!("{pauses} pauses of {PAUSE:?} in {:?}", began.elapsed());
    println!("{unfair} of them were longer than ordered");
    let formed = lab.journal(run, "generation-formed");
    let lost = formed.iter().filter_map(|entry| entry["lost"].as_array());
    let lost = lost.map(Vec::len).sum::<usize>();
    assert!(lost <= unfair, "somebody was lost: {formed:?}");
    signal(launcher.id(), "INT");
    let ended = awaited(launcher);
    if unfair < workers.len() {
        ended.stopped(&[]);
    }
}
