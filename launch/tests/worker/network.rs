//! What a network does to a run, thing by thing: connections break, say nothing, are slow and narrow,
//! between workers and to the coordinator; and no bit differs.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mks2_proto::env::{self, WorkerEnv};
use tokio::runtime::Runtime;

use crate::cluster::coordinator;
use crate::lab::{Lab, TOTAL, awaited, mks2, program};
use crate::ports::free;
use crate::proxy::{Proxy, Weather};

pub(crate) const TOKEN: &str = "the-token-of-the-tests";

/// A run whose workers reach each other, and the coordinator, through proxies.
pub(crate) struct Network<'a> {
    lab: &'a Lab,
    run: &'a str,
    coordinator: Child,
    workers: Vec<Child>,
    /// Before each worker's data plane.
    pub(crate) data: Vec<Proxy>,
    /// Before the coordinator, one for each worker.
    pub(crate) control: Vec<Proxy>,
    /// The proxies live in it.
    runtime: Option<Runtime>,
}

/// What a worker is told.
pub(crate) fn contract(
    rank: u32,
    workers: u32,
    coordinator: &SocketAddr,
    data_address: &str,
) -> WorkerEnv {
    WorkerEnv {
        coordinator: format!("http://{coordinator}"),
        token: TOKEN.into(),
        run_id: String::new(),
        member_id: format!("worker-{rank}"),
        data_address: data_address.into(),
        data_advertise: String::new(),
        rank,
        local_rank: rank,
        world_size: workers,
        local_world_size: workers,
    }
}

/// Starts a worker.
pub(crate) fn work(
    lab: &Lab,
    run: &str,
    mut command: Command,
    contract: &WorkerEnv,
    run_id: &str,
) -> Child {
    command.envs(contract.variables()).env(env::RUN_ID, run_id);
    // The last steps are short: what happens in them has time to be noticed.
    let nap = |step: usize| format!("nap@loading@{step}@worker-0,nap@loading@{step}@worker-1");
    let naps: Vec<_> = (STAGES[2] + 2..TOTAL).map(nap).collect();
    command.env("MKS2_TEST_MISHAP", naps.join(","));
    let log = lab.path(&format!("{run}-{}.log", contract.rank));
    let log = std::fs::File::create(log).expect("a log");
    command.stdout(Stdio::null()).stderr(log);
    command.spawn().expect("a worker starts")
}

impl<'a> Network<'a> {
    pub(crate) fn start(lab: &'a Lab, run: &'a str, workers: u32) -> Self {
        lab.quiet();
        let runtime = Runtime::new().expect("a runtime");
        let proxy = |target| runtime.block_on(Proxy::start(target)).expect("a proxy");
        let office = free().expect("a free port");
        let own: Vec<_> = (0..workers).map(|_| free().expect("a free port")).collect();
        let data: Vec<_> = own.iter().map(|address| proxy(*address)).collect();
        let control: Vec<_> = (0..workers).map(|_| proxy(office)).collect();
        let (coordinator, run_id) = coordinator(lab, run, workers as usize, &office.to_string());
        let worker = |(rank, own): (u32, &SocketAddr)| {
            let place = rank as usize;
            let contract = WorkerEnv {
                data_advertise: data[place].address().to_string(),
                ..contract(rank, workers, &control[place].address(), &own.to_string())
            };
            let command = program("mks2-worker");
            work(lab, run, command, &contract, &run_id)
        };
        let workers = (0..).zip(&own).map(worker).collect();
        let mut network = Self::of(lab, run, coordinator, workers);
        (network.data, network.control) = (data, control);
        network.runtime = Some(runtime);
        network
    }

    /// A run whose processes reach each other in another way.
    pub(crate) fn of(lab: &'a Lab, run: &'a str, coordinator: Child, workers: Vec<Child>) -> Self {
        Self {
            lab,
            run,
            coordinator,
            workers,
            data: Vec::new(),
            control: Vec::new(),
            runtime: None,
        }
    }

    pub(crate) fn reaches(&mut self, step: usize) {
        let reached = self.lab.reaches(self.run, step, &mut self.coordinator);
        assert!(reached, "the coordinator has ended");
    }

    /// Waits until the coordinator hears all workers, or the run is over. The first one that is back
    /// tells the steps of all.
    fn hears_all(&mut self) {
        let run = self.lab.path(self.run).display().to_string();
        while self.coordinator.try_wait().expect("waited").is_none() {
            let shown = mks2(&["status", &run, "--json"]).output();
            let shown = serde_json::from_slice(&shown.expect("mks2 runs").stdout);
            let shown: serde_json::Value = shown.unwrap_or_default();
            let members = shown["members"].as_array().map_or(&[][..], Vec::as_slice);
            let is_heard = |member: &serde_json::Value| {
                let silent = member["silent_ms"].as_u64();
                member["connected"] == true && silent.is_some_and(|silent| silent < 500)
            };
            if members.len() == self.workers.len() && members.iter().all(is_heard) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many members each generation had.
    pub(crate) fn generations(&self) -> Vec<usize> {
        let formed = self.lab.journal(self.run, "generation-formed");
        let members = |entry: &serde_json::Value| entry["members"].as_array().map_or(0, Vec::len);
        formed.iter().map(members).collect()
    }

    /// Members that were lost, in their order.
    pub(crate) fn lost(&self) -> Vec<String> {
        let formed = self.lab.journal(self.run, "generation-formed");
        let lost = formed.iter().filter_map(|entry| entry["lost"].as_array());
        let name = |name: &serde_json::Value| name.as_str().expect("a name").to_owned();
        lost.flatten().map(name).collect()
    }

    /// Everybody but the lost ends well, and the outcome is that of the quiet run.
    #[track_caller]
    pub(crate) fn ends_like_the_quiet_run(&mut self) {
        self.finishes();
        self.data.iter().chain(&self.control).for_each(Proxy::heal);
        let lost = self.lost();
        for (rank, mut worker) in self.workers.drain(..).enumerate() {
            if lost.contains(&format!("worker-{rank}")) {
                // It may be out of reach of everybody, and look for the coordinator.
                let _ended = worker.kill();
                assert!(!worker.wait().expect("ended").success(), "worker-{rank}");
                continue;
            }
            let log = self.lab.path(&format!("{}-{rank}.log", self.run));
            let code = awaited(worker).code;
            let log = std::fs::read_to_string(log).unwrap_or_default();
            assert_eq!(code, Some(0), "worker-{rank}:\n{log}");
        }
        self.lab.has_weights_of_quiet(self.run);
        self.lab.has_a_ledger_that_holds(self.run);
    }

    /// The run is done, whoever is left of it.
    #[track_caller]
    pub(crate) fn finishes(&mut self) {
        let finished = self.lab.reaches(self.run, TOTAL, &mut self.coordinator);
        assert!(finished, "the coordinator has ended");
        assert!(self.coordinator.wait().expect("ended").success());
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().chain([&mut self.coordinator]) {
            // It may have ended by itself.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// In the bootstrap, the memory's and the mixtures' stages.
const STAGES: [usize; 3] = [3, 11, 19];

#[test]
fn connections_between_workers_that_break_cost_no_worker() {
    let lab = Lab::enter();
    let mut network = Network::start(&lab, "broken-links", 3);
    for step in STAGES {
        network.reaches(step);
        for proxy in &network.data {
            proxy.set_weather(Weather::resetting());
        }
        std::thread::sleep(Duration::from_millis(50));
        network.data.iter().for_each(Proxy::heal);
    }
    network.ends_like_the_quiet_run();
    assert_eq!(network.lost(), [""; 0]);
    assert_eq!(network.generations(), [3, 3, 3, 3]);
}

#[test]
fn a_slow_and_narrow_network_changes_nothing() {
    let lab = Lab::enter();
    let mut network = Network::start(&lab, "slow-links", 2);
    let narrow = Weather::limited(NonZeroU64::new(20_000_000).expect("not zero"));
    network.data[0].set_weather(Weather::delayed(Duration::from_millis(50)));
    network.data[1].set_weather(Weather::delayed(Duration::from_millis(50)));
    network.control[0].set_weather(Weather::delayed(Duration::from_millis(50)));
    network.control[1].set_weather(narrow);
    network.reaches(TOTAL / 2);
    network
        .data
        .iter()
        .for_each(|proxy| proxy.set_weather(narrow));
    network.ends_like_the_quiet_run();
    assert_eq!(network.generations(), [2]);
}

/// The others do not reach `worker-0`, or do not hear it: in one or both directions, for good.
#[test]
fn a_worker_that_the_others_cannot_reach_is_given_up() {
    let lab = Lab::enter();
    let cases = [
        ("deaf", Weather::deaf(), STAGES[0]),
        ("mute", Weather::mute(), STAGES[1]),
        ("half-open", Weather::half_open(), STAGES[2]),
    ];
    for (run, weather, step) in cases {
        let mut network = Network::start(&lab, run, 3);
        network.reaches(step);
        network.data[0].set_weather(weather);
        network.ends_like_the_quiet_run();
        assert_eq!(network.lost(), ["worker-0"], "{run}");
        assert_eq!(network.generations(), [3, 3, 2], "{run}");
    }
}

/// A third one is not to blame for it.
#[test]
fn of_two_that_cannot_reach_each_other_one_has_to_go() {
    let lab = Lab::enter();
    let mut network = Network::start(&lab, "apart", 3);
    network.reaches(STAGES[1]);
    // The way that worker-2 takes to worker-1.
    network.data[1].set_weather(Weather::half_open());
    network.ends_like_the_quiet_run();
    let lost = network.lost();
    assert!(lost == ["worker-1"] || lost == ["worker-2"], "{lost:?}");
    assert_eq!(network.generations(), [3, 3, 2]);
}

#[test]
fn two_that_cannot_reach_each_other_part_and_one_goes_on() {
    let lab = Lab::enter();
    let mut network = Network::start(&lab, "parted", 2);
    network.reaches(STAGES[1]);
    for proxy in &network.data {
        proxy.set_weather(Weather::half_open());
    }
    network.ends_like_the_quiet_run();
    assert_eq!(network.lost(), ["worker-1"]);
    assert_eq!(network.generations(), [2, 2, 1]);
}

#[test]
fn a_silence_between_workers_that_passes_costs_no_worker() {
    let lab = Lab::enter();
    let mut network = Network::start(&lab, "silent-links", 3);
    network.reaches(STAGES[1]);
    network.data[0].set_weather(Weather::half_open());
    std::thread::sleep(Duration::from_millis(1100));
    network.data[0].heal();
    network.ends_like_the_quiet_run();
    assert_eq!(network.lost(), [""; 0]);
}

#[test]
fn a_worker_that_is_cut_off_from_the_coordinator_is_lost_and_the_others_go_on() {
    let lab = Lab::enter();
    let weathers = [
        ("unheard", Weather::deaf(), STAGES[0]),
        ("uninformed", Weather::mute(), STAGES[1]),
        ("unlinked", Weather::half_open(), STAGES[2]),
        ("refused", Weather::refusing(), STAGES[0]),
    ];
    for (run, weather, step) in weathers {
        let mut network = Network::start(&lab, run, 3);
        network.reaches(step);
        network.control[1].set_weather(weather);
        network.ends_like_the_quiet_run();
        // One that hears nothing is at work until it has to hear something.
        let lost = network.lost();
        let may_stay = run == "uninformed" && lost.is_empty();
        assert!(lost == ["worker-1"] || may_stay, "{run}: {lost:?}");
    }
}

#[test]
fn connections_to_the_coordinator_that_break_cost_no_worker() {
    let lab = Lab::enter();
    let mut network = Network::start(&lab, "broken-lines", 3);
    for step in STAGES {
        network.reaches(step);
        for proxy in &network.control {
            proxy.set_weather(Weather::resetting());
        }
        std::thread::sleep(Duration::from_millis(50));
        network.control.iter().for_each(Proxy::heal);
    }
    network.ends_like_the_quiet_run();
    assert_eq!(network.generations(), [3]);
}

/// For longer than a worker may be silent: it is the coordinator that is out of reach.
#[test]
fn a_coordinator_that_nobody_reaches_for_a_while_loses_nobody() {
    let lab = Lab::enter();
    let mut network = Network::start(&lab, "alone", 3);
    let weathers = [
        (2, Weather::refusing()),
        (STAGES[0] + 3, Weather::half_open()),
        (STAGES[1], Weather::deaf()),
        (STAGES[2], Weather::holding()),
    ];
    for (step, weather) in weathers {
        network.reaches(step);
        for proxy in &network.control {
            proxy.set_weather(weather);
        }
        std::thread::sleep(Duration::from_millis(2500));
        network.control.iter().for_each(Proxy::heal);
        network.hears_all();
    }
    network.ends_like_the_quiet_run();
    assert_eq!(network.lost(), [""; 0]);
    assert_eq!(network.generations(), [3]);
}
