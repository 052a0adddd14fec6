//! A full mesh of workers: one connection per pair.
//!
//! The worker binds its [`DataListener`] once, before it registers, and forms a [`Mesh`] with it for
//! each generation. Higher ranks dial lower ones, so rank r has dialed all below it before it
//! accepts those above; a dialer that comes too early waits behind the door.

mod forming;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::door::Door;
use super::engine::{Incoming, Length, Neighbour, Outgoing, exchange};
use super::handshake::Secret;
use super::sink::{AddSink, CopySink, GrowSink, Sink, SumSink};
use super::wait::Watch;
use super::{
    AbortFlag, Collective, CollectiveError, EachBlock, Identity, Kind, Limits, Result, schedule,
};
use crate::flat::{le_bytes, le_bytes_mut};

/// The socket on which a worker's data plane listens.
#[derive(Debug)]
pub struct DataListener {
    socket: TcpListener,
    address: SocketAddr,
    advertised: Option<SocketAddr>,
    door: Mutex<Option<Arc<Door>>>,
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
            Ok(Self {
                socket,
                address,
                advertised: None,
                door: Mutex::default(),
            })
        };
        open().map_err(|source: io::Error| CollectiveError::Bind { address, source })
    }

    /// Peers are to connect to another address, from where they are passed on to this one; port 0
    /// stands for the own port.
    #[must_use]
    pub fn behind(self, address: SocketAddr) -> Self {
        let mut advertised = address;
        if advertised.port() == 0 {
            advertised.set_port(self.address.port());
        }
        Self {
            advertised: Some(advertised),
            ..self
        }
    }

    /// Answers peers from now on. A worker does so before anybody is told of it: those that form a
    /// mesh want to know that it is there, even if it is not as far yet.
    ///
    /// # Errors
    /// [`CollectiveError::Usage`] when the system has no thread for it, or it belongs to another run.
    pub fn open(&self, run_id: &str, token: &str) -> Result<()> {
        self.door(run_id, token).map(drop)
    }

    fn door(&self, run_id: &str, token: &str) -> Result<Arc<Door>> {
        let secret = Secret::new(run_id, token);
        let mut door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        match &*door {
            Some(door) if *door.secret() == secret => Ok(Arc::clone(door)),
            Some(_) => Err(CollectiveError::Usage(
                "the data plane belongs to another run".into(),
            )),
            None => {
                let opened = Door::open(&self.socket, secret, self.advertised())?;
                Ok(Arc::clone(door.insert(Arc::new(opened))))
            }
        }
    }

    /// The address with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where peers connect to.
    #[must_use]
    pub fn advertised(&self) -> SocketAddr {
        self.advertised.unwrap_or(self.address)
    }
}

/// Listeners on as many ports of the loopback, for ranks of this machine that must know each other's
/// addresses before they start.
///
/// # Errors
/// [`CollectiveError::Bind`] when no port is free.
pub(crate) fn local_listeners(count: usize) -> Result<Vec<DataListener>> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    (0..count).map(|_| DataListener::bind(any)).collect()
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
    /// Is told of a rank whose connection was reset or whose machine is silent, and which it is, at
    /// once, whatever the trainer does. Must not wait for anything.
    pub broken: Option<Arc<Broken>>,
}

/// See [`Roster::broken`].
pub type Broken = dyn Fn(usize, &str) + Send + Sync;

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
    /// at once when a peer can never fit or its machine does not answer;
    /// [`CollectiveError::Aborted`].
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
        let neighbours = forming::connect(listener, roster, limits, abort)?;
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
        let result = result.map_err(|error| self.cause_of(error));
        if let Err(error) = &result {
            self.broken = Some(error.to_string());
        }
        result
    }

    /// One that cannot reach a third rank leaves, and closes its connections: the third is to blame.
    fn cause_of(&self, error: CollectiveError) -> CollectiveError {
        let CollectiveError::Lost { peer, .. } = &error else {
            return error;
        };
        let mut faint = self.neighbours.iter().filter(|other| other.is_faint());
        match faint.next() {
            Some(third) if third.peer.rank != peer.rank => CollectiveError::Unanswered {
                peer: third.peer,
                reason: format!("its machine does not answer, and {error}"),
            },
            _ => error,
        }
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

    fn multicast(&mut self, root: usize, to: &[usize], mine: &[u8]) -> Result<Vec<u8>> {
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
        // An empty message keeps those in step that get nothing.
        let (rank, world) = (self.rank, self.world);
        let send = |slot: usize| {
            let peer = (rank + slot + 1) % world;
            is_root.then_some(if to.contains(&peer) { mine } else { &[] })
        };
        self.run(Kind::Broadcast, send, receive, &mut sink)?;
        Ok(match is_root {
            true if to.contains(&root) => mine.to_vec(),
            true => Vec::new(),
            false => std::mem::take(&mut sink.parts[root_slot - 1]),
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

#[cfg(test)]
mod tests;
