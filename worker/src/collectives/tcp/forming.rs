//! Connecting the workers of a generation.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{DataListener, Roster};
use crate::collectives::door::Door;
use crate::collectives::engine::Neighbour;
use crate::collectives::handshake::{self, Refusal, Seat, Timed};
use crate::collectives::link::Link;
use crate::collectives::pulse::Pulse;
use crate::collectives::{AbortFlag, CollectiveError, Limits, Peer, Result, schedule};

/// First pause between two attempts to reach a peer.
const RETRY: Duration = Duration::from_millis(2);
/// Longest pause between two attempts to reach a peer.
const LONGEST_RETRY: Duration = Duration::from_millis(50);
/// How long a peer's machine may be out of reach where nobody feels its pulse: its worker listens
/// before it joins a run.
const REACH: Duration = Duration::from_secs(30);
/// How long a peer that came through the door may take for the rest.
const SEATING: Duration = Duration::from_secs(1);

/// A mesh while it is being connected.
struct Forming<'a> {
    roster: &'a Roster,
    own: Seat,
    limits: &'a Limits,
    /// Whether shared memory makes sense.
    shared: bool,
    abort: &'a AbortFlag,
    door: &'a Door,
    /// By rank; none for this worker.
    pulses: Vec<Option<Pulse>>,
    deadline: Instant,
}

/// Connects to all peers, in the schedule's order.
pub(super) fn connect(
    listener: &DataListener,
    roster: &Roster,
    limits: &Limits,
    abort: &AbortFlag,
) -> Result<Vec<Neighbour>> {
    let (rank, world) = (roster.rank, roster.addresses.len());
    let door = listener.door(&roster.run_id, &roster.token)?;
    let forming = Forming {
        roster,
        own: Seat {
            generation: roster.generation,
            world: world as u32,
            rank: rank as u32,
        },
        limits,
        // What lies between would be passed by.
        shared: limits.shared_memory && listener.advertised.is_none(),
        abort,
        door: &door,
        pulses: pulses(&door, roster, limits),
        deadline: Instant::now() + limits.connect,
    };
    let mut links: Vec<Option<Link>> = (0..world).map(|_| None).collect();
    for (peer, link) in links.iter_mut().enumerate().take(rank) {
        abort.wait_for(Some(peer));
        *link = Some(forming.dial(peer)?);
    }
    forming.accept_all(&mut links)?;
    abort.wait_for(None);
    let mut neighbours = Vec::new();
    for peer in schedule::peers(world, rank) {
        let (link, pulse) = (links[peer].take(), forming.pulses[peer].clone());
        let peer = forming.peer(peer);
        neighbours.extend(link.map(|link| Neighbour { peer, link, pulse }));
    }
    neighbours
        .iter()
        .for_each(|neighbour| watch(neighbour, roster));
    Ok(neighbours)
}

/// Lets the pulse look after the link.
fn watch(neighbour: &Neighbour, roster: &Roster) {
    let (Some(pulse), Some(broken)) = (&neighbour.pulse, roster.broken.clone()) else {
        return;
    };
    // Without a second descriptor the trainer notices it itself, later.
    if let Ok(twin) = neighbour.link.twin() {
        let rank = neighbour.peer.rank;
        pulse.watch(twin, Box::new(move |why| broken(rank, why)));
    }
}

/// The pulses of all others, by rank.
fn pulses(door: &Door, roster: &Roster, limits: &Limits) -> Vec<Option<Pulse>> {
    let Some(patience) = limits.pulse else {
        return vec![None; roster.addresses.len()];
    };
    let mut peers = roster.addresses.clone();
    peers.remove(roster.rank);
    let mut felt = door.feel(&peers, roster.rank, patience).into_iter();
    (0..roster.addresses.len())
        .map(|rank| {
            if rank == roster.rank {
                None
            } else {
                felt.next()
            }
        })
        .collect()
}

impl Forming<'_> {
    fn peer(&self, rank: usize) -> Peer {
        Peer {
            rank,
            address: self.roster.addresses[rank],
        }
    }

    fn unreachable(&self, rank: usize, reason: String) -> CollectiveError {
        CollectiveError::Connect {
            peer: self.peer(rank),
            seconds: self.limits.connect.as_secs_f64(),
            reason,
        }
    }

    /// An error once there is no sense in going on: the generation is over, or a peer's machine does
    /// not answer.
    fn check(&self) -> Result<()> {
        self.abort.check()?;
        let mut silent = (0..).zip(&self.pulses).filter_map(|(rank, pulse)| {
            let reason = pulse.as_ref()?.silence()?;
            Some((rank, reason))
        });
        match silent.next() {
            Some((rank, reason)) => Err(CollectiveError::Unanswered {
                peer: self.peer(rank),
                reason,
            }),
            None => Ok(()),
        }
    }

    /// The same until `deadline`, as a handshake asks it.
    fn check_until(&self, deadline: Instant) -> std::result::Result<(), Refusal> {
        self.check().map_err(Refusal::Over)?;
        if Instant::now() > deadline {
            return Err(Refusal::Later("it did not answer in time".into()));
        }
        Ok(())
    }

    /// Connects to a lower rank, again and again until the deadline.
    fn dial(&self, rank: usize) -> Result<Link> {
        let mut pause = RETRY;
        let began = Instant::now();
        loop {
            let reason = match self.try_dial(rank) {
                Ok(link) => return Ok(link),
                Err(Refusal::Never(reason)) => return Err(self.unreachable(rank, reason)),
                Err(Refusal::Over(error)) => return Err(error),
                Err(Refusal::Unreached(reason)) if began.elapsed() > REACH => {
                    return Err(self.unreachable(rank, reason));
                }
                Err(Refusal::Later(reason) | Refusal::Unreached(reason)) => reason,
            };
            self.check()?;
            if Instant::now() + pause > self.deadline {
                return Err(self.unreachable(rank, reason));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }

    fn try_dial(&self, rank: usize) -> std::result::Result<Link, Refusal> {
        // The acceptor may be busy with others: its answer may take until the deadline.
        let check = || self.check_until(self.deadline);
        let hello = self.door.secret().hello(self.own);
        let address = self.peer(rank).address;
        let socket = self.door.call(address, hello, &check)?;
        let mut stream = Timed::new(socket, &check)?;
        let rings = handshake::take_seat(&mut stream, self.own, rank, self.shared)?;
        Ok(Link::new(stream.into_socket(), rings)?)
    }

    /// Accepts all higher ranks, in whatever order they come.
    fn accept_all(&self, links: &mut [Option<Link>]) -> Result<()> {
        let first = self.own.rank as usize + 1;
        let mut last_refusal = None;
        let mut early = Vec::new();
        let outcome = loop {
            let Some(missing) = (first..links.len()).find(|&rank| links[rank].is_none()) else {
                break Ok(());
            };
            if let Err(error) = self.check() {
                break Err(error);
            }
            self.abort.wait_for(Some(missing));
            match self.door.next_caller() {
                // The coordinator's news reach it sooner than this worker.
                Some(caller) if caller.hello.seat.generation > self.own.generation => {
                    early.push(caller);
                }
                Some(caller) => match self.try_accept(caller.socket, caller.hello.seat, links) {
                    Ok((rank, link)) => links[rank] = Some(link),
                    Err(Refusal::Over(error)) => break Err(error),
                    Err(
                        Refusal::Later(reason)
                        | Refusal::Never(reason)
                        | Refusal::Unreached(reason),
                    ) => {
                        tracing::debug!(reason, "a peer was turned away");
                        last_refusal = Some(reason);
                    }
                },
                None if Instant::now() > self.deadline => {
                    let reason = last_refusal.or_else(|| self.door.last_refusal());
                    let reason = reason.unwrap_or_else(|| "it has not connected".to_owned());
                    break Err(self.unreachable(missing, reason));
                }
                None => {}
            }
        };
        self.door.keep(early);
        outcome
    }

    fn try_accept(
        &self,
        socket: TcpStream,
        seat: Seat,
        links: &[Option<Link>],
    ) -> std::result::Result<(usize, Link), Refusal> {
        let deadline = self.deadline.min(Instant::now() + SEATING);
        let check = || self.check_until(deadline);
        let mut stream = Timed::new(socket, &check)?;
        let own_rank = self.own.rank as usize;
        let expected =
            |rank: usize| rank > own_rank && links.get(rank).is_some_and(Option::is_none);
        let own = self.door.secret().hello(self.own);
        let (rank, rings) = handshake::give_seat(&mut stream, &own, seat, expected, self.shared)?;
        Ok((rank, Link::new(stream.into_socket(), rings)?))
    }
}
