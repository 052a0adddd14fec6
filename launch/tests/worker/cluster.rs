//! A run without a launcher: a coordinator as a process of its own, and workers by hand.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mks2_proto::env::WorkerEnv;

use crate::lab::{Ended, Lab, awaited, program, signal};
use crate::ports::free;

const TOKEN: &str = "the-token-of-the-tests";

/// Coordinator and workers. Whoever is left at the end is killed.
pub(crate) struct Cluster<'a> {
    lab: &'a Lab,
    run: &'a str,
    addresses: Vec<String>,
    coordinators: usize,
    pub(crate) coordinator: Coordinator,
    workers: Vec<Child>,
}

/// A coordinator's process, and where its words go.
pub(crate) struct Coordinator {
    process: Child,
    run_id: String,
    log: PathBuf,
}

impl Coordinator {
    /// Starts one and waits until it listens.
    fn start(lab: &Lab, run: &str, workers: usize, address: &str, number: usize) -> Self {
        let log = lab.log_of(run, &format!("coordinator-{number}"));
        let mut command = lab.coordinate(run, workers, address);
        command.stderr(File::create(&log).expect("a log"));
        let (process, run_id) = announced(command);
        Self {
            process,
            run_id,
            log,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// It ends by itself, because the store has refused its record.
    #[track_caller]
    pub(crate) fn ends_fenced(mut self) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait().expect("waited") {
                break status;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let ended = Ended {
            code: status.code(),
            out: String::new(),
            err: std::fs::read_to_string(&self.log).expect("its log"),
        };
        let words = [
            "has lost the run to another one",
            "of term",
            "stop that one",
        ];
        ended.refused(7, &words);
    }
}

/// Starts a coordinator whose log nobody reads, and waits until it listens: its process, and the
/// run's name.
pub(crate) fn coordinator(lab: &Lab, run: &str, workers: usize, address: &str) -> (Child, String) {
    let mut command = lab.coordinate(run, workers, address);
    command.stderr(Stdio::null());
    announced(command)
}

/// The same, of a command.
pub(crate) fn announced(mut command: Command) -> (Child, String) {
    let started = command.env("MKS2_TOKEN", TOKEN).spawn();
    let mut process = started.expect("the coordinator starts");
    let mut line = String::new();
    let stdout = process.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let words: serde_json::Value = serde_json::from_str(&line).expect("its address, as JSON");
    let run_id = words["run_id"].as_str().expect("text").to_owned();
    (process, run_id)
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl<'a> Cluster<'a> {
    /// Starts all of it. The run is a name, or a URL of the lab's server.
    pub(crate) fn start(lab: &'a Lab, run: &'a str, workers: u32) -> Self {
        Self::start_with(lab, run, workers, &[])
    }

    /// The same, with variables of the workers' environments.
    pub(crate) fn start_with(
        lab: &'a Lab,
        run: &'a str,
        workers: u32,
        variables: &[(&str, &str)],
    ) -> Self {
        let addresses = vec![
            free().expect("a free port").to_string(),
            free().expect("a free port").to_string(),
        ];
        let coordinator = Coordinator::start(lab, run, workers as usize, &addresses[0], 1);
        let endpoints: Vec<_> = addresses.iter().map(|a| format!("http://{a}")).collect();
        let worker = |rank| {
            let contract = WorkerEnv {
                coordinator: endpoints.join(","),
                token: TOKEN.into(),
                run_id: coordinator.run_id.clone(),
                member_id: format!("worker-{rank}"),
                data_address: "127.0.0.1:0".into(),
                data_advertise: String::new(),
                rank,
                local_rank: rank,
                world_size: workers,
                local_world_size: workers,
            };
            let mut command = program("mks2-worker");
            command.envs(contract.variables()).envs(lab.variables());
            command.envs(variables.iter().copied());
            let log = lab.log_of(run, &rank.to_string());
            command.stdout(Stdio::null());
            command.stderr(File::create(log).expect("a log"));
            command.spawn().expect("a worker starts")
        };
        let workers = (0..workers).map(worker).collect();
        Self {
            lab,
            run,
            addresses,
            coordinators: 1,
            coordinator,
            workers,
        }
    }

    /// Waits until the metrics have a step.
    #[track_caller]
    pub(crate) fn reaches(&mut self, step: usize) {
        let coordinator = &mut self.coordinator.process;
        let reached = self.lab.reaches(self.run, step, coordinator);
        assert!(reached, "the coordinator has ended");
    }

    pub(crate) fn kill_coordinator(&mut self) {
        self.coordinator.process.kill().expect("killed");
        self.coordinator.process.wait().expect("reaped");
    }

    pub(crate) fn ask_to_end(&mut self, rank: usize) {
        signal(self.workers[rank].id(), "TERM");
    }

    /// The same, and how it ended.
    pub(crate) fn ask_to_end_and_wait(&mut self, rank: usize) -> Option<i32> {
        self.ask_to_end(rank);
        self.workers[rank].wait().expect("ended").code()
    }

    /// The next coordinator, at one of the addresses; gives the one before.
    pub(crate) fn succeed(&mut self, address: usize) -> Coordinator {
        let address = &self.addresses[address];
        self.coordinators += 1;
        let (workers, number) = (self.workers.len(), self.coordinators);
        let next = Coordinator::start(self.lab, self.run, workers, address, number);
        std::mem::replace(&mut self.coordinator, next)
    }

    /// The same without a worker that has ended already.
    #[track_caller]
    pub(crate) fn ends_without(mut self, rank: usize) {
        drop(self.workers.remove(rank));
        self.ends_like_the_quiet_run();
    }

    /// Everybody ends well, and the outcome is that of the quiet run.
    #[track_caller]
    pub(crate) fn ends_like_the_quiet_run(mut self) {
        for (rank, worker) in self.workers.drain(..).enumerate() {
            let log = self.lab.log_of(self.run, &rank.to_string());
            assert_eq!(awaited(worker).code, Some(0), "see {}", log.display());
        }
        let ended = self.coordinator.process.wait().expect("ended");
        let log = self.coordinator.log.display().to_string();
        assert!(ended.success(), "see {log}");
        self.lab.has_weights_of_quiet(self.run);
        self.lab.has_a_ledger_that_holds(self.run);
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            // It may have ended by itself.
            let _ended = worker.kill();
            let _reaped = worker.wait();
        }
    }
}
