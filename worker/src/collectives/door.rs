//! The door of the data plane: nobody comes through it without the run's token.
//!
//! ```text
//! whoever connects ──► door: hellos and proofs ──► a link: waits for the trainer's next mesh
//!                          │                  └──► a pulse: its bytes are sent back
//!                          └── says nothing, something else, or too much: closed
//! ```
//!
//! It has a thread of its own, so that it answers whatever the trainer does, and at any time: garbage
//! on the port is gone when the next mesh forms. Who has proved nothing yet has [`GREETING`] to do so
//! and a few hundred bytes of memory; of those there are at most [`STRANGERS`], and the oldest has to
//! make room for the next one, so that a crowd that says nothing keeps nobody out.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::handshake::{self, Hello, Purpose, Refusal, Secret};
use super::pulse::{Pulse, Pulses};
use super::{CollectiveError, Result};

/// How long a stranger has to prove that it belongs here.
const GREETING: Duration = Duration::from_secs(2);
/// Strangers at a time.
const STRANGERS: usize = 256;
/// Workers at a time that wait for this one's next mesh.
const CALLERS: usize = 1024;
/// Workers at a time whose pulses are answered.
const PULSES: usize = 4096;
/// How long one of them may be silent.
const PULSE_REST: Duration = Duration::from_secs(10);
/// How long one attempt to reach another door may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause after the system has refused a connection, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a wait is looked after.
const TICK: Duration = Duration::from_millis(20);

/// A worker that came through the door.
pub(super) struct Caller {
    pub(super) socket: TcpStream,
    pub(super) hello: Hello,
}

/// Where callers wait for the trainer.
#[derive(Default)]
struct Parlour {
    waiting: Mutex<VecDeque<Caller>>,
    came: Condvar,
    /// Why somebody was turned away last.
    refusal: Mutex<Option<String>>,
}

/// What those need who receive strangers.
#[derive(Clone)]
struct Hall {
    secret: Secret,
    parlour: Arc<Parlour>,
    pulses: Arc<Mutex<Pulses>>,
    places: Arc<Semaphore>,
}

/// An open door, and its thread.
pub(super) struct Door {
    secret: Secret,
    parlour: Arc<Parlour>,
    runtime: Handle,
    pulses: Arc<Mutex<Pulses>>,
    address: SocketAddr,
    close: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Opens the door of a socket that listens; peers know it by `address`.
    pub(super) fn open(socket: &TcpListener, secret: Secret, address: SocketAddr) -> Result<Self> {
        let unfit = |error: std::io::Error| {
            CollectiveError::Usage(format!("the data plane can not answer: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(unfit)?;
        let socket = socket.try_clone().map_err(unfit)?;
        socket.set_nonblocking(true).map_err(unfit)?;
        let (close, closed) = oneshot::channel();
        let (parlour, handle) = (Arc::new(Parlour::default()), runtime.handle().clone());
        let pulses = Arc::new(Mutex::new(Pulses::default()));
        let hall = Hall {
            secret: secret.clone(),
            parlour: Arc::clone(&parlour),
            pulses: Arc::clone(&pulses),
            places: Arc::new(Semaphore::new(PULSES)),
        };
        let live = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = receive(socket, hall) => {}
                    _ = closed => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("door".into()).spawn(live);
        Ok(Self {
            secret,
            parlour,
            runtime: handle,
            pulses,
            address,
            close: Some(close),
            thread: Some(thread.map_err(unfit)?),
        })
    }

    pub(super) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The pulses of these peers from now on, in this order, and of no others. All begin anew. The
    /// first `dialed` of them are dialed by this worker, the others dial it.
    pub(super) fn feel(
        &self,
        peers: &[SocketAddr],
        dialed: usize,
        patience: Duration,
    ) -> Vec<Pulse> {
        let own = (&self.runtime, &self.secret, self.address);
        lock(&self.pulses).feel(own, peers, dialed, patience)
    }

    /// The next caller, if one comes in a moment.
    pub(super) fn next_caller(&self) -> Option<Caller> {
        let waiting = lock(&self.parlour.waiting);
        let waited = self
            .parlour
            .came
            .wait_timeout_while(waiting, TICK, |waiting| waiting.is_empty());
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.pop_front()
    }

    /// Lets callers wait on that came too early.
    pub(super) fn keep(&self, early: Vec<Caller>) {
        lock(&self.parlour.waiting).extend(early);
    }

    /// Why somebody was turned away last.
    pub(super) fn last_refusal(&self) -> Option<String> {
        lock(&self.parlour.refusal).clone()
    }

    /// Goes through another worker's door. `check` is asked all the while whether it makes sense.
    pub(super) fn call(
        &self,
        address: SocketAddr,
        hello: Hello,
        check: &dyn Fn() -> std::result::Result<(), Refusal>,
    ) -> std::result::Result<TcpStream, Refusal> {
        let (reply, answer) = sync_channel(1);
        let call = call(address, self.secret.clone(), hello, reply);
        let task = self.runtime.spawn(call).abort_handle();
        loop {
            match answer.recv_timeout(TICK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) => check().inspect_err(|_| task.abort())?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Refusal::Later("the own door is closed".into()));
                }
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Its runtime ends with the thread, and with it all tasks and their connections.
        drop(self.close.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn call(
    address: SocketAddr,
    secret: Secret,
    hello: Hello,
    reply: SyncSender<std::result::Result<TcpStream, Refusal>>,
) {
    let reached = timeout(
        ATTEMPT,
        handshake::reach(address, &secret, &hello, Purpose::Link),
    );
    let answer = match reached.await {
        Ok(Ok(stream)) => stream.into_std().map_err(Refusal::from),
        Ok(Err(refusal)) => Err(refusal),
        Err(_) => Err(Refusal::Unreached("it did not answer in time".into())),
    };
    // Nobody may wait any more.
    let _gone = reply.try_send(answer);
}

/// Lets in who belongs here, for ever.
async fn receive(socket: TcpListener, hall: Hall) {
    let listener = match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the data plane can not be reached");
            return;
        }
    };
    let mut strangers = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        while strangers.try_join_next().is_some() {}
        if oldest.len() >= STRANGERS {
            oldest.retain(|stranger| !stranger.is_finished());
        }
        if oldest.len() >= STRANGERS
            && let Some(stranger) = oldest.pop_front()
        {
            stranger.abort();
        }
        oldest.push_back(strangers.spawn(greet(stream, hall.clone())));
    }
}

/// One connection, until it is known who is there.
async fn greet(mut stream: tokio::net::TcpStream, hall: Hall) {
    let parlour = &hall.parlour;
    let answered = timeout(GREETING, handshake::answer(&mut stream, &hall.secret)).await;
    let late = |_| Err(Refusal::Later("a stranger said too little".into()));
    let (hello, purpose) = match answered.unwrap_or_else(late) {
        Ok(known) => known,
        Err(Refusal::Later(why) | Refusal::Never(why) | Refusal::Unreached(why)) => {
            tracing::debug!(why, "a connection to the data plane was refused");
            *lock(&parlour.refusal) = Some(why);
            return;
        }
        Err(Refusal::Over(_)) => return,
    };
    match purpose {
        Purpose::Link => {
            let Ok(socket) = stream.into_std() else {
                return;
            };
            let mut waiting = lock(&parlour.waiting);
            if waiting.len() >= CALLERS {
                waiting.pop_front();
            }
            waiting.push_back(Caller { socket, hello });
            parlour.came.notify_all();
        }
        Purpose::Pulse => {
            if let Ok(place) = hall.places.try_acquire_owned() {
                tokio::spawn(async move {
                    echo(stream, hello, &hall.pulses).await;
                    drop(place);
                });
            }
        }
    }
}

/// Sends a pulse's bytes back until it ends.
async fn echo(mut stream: tokio::net::TcpStream, hello: Hello, pulses: &Mutex<Pulses>) {
    let mut bytes = [0; 64];
    let _late = stream.set_nodelay(true);
    while let Ok(Ok(count @ 1..)) = timeout(PULSE_REST, stream.read(&mut bytes)).await {
        lock(pulses).hear(hello.seat);
        let sent = timeout(PULSE_REST, stream.write_all(&bytes[..count]));
        if !matches!(sent.await, Ok(Ok(()))) {
            return;
        }
    }
}
