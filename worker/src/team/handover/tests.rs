//! Handovers between threads over a real mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use mks2_proto::job::Reduction;
use mks2_proto::params::{Init, ParamSpec};
use tch::Device;

use super::*;
use crate::collectives::tcp::{DataListener, local_listeners};
use crate::collectives::{AbortFlag, Limits};
use crate::exact::Reducer;
use crate::flat::FlatLayout;
use crate::rehearsal::mesh;
use crate::replica::Flip;
use crate::team::{Part, Point};

/// What became of a member: its state, or why it could not take part.
type Outcome = Result<Option<(Vec<u8>, Progress)>, String>;

/// What a thread brings along: tensors stay with it.
#[derive(Clone, Copy)]
enum Member {
    /// Has the state of this step.
    Veteran(u64),
    /// The same, with a bit lost.
    Damaged(u64),
    /// Is at this step and has none.
    Stateless(u64),
    /// Needs it; has received so many bytes of this step's before.
    Newcomer { received: usize, of: u64 },
    /// Calls what it has received of step 6 a part of step 7's.
    Mistaken { received: usize },
    /// Has prepared another stage.
    Stranger,
}

fn replica(step: Option<u64>) -> Replica {
    let spec = |name, shape: &[usize]| ParamSpec::new(name, shape, Init::Zeros);
    let specs = [spec("a.weight", &[7, 30]), spec("b.bias", &[5])];
    let layout = Arc::new(FlatLayout::new(&specs).unwrap());
    let state = FlatState::new(Arc::clone(&layout), Device::Cpu).unwrap();
    let reducer = Reducer::new(Arc::clone(&layout), Reduction::Exact, 4, Device::Cpu).unwrap();
    let mut replica = Replica::new(state, reducer);
    if let Some(step) = step {
        let values: Vec<f32> = (0..layout.total())
            .map(|at| (at as u64 + step) as f32)
            .collect();
        for buffer in BUFFERS {
            replica.state.load_all(buffer, &values).unwrap();
        }
        replica.progress.step = step;
        replica.progress.loss = Some(0.5);
    }
    replica
}

/// The replicated state as bytes, and the steps.
fn image(replica: &Replica) -> (Vec<u8>, Progress) {
    let buffer = |buffer| le_bytes(&replica.state.host(buffer).unwrap()).to_vec();
    (BUFFERS.map(buffer).concat(), replica.progress.clone())
}

fn standing(committed: u64) -> Standing {
    Standing {
        point: Point {
            stage: 1,
            part: Part::Steps,
        },
        committed,
        compared: 3,
        ..Standing::default()
    }
}

/// What a member has at first.
fn brought(member: Member) -> Replica {
    let mut own = replica(match member {
        Member::Veteran(step) | Member::Damaged(step) => Some(step),
        _ => None,
    });
    if let Member::Damaged(step) = member {
        own.flip(Flip::ExpAvg, step).unwrap();
    }
    own
}

/// One that has received so much of a step's state, and takes it for that of another step.
fn arrived(received: usize, step: u64, of: u64) -> Arrival<'static> {
    let mut one = Arrival::new(None);
    one.received = image(&replica(Some(step))).0[..received].to_vec();
    one.of = Some(standing(of));
    one
}

fn take_part(
    member: Member,
    listener: &DataListener,
    rank: usize,
    addresses: &[SocketAddr],
) -> Outcome {
    let (limits, abort) = (Limits::default(), AbortFlag::new());
    let mut mesh = mesh::form(listener, rank, addresses, &limits, &abort).unwrap();
    let identity = blake3::hash(b"the same");
    let mut own = brought(member);
    let mut arrival = None;
    let mine = match member {
        Member::Veteran(step) | Member::Damaged(step) | Member::Stateless(step) => standing(step),
        Member::Newcomer { received, of } => {
            let one = arrived(received, of, of);
            arrival.insert(one).standing(&standing(0))
        }
        Member::Mistaken { received } => {
            let one = arrived(received, 6, 7);
            arrival.insert(one).standing(&standing(0))
        }
        Member::Stranger => {
            arrival = Some(Arrival::new(None));
            arrival.as_ref().unwrap().standing(&standing(0))
        }
    };
    let all = mesh.all_gather(&mine.encode()).unwrap();
    let all: Vec<_> = all
        .iter()
        .map(|one| Standing::decode(one).unwrap())
        .collect();
    let handed = match (member, arrival) {
        (Member::Veteran(_) | Member::Damaged(_), _) => {
            let original = Original {
                identity,
                replica: &own,
            };
            hand_over(&mut mesh, &all, &mut Role::Veteran(Some(original)))
        }
        (Member::Stateless(_), _) => hand_over(&mut mesh, &all, &mut Role::Veteran(None)),
        (_, Some(before)) => {
            let identity = match member {
                Member::Stranger => blake3::hash(b"another"),
                _ => identity,
            };
            let blank = Blank {
                identity,
                replica: &mut own,
            };
            let mut arrival = Arrival {
                blank: Some(blank),
                ..before
            };
            hand_over(&mut mesh, &all, &mut Role::Newcomer(&mut arrival))
        }
        (_, None) => unreachable!("newcomers arrive"),
    };
    match handed {
        Ok(source) => Ok(source.map(|_| image(&own))),
        Err(Setback::Fatal(failure)) => Err(failure.why),
        Err(Setback::Peers(error)) => Err(error.to_string()),
    }
}

fn meet(members: &[Member]) -> Vec<Outcome> {
    let listeners = local_listeners(members.len()).unwrap();
    let addresses: Vec<_> = listeners.iter().map(DataListener::address).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .iter()
            .zip(members)
            .enumerate()
            .map(|(rank, (listener, member))| {
                let addresses = &addresses;
                scope.spawn(move || take_part(*member, listener, rank, addresses))
            })
            .collect();
        threads.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

#[test]
fn newcomers_get_the_state_of_whoever_is_furthest() {
    let newcomer = Member::Newcomer { received: 0, of: 0 };
    let members = [Member::Veteran(6), newcomer, Member::Veteran(7), newcomer];
    let after = meet(&members);
    let furthest = Ok(Some(image(&replica(Some(7)))));
    assert_eq!(after[1], furthest);
    assert_eq!(after[3], furthest);
    assert_eq!(
        after[0],
        Ok(Some(image(&replica(Some(6))))),
        "a veteran keeps its own"
    );
}

#[test]
fn a_handover_goes_on_where_another_source_ended() {
    // One has half of this step's state, another one something of a step before.
    let members = [
        Member::Veteran(7),
        Member::Newcomer {
            received: 2 * CHUNK,
            of: 7,
        },
        Member::Newcomer {
            received: CHUNK,
            of: 6,
        },
    ];
    for members in [&members[..], &members[..2]] {
        let after = meet(members);
        for newcomer in &after[1..] {
            assert_eq!(newcomer, &Ok(Some(image(&replica(Some(7))))));
        }
    }
}

#[test]
fn what_a_newcomer_has_is_not_sent_again_and_is_in_the_digest() {
    let mistaken = Member::Mistaken { received: CHUNK };
    let after = meet(&[Member::Veteran(7), mistaken]);
    let why = after[1].as_ref().expect_err("its beginning is wrong");
    assert!(why.contains("digest"), "{why}");
}

#[test]
fn a_copy_that_differs_is_not_handed_over() {
    let newcomer = Member::Newcomer { received: 0, of: 0 };
    let (sound, damaged) = (Member::Veteran(7), Member::Damaged(7));
    let words = "differ after step 7, and were alike after step 3; unlike most others: ranks";
    let expect = |members: &[Member], odd: &str| {
        for told in meet(members) {
            let why = told.expect_err("nobody goes on");
            assert!(why.contains(&format!("{words} {odd}")), "{why}");
        }
    };
    // One that is a step behind has nothing to compare.
    let behind = Member::Veteran(6);
    expect(&[damaged, sound, behind, sound, newcomer], "[0]");
    expect(&[sound, damaged, newcomer], "[]");
}

#[test]
fn where_there_is_no_state_none_is_awaited() {
    let after = meet(&[Member::Stateless(3), Member::Stranger]);
    assert!(
        after[1]
            .as_ref()
            .is_err_and(|why| why.contains("another stage")),
        "{after:?}"
    );
}

#[test]
fn veterans_without_state_stand_by() {
    let newcomer = Member::Newcomer { received: 0, of: 0 };
    let after = meet(&[Member::Stateless(6), Member::Veteran(7), newcomer]);
    assert_eq!(after[2], Ok(Some(image(&replica(Some(7))))));
}

#[test]
fn a_stranger_is_told_and_newcomers_alone_know_nothing() {
    let after = meet(&[Member::Veteran(7), Member::Stranger]);
    assert!(
        after[1]
            .as_ref()
            .is_err_and(|why| why.contains("another stage")),
        "{after:?}"
    );
    let newcomer = Member::Newcomer { received: 0, of: 0 };
    for told in meet(&[newcomer, newcomer]) {
        assert!(told.is_err_and(|why| why.contains("were lost")));
    }
}
