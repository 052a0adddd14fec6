use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use super::*;

mod door;
mod pulse;

const TOKEN: &str = "secret of the run";

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// What happens at once happens within this, also where the machine is busy; the limits are longer.
const AT_ONCE: Duration = Duration::from_secs(60);

/// Waits until it is so.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not in 60 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until as many have come here.
#[track_caller]
fn meet(came: &AtomicUsize, count: usize) {
    came.fetch_add(1, Ordering::SeqCst);
    until("all are here", || came.load(Ordering::SeqCst) >= count);
}

fn limits(shared_memory: bool) -> Limits {
    Limits {
        connect: Duration::from_secs(60),
        silence: Duration::from_secs(120),
        shared_memory,
        ..Limits::default()
    }
}

fn roster(listeners: &[DataListener], rank: usize) -> Roster {
    let addresses = listeners.iter().map(DataListener::address).collect();
    Roster {
        run_id: "run".into(),
        token: TOKEN.into(),
        generation: 3,
        rank,
        addresses,
        broken: None,
    }
}

/// Runs `body` on every rank of a fresh mesh, each on its own thread.
fn with_mesh<T: Send>(world: usize, limits: &Limits, body: impl Fn(Mesh) -> T + Sync) -> Vec<T> {
    let listeners: Vec<_> = (0..world)
        .map(|_| DataListener::bind(local()).unwrap())
        .collect();
    let (listeners, body) = (&listeners, &body);
    std::thread::scope(|scope| {
        let rank = |rank: usize| {
            scope.spawn(move || {
                let roster = roster(listeners, rank);
                body(Mesh::form(&listeners[rank], &roster, limits, &AbortFlag::new()).unwrap())
            })
        };
        let threads: Vec<_> = (0..world).map(rank).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn all_operations(mut mesh: Mesh) {
    let (rank, world) = (mesh.rank(), mesh.world());
    for len in [0usize, 1, 17, 1000, 300_001] {
        let ints: Vec<i64> = (0..len)
            .map(|at| (at * 1000 + rank) as i64 - 5000)
            .collect();
        let own = mesh.own_shard(len);
        let mut sums = vec![-1; own.len()];
        mesh.reduce_scatter_i64(&ints, &mut |at, block| {
            sums[at..at + block.len()].copy_from_slice(block)
        })
        .unwrap();
        let expected = |at: usize| {
            (0..world)
                .map(|rank| (at * 1000 + rank) as i64 - 5000)
                .sum::<i64>()
        };
        assert!(own.zip(&sums).all(|(at, &sum)| sum == expected(at)));

        let mut floats: Vec<f32> = (0..len).map(|at| (at % 100 + rank) as f32).collect();
        mesh.all_reduce_f32(&mut floats).unwrap();
        let expected = |at: usize| (0..world).map(|rank| (at % 100 + rank) as f32).sum::<f32>();
        assert!(
            floats
                .iter()
                .enumerate()
                .all(|(at, &sum)| sum == expected(at))
        );

        let message = vec![rank as u8; len + rank];
        let all = mesh.all_gather(&message).unwrap();
        assert!(
            all.iter()
                .enumerate()
                .all(|(rank, got)| *got == vec![rank as u8; len + rank])
        );
        for root in 0..world {
            assert_eq!(
                mesh.broadcast(root, &message).unwrap(),
                vec![root as u8; len + root]
            );
            // To the last rank alone.
            let received = mesh.multicast(root, &[world - 1], &message).unwrap();
            let expected = match rank + 1 == world {
                true => vec![root as u8; len + root],
                false => Vec::new(),
            };
            assert_eq!(received, expected);
        }
    }
    mesh.barrier().unwrap();
    assert_eq!(mesh.sequence(), 5 * (4 + 2 * world as u64) + 1);
}

#[test]
fn every_operation_in_every_small_world_over_sockets() {
    (1..=5).for_each(|world| drop(with_mesh(world, &limits(false), all_operations)));
}

#[test]
fn every_operation_in_every_small_world_through_shared_memory() {
    for world in 1..=5 {
        with_mesh(world, &limits(true), |mesh| {
            assert_eq!(mesh.shared_links(), world - 1);
            all_operations(mesh);
        });
    }
}

/// fp32 sums have the same bits on all ranks and in every run, whatever arrives first.
#[test]
fn sums_of_fp32_are_the_same_everywhere() {
    let sums = |mut mesh: Mesh| {
        let rank = mesh.rank();
        let mut values: Vec<f32> = (0..100_000)
            .map(|at| ((at * 7 + rank * 13) as f32).sin())
            .collect();
        std::thread::sleep(Duration::from_millis((rank as u64 * 7) % 5));
        mesh.all_reduce_f32(&mut values).unwrap();
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    let all: Vec<_> = [true, false]
        .into_iter()
        .flat_map(|shared| with_mesh(4, &limits(shared), sums))
        .collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn ranks_in_different_operations_are_told_so() {
    for shared in [true, false] {
        let errors = with_mesh(2, &limits(shared), |mut mesh| {
            let error = match mesh.rank() {
                0 => mesh
                    .reduce_scatter_i64(&[0; 64], &mut |_, _| ())
                    .unwrap_err(),
                _ => mesh.all_gather_f32(&mut [0.0; 64]).unwrap_err(),
            };
            assert!(matches!(mesh.barrier(), Err(CollectiveError::Broken(_))));
            error
        });
        assert!(
            errors
                .iter()
                .any(|error| matches!(error, CollectiveError::Mismatch { .. })),
            "{errors:?}"
        );
    }
}

#[test]
fn buffers_of_different_length_are_told_so() {
    let errors = with_mesh(2, &limits(true), |mut mesh| {
        let len = 64 + 32 * mesh.rank();
        let error = mesh.all_gather_f32(&mut vec![0.0; len]).unwrap_err();
        (
            matches!(error, CollectiveError::Mismatch { .. }),
            error.to_string(),
        )
    });
    assert!(errors.iter().any(|(mismatch, _)| *mismatch), "{errors:?}");
    let text = "rank 1 at 127.0.0.1";
    assert!(
        errors.iter().any(|(_, error)| error.contains(text)),
        "{errors:?}"
    );
}

#[test]
fn a_peer_that_goes_away_is_named_at_once() {
    for shared in [true, false] {
        let (start, survivors) = (Instant::now(), AtomicUsize::new(0));
        let errors = with_mesh(3, &limits(shared), |mut mesh| {
            mesh.barrier().unwrap();
            if mesh.rank() == 2 {
                return None;
            }
            let error = mesh.all_reduce_f32(&mut vec![1.0; 1 << 20]).unwrap_err();
            // Stay until both have seen it, so that nobody blames the other survivor.
            meet(&survivors, 2);
            Some(error)
        });
        for error in errors.into_iter().flatten() {
            assert_eq!(error.rank(), Some(2), "{error}");
            assert!(
                error
                    .to_string()
                    .contains("fp32 reduce-scatter 2 of generation 3"),
                "{error}"
            );
        }
        assert!(start.elapsed() < AT_ONCE);
    }
}

#[test]
fn a_silent_peer_is_named_after_the_deadline() {
    for shared in [true, false] {
        let limits = Limits {
            silence: Duration::from_millis(200),
            ..limits(shared)
        };
        let is_named = AtomicBool::new(false);
        let results = with_mesh(2, &limits, |mut mesh| {
            if mesh.rank() == 1 {
                until("it is named", || is_named.load(Ordering::SeqCst));
                return String::new();
            }
            let error = mesh.barrier().unwrap_err();
            is_named.store(true, Ordering::SeqCst);
            error.to_string()
        });
        assert!(
            results[0].starts_with("nothing came from rank 1 at 127.0.0.1"),
            "{results:?}"
        );
        assert!(
            results[0].ends_with("for 0.2 s in all-gather 1 of generation 3"),
            "{results:?}"
        );
    }
}

#[test]
fn an_abort_is_noticed_at_once() {
    for shared in [true, false] {
        let is_noticed = AtomicBool::new(false);
        with_mesh(2, &limits(shared), |mut mesh| {
            if mesh.rank() == 1 {
                until("it is noticed", || is_noticed.load(Ordering::SeqCst));
                return;
            }
            let abort = mesh.watch.abort.clone();
            let raised = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                abort.abort("generation 4 was formed");
                Instant::now()
            });
            let error = mesh.barrier().unwrap_err();
            is_noticed.store(true, Ordering::SeqCst);
            assert!(raised.join().unwrap().elapsed() < AT_ONCE);
            assert_eq!(
                error.to_string(),
                "the collective was aborted: generation 4 was formed"
            );
        });
    }
}

#[test]
fn a_message_over_the_limit_is_refused_by_both_sides() {
    let small = Limits {
        message_bytes: 1000,
        ..limits(true)
    };
    let mut alone = Mesh::alone();
    alone.limits = small.clone();
    assert!(matches!(
        alone.all_gather(&[0; 1001]),
        Err(CollectiveError::Usage(_))
    ));
    let errors = with_mesh(2, &small, |mut mesh| {
        if mesh.rank() == 1 {
            mesh.limits.message_bytes = 2000;
        }
        mesh.all_gather(&vec![0; 500 + 1000 * mesh.rank()])
            .map_err(|error| error.to_string())
    });
    assert!(
        errors[0]
            .as_ref()
            .unwrap_err()
            .contains("(1500 bytes) in all-gather 1"),
        "{errors:?}"
    );
}

#[test]
fn strangers_do_not_disturb_the_forming() {
    let listeners: Vec<_> = (0..2)
        .map(|_| DataListener::bind(local()).unwrap())
        .collect();
    let mut noise = TcpStream::connect(listeners[0].address()).unwrap();
    noise.write_all(&[b'x'; 200]).unwrap();
    drop(TcpStream::connect(listeners[0].address()).unwrap());
    let listeners = &listeners;
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let roster = roster(listeners, rank);
                Mesh::form(&listeners[rank], &roster, &limits(true), &AbortFlag::new())
                    .unwrap()
                    .barrier()
                    .unwrap();
            });
        }
    });
}

/// Rank 1 changes its roster; both results.
fn form_two(change: impl Fn(&mut Roster) + Sync) -> Vec<Result<()>> {
    let listeners: Vec<_> = (0..2)
        .map(|_| DataListener::bind(local()).unwrap())
        .collect();
    let (listeners, change) = (&listeners, &change);
    let limits = Limits {
        // Both have met by then, also where the machine is busy.
        connect: Duration::from_secs(5),
        ..limits(true)
    };
    let limits = &limits;
    std::thread::scope(|scope| {
        let rank = |rank: usize| {
            scope.spawn(move || {
                let mut roster = roster(listeners, rank);
                if rank == 1 {
                    change(&mut roster);
                }
                Mesh::form(&listeners[rank], &roster, limits, &AbortFlag::new()).map(drop)
            })
        };
        let threads: Vec<_> = (0..2).map(rank).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

#[test]
fn a_wrong_token_run_or_generation_never_gets_in() {
    let told =
        |results: &[Result<()>], rank: usize| results[rank].as_ref().unwrap_err().to_string();
    let [token, run, stale] = std::thread::scope(|scope| {
        let token = scope.spawn(|| form_two(|roster| roster.token = "guess".into()));
        let run = scope.spawn(|| form_two(|roster| roster.run_id = "other".into()));
        let stale = scope.spawn(|| form_two(|roster| roster.generation = 2));
        [token, run, stale].map(|formed| formed.join().unwrap())
    });
    assert!(
        told(&token, 0).contains("wrong proof of the run's token"),
        "{}",
        told(&token, 0)
    );
    assert!(told(&token, 1).contains("rank 0 at 127.0.0.1"));
    assert!(
        told(&run, 1).contains("it belongs to another run"),
        "{}",
        told(&run, 1)
    );
    assert!(
        told(&stale, 1).contains("it is in generation 3, this worker in 2"),
        "{}",
        told(&stale, 1)
    );
    assert!(
        told(&stale, 0).contains("rank 1 of generation 2 was turned away"),
        "{}",
        told(&stale, 0)
    );
}

#[test]
fn a_taken_port_is_said() {
    let first = DataListener::bind(local()).unwrap();
    let error = DataListener::bind(first.address()).unwrap_err();
    assert!(
        error.to_string().contains(&first.address().to_string()),
        "{error}"
    );
}

#[test]
fn a_missing_peer_is_named_and_an_abort_ends_the_waiting() {
    let listeners: Vec<_> = (0..2)
        .map(|_| DataListener::bind(local()).unwrap())
        .collect();
    let short = Limits {
        connect: Duration::from_millis(100),
        ..limits(true)
    };
    let error = Mesh::form(
        &listeners[0],
        &roster(&listeners, 0),
        &short,
        &AbortFlag::new(),
    )
    .map(drop)
    .unwrap_err();
    assert!(
        error.to_string().starts_with("rank 1 at 127.0.0.1"),
        "{error}"
    );
    let abort = AbortFlag::new();
    abort.abort("stop");
    let start = Instant::now();
    let formed = Mesh::form(&listeners[0], &roster(&listeners, 0), &limits(true), &abort);
    let error = formed.map(drop).unwrap_err().to_string();
    assert_eq!(error, "the collective was aborted: stop");
    assert!(start.elapsed() < AT_ONCE);
}

#[test]
fn a_schedule_that_differs_is_found_before_it_hangs() {
    let results = with_mesh(3, &limits(true), |mut mesh| {
        let digest = blake3::hash(&[u8::from(mesh.rank() == 2)]);
        schedule::agree(&mut mesh, "schedule", &digest).map_err(|error| error.to_string())
    });
    for result in results {
        assert_eq!(
            result.unwrap_err(),
            "the schedule of ranks [2] differs from that of rank 0"
        );
    }
}
