//! What a rank does while nothing moves: spins for a moment, then gives the processor away, then
//! sleeps, and looks for reasons to give up.
#![allow(unsafe_code)]

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::engine::Neighbour;
use super::{AbortFlag, CollectiveError, Identity, Result};

/// Polls at once before the clock is looked at.
const SPINS: u32 = 100;
/// How long the processor is kept when every rank of this machine can have one of its own: giving
/// it away costs more than what is waited for.
const KEEPING: Duration = Duration::from_micros(400);
/// How long the processor is then given away before the first sleep.
const YIELDING: Duration = Duration::from_micros(200);
/// First and longest sleep between two polls of shared memory.
const SLEEPS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_micros(500));
/// After so long others hear whom this rank waits for.
const WORTH_A_WORD: Duration = Duration::from_millis(300);
/// How long a wait for sockets may last before the abort flag is looked at.
const POLL_MS: i32 = 20;

/// Whether a connection was reset, without a look at what it carries.
pub(super) fn is_reset(socket: &TcpStream) -> bool {
    let mut asked = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: the pointer is that of one live pollfd; the call does not wait.
    let found = unsafe { libc::poll(&raw mut asked, 1, 0) };
    found > 0 && asked.revents & libc::POLLERR != 0
}

/// The reasons to give up that do not depend on an operation.
pub(super) struct Watch {
    pub(super) abort: AbortFlag,
    /// Longest time in which nothing moves.
    pub(super) silence: Duration,
    /// Processors of this machine.
    processors: usize,
}

impl Watch {
    pub(super) fn new(abort: AbortFlag, silence: Duration) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            abort,
            silence,
            processors,
        }
    }
}

/// A neighbour that is waited for.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    pub(super) neighbour: usize,
    /// Waiting for its bytes, rather than for room to send.
    pub(super) receive: bool,
}

/// The state of a wait.
pub(super) struct Idle<'a> {
    watch: &'a Watch,
    keeping: Duration,
    polls: u32,
    sleep: Duration,
    since: Option<Instant>,
    has_told: bool,
}

impl<'a> Idle<'a> {
    pub(super) fn new(watch: &'a Watch, neighbours: &[Neighbour]) -> Self {
        let shared = neighbours
            .iter()
            .filter(|neighbour| neighbour.link.is_shared())
            .count();
        let own_processor = shared > 0 && shared < watch.processors;
        Self {
            watch,
            keeping: if own_processor {
                KEEPING
            } else {
                Duration::ZERO
            },
            polls: 0,
            sleep: SLEEPS.0,
            since: None,
            has_told: false,
        }
    }

    /// Something moved.
    pub(super) fn reset(&mut self) {
        (self.polls, self.sleep, self.since) = (0, SLEEPS.0, None);
        if std::mem::take(&mut self.has_told) {
            self.watch.abort.wait_for(None);
        }
    }

    /// Waits a little. Fails when the operation must be given up; `pending` is then asked for who
    /// is waited for.
    pub(super) fn wait(
        &mut self,
        neighbours: &mut [Neighbour],
        during: Identity,
        pending: impl FnOnce() -> Vec<Pending>,
    ) -> Result<()> {
        self.polls = self.polls.saturating_add(1);
        if self.polls < SPINS {
            std::hint::spin_loop();
            return Ok(());
        }
        let quiet = self.since.get_or_insert_with(Instant::now).elapsed();
        if quiet < self.keeping {
            std::hint::spin_loop();
            return Ok(());
        }
        if quiet < self.keeping + YIELDING {
            std::thread::yield_now();
            return Ok(());
        }
        let pending = pending();
        self.give_up(neighbours, during, &pending, quiet)?;
        self.rest(neighbours, &pending);
        Ok(())
    }

    fn give_up(
        &mut self,
        neighbours: &mut [Neighbour],
        during: Identity,
        pending: &[Pending],
        quiet: Duration,
    ) -> Result<()> {
        self.watch.abort.check()?;
        for waiting in pending {
            let neighbour = &mut neighbours[waiting.neighbour];
            neighbour
                .check_alive()
                .map_err(|error| neighbour.lost(during, &error))?;
        }
        let receiving = pending.iter().find(|waiting| waiting.receive);
        if let Some(waiting) = receiving.filter(|_| quiet > WORTH_A_WORD) {
            let rank = neighbours[waiting.neighbour].peer.rank;
            self.watch.abort.wait_for(Some(rank));
            self.has_told = true;
        }
        match receiving.or(pending.first()) {
            Some(waiting) if quiet > self.watch.silence => Err(CollectiveError::Deadline {
                peer: neighbours[waiting.neighbour].peer,
                during,
                seconds: self.watch.silence.as_secs_f64(),
            }),
            _ => Ok(()),
        }
    }

    fn rest(&mut self, neighbours: &[Neighbour], pending: &[Pending]) {
        if pending
            .iter()
            .any(|waiting| neighbours[waiting.neighbour].link.is_shared())
        {
            std::thread::sleep(self.sleep);
            self.sleep = (self.sleep * 2).min(SLEEPS.1);
            return;
        }
        let mut sockets: Vec<libc::pollfd> = pending
            .iter()
            .map(|waiting| libc::pollfd {
                fd: neighbours[waiting.neighbour].link.fd(),
                events: if waiting.receive {
                    libc::POLLIN
                } else {
                    libc::POLLOUT
                },
                revents: 0,
            })
            .collect();
        // SAFETY: the pointer and length are those of a live vector of pollfd. The result does not
        // matter: every stream is tried again after the wait.
        unsafe { libc::poll(sockets.as_mut_ptr(), sockets.len() as libc::nfds_t, POLL_MS) };
    }
}
