//! Every process on a machine of its own, as far as the network is concerned: in its own network
//! namespace, at a switch that can lose packets. Needs the rights of root and iproute2.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::cluster::announced;
use crate::lab::{Lab, program};
use crate::network::{Network, contract, work};

/// Beginning of the namespaces' names; the process that made them follows.
const PREFIX: &str = "mks2-test-";
/// Where frames are sent to be lost.
const NOBODY: &str = "02:00:00:00:00:99";

/// Machines at a switch. Number 0 is the coordinator's.
struct Lan {
    machines: u8,
}

fn name(place: &str) -> String {
    format!("{PREFIX}{}-{place}", std::process::id())
}

fn machine(number: u8) -> String {
    name(&format!("m{number}"))
}

fn switch() -> String {
    name("switch")
}

fn address(number: u8) -> String {
    format!("10.99.0.{}", number + 1)
}

fn ip(arguments: &str) -> Result<(), String> {
    let ended = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .map_err(|error| format!("ip: {error}"))?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(format!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&ended.stderr).trim()
        )),
    }
}

impl Lan {
    fn build(machines: u8) -> Result<Self, String> {
        sweep();
        let lan = Self { machines };
        let switch = switch();
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add br0 type bridge"))?;
        ip(&format!("-n {switch} link set br0 up"))?;
        for number in 0..machines {
            let (own, address) = (machine(number), address(number));
            ip(&format!("netns add {own}"))?;
            ip(&format!(
                "link add eth0 netns {own} type veth peer name port{number} netns {switch}"
            ))?;
            ip(&format!("-n {own} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {own} link set lo up"))?;
            ip(&format!("-n {own} link set eth0 up"))?;
            ip(&format!("-n {switch} link set port{number} master br0 up"))?;
        }
        Ok(lan)
    }

    /// None, and a word about it that nobody captures, where the machine does not allow it.
    fn or_skip(machines: u8) -> Option<Self> {
        match Self::build(machines) {
            Ok(lan) => Some(lan),
            Err(why) => {
                sweep();
                let mut stderr = std::io::stderr();
                let _closed = writeln!(stderr, "SKIPPED: no network namespaces here: {why}");
                None
            }
        }
    }

    /// From now on the switch forwards nothing of a machine, and nothing to it.
    fn unplug(&self, number: u8) {
        ip(&format!("-n {} link set port{number} nomaster", switch())).expect("unplugged");
    }

    fn plug(&self, number: u8) {
        let switch = switch();
        ip(&format!("-n {switch} link set port{number} master br0")).expect("plugged");
    }

    /// What one machine sends to the other is lost from now on.
    fn lose(&self, from: u8, to: u8) {
        let (own, to) = (machine(from), address(to));
        let lost = format!("-n {own} neigh replace {to} lladdr {NOBODY} dev eth0 nud permanent");
        ip(&lost).expect("changed");
    }

    fn run<'a>(&self, lab: &'a Lab, run: &'a str) -> Network<'a> {
        lab.quiet();
        let workers = u32::from(self.machines) - 1;
        let office = format!("{}:7000", address(0));
        let inside = lab.coordinate(run, workers, &office);
        let mut command = at(0, inside.get_program());
        command.args(inside.get_args());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let (coordinator, run_id) = announced(command);
        let office: SocketAddr = office.parse().expect("an address");
        let worker = |rank: u32| {
            let number = u8::try_from(rank).expect("few") + 1;
            let own = format!("{}:0", address(number));
            let contract = contract(rank, workers, &office, &own);
            let command = at(number, program("mks2-worker").get_program());
            work(lab, run, command, &contract, &run_id)
        };
        let workers = (0..workers).map(worker).collect();
        Network::of(lab, run, coordinator, workers)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        sweep();
    }
}

/// A program in a machine's namespace; it becomes the process that is started.
fn at(number: u8, program: &std::ffi::OsStr) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &machine(number)])
        .arg(program);
    command.current_dir(crate::lab::root()).stdin(Stdio::null());
    command
}

/// Removes this process's namespaces, and those of processes that have ended without doing so.
fn sweep() {
    let Ok(folder) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for entry in folder.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let pid = rest.split('-').next().unwrap_or_default();
        let is_own = pid == std::process::id().to_string();
        if is_own || !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            // Somebody else may have been as quick.
            let _gone = ip(&format!("netns del {name}"));
        }
    }
}

#[test]
fn a_machine_that_loses_its_network_is_given_up() {
    let lab = Lab::enter();
    let Some(lan) = Lan::or_skip(4) else {
        return;
    };
    let mut network = lan.run(&lab, "unplugged");
    network.reaches(11);
    // Its own trainer waits for the others, and for the coordinator.
    lan.unplug(3);
    network.finishes();
    assert_eq!(network.lost(), ["worker-2"]);
    lan.plug(3);
    network.ends_like_the_quiet_run();
}

#[test]
fn packets_that_are_lost_between_two_workers_cost_one_of_them() {
    let lab = Lab::enter();
    for (run, ways) in [("one-way", &[(2, 3)][..]), ("both-ways", &[(2, 3), (3, 2)])] {
        let Some(lan) = Lan::or_skip(4) else {
            return;
        };
        let mut network = lan.run(&lab, run);
        network.reaches(11);
        for (from, to) in ways {
            lan.lose(*from, *to);
        }
        network.ends_like_the_quiet_run();
        let lost = network.lost();
        assert_eq!(lost.len(), 1, "{run}: {lost:?}");
        assert!(
            lost[0] == "worker-1" || lost[0] == "worker-2",
            "{run}: {lost:?}"
        );
    }
}

#[test]
fn a_coordinator_whose_network_comes_back_has_lost_nobody() {
    let lab = Lab::enter();
    let Some(lan) = Lan::or_skip(4) else {
        return;
    };
    let mut network = lan.run(&lab, "plugged-again");
    network.reaches(11);
    lan.unplug(0);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    lan.plug(0);
    network.ends_like_the_quiet_run();
    assert_eq!(network.lost(), [""; 0]);
    assert_eq!(network.generations(), [3]);
}

#[test]
fn a_worker_that_the_coordinator_does_not_hear_is_lost() {
    let lab = Lab::enter();
    let Some(lan) = Lan::or_skip(4) else {
        return;
    };
    let mut network = lan.run(&lab, "not-heard");
    network.reaches(11);
    // It hears the coordinator well.
    lan.lose(3, 0);
    network.ends_like_the_quiet_run();
    assert_eq!(network.lost(), ["worker-2"]);
}
