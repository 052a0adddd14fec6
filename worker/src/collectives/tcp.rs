//! A full mesh of workers: one connection per pair.
//!
//! The worker binds its [`DataListener`] once, before it registers, and forms a [`Mesh`] with it for
//! each generation. Higher ranks dial lower ones, so rank r has dialed all below it before it
//! accepts those above; a dialer that comes too early waits in the listener's queue.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::engine::{Incoming, Length, Neighbour, Outgoing, exchange};
use super::handshake::{self, Credentials, Refusal, Timed};
use super::link::Link;
use super::sink::{AddSink, CopySink, GrowSink, Sink, SumSink};
use super::wait::Watch;
use super::{
    AbortFlag, Collective, CollectiveError, EachBlock, Identity, Kind, Limits, Peer, Result,
    schedule,
};
use crate::flat::{le_bytes, le_bytes_mut};

/// Pause between two attempts to reach a peer or to accept one.
const RETRY: Duration = Duration::from_millis(2);
/// Longest pause between two attempts to reach a peer.
const LONGEST_RETRY: Duration = Duration::from_millis(50);
/// How long a peer's machine may be out of reach: its worker listens before it joins a run.
const REACH: Duration = Duration::from_secs(30);
/// How long one connection's handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The socket on which a worker's data plane listens.
#[derive(Debug)]
pub struct DataListener {
    socket: TcpListener,
    address: SocketAddr,
}

impl DataListener {
    /// Listens on `address`; port 0 lets the system choose.
    ///
    /// # Errors
    /// [`CollectiveError::Bind`], for example when the port is taken.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let open = || {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            Ok(Self { socket, address })
        };
        open().map_err(|source: io::Error| CollectiveError::Bind { address, source })
    }

    /// The address with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An address of the loopback that was free a moment ago, for processes on this machine that must
/// know each other's before they start.
///
/// # Errors
/// [`CollectiveError::Bind`] when no port is free.
pub(crate) fn free_address() -> Result<SocketAddr> {
    DataListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).map(|listener| listener.address())
}

/// Who takes part in a generation.
#[derive(Clone)]
pub struct Roster {
    /// The run.
    pub run_id: String,
    /// The run's secret, of which peers prove the knowledge.
    pub token: String,
    /// The generation.
    pub generation: u64,
    /// This worker's rank.
    pub rank: usize,
    /// Where the data plane of each rank listens.
    pub addresses: Vec<SocketAddr>,
}

/// The connected workers of a generation.
pub struct Mesh {
    rank: usize,
    world: usize,
    generation: u64,
    sequence: u64,
    limits: Limits,
    watch: Watch,
    /// In the schedule's order: rank + 1, rank + 2, ...
    neighbours: Vec<Neighbour>,
    broken: Option<String>,
}

impl Mesh {
    /// The only rank of a world of one: no sockets.
    #[must_use]
    pub fn alone() -> Self {
        let watch = Watch::new(AbortFlag::new(), Duration::MAX);
        Self::assemble(0, 0, Vec::new(), Limits::default(), watch)
    }

    /// Connects to all peers of `roster`. Returns when every pair has proved that it belongs
    /// together.
    ///
    /// # Errors
    /// [`CollectiveError::Connect`] with the first peer that is missing after `limits.connect`, or
    /// at once when a peer can never fit; [`CollectiveError::Aborted`].
    pub fn form(
        listener: &DataListener,
        roster: &Roster,
        limits: &Limits,
        abort: &AbortFlag,
    ) -> Result<Self> {
        let (rank, world) = (roster.rank, roster.addresses.len());
        if rank >= world {
            return Err(CollectiveError::Usage(format!(
                "rank {rank} is not one of {world}"
            )));
        }
        let own = Credentials::new(
            &roster.run_id,
            &roster.token,
            roster.generation,
            world,
            rank,
        );
        let forming = Forming {
            roster,
            own,
            limits,
            abort,
            deadline: Instant::now() + limits.connect,
        };
        let mut links: Vec<Option<Link>> = (0..world).map(|_| None).collect();
        for (peer, link) in links.iter_mut().enumerate().take(rank) {
            *link = Some(forming.dial(peer)?);
        }
        forming.accept_all(listener, &mut links)?;
        let mut neighbours = Vec::new();
        for peer in schedule::peers(world, rank) {
            let link = links[peer].take();
            let peer = forming.peer(peer);
            neighbours.extend(link.map(|link| Neighbour { peer, link }));
        }
        let watch = Watch::new(abort.clone(), limits.silence);
        let mesh = Self::assemble(rank, roster.generation, neighbours, limits.clone(), watch);
        tracing::debug!(
            rank,
            world,
            generation = roster.generation,
            shared = mesh.shared_links(),
            "mesh formed"
        );
        Ok(mesh)
    }

    fn assemble(
        rank: usize,
        generation: u64,
        neighbours: Vec<Neighbour>,
        limits: Limits,
        watch: Watch,
    ) -> Self {
        let world = neighbours.len() + 1;
        Self {
            rank,
            world,
            generation,
            sequence: 0,
            limits,
            watch,
            neighbours,
            broken: None,
        }
    }

    /// Peers that are reached through shared memory.
    #[must_use]
    pub fn shared_links(&self) -> usize {
        self.neighbours
            .iter()
            .filter(|neighbour| neighbour.link.is_shared())
            .count()
    }

    /// Begins the next operation.
    fn begin(&mut self, kind: Kind) -> Result<Identity> {
        if let Some(reason) = &self.broken {
            return Err(CollectiveError::Broken(reason.clone()));
        }
        self.watch.abort.check()?;
        self.sequence += 1;
        Ok(Identity {
            generation: self.generation,
            sequence: self.sequence,
            kind,
        })
    }

    /// Runs one operation: `send(slot)` goes to each peer, `receive(slot)` long messages come back.
    fn run<'a>(
        &mut self,
        kind: Kind,
        send: impl Fn(usize) -> Option<&'a [u8]>,
        receive: impl Fn(usize) -> Option<Length>,
        sink: &mut dyn Sink,
    ) -> Result<()> {
        let identity = self.begin(kind)?;
        let slots = 0..self.neighbours.len();
        let outgoing = slots
            .clone()
            .filter_map(|slot| Some(Outgoing::new(slot, send(slot)?)))
            .collect();
        let incoming = slots
            .filter_map(|slot| Some(Incoming::new(slot, slot, receive(slot)?)))
            .collect();
        let result = exchange(
            &mut self.neighbours,
            identity,
            outgoing,
            incoming,
            sink,
            &self.watch,
        );
        if let Err(error) = &result {
            self.broken = Some(error.to_string());
        }
        result
    }

    fn check_message(&self, bytes: usize) -> Result<()> {
        if bytes <= self.limits.message_bytes {
            return Ok(());
        }
        let limit = self.limits.message_bytes;
        Err(CollectiveError::Usage(format!(
            "a message of {bytes} bytes is longer than {limit}"
        )))
    }

    fn reduce_scatter_f32(&mut self, data: &mut [f32]) -> Result<()> {
        let own = self.own_shard(data.len());
        let transfers = schedule::reduce_scatter(data.len(), self.world, self.rank);
        let (before, rest) = data.split_at_mut(own.start);
        let (out, after) = rest.split_at_mut(own.len());
        let (before, after): (&[f32], &[f32]) = (before, after);
        let send = |slot: usize| {
            let range = &transfers[slot].send;
            let values = if range.start < own.start || range.is_empty() && range.end <= own.start {
                &before[range.clone()]
            } else {
                &after[range.start - own.end..range.end - own.end]
            };
            Some(le_bytes(values))
        };
        let receive = Length::Exactly(size_of_val(out));
        let mut sink = AddSink {
            out,
            taken: vec![0; transfers.len()],
        };
        self.run(Kind::ReduceScatterF32, send, |_| Some(receive), &mut sink)
    }
}

impl Collective for Mesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.check_message(mine.len())?;
        let mut sink = GrowSink {
            parts: vec![Vec::new(); self.world - 1],
        };
        let length = Length::AtMost(self.limits.message_bytes);
        self.run(Kind::AllGather, |_| Some(mine), |_| Some(length), &mut sink)?;
        let mut all = vec![Vec::new(); self.world];
        all[self.rank] = mine.to_vec();
        for (peer, message) in schedule::peers(self.world, self.rank).zip(sink.parts) {
            all[peer] = message;
        }
        Ok(all)
    }

    fn broadcast(&mut self, root: usize, mine: &[u8]) -> Result<Vec<u8>> {
        if root >= self.world {
            return Err(CollectiveError::Usage(format!(
                "rank {root} is not one of {}",
                self.world
            )));
        }
        let is_root = root == self.rank;
        if is_root {
            self.check_message(mine.len())?;
        }
        let root_slot = (root + self.world - self.rank)
            .checked_rem(self.world)
            .unwrap_or(0);
        let length = Length::AtMost(self.limits.message_bytes);
        let mut sink = GrowSink {
            parts: vec![Vec::new(); self.world - 1],
        };
        let receive = |slot: usize| (!is_root && slot + 1 == root_slot).then_some(length);
        self.run(
            Kind::Broadcast,
            |_| is_root.then_some(mine),
            receive,
            &mut sink,
        )?;
        Ok(if is_root {
            mine.to_vec()
        } else {
            std::mem::take(&mut sink.parts[root_slot - 1])
        })
    }

    fn reduce_scatter_i64(&mut self, data: &[i64], each: &mut EachBlock<'_>) -> Result<()> {
        if self.world == 1 {
            self.begin(Kind::ReduceScatterI64)?;
            each(0, data);
            return Ok(());
        }
        let own = &data[self.own_shard(data.len())];
        let transfers = schedule::reduce_scatter(data.len(), self.world, self.rank);
        let mut sink = SumSink::new(own, transfers.len(), each);
        let send = |slot: usize| Some(le_bytes(&data[transfers[slot].send.clone()]));
        let receive = Length::Exactly(size_of_val(own));
        self.run(Kind::ReduceScatterI64, send, |_| Some(receive), &mut sink)
    }

    fn all_gather_f32(&mut self, data: &mut [f32]) -> Result<()> {
        let len = data.len();
        let own = self.own_shard(len);
        let mut shards: Vec<Option<&mut [f32]>> = Vec::with_capacity(self.world);
        let mut rest = data;
        for rank in 0..self.world {
            let (part, after) = rest.split_at_mut(schedule::shard(len, self.world, rank).len());
            shards.push(Some(part));
            rest = after;
        }
        let mine: &[u8] = shards[self.rank].take().map_or(&[], |part| le_bytes(part));
        debug_assert_eq!(mine.len(), 4 * own.len());
        let parts: Vec<&mut [u8]> = schedule::peers(self.world, self.rank)
            .filter_map(|peer| shards[peer].take().map(le_bytes_mut))
            .collect();
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        let mut sink = CopySink { parts };
        self.run(
            Kind::AllGatherF32,
            |_| Some(mine),
            |slot| Some(Length::Exactly(lengths[slot])),
            &mut sink,
        )
    }

    fn all_reduce_f32(&mut self, data: &mut [f32]) -> Result<()> {
        self.reduce_scatter_f32(data)?;
        self.all_gather_f32(data)
    }
}

/// A mesh while it is being connected.
struct Forming<'a> {
    roster: &'a Roster,
    own: Credentials,
    limits: &'a Limits,
    abort: &'a AbortFlag,
    deadline: Instant,
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

    /// Connects to a lower rank, again and again until the deadline.
    fn dial(&self, rank: usize) -> Result<Link> {
        let mut pause = RETRY;
        let began = Instant::now();
        loop {
            let reason = match self.try_dial(rank) {
                Ok(link) => return Ok(link),
                Err(Refusal::Never(reason)) => return Err(self.unreachable(rank, reason)),
                Err(Refusal::Aborted(error)) => return Err(error),
                Err(Refusal::Unreached(reason)) if began.elapsed() > REACH => {
                    return Err(self.unreachable(rank, reason));
                }
                Err(Refusal::Later(reason) | Refusal::Unreached(reason)) => reason,
            };
            self.abort.check()?;
            if Instant::now() + pause > self.deadline {
                return Err(self.unreachable(rank, reason));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }

    fn try_dial(&self, rank: usize) -> std::result::Result<Link, Refusal> {
        let left = self
            .deadline
            .saturating_duration_since(Instant::now())
            .max(RETRY);
        let socket = TcpStream::connect_timeout(
            &self.peer(rank).address,
            left.min(Duration::from_millis(500)),
        )
        .map_err(|error| Refusal::Unreached(error.to_string()))?;
        // The acceptor may be busy with others: its answer may take until the deadline.
        let mut stream = Timed::new(socket, self.deadline, self.abort)?;
        let rings = handshake::dial(&mut stream, &self.own, rank, self.limits.shared_memory)?;
        Ok(Link::new(stream.into_socket(), rings)?)
    }

    /// Accepts all higher ranks, in whatever order they come.
    fn accept_all(&self, listener: &DataListener, links: &mut [Option<Link>]) -> Result<()> {
        let first = self.own.rank as usize + 1;
        let mut last_refusal = "it has not connected".to_owned();
        while let Some(missing) = (first..links.len()).find(|&rank| links[rank].is_none()) {
            self.abort.check()?;
            match listener.socket.accept() {
                Ok((socket, _)) => match self.try_accept(socket, links) {
                    Ok((rank, link)) => links[rank] = Some(link),
                    Err(Refusal::Aborted(error)) => return Err(error),
                    Err(
                        Refusal::Later(reason)
                        | Refusal::Never(reason)
                        | Refusal::Unreached(reason),
                    ) => {
                        tracing::debug!(reason, "a connection to the data plane was refused");
                        last_refusal = reason;
                    }
                },
                Err(_) if Instant::now() > self.deadline => {
                    return Err(self.unreachable(missing, last_refusal));
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
        Ok(())
    }

    fn try_accept(
        &self,
        socket: TcpStream,
        links: &[Option<Link>],
    ) -> std::result::Result<(usize, Link), Refusal> {
        let deadline = self.deadline.min(Instant::now() + HANDSHAKE);
        let mut stream = Timed::new(socket, deadline, self.abort)?;
        let own_rank = self.own.rank as usize;
        let expected =
            |rank: usize| rank > own_rank && links.get(rank).is_some_and(Option::is_none);
        let (rank, rings) =
            handshake::accept(&mut stream, &self.own, expected, self.limits.shared_memory)?;
        Ok((rank, Link::new(stream.into_socket(), rings)?))
    }
}

#[cfg(test)]
mod tests;
