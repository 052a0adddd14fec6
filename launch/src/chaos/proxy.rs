//! A TCP proxy with weather: it stands between two processes and is their bad network.
//!
//!     caller ── back ◄──┐  listens on a free loopback port  ┌── back ◄── target
//!            ── forth ─►└───────────── weather ─────────────┘── forth ─►
//!
//! The weather may change at any time and applies to connections that are open and to those that
//! come. What a real network does to TCP is what it can do:
//!
//! | weather | what the two ends see |
//! |---|---|
//! | a delay per direction | everything comes that much later, in order, also the end |
//! | a limit of bytes per second, per direction | a sender that is faster has to wait |
//! | a direction that holds | nothing comes, nothing is lost: it comes when the weather is better |
//! | a direction that swallows (half-open) | nothing comes, no error either, and the sender sees its bytes go |
//! | a door that resets | open connections are reset, new ones are accepted and reset |
//! | a door that refuses | open connections are reset, new ones are refused |
//!
//! A stream with a hole can never go on, so a connection of which something was swallowed is reset
//! when nothing is swallowed any more. The same news travel as in a network: what an end says by
//! closing or resetting reaches the other end only if that direction lets it through.
//!
//! Memory is bounded: a direction of a connection holds at most [`QUEUED_PIECES`] pieces of
//! [`PIECE_BYTES`], and a sender whose bytes have no place waits, as for a full window. All tasks
//! belong to the [`Proxy`]; they end when it is dropped.
//!
//! This file and its folder need tokio and nothing else, so that tests can take them in by path.
//! A test without a runtime makes one, and changes the weather from where it stands:
//!
//! ```ignore
//! let runtime = tokio::runtime::Runtime::new()?;
//! let proxy = runtime.block_on(Proxy::start(target))?;
//! proxy.set_weather(Weather::half_open());
//! proxy.heal();
//! ```
//!
//! Its own tests are `launch/tests/proxy.rs`.
#![allow(
    dead_code,
    reason = "tests take this file in by its path, and none of them needs all of it"
)]

// By its path, so that it is found wherever this file is taken in.
#[path = "proxy/carry.rs"]
mod carry;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Most that is read at once.
pub(crate) const PIECE_BYTES: usize = 16 << 10;
/// Most pieces on their way in one direction of one connection. With a delay they are the window:
/// no more than `PIECE_BYTES * QUEUED_PIECES / delay` bytes per second pass.
pub(crate) const QUEUED_PIECES: usize = 64;
/// Connections that the system keeps until they are accepted.
const BACKLOG: u32 = 256;
/// Pause after the system refused something, before it is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// What a direction does with what is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It arrives.
    #[default]
    Open,
    /// It is kept, and arrives when the passage is open again.
    Holding,
    /// It is lost without a word. The connection is reset when nothing is swallowed any more.
    Swallowing,
}

/// The weather of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Way {
    /// How long everything is on its way.
    pub(crate) delay: Duration,
    /// No more passes, per connection.
    pub(crate) bytes_per_second: Option<NonZeroU64>,
    /// Whether anything passes.
    pub(crate) passage: Passage,
}

/// What becomes of connections as such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Door {
    /// They are carried.
    #[default]
    Open,
    /// Those that are open are reset, new ones are accepted and reset.
    Resetting,
    /// Those that are open are reset, new ones are refused.
    Refusing,
}

/// All that can be wrong with a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// From whoever connects to the target.
    pub(crate) forth: Way,
    /// From the target to whoever connected.
    pub(crate) back: Way,
    /// Whether there are connections at all.
    pub(crate) door: Door,
}

impl Weather {
    /// Nothing is wrong.
    pub(crate) fn clear() -> Self {
        Self::default()
    }

    /// Everything takes this long in each direction.
    pub(crate) fn delayed(delay: Duration) -> Self {
        Self::both(Way {
            delay,
            ..Way::default()
        })
    }

    /// No more passes in each direction of each connection.
    pub(crate) fn limited(bytes_per_second: NonZeroU64) -> Self {
        Self::both(Way {
            bytes_per_second: Some(bytes_per_second),
            ..Way::default()
        })
    }

    /// Both directions swallow what is sent.
    pub(crate) fn half_open() -> Self {
        Self::both(Way::through(Passage::Swallowing))
    }

    /// The target hears nothing any more, and is heard.
    pub(crate) fn deaf() -> Self {
        Self {
            forth: Way::through(Passage::Swallowing),
            ..Self::default()
        }
    }

    /// The target is not heard any more, and hears.
    pub(crate) fn mute() -> Self {
        Self {
            back: Way::through(Passage::Swallowing),
            ..Self::default()
        }
    }

    /// Both directions keep what is sent.
    pub(crate) fn holding() -> Self {
        Self::both(Way::through(Passage::Holding))
    }

    /// Connections are reset, new ones too.
    pub(crate) fn resetting() -> Self {
        Self::behind(Door::Resetting)
    }

    /// Connections are reset, new ones are refused.
    pub(crate) fn refusing() -> Self {
        Self::behind(Door::Refusing)
    }

    fn both(way: Way) -> Self {
        Self {
            forth: way,
            back: way,
            door: Door::Open,
        }
    }

    fn behind(door: Door) -> Self {
        Self {
            door,
            ..Self::default()
        }
    }

    /// Something is lost without a word.
    fn swallows(&self) -> bool {
        [self.forth, self.back]
            .iter()
            .any(|way| way.passage == Passage::Swallowing)
    }
}

impl Way {
    fn through(passage: Passage) -> Self {
        Self {
            passage,
            ..Self::default()
        }
    }
}

/// What passed so far, over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Connections that were accepted.
    pub(crate) connections: u64,
    /// Bytes that reached the target.
    pub(crate) forth_bytes: u64,
    /// Bytes that came back.
    pub(crate) back_bytes: u64,
    /// Bytes that were swallowed in either direction.
    pub(crate) swallowed_bytes: u64,
}

/// A proxy at work. Dropped, it ends with all its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    settings: watch::Sender<Settings>,
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

/// What can be changed from outside.
#[derive(Clone, Copy, Debug)]
struct Settings {
    target: SocketAddr,
    weather: Weather,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    forth_bytes: AtomicU64,
    back_bytes: AtomicU64,
    swallowed_bytes: AtomicU64,
}

impl Proxy {
    /// Listens on a free port of this machine, in clear weather. Nothing has to listen at the
    /// target yet.
    ///
    /// # Errors
    /// The system has no port.
    pub(crate) async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let weather = Weather::clear();
        let (settings, seen) = watch::channel(Settings { target, weather });
        let counters = Arc::new(Counters::default());
        let doorman = Doorman {
            address,
            settings: seen,
            counters: Arc::clone(&counters),
            connections: JoinSet::new(),
        };
        Ok(Self {
            address,
            settings,
            counters,
            task: tokio::spawn(doorman.work(listener)),
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather, at once.
    pub(crate) fn set_weather(&self, weather: Weather) {
        self.settings
            .send_modify(|settings| settings.weather = weather);
    }

    /// Nothing is wrong any more.
    pub(crate) fn heal(&self) {
        self.set_weather(Weather::clear());
    }

    /// The weather as it is.
    pub(crate) fn weather(&self) -> Weather {
        self.settings.borrow().weather
    }

    /// New connections go there; those that are open stay where they are.
    pub(crate) fn set_target(&self, target: SocketAddr) {
        self.settings
            .send_modify(|settings| settings.target = target);
    }

    /// What passed so far.
    pub(crate) fn traffic(&self) -> Traffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            connections: read(&self.counters.connections),
            forth_bytes: read(&self.counters.forth_bytes),
            back_bytes: read(&self.counters.back_bytes),
            swallowed_bytes: read(&self.counters.swallowed_bytes),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The task owns all others.
        self.task.abort();
    }
}

/// Accepts connections and owns those that are carried.
struct Doorman {
    address: SocketAddr,
    settings: watch::Receiver<Settings>,
    counters: Arc<Counters>,
    connections: JoinSet<()>,
}

impl Doorman {
    async fn work(mut self, mut listener: TcpListener) {
        loop {
            self.receive(&listener).await;
            drop(listener);
            let Some(opened) = self.refuse().await else {
                return;
            };
            listener = opened;
        }
    }

    /// Keeps the port and does not listen, so that the system refuses whoever connects, until the
    /// door opens. None: the proxy is gone.
    async fn refuse(&mut self) -> Option<TcpListener> {
        loop {
            let reserved = self.reserve().await;
            let opens = |settings: &Settings| settings.weather.door != Door::Refusing;
            self.settings.wait_for(opens).await.ok()?;
            match reserved.listen(BACKLOG) {
                Ok(listener) => return Some(listener),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Accepts whoever comes until the door refuses.
    async fn receive(&mut self, listener: &TcpListener) {
        loop {
            let door = self.settings.borrow_and_update().weather.door;
            if door == Door::Refusing {
                return;
            }
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((caller, _)) if door == Door::Resetting => will_be_reset(&caller),
                    Ok((caller, _)) => self.welcome(caller),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                },
                Some(_) = self.connections.join_next() => {}
                changed = self.settings.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    fn welcome(&mut self, caller: TcpStream) {
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let counters = Arc::clone(&self.counters);
        let carried = carry::carry(caller, self.settings.clone(), counters);
        self.connections.spawn(carried);
    }

    /// Takes the port without listening on it.
    async fn reserve(&mut self) -> TcpSocket {
        let bound = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(self.address)?;
            Ok::<_, io::Error>(socket)
        };
        loop {
            match bound() {
                Ok(socket) => return socket,
                // Somebody else has it for a moment, as the local end of a connection.
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// Dropped from now on, the stream is reset and not closed.
fn will_be_reset(stream: &TcpStream) {
    // What fails here is a connection that has ended already.
    let _ended = stream.set_zero_linger();
}
