//! Peers whose machines do not answer, and those that only compute for long.

use std::io::Read;

use super::*;

/// Takes connections and bytes for `target` and passes them on, until it is told to keep them.
struct Hole {
    address: SocketAddr,
    is_open: Arc<AtomicBool>,
}

impl Hole {
    fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(local()).unwrap();
        let address = listener.local_addr().unwrap();
        let is_open = Arc::new(AtomicBool::new(true));
        let open = Arc::clone(&is_open);
        std::thread::spawn(move || {
            for caller in listener.incoming().map_while(std::result::Result::ok) {
                let far = TcpStream::connect(target).unwrap();
                for (mut from, mut to) in [
                    (caller.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far, caller),
                ] {
                    let open = Arc::clone(&open);
                    std::thread::spawn(move || {
                        let mut bytes = [0; 4096];
                        while let Ok(count @ 1..) = from.read(&mut bytes) {
                            let is_open = open.load(Ordering::Relaxed);
                            if is_open && to.write_all(&bytes[..count]).is_err() {
                                return;
                            }
                        }
                        // Even the end is not passed on.
                        std::thread::sleep(Duration::from_secs(30));
                    });
                }
            }
        });
        Self { address, is_open }
    }

    fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
    }
}

fn behind_holes(world: usize) -> (Vec<DataListener>, Vec<Hole>) {
    let listeners: Vec<_> = (0..world)
        .map(|_| DataListener::bind(local()).unwrap())
        .collect();
    let holes: Vec<_> = listeners
        .iter()
        .map(|listener| Hole::before(listener.address()))
        .collect();
    let listeners = listeners
        .into_iter()
        .zip(&holes)
        .map(|(listener, hole)| listener.behind(hole.address));
    (listeners.collect(), holes)
}

fn advertised(listeners: &[DataListener], rank: usize) -> Roster {
    let addresses = listeners.iter().map(DataListener::advertised).collect();
    Roster {
        addresses,
        ..roster(listeners, rank)
    }
}

#[test]
fn a_network_that_swallows_everything_is_noticed_long_before_a_silent_peer() {
    let (listeners, holes) = behind_holes(2);
    let (listeners, holes, both) = (&listeners, &holes, &std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        for rank in 0..2 {
            scope.spawn(move || {
                let roster = advertised(listeners, rank);
                let flag = AbortFlag::new();
                let mesh = Mesh::form(&listeners[rank], &roster, &limits(true), &flag);
                let mut mesh = mesh.unwrap();
                // What lies between must not be passed by.
                assert_eq!(mesh.shared_links(), 0);
                mesh.barrier().unwrap();
                both.wait();
                if rank == 0 {
                    holes.iter().for_each(Hole::close);
                }
                let began = Instant::now();
                let error = loop {
                    match mesh.barrier() {
                        Ok(()) => {}
                        Err(error) => break error,
                    }
                };
                assert!(began.elapsed() < AT_ONCE, "{error}");
                assert!(error.to_string().contains("has not answered"), "{error}");
                assert_eq!(error.rank(), Some(1 - rank));
            });
        }
    });
}

/// Whoever notices it first leaves, and the others do not take that one for the cause.
#[test]
fn all_blame_the_one_that_is_cut_off() {
    let (listeners, holes) = behind_holes(3);
    let (listeners, holes, all) = (&listeners, &holes, &std::sync::Barrier::new(3));
    std::thread::scope(|scope| {
        for rank in 0..3 {
            scope.spawn(move || {
                let (roster, flag) = (advertised(listeners, rank), AbortFlag::new());
                let mesh = Mesh::form(&listeners[rank], &roster, &limits(true), &flag);
                let mut mesh = mesh.unwrap();
                mesh.barrier().unwrap();
                all.wait();
                holes[0].close();
                let error = (0..).find_map(|_| mesh.barrier().err()).unwrap();
                drop(mesh);
                assert!(rank == 0 || error.rank() == Some(0), "{rank}: {error}");
            });
        }
    });
}

#[test]
fn a_peer_that_computes_for_long_is_waited_for() {
    for shared in [true, false] {
        with_mesh(2, &limits(shared), |mut mesh| {
            if mesh.rank() == 1 {
                std::thread::sleep(Duration::from_millis(1500));
            }
            // More than any buffer between them takes.
            let mut numbers = vec![1.0; 4 << 20];
            mesh.all_reduce_f32(&mut numbers).unwrap();
            assert!(numbers.iter().all(|number| *number == 2.0));
        });
    }
}

#[test]
fn a_peer_that_cannot_be_reached_is_named_while_a_mesh_forms() {
    let (listeners, holes) = behind_holes(3);
    for listener in &listeners {
        listener.open("run", TOKEN).unwrap();
    }
    let (listeners, holes, all) = (&listeners, &holes, &std::sync::Barrier::new(3));
    let form = |rank: usize| {
        let (roster, flag) = (advertised(listeners, rank), AbortFlag::new());
        Mesh::form(&listeners[rank], &roster, &limits(true), &flag)
    };
    let form = &form;
    let errors = std::thread::scope(|scope| {
        let ranks = [0, 1, 2].map(|rank| {
            scope.spawn(move || {
                form(rank).unwrap().barrier().unwrap();
                all.wait();
                // Nobody reaches rank 0 any more, when the next mesh forms.
                holes[0].close();
                let began = Instant::now();
                let formed = form(rank).map(drop);
                (formed.unwrap_err(), began.elapsed())
            })
        });
        ranks.map(|rank| rank.join().unwrap())
    });
    for (rank, (error, took)) in errors.into_iter().enumerate() {
        let named = error.rank();
        assert!(rank == 0 || named == Some(0), "{rank}: {error}");
        assert!(named.is_some() && took < AT_ONCE, "{error}: {took:?}");
    }
}

#[test]
fn whom_a_rank_waits_for_is_known_to_others() {
    let patient = Limits {
        silence: Duration::from_secs(120),
        ..limits(true)
    };
    let known = AtomicUsize::new(0);
    with_mesh(3, &patient, |mut mesh| {
        let abort = mesh.watch.abort.clone();
        if mesh.rank() == 1 {
            until("both wait for it", || known.load(Ordering::SeqCst) == 2);
            mesh.barrier().unwrap();
            assert_eq!(abort.waits_for(), None);
            return;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                until("it waits for rank 1", || abort.waits_for() == Some(1));
                known.fetch_add(1, Ordering::SeqCst);
            });
            mesh.barrier().unwrap();
            until("it waits no more", || abort.waits_for().is_none());
        });
    });
}

/// A link that is reset is told at once, while nobody uses it; one that is closed is not.
#[test]
fn a_reset_is_told_while_the_trainers_compute() {
    let listeners: Vec<_> = (0..3)
        .map(|_| DataListener::bind(local()).unwrap())
        .collect();
    let (listeners, compute, heard) = (&listeners, &AtomicUsize::new(0), &AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for rank in 0..3 {
            scope.spawn(move || {
                let (told, hears) = std::sync::mpsc::sync_channel(8);
                let roster = Roster {
                    broken: Some(Arc::new(move |rank, _| told.send(rank).unwrap())),
                    ..roster(listeners, rank)
                };
                let flag = AbortFlag::new();
                let mesh = Mesh::form(&listeners[rank], &roster, &limits(true), &flag);
                let mut mesh = mesh.unwrap();
                mesh.barrier().unwrap();
                meet(compute, 3);
                match rank {
                    // Closed without lingering, the connection is reset.
                    0 => {
                        let of_one = |one: &&Neighbour| one.peer.rank == 1;
                        let link = mesh.neighbours.iter().find(of_one).unwrap();
                        let twin = link.link.twin().unwrap();
                        let reset = tokio::net::TcpSocket::from_std_stream(twin);
                        reset.set_zero_linger().unwrap();
                        drop(reset);
                        drop(mesh);
                    }
                    1 => {
                        assert_eq!(hears.recv_timeout(Duration::from_secs(60)), Ok(0));
                        meet(heard, 2);
                    }
                    _ => {
                        meet(heard, 2);
                        assert!(hears.recv_timeout(Duration::from_millis(500)).is_err());
                    }
                }
            });
        }
    });
}
