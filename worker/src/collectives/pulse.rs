//! Whether the peers' machines can be reached, whatever their trainers do.
//!
//! A peer that computes for long says nothing, and a network that loses every packet says nothing
//! either. So beside each link there is a second connection, from the same worker to the same door,
//! on which the dialer sends a byte every [`BEAT`], and the door sends it back: each side hears of
//! the other. It goes the way of the link, through proxies that take packets in another's place, and
//! outlives a generation.
//!
//! The kernel's own means do not tell: keepalives have a second as their unit, and a limit on bytes
//! that are not taken (`TCP_USER_TIMEOUT`) ends a link, too, whose peer computes and does not read.
//!
//! With each beat it is looked whether the peer is silent or the link to it was reset, so that this is
//! known at once, and not when the trainer needs the link next.
//!
//! Beats without an echo are counted, not time: a process that stood still itself has sent none.

use std::collections::BTreeMap;
use std::net::{self, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::handshake::{self, Purpose, Seat, Secret};
use super::wait::is_reset;

/// Time between two bytes.
pub(super) const BEAT: Duration = Duration::from_millis(50);
/// How long one attempt to connect may take; the way may be good again.
const ATTEMPT: Duration = Duration::from_millis(400);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(50);

/// What is known of one peer's machine.
#[derive(Clone)]
pub(super) struct Pulse(Arc<Felt>);

#[derive(Default)]
struct Felt {
    /// Beats since it was heard of, once it was.
    unanswered: AtomicU32,
    is_known: AtomicBool,
    /// So many of them are too many.
    limit: AtomicU32,
    watched: Mutex<Option<Watched>>,
}

/// A link, and what is to be done when it breaks.
struct Watched {
    link: net::TcpStream,
    broken: Broken,
}

/// Is told why.
type Broken = Box<dyn FnOnce(&str) + Send>;

impl Felt {
    fn begin(&self) {
        self.unanswered.store(0, Ordering::Relaxed);
    }

    fn hear(&self) {
        self.begin();
        self.is_known.store(true, Ordering::Relaxed);
    }

    fn watch(&self, watched: Option<Watched>) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = watched;
    }

    fn look_at_link(&self) {
        let silence = self.silence();
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |watched: &mut Watched| silence.is_some() || is_reset(&watched.link);
        if let Some(broken) = watched.take_if(is_over) {
            drop(watched);
            (broken.broken)(silence.as_deref().unwrap_or("its connection was reset"));
        }
    }

    fn is_silent(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed)
    }

    fn silence(&self) -> Option<String> {
        let seconds = f64::from(self.unanswered.load(Ordering::Relaxed)) * BEAT.as_secs_f64();
        (self.is_silent() && self.is_known.load(Ordering::Relaxed))
            .then(|| format!("its machine has not answered for {seconds:.1} s"))
    }
}

impl Pulse {
    /// Looks after a link until [`Pulse::forget`].
    pub(super) fn watch(&self, link: net::TcpStream, broken: Broken) {
        self.0.watch(Some(Watched { link, broken }));
    }

    /// The link is closed.
    pub(super) fn forget(&self) {
        self.0.watch(None);
    }

    /// Whether it is about to be silent: for so long nothing is late where all is well.
    pub(super) fn is_faint(&self) -> bool {
        let beats = self.0.unanswered.load(Ordering::Relaxed);
        let limit = self.0.limit.load(Ordering::Relaxed);
        self.0.is_known.load(Ordering::Relaxed) && beats > limit / 2
    }

    /// Says so when the machine has not answered for too long.
    pub(super) fn silence(&self) -> Option<String> {
        self.0.silence()
    }
}

/// The pulses of all peers.
#[derive(Default)]
pub(super) struct Pulses(BTreeMap<SocketAddr, Kept>);

/// Who feels it: of those that this worker has dialed, or will dial, itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Dialer,
    Acceptor,
}

struct Kept {
    side: Side,
    /// What it says of itself when it dials.
    name: Seat,
    task: AbortHandle,
    felt: Arc<Felt>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a dialer says instead of its place in a generation: where it listens itself.
pub(super) fn name_of(address: SocketAddr) -> Seat {
    let hash = blake3::hash(address.to_string().as_bytes());
    let number = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    Seat {
        generation: u64::from_le_bytes(number),
        ..Seat::default()
    }
}

impl Pulses {
    /// Keeps those of the peers at `addresses`, and no others, counting from now on: the first
    /// `dialed` are dialed by the worker that is called `own`, and the others dial it.
    pub(super) fn feel(
        &mut self,
        (runtime, secret, own): (&Handle, &Secret, SocketAddr),
        addresses: &[SocketAddr],
        dialed: usize,
        patience: Duration,
    ) -> Vec<Pulse> {
        let side = |place: usize| match place < dialed {
            true => Side::Dialer,
            false => Side::Acceptor,
        };
        let sides = addresses.iter().enumerate();
        let sides: BTreeMap<_, _> = sides.map(|(place, to)| (*to, side(place))).collect();
        self.0
            .retain(|address, kept| sides.get(address) == Some(&kept.side));
        let beats = patience.as_millis().div_ceil(BEAT.as_millis());
        let limit = u32::try_from(beats).unwrap_or(u32::MAX).max(1);
        let pulse = |(address, side): (&SocketAddr, Side)| {
            let kept = self.0.entry(*address).or_insert_with(|| {
                let felt = Arc::new(Felt::default());
                let live = live(*address, own, secret.clone(), side, Arc::clone(&felt));
                let task = runtime.spawn(live).abort_handle();
                let name = name_of(*address);
                Kept {
                    side,
                    name,
                    task,
                    felt,
                }
            });
            kept.felt.limit.store(limit, Ordering::Relaxed);
            // One that was silent has another chance; what is under way counts on.
            if kept.felt.is_silent() {
                kept.felt.begin();
            }
            Pulse(Arc::clone(&kept.felt))
        };
        let pairs = addresses.iter().enumerate();
        pairs
            .map(|(place, to)| (to, side(place)))
            .map(pulse)
            .collect()
    }

    /// A dialer that is called so was heard of.
    pub(super) fn hear(&self, name: Seat) {
        let accepted = self
            .0
            .iter()
            .filter(|(_, kept)| kept.side == Side::Acceptor);
        let mut heard = accepted.filter(|(_, kept)| kept.name == name);
        if let Some((_, kept)) = heard.next() {
            kept.felt.hear();
        }
    }
}

/// Counts beats; a dialer sends them, and keeps a connection for it as far as there can be one.
async fn live(address: SocketAddr, own: SocketAddr, secret: Secret, side: Side, felt: Arc<Felt>) {
    let beat = Notify::new();
    let beating = async {
        let mut pulse = interval(BEAT);
        // One that stood still has one beat for it, and late ones do not add up.
        pulse.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            pulse.tick().await;
            let beats = felt.unanswered.load(Ordering::Relaxed);
            felt.unanswered
                .store(beats.saturating_add(1), Ordering::Relaxed);
            beat.notify_one();
            felt.look_at_link();
        }
    };
    let keeping = async {
        if side == Side::Acceptor {
            return;
        }
        // It listens: not to be reached is to be silent.
        felt.hear();
        loop {
            let hello = secret.hello(name_of(own));
            let reached = handshake::reach(address, &secret, &hello, Purpose::Pulse);
            if let Ok(Ok(stream)) = timeout(ATTEMPT, reached).await {
                exchange(&stream, &beat, &felt).await;
            }
            sleep(RETRY).await;
        }
    };
    tokio::join!(beating, keeping);
}

/// Beats without an echo after which another connection is tried: packets that were lost are sent
/// again ever more rarely.
const STALE: u32 = 20;

/// Sends bytes and takes them back until the connection ends.
async fn exchange(stream: &TcpStream, beat: &Notify, felt: &Felt) {
    let mut bytes = [0; 64];
    loop {
        tokio::select! {
            () = beat.notified() => {
                // Without room many are on their way already.
                let _full = stream.try_write(&[1]);
                if felt.unanswered.load(Ordering::Relaxed) % STALE == STALE - 1 {
                    return;
                }
            }
            ready = stream.readable() => match ready.and_then(|()| stream.try_read(&mut bytes)) {
                Ok(0) => return,
                Ok(_) => felt.hear(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            },
        }
    }
}
