//! Strangers at the ports of a run: what they say changes no bit, and leaves nothing behind.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mks2_proto::dial::Target;
use mks2_proto::ids::Token;
use mks2_proto::v1::{RegisterRequest, StatusRequest};

use crate::gates::Gates;
use crate::lab::{Lab, awaited, signal, workers_of};

/// What is said at a port.
const WORDS: [&[u8]; 8] = [
    b"",
    b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
    b"mks2mesh",
    b"mks2mesh\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0",
    b"mksf\x01\x01\0\0",
    // Half of the beginning of HTTP/2, and all of it with a frame of 16 MiB behind.
    b"PRI * HTTP/2.0\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x04\0\0\0\0\0",
    // A TLS client's first words.
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
];

/// Fire at some ports until it is over; every fourth connection stays and says nothing more.
fn fire(ports: &[SocketAddr], over: &AtomicBool, shots: &AtomicU64) {
    let mut silent = Vec::new();
    for turn in 0_usize.. {
        for port in ports {
            if over.load(Ordering::Relaxed) {
                return;
            }
            let Ok(mut stream) = TcpStream::connect_timeout(port, Duration::from_secs(1)) else {
                continue;
            };
            shots.fetch_add(1, Ordering::Relaxed);
            let noise = blake3::hash(&turn.to_le_bytes());
            let noise = noise.as_bytes().repeat(1 + turn % 64);
            let words = WORDS.get(turn % 16).copied().unwrap_or(&noise);
            // It may have been closed already.
            let _closed = stream.write_all(words);
            if turn % 4 == 0 && silent.len() < 500 {
                silent.push(stream);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lets this process have as many connections as it may.
fn make_room() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("allowed");
}

/// Asks the coordinator with tokens that are not the run's, and counts its answers.
fn ask_with_wrong_tokens(endpoint: &str, over: &AtomicBool, refused: &AtomicU64) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for turn in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let token = Token::new(&format!("not-the-token-of-this-run-{turn}")).expect("a token");
        let target = Target::new(endpoint, token);
        runtime.block_on(async {
            // It may be busy with the others.
            let Ok(mut client) = target.connect().await else {
                return;
            };
            let register = RegisterRequest {
                member_id: "worker-0".into(),
                ..RegisterRequest::default()
            };
            assert!(client.status(StatusRequest {}).await.is_err());
            assert!(client.register(register).await.is_err());
            refused.fetch_add(1, Ordering::Relaxed);
        });
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// File descriptors, threads and memory of a process.
#[derive(Clone, Copy, Debug)]
struct Usage {
    descriptors: usize,
    threads: usize,
    resident_mib: u64,
}

fn usage(pid: u32) -> Usage {
    let count =
        |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Usage {
        descriptors: count("fd"),
        threads: count("task"),
        resident_mib: kib.unwrap_or_default() / 1024,
    }
}

/// Ports of the workers' data planes in the latest generation.
fn data_ports(lab: &Lab, run: &str) -> Vec<SocketAddr> {
    let formed = lab.journal(run, "generation-formed");
    let members = formed.last().and_then(|entry| entry["members"].as_array());
    let members = members.into_iter().flatten();
    let port = |member: &serde_json::Value| member["data_address"].as_str()?.parse().ok();
    members.filter_map(port).collect()
}

#[test]
fn strangers_at_every_port_change_no_bit_and_leave_nothing_behind() {
    let lab = Lab::enter();
    lab.quiet();
    make_room();
    let run = "bombarded";
    let mut command = lab.train(run, 3, &[]);
    // Time to look before and after.
    let gates = Gates::new(&lab, run, "worker-0", [3, 21]);
    gates.shut(&mut command, "");
    command.args(["--restarts", "0"]);
    let mut launcher = command.spawn().expect("mks2 starts");
    assert!(lab.reaches(run, 2, &mut launcher), "it ended by itself");
    let contact = std::fs::read(lab.path(run).join("coordinator.json")).expect("a coordinator");
    let contact: serde_json::Value = serde_json::from_slice(&contact).expect("JSON");
    let endpoint = contact["endpoint"].as_str().expect("text").to_owned();
    let mut ports = data_ports(&lab, run);
    assert_eq!(ports.len(), 3);
    ports.push(
        endpoint
            .trim_start_matches("http://")
            .parse()
            .expect("an address"),
    );
    let workers = workers_of(launcher.id());
    let survivors = [workers[0], workers[1]];
    let before = survivors.map(usage);
    let over = &AtomicBool::new(false);
    let (shots, refused) = (&AtomicU64::new(0), &AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| fire(&ports, over, shots));
        }
        scope.spawn(|| ask_with_wrong_tokens(&endpoint, over, refused));
        gates.open(3);
        let reached = lab.reaches(run, 9, &mut launcher);
        // A mesh forms under fire, too.
        signal(workers[2], "KILL");
        let reached = reached && lab.reaches(run, 20, &mut launcher);
        let is_enough = || {
            let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
            count(shots) > 1_000 && count(refused) > 0
        };
        let enough = reached && soon(is_enough);
        over.store(true, Ordering::Relaxed);
        assert!(reached, "it ended by itself");
        assert!(enough, "{shots:?} shots, {refused:?} refused");
    });
    // Whoever said nothing is shown out after a while.
    let is_clean = || {
        let pairs = before.into_iter().zip(survivors.map(usage));
        pairs.into_iter().all(nothing_is_left_behind)
    };
    assert!(soon(is_clean), "{before:?}, {:?}", survivors.map(usage));
    gates.open_all();
    let ended = awaited(launcher);
    ended.done();
    lab.equals_quiet(run);
    lab.has_a_ledger_that_holds(run);
    assert!(ended.err.contains("worker-2 was lost"), "{}", ended.err);
}

/// Whether it is so within a minute.
fn soon(is_so: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

fn nothing_is_left_behind((before, after): (Usage, Usage)) -> bool {
    after.descriptors > 0
        && after.descriptors <= before.descriptors + 8
        // Threads of the runtime for blocking calls come and go; one left by each shot would be hundreds.
        && after.threads <= before.threads + 8
        && after.resident_mib <= before.resident_mib + 48
}
