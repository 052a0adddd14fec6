//! P11: the coordinator dies; its workers go on, and find the next one.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mks2_proto::env::WorkerEnv;

use crate::chance::Chance;
use crate::lab::{Lab, TOTAL, awaited, program, signal};

const TOKEN: &str = "the-token-of-the-tests";

/// A run without a launcher: its coordinator, and its workers by hand.
struct Cluster<'a> {
    lab: &'a Lab,
    run: &'a str,
    addresses: Vec<String>,
    coordinator: Child,
    workers: Vec<Child>,
}

/// An address of the loopback that was free a moment ago.
fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

/// Starts a coordinator and waits until it listens.
pub(crate) fn coordinator(lab: &Lab, run: &str, workers: usize, address: &str) -> (Child, String) {
    announced(lab.coordinate(run, workers, address))
}

/// The same, of a command.
pub(crate) fn announced(mut command: Command) -> (Child, String) {
    command.env("MKS2_TOKEN", TOKEN).stderr(Stdio::null());
    let mut child = command.spawn().expect("the coordinator starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let line: serde_json::Value = serde_json::from_str(&line).expect("its address, as JSON");
    (child, line["run_id"].as_str().expect("text").to_owned())
}

impl<'a> Cluster<'a> {
    fn start(lab: &'a Lab, run: &'a str, workers: u32) -> Self {
        let addresses = vec![free(), free()];
        let (coordinator, run_id) = coordinator(lab, run, workers as usize, &addresses[0]);
        let endpoints: Vec<_> = addresses.iter().map(|a| format!("http://{a}")).collect();
        let worker = |rank| {
            let contract = WorkerEnv {
                coordinator: endpoints.join(","),
                token: TOKEN.into(),
                run_id: run_id.clone(),
                member_id: format!("worker-{rank}"),
                data_address: "127.0.0.1:0".into(),
                data_advertise: String::new(),
                rank,
                local_rank: rank,
                world_size: workers,
                local_world_size: workers,
            };
            let mut command = program("mks2-worker");
            command.envs(contract.variables());
            let log = std::fs::File::create(lab.path(&format!("{run}-{rank}.log"))).expect("a log");
            command.stdout(Stdio::null()).stderr(log);
            command.spawn().expect("a worker starts")
        };
        let workers = (0..workers).map(worker).collect();
        Self {
            lab,
            run,
            addresses,
            coordinator,
            workers,
        }
    }

    fn reaches(&mut self, step: usize) {
        let reached = self.lab.reaches(self.run, step, &mut self.coordinator);
        assert!(reached, "the coordinator has ended");
    }

    fn kill_coordinator(&mut self) {
        self.coordinator.kill().expect("killed");
        self.coordinator.wait().expect("reaped");
    }

    /// The next coordinator, at one of the addresses.
    fn succeed(&mut self, address: usize) {
        let address = self.addresses[address].clone();
        (self.coordinator, _) = coordinator(self.lab, self.run, self.workers.len(), &address);
    }

    /// Everybody ends well, and the outcome is that of the quiet run.
    fn ends_like_the_quiet_run(mut self) {
        for (rank, worker) in self.workers.drain(..).enumerate() {
            let log = self.lab.path(&format!("{}-{rank}.log", self.run));
            assert_eq!(awaited(worker).code, Some(0), "see {}", log.display());
        }
        assert!(self.coordinator.wait().expect("ended").success());
        self.lab.has_weights_of_quiet(self.run);
        self.lab.has_a_ledger_that_holds(self.run);
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().chain([&mut self.coordinator]) {
            // It may have ended by itself.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

#[test]
fn a_coordinator_that_is_killed_has_a_successor() {
    let lab = Lab::enter();
    let mut chance = Chance::new();
    lab.quiet();
    let mut cluster = Cluster::start(&lab, "succeeded", 2);
    // At the same address, at another one, and back.
    for (round, address) in [0, 1, 0].into_iter().enumerate() {
        cluster.reaches((round + 1) * TOTAL / 5 + chance.below(3));
        cluster.kill_coordinator();
        // The workers go on meanwhile.
        std::thread::sleep(Duration::from_millis(chance.below(900) as u64));
        cluster.succeed(address);
    }
    cluster.ends_like_the_quiet_run();
    let terms = lab.journal("succeeded", "term-taken");
    assert_eq!(terms.len(), 4);
    assert_eq!(
        lab.journal("succeeded", "generation-formed").len(),
        1,
        "nobody was lost"
    );
}

#[test]
fn a_coordinator_that_wakes_up_again_is_fenced() {
    let lab = Lab::enter();
    lab.quiet();
    let mut cluster = Cluster::start(&lab, "fenced", 2);
    cluster.reaches(TOTAL / 4);
    // On another machine it would not be held up by the lock of the local folder.
    std::fs::remove_file(lab.path("fenced").join("lock")).expect("a lock");
    signal(cluster.coordinator.id(), "STOP");
    let (next, _) = coordinator(&lab, "fenced", 2, &cluster.addresses[1].clone());
    let mut old = std::mem::replace(&mut cluster.coordinator, next);
    cluster.reaches(TOTAL / 2);
    signal(old.id(), "CONT");
    assert_eq!(code_of(&mut old), Some(7), "it was fenced");
    cluster.ends_like_the_quiet_run();
}

#[test]
fn a_second_coordinator_takes_over_from_a_living_one() {
    let lab = Lab::enter();
    lab.quiet();
    let mut cluster = Cluster::start(&lab, "taken-over", 2);
    cluster.reaches(TOTAL / 4);
    std::fs::remove_file(lab.path("taken-over").join("lock")).expect("a lock");
    let (next, _) = coordinator(&lab, "taken-over", 2, &cluster.addresses[1].clone());
    let mut old = std::mem::replace(&mut cluster.coordinator, next);
    // Its next record is refused, and its workers find the other one.
    assert_eq!(code_of(&mut old), Some(7), "it was fenced");
    cluster.ends_like_the_quiet_run();
}

/// How a process ends by itself.
fn code_of(process: &mut Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = process.try_wait().expect("waited") {
            return status.code();
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}
