//! Collective operations between the workers of a generation.
//!
//! [`Collective`] is what the trainer sees. [`tcp::Mesh`] implements it over one connection per
//! pair of workers; peers on one machine exchange bytes through shared memory instead. A mesh
//! belongs to one generation of the run and is dropped with it.
//!
//! 1. Every rank calls the same operations in the same order; each has a sequence number, and a
//!    frame of another generation, number, kind or length ends the operation with an error.
//! 2. No operation outlives its deadline, a peer's death or an abort (noticed within 50 ms).
//! 3. After an error the contents of the buffers are unspecified and every later call fails.
//! 4. Results are the same bits on all ranks.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::patience;
use tch::{Device, Tensor};
use thiserror::Error;

use crate::flat::{FlatError, f32_slice_mut, i64_slice};

mod door;
mod engine;
mod frame;
mod handshake;
mod link;
pub mod nccl;
mod pulse;
mod ring;
pub mod schedule;
mod sink;
pub mod tcp;
mod wait;

/// One collective operation's identity, as carried by each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Generation of the run.
    pub generation: u64,
    /// Number of the operation within the generation, from 1.
    pub sequence: u64,
    /// What is done.
    pub kind: Kind,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} of generation {}",
            self.kind.name(),
            self.sequence,
            self.generation
        )
    }
}

/// Kinds of collective operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Small messages of every rank to every rank.
    AllGather = 1,
    /// One rank's message to every rank.
    Broadcast = 2,
    /// Sums of int64, each rank its shard.
    ReduceScatterI64 = 3,
    /// Sums of fp32, each rank its shard.
    ReduceScatterF32 = 4,
    /// Every rank's shard of fp32 to every rank.
    AllGatherF32 = 5,
}

impl Kind {
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [
            Self::AllGather,
            Self::Broadcast,
            Self::ReduceScatterI64,
            Self::ReduceScatterF32,
            Self::AllGatherF32,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == code)
    }

    fn name(self) -> &'static str {
        match self {
            Self::AllGather => "all-gather",
            Self::Broadcast => "broadcast",
            Self::ReduceScatterI64 => "int64 reduce-scatter",
            Self::ReduceScatterF32 => "fp32 reduce-scatter",
            Self::AllGatherF32 => "fp32 all-gather",
        }
    }
}

/// A peer, as errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Rank in the generation.
    pub rank: usize,
    /// Where its data plane listens.
    pub address: SocketAddr,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} at {}", self.rank, self.address)
    }
}

/// Why a collective operation or the mesh's forming failed.
#[derive(Debug, Error)]
pub enum CollectiveError {
    /// The address can not be listened on.
    #[error("the data plane can not listen on {address}: {source}")]
    Bind {
        /// The wanted address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A peer could not be connected to in time.
    #[error("{peer} could not be reached within {seconds:.1} s: {reason}")]
    Connect {
        /// The peer.
        peer: Peer,
        /// The limit.
        seconds: f64,
        /// The last attempt's end.
        reason: String,
    },
    /// A peer's machine does not answer.
    #[error("{peer} can not be reached: {reason}")]
    Unanswered {
        /// The peer.
        peer: Peer,
        /// For how long.
        reason: String,
    },
    /// A connection was lost.
    #[error("{peer} was lost in {during}: {reason}")]
    Lost {
        /// The peer.
        peer: Peer,
        /// The operation under way.
        during: Identity,
        /// What the connection said.
        reason: String,
    },
    /// Nothing moved for too long.
    #[error("nothing came from {peer} for {seconds:.1} s in {during}")]
    Deadline {
        /// The first peer that is behind.
        peer: Peer,
        /// The operation under way.
        during: Identity,
        /// The limit.
        seconds: f64,
    },
    /// A peer is in another operation.
    #[error("{peer} sent {found} ({found_bytes} bytes) in {expected} ({expected_bytes} bytes)")]
    Mismatch {
        /// The peer.
        peer: Peer,
        /// This rank's operation.
        expected: Identity,
        /// Bytes that this rank expects in all.
        expected_bytes: u64,
        /// The peer's operation.
        found: Identity,
        /// Bytes that the peer sends in all.
        found_bytes: u64,
    },
    /// A frame header that is not one.
    #[error("{peer} sent a damaged frame in {during}: {reason}")]
    Frame {
        /// The peer.
        peer: Peer,
        /// The operation under way.
        during: Identity,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody raised the abort flag.
    #[error("the collective was aborted: {0}")]
    Aborted(String),
    /// An earlier operation of this mesh failed.
    #[error("an earlier collective of this generation failed: {0}")]
    Broken(String),
    /// Arguments that do not fit together.
    #[error("{0}")]
    Usage(String),
    /// A buffer that can not be used.
    #[error(transparent)]
    Buffer(#[from] FlatError),
    /// The NCCL library said no.
    #[error("NCCL: {0}")]
    Nccl(String),
}

impl CollectiveError {
    /// Whether it is about the peers or the way to them, so that others, or the same connected
    /// anew, may succeed.
    #[must_use]
    pub fn is_about_peers(&self) -> bool {
        match self {
            Self::Bind { .. } | Self::Usage(_) | Self::Buffer(_) | Self::Mismatch { .. } => false,
            Self::Connect { .. }
            | Self::Unanswered { .. }
            | Self::Lost { .. }
            | Self::Deadline { .. }
            | Self::Frame { .. }
            | Self::Aborted(_)
            | Self::Broken(_)
            | Self::Nccl(_) => true,
        }
    }

    /// The rank that is to blame, where one is.
    #[must_use]
    pub fn rank(&self) -> Option<usize> {
        match self {
            Self::Connect { peer, .. }
            | Self::Unanswered { peer, .. }
            | Self::Lost { peer, .. }
            | Self::Deadline { peer, .. }
            | Self::Mismatch { peer, .. }
            | Self::Frame { peer, .. } => Some(peer.rank),
            _ => None,
        }
    }
}

impl From<CollectiveError> for Failure {
    fn from(error: CollectiveError) -> Self {
        let what = "the workers could not exchange their results";
        let (exit, cure) = match &error {
            CollectiveError::Bind { .. } => (
                ExitCode::Environment,
                "free the port, or let the system choose one with port 0",
            ),
            CollectiveError::Usage(_)
            | CollectiveError::Buffer(_)
            | CollectiveError::Mismatch { .. } => (
                ExitCode::Internal,
                "report this with the logs of all workers",
            ),
            CollectiveError::Nccl(_) => (
                ExitCode::Environment,
                "see NCCL's own messages with NCCL_DEBUG=INFO",
            ),
            _ => (
                ExitCode::RunFailed,
                "see that worker's log, then run the same command again: it resumes",
            ),
        };
        Self::new(exit, what, error.to_string(), cure).with_source(error)
    }
}

/// Result of a collective operation.
pub type Result<T> = std::result::Result<T, CollectiveError>;

/// A shared flag that ends the collectives of a generation from another thread, and tells it whom
/// they wait for.
#[derive(Clone, Debug, Default)]
pub struct AbortFlag(Arc<AbortState>);

#[derive(Debug, Default)]
struct AbortState {
    raised: AtomicBool,
    reason: Mutex<String>,
    /// The rank that is waited for, plus one; 0: none.
    awaited: AtomicU32,
}

impl AbortFlag {
    /// A flag that is not raised.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag; the first reason stays.
    pub fn abort(&self, reason: impl Into<String>) {
        let mut kept = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.0.raised.load(Ordering::Acquire) {
            *kept = reason.into();
            self.0.raised.store(true, Ordering::Release);
        }
    }

    /// Whether the flag is raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::Acquire)
    }

    /// Says which rank is waited for from now on.
    pub(crate) fn wait_for(&self, rank: Option<usize>) {
        let code = rank.and_then(|rank| u32::try_from(rank + 1).ok());
        self.0.awaited.store(code.unwrap_or(0), Ordering::Relaxed);
    }

    /// The rank that has been waited for a while, if one is.
    #[must_use]
    pub fn waits_for(&self) -> Option<u32> {
        self.0.awaited.load(Ordering::Relaxed).checked_sub(1)
    }

    /// An error once the flag is raised.
    ///
    /// # Errors
    /// [`CollectiveError::Aborted`] with the reason.
    pub fn check(&self) -> Result<()> {
        if !self.is_raised() {
            return Ok(());
        }
        let reason = self
            .0
            .reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Err(CollectiveError::Aborted(reason))
    }
}

/// Limits of a mesh.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For connecting to all peers and their proofs.
    pub connect: Duration,
    /// Longest time in which nothing arrives from a peer that is waited for. Long: the coordinator
    /// knows sooner who is dead or stalls, and then the abort flag ends the wait.
    pub silence: Duration,
    /// Longest time in which a peer's machine does not answer; none: it is not looked at.
    pub pulse: Option<Duration>,
    /// Largest message of [`Collective::all_gather`] and [`Collective::broadcast`], bytes.
    pub message_bytes: usize,
    /// Use shared memory between workers on one machine.
    pub shared_memory: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            silence: Duration::from_secs(3600),
            pulse: Some(patience::PULSE),
            message_bytes: 64 << 20,
            shared_memory: true,
        }
    }
}

/// Takes reduced blocks: the first element's place in the shard, and the sums.
pub type EachBlock<'a> = dyn FnMut(usize, &[i64]) + 'a;

/// The operations between all ranks of a generation. Every rank must call the same ones in the
/// same order, with buffers of the same length.
pub trait Collective {
    /// This worker's rank.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world(&self) -> usize;

    /// Sequence number of the last operation begun; 0 before the first.
    fn sequence(&self) -> u64;

    /// Every rank's message, by rank. Messages may differ in length, up to
    /// [`Limits::message_bytes`].
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// `root`'s message; what other ranks give is not looked at.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn broadcast(&mut self, root: usize, mine: &[u8]) -> Result<Vec<u8>> {
        let all = Vec::from_iter(0..self.world());
        self.multicast(root, &all, mine)
    }

    /// `root`'s message for the ranks in `to`; the others get an empty one. All ranks call it, with
    /// the same `to`.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn multicast(&mut self, root: usize, to: &[usize], mine: &[u8]) -> Result<Vec<u8>>;

    /// Sums `data` over ranks (wrapping) and hands this rank's shard of the sum
    /// (`schedule::shard(data.len(), world, rank)`) to `each`, block after block in order: the
    /// block's first element, counted from the shard's, and its sums. `data` is left as it was.
    ///
    /// # Errors
    /// See [`CollectiveError`]; `each` may then have seen a part.
    fn reduce_scatter_i64(&mut self, data: &[i64], each: &mut EachBlock<'_>) -> Result<()>;

    /// Gives every rank all shards: rank r's shard is taken from rank r.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_gather_f32(&mut self, data: &mut [f32]) -> Result<()>;

    /// Sums over ranks, in place. The order of additions is fixed by the world's size.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_reduce_f32(&mut self, data: &mut [f32]) -> Result<()>;

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn barrier(&mut self) -> Result<()> {
        self.all_gather(&[]).map(drop)
    }

    /// This rank's shard of a buffer of `len` elements.
    fn own_shard(&self, len: usize) -> Range<usize> {
        schedule::shard(len, self.world(), self.rank())
    }

    /// [`Collective::reduce_scatter_i64`] of a 1-D int64 tensor on any device: the reduced shard.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn reduce_scatter_tensor(&mut self, data: &Tensor) -> Result<Tensor> {
        let on_host = to_host(data)?;
        let mut shard = Vec::with_capacity(self.own_shard(on_host.numel()).len());
        self.reduce_scatter_i64(i64_slice(&on_host)?, &mut |_, sums| {
            shard.extend_from_slice(sums)
        })?;
        let shard = Tensor::from_slice(&shard);
        Ok(shard.f_to_device(data.device()).map_err(FlatError::from)?)
    }

    /// [`Collective::all_gather_f32`] of a 1-D fp32 tensor on any device.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_gather_tensor(&mut self, data: &mut Tensor) -> Result<()> {
        let mut on_host = to_host(data)?;
        self.all_gather_f32(f32_slice_mut(&mut on_host)?)?;
        from_host(data, &on_host)
    }

    /// [`Collective::all_reduce_f32`] of a 1-D fp32 tensor on any device.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_reduce_tensor(&mut self, data: &mut Tensor) -> Result<()> {
        let mut on_host = to_host(data)?;
        self.all_reduce_f32(f32_slice_mut(&mut on_host)?)?;
        from_host(data, &on_host)
    }
}

/// The tensor itself on the CPU, a copy of another device's.
fn to_host(tensor: &Tensor) -> Result<Tensor> {
    match tensor.device() {
        Device::Cpu => Ok(tensor.shallow_clone()),
        _ => Ok(tensor.f_to_device(Device::Cpu).map_err(FlatError::from)?),
    }
}

/// Copies back what [`to_host`] has copied.
fn from_host(tensor: &mut Tensor, on_host: &Tensor) -> Result<()> {
    if tensor.device() != Device::Cpu {
        tch::no_grad(|| tensor.f_copy_(on_host)).map_err(FlatError::from)?;
    }
    Ok(())
}
