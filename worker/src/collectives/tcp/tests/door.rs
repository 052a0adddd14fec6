//! Strangers at the port, while a mesh forms and while it works: nothing changes.

use std::io::Read;

use super::*;
use crate::collectives::frame::Header;
use crate::collectives::handshake::{Purpose, Seat, Secret, call};
use crate::collectives::{Identity, Kind};

/// Lets this process have as many connections as it may: there are hundreds of strangers here.
fn make_room() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Everything that strangers may say.
fn garbage(turn: u64) -> Vec<u8> {
    let noise = blake3::hash(&turn.to_le_bytes());
    let identity = Identity {
        generation: 3,
        sequence: 1,
        kind: Kind::AllGather,
    };
    let header = Header {
        identity,
        total: u64::MAX,
        offset: 0,
        length: u32::MAX,
    };
    match turn % 6 {
        0 => noise.as_bytes().repeat(1 + turn as usize % 200),
        1 => b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n".to_vec(),
        2 => b"mks2mesh".to_vec(),
        3 => header.encode().repeat(3),
        4 => vec![0xff; 200],
        _ => Vec::new(),
    }
}

/// Connects as a worker that knows `token` of `run`.
fn call_as(address: SocketAddr, run: &str, token: &str, generation: u64) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let secret = Secret::new(run, token);
    let seat = Seat {
        generation,
        world: 3,
        rank: 2,
    };
    runtime.block_on(async {
        let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else {
            return false;
        };
        let hello = secret.hello(seat);
        let called = call(&mut stream, &secret, &hello, Purpose::Link).await;
        called.is_ok()
    })
}

/// A worker of the run comes in. It tries again, as workers do: the door takes one that was too slow for a
/// stranger.
#[track_caller]
fn is_let_in(address: SocketAddr, generation: u64) {
    until("it is let in", || {
        call_as(address, "run", TOKEN, generation)
    });
}

/// Says one thing after the other until `over`; every third connection stays open and silent.
fn bombard(address: SocketAddr, over: &AtomicBool, count: &AtomicUsize) {
    let mut silent = Vec::new();
    for turn in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        if turn % 50 == 49 {
            assert!(!call_as(address, "run", "guess", 3));
            assert!(!call_as(address, "other", TOKEN, 3));
        }
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else {
            continue;
        };
        count.fetch_add(1, Ordering::Relaxed);
        // It may have been closed already.
        let _closed = stream.write_all(&garbage(turn));
        if turn % 3 == 0 && silent.len() < 300 {
            silent.push(stream);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

#[test]
fn a_bombarded_mesh_forms_and_computes_the_same() {
    make_room();
    let listeners: Vec<_> = (0..3)
        .map(|_| DataListener::bind(local()).unwrap())
        .collect();
    for listener in &listeners {
        listener.open("run", TOKEN).unwrap();
    }
    let (over, count) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    let listeners = &listeners;
    std::thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(move || bombard(listener.address(), over, count));
        }
        // So many that the door is full of those that say nothing.
        until("strangers come", || count.load(Ordering::Relaxed) > 1500);
        let rank = |rank: usize| {
            scope.spawn(move || {
                for generation in 1..4 {
                    let roster = Roster {
                        generation,
                        ..roster(listeners, rank)
                    };
                    let flag = AbortFlag::new();
                    let mesh = Mesh::form(&listeners[rank], &roster, &limits(false), &flag);
                    all_operations(mesh.unwrap());
                }
            })
        };
        let ranks: Vec<_> = (0..3).map(rank).collect();
        let ended: Vec<_> = ranks.into_iter().map(|rank| rank.join()).collect();
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|rank| rank.unwrap());
    });
}

/// Hundreds that say nothing take no place for long, and none from those that do.
#[test]
fn a_crowd_that_says_nothing_keeps_nobody_out() {
    make_room();
    let listener = DataListener::bind(local()).unwrap();
    listener.open("run", TOKEN).unwrap();
    let address = listener.address();
    let mut silent = Vec::new();
    let called = |_| {
        silent = (0..600)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let began = Instant::now();
        is_let_in(address, 3);
        began.elapsed()
    };
    // Whoever waited for the crowd to be shown out would wait two seconds each time; a busy machine takes
    // time now and then.
    let quickest = (0..5).map(called).min().unwrap();
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    (0..20).for_each(|_| is_let_in(address, 3));
    // All of them are shown out in the end.
    for mut stream in silent {
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        // A process that was stopped meanwhile reads again.
        let ended = stream.read_to_end(&mut Vec::new());
        let shown_out = match &ended {
            Ok(count) => *count == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        };
        assert!(shown_out, "{ended:?}");
    }
}

/// A worker of an earlier or a later generation, and one that is not in the roster, change nothing.
#[test]
fn members_of_other_generations_do_not_disturb_the_forming() {
    let listeners: Vec<_> = (0..2)
        .map(|_| DataListener::bind(local()).unwrap())
        .collect();
    for listener in &listeners {
        listener.open("run", TOKEN).unwrap();
    }
    let (listeners, over) = (&listeners, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for generation in (0..).map(|turn| turn % 7) {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                is_let_in(listeners[0].address(), generation);
            }
        });
        let ranks = [0, 1].map(|rank| {
            scope.spawn(move || {
                let roster = roster(listeners, rank);
                let flag = AbortFlag::new();
                let formed = Mesh::form(&listeners[rank], &roster, &limits(true), &flag);
                formed.and_then(|mut mesh| mesh.barrier())
            })
        });
        let ended = ranks.map(|rank| rank.join().unwrap());
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|rank| rank.unwrap());
    });
}
