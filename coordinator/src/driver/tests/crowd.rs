//! Thousands of members: what must not be done for each of them, and the memory that they take.

use std::{fs, process::Command as Process};

use super::*;

/// Says that this process is the one that is measured.
const MEASURED: &str = "MKS2_TEST_CROWD";
const MANY: u64 = 100_000;

/// A driver in whose generation so many are at work; their voices, and what they are told.
async fn crowd(members: u32) -> (Parts, Vec<Voice>, Vec<Received>) {
    let limits = Limits {
        // Nobody beats before all are here.
        silence: Duration::from_secs(3600),
        ..Limits::default()
    };
    let mut parts = parts(members, limits);
    let (mut voices, mut told) = (Vec::new(), Vec::new());
    for number in 0..members.into() {
        let reply = || oneshot::channel().0;
        let register = Command::Register(registration(number), reply());
        parts.driver.take(register);
        let (directives, received) = mpsc::channel(16);
        parts.driver.take(Command::Attach {
            stream: parts.handle.new_stream(),
            who: who(number),
            directives,
            reply: reply(),
        });
        parts.driver.carry_out().await;
        voices.push(Voice::new(&parts.handle, who(number)));
        told.push(received);
    }
    let task = parts.tasks.try_recv().expect("a record");
    assert!(matches!(
        task,
        Task::Record(Entry::GenerationFormed { .. }, _)
    ));
    parts.driver.written(Done::Fine);
    parts.driver.carry_out().await;
    (parts, voices, told)
}

fn beat(count: u64) -> v1::report::Kind {
    v1::report::Kind::Heartbeat(v1::Heartbeat {
        phase: v1::Phase::Computing.into(),
        collective: count,
        ..v1::Heartbeat::default()
    })
}

#[tokio::test]
async fn heartbeats_are_looked_at_together() {
    let (mut parts, voices, _told) = crowd(10_000).await;
    let before = parts.driver.machine.looks.get();
    for round in 1..=10 {
        for voice in &voices {
            assert!(voice.say(Generation(1), beat(round)).await);
        }
        parts.driver.hear();
        parts.driver.apply(Event::Tick);
        parts.driver.carry_out().await;
    }
    let looks = parts.driver.machine.looks.get() - before;
    assert!(
        (10..=20).contains(&looks),
        "all members were looked at {looks} times for 100,000 heartbeats"
    );
    let status = parts
        .driver
        .machine
        .status(clock::since(parts.driver.started));
    assert!(status.members.iter().all(|member| member.collective == 10));
}

#[tokio::test]
async fn all_are_told_the_same_bytes() {
    let (_parts, _voices, mut told) = crowd(1_000).await;
    let mut bytes = Vec::new();
    for received in &mut told {
        let directive = received.try_recv().expect("told").expect("no refusal");
        let Some(Kind::Generation(generation)) = directive.kind else {
            panic!("a generation was due")
        };
        bytes.push(generation);
    }
    assert!(
        bytes
            .iter()
            .all(|other| other.as_ptr() == bytes[0].as_ptr())
    );
    let generation = dial::generation(&bytes[0]).expect("a generation");
    assert_eq!(generation.members.len(), 1_000);
}

/// In a process of its own, since it is that one's memory.
#[test]
fn a_hundred_thousand_members_take_less_than_a_gibibyte() {
    if std::env::var_os(MEASURED).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        return runtime.expect("a runtime").block_on(be_many());
    }
    let name = "driver::tests::crowd::a_hundred_thousand_members_take_less_than_a_gibibyte";
    let mut process = Process::new(std::env::current_exe().expect("this program"));
    process
        .args(["--exact", name, "--nocapture"])
        .env(MEASURED, "1");
    let output = process.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let peak = text.lines().find_map(|line| line.strip_prefix("peak "));
    let peak: u64 = peak.and_then(|kib| kib.parse().ok()).expect("a figure");
    println!("{MANY} members: {} MiB", peak >> 10);
    assert!(peak < 1 << 20, "{} MiB", peak >> 10);
}

/// Everybody comes, beats and is shown.
async fn be_many() {
    let (mut parts, voices, told) = crowd(u32::try_from(MANY).expect("few")).await;
    for round in 1..=3 {
        for voice in &voices {
            assert!(voice.say(Generation(1), beat(round)).await);
        }
        parts.driver.hear();
        parts.driver.apply(Event::Tick);
        parts.driver.carry_out().await;
    }
    assert_eq!(told.len() as u64, MANY);
    // One is shown and one is on its way, beside the one that is shown already.
    let status = || {
        parts
            .driver
            .machine
            .status(clock::since(parts.driver.started))
    };
    let both = [status(), status()];
    assert!(
        both.iter()
            .all(|status| status.members.len() as u64 == MANY)
    );
    let text = fs::read_to_string("/proc/self/status").expect("a Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    // On a line of its own: the harness has begun one.
    println!("\npeak {}", kib.expect("a figure"));
}
