//! How two workers find out that they belong together, before any tensor byte.
//!
//! ```text
//! dialer                                    acceptor
//! hello: generation, rank, run, nonce  -->
//!                                      <--  hello and answer: welcome, or why not
//! proof over both hellos               -->
//!                                      <--  proof over both hellos
//! offer of shared memory, or none      -->
//!                                      <--  taken or not
//! ```
//!
//! A proof is blake3 keyed with a key derived from the run's token, over the sender's side and both
//! hellos. The token itself is never sent, and the nonces make every proof a new one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::ring::{Offer, RingPair};
use super::{AbortFlag, CollectiveError};

const MAGIC: &[u8; 8] = b"mks2mesh";
const VERSION: u32 = 1;
const HELLO_BYTES: usize = 96;
const OFFER_BYTES: usize = 40;
/// How long a read may block before the abort flag is looked at.
const TICK: Duration = Duration::from_millis(20);

/// What both sides must agree on, and the key of their proofs.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) run: blake3::Hash,
    pub(super) key: [u8; 32],
    pub(super) generation: u64,
    pub(super) world: u32,
    pub(super) rank: u32,
}

impl Credentials {
    pub(super) fn new(
        run_id: &str,
        token: &str,
        generation: u64,
        world: usize,
        rank: usize,
    ) -> Self {
        let key = blake3::derive_key("mks2 2026 data plane handshake v1", token.as_bytes());
        let run = blake3::hash(run_id.as_bytes());
        Self {
            run,
            key,
            generation,
            world: world as u32,
            rank: rank as u32,
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            generation: self.generation,
            rank: self.rank,
            world: self.world,
            run: *self.run.as_bytes(),
            nonce: nonce(),
        }
    }
}

/// Thirty-two bytes that nobody can have seen before: hashed from the system's randomness.
pub(super) fn nonce() -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for round in 0..4u64 {
        // Each `RandomState` is keyed by the system's random numbers.
        let state = std::hash::RandomState::new();
        hasher.update(&std::hash::BuildHasher::hash_one(&state, round).to_le_bytes());
    }
    hasher.update(&std::process::id().to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// Why a connection was not made.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Try again: the other side is not there yet, or in an earlier generation.
    Later(String),
    /// The other side's machine does not answer.
    Unreached(String),
    /// It will not work.
    Never(String),
    /// The abort flag is up.
    Aborted(CollectiveError),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Later(error.to_string())
    }
}

/// The acceptor's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Answer {
    Welcome = 0,
    /// The acceptor is in another generation.
    Generation = 1,
    /// Another run.
    Run = 2,
    /// Another number of ranks, or a rank that is already connected or not expected.
    Rank = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hello {
    generation: u64,
    rank: u32,
    world: u32,
    run: [u8; 32],
    nonce: [u8; 32],
}

impl Hello {
    fn encode(&self, answer: Answer) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(answer as u32).to_le_bytes());
        put(16, &self.generation.to_le_bytes());
        put(24, &self.rank.to_le_bytes());
        put(28, &self.world.to_le_bytes());
        put(32, &self.run);
        put(64, &self.nonce);
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<(Self, u32)> {
        let word = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |word| u32::from_le_bytes(*word))
        };
        if &bytes[..8] != MAGIC || word(8) != VERSION {
            return None;
        }
        let generation = u64::from_le_bytes(*bytes[16..].first_chunk()?);
        let (run, nonce) = (*bytes[32..].first_chunk()?, *bytes[64..].first_chunk()?);
        Some((
            Self {
                generation,
                rank: word(24),
                world: word(28),
                run,
                nonce,
            },
            word(12),
        ))
    }
}

/// Which side a proof comes from.
#[derive(Clone, Copy)]
enum Side {
    Dialer,
    Acceptor,
}

fn proof(key: &[u8; 32], side: Side, dialer: &[u8], acceptor: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&[side as u8]).update(dialer).update(acceptor);
    hasher.finalize()
}

/// A socket whose reads and writes end at a deadline and on abort.
pub(super) struct Timed<'a> {
    socket: TcpStream,
    deadline: Instant,
    abort: &'a AbortFlag,
}

impl<'a> Timed<'a> {
    pub(super) fn new(
        socket: TcpStream,
        deadline: Instant,
        abort: &'a AbortFlag,
    ) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TICK))?;
        socket.set_write_timeout(Some(TICK))?;
        Ok(Self {
            socket,
            deadline,
            abort,
        })
    }

    fn check(&self) -> Result<(), Refusal> {
        self.abort.check().map_err(Refusal::Aborted)?;
        if Instant::now() > self.deadline {
            return Err(Refusal::Later("it did not answer in time".into()));
        }
        Ok(())
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (mut bytes, mut at) = ([0; N], 0);
        while at < N {
            match self.socket.read(&mut bytes[at..]) {
                Ok(0) => return Err(Refusal::Later("it closed the connection".into())),
                Ok(count) => at += count,
                Err(error) if is_tick(&error) => self.check()?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_tick(&error) => self.check()?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn on_one_machine(&self) -> bool {
        let ends = (self.socket.local_addr(), self.socket.peer_addr());
        matches!(ends, (Ok(near), Ok(far)) if near.ip() == far.ip())
    }

    pub(super) fn into_socket(self) -> TcpStream {
        self.socket
    }
}

fn is_tick(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// The dialer's side with the worker of rank `rank`. `shared` allows shared memory.
pub(super) fn dial(
    stream: &mut Timed<'_>,
    own: &Credentials,
    rank: usize,
    shared: bool,
) -> Result<Option<RingPair>, Refusal> {
    let mine = own.hello().encode(Answer::Welcome);
    stream.write(&mine)?;
    let theirs = stream.read::<HELLO_BYTES>()?;
    let Some((hello, answer)) = Hello::decode(&theirs) else {
        return Err(Refusal::Never("it does not speak this protocol".into()));
    };
    check_answer(own, rank, &hello, answer)?;
    stream.write(proof(&own.key, Side::Dialer, &mine, &theirs).as_bytes())?;
    let expected = proof(&own.key, Side::Acceptor, &mine, &theirs);
    if blake3::Hash::from(stream.read::<32>()?) != expected {
        return Err(Refusal::Never(
            "its proof of the run's token is wrong".into(),
        ));
    }
    offer_memory(stream, shared)
}

fn check_answer(own: &Credentials, rank: usize, hello: &Hello, answer: u32) -> Result<(), Refusal> {
    if answer == Answer::Generation as u32 {
        let text = format!(
            "it is in generation {}, this worker in {}",
            hello.generation, own.generation
        );
        return Err(if hello.generation < own.generation {
            Refusal::Later(text)
        } else {
            Refusal::Never(text)
        });
    }
    if answer == Answer::Run as u32 {
        return Err(Refusal::Never("it belongs to another run".into()));
    }
    let fits = hello.generation == own.generation && hello.run == *own.run.as_bytes();
    if answer != Answer::Welcome as u32
        || !fits
        || hello.rank as usize != rank
        || hello.world != own.world
    {
        let text = format!(
            "it is rank {} of {} and refused rank {} of {}",
            hello.rank, hello.world, own.rank, own.world
        );
        return Err(Refusal::Never(text));
    }
    Ok(())
}

/// The acceptor's side: the peer's rank, one of those that `expected` names.
pub(super) fn accept(
    stream: &mut Timed<'_>,
    own: &Credentials,
    expected: impl Fn(usize) -> bool,
    shared: bool,
) -> Result<(usize, Option<RingPair>), Refusal> {
    let theirs = stream.read::<HELLO_BYTES>()?;
    let Some((hello, _)) = Hello::decode(&theirs) else {
        return Err(Refusal::Later("it does not speak this protocol".into()));
    };
    let rank = hello.rank as usize;
    let answer = match &hello {
        hello if hello.run != *own.run.as_bytes() => Answer::Run,
        hello if hello.generation != own.generation => Answer::Generation,
        hello if hello.world != own.world || !expected(rank) => Answer::Rank,
        _ => Answer::Welcome,
    };
    let mine = own.hello().encode(answer);
    stream.write(&mine)?;
    if answer != Answer::Welcome {
        return Err(Refusal::Later(format!(
            "rank {rank} of generation {} was turned away: {answer:?}",
            hello.generation
        )));
    }
    let expected = proof(&own.key, Side::Dialer, &theirs, &mine);
    if blake3::Hash::from(stream.read::<32>()?) != expected {
        return Err(Refusal::Later(format!(
            "rank {rank} sent a wrong proof of the run's token"
        )));
    }
    stream.write(proof(&own.key, Side::Acceptor, &theirs, &mine).as_bytes())?;
    Ok((rank, take_memory(stream, shared)?))
}

/// Offers shared memory to a peer on this machine; it may decline.
fn offer_memory(stream: &mut Timed<'_>, shared: bool) -> Result<Option<RingPair>, Refusal> {
    let wanted = shared && stream.on_one_machine();
    let made = if wanted {
        RingPair::create(nonce()).ok()
    } else {
        None
    };
    let mut bytes = [0; OFFER_BYTES];
    if let Some((_, _, offer)) = &made {
        bytes[..4].copy_from_slice(&offer.pid.to_le_bytes());
        bytes[4..8].copy_from_slice(&offer.fd.to_le_bytes());
        bytes[8..].copy_from_slice(&offer.nonce);
    }
    stream.write(&bytes)?;
    let [taken] = stream.read::<1>()?;
    Ok(made.filter(|_| taken == 1).map(|(rings, _, _)| rings))
}

fn take_memory(stream: &mut Timed<'_>, shared: bool) -> Result<Option<RingPair>, Refusal> {
    let bytes = stream.read::<OFFER_BYTES>()?;
    let word = |at: usize| {
        bytes[at..]
            .first_chunk()
            .map_or(0, |word| u32::from_le_bytes(*word))
    };
    let nonce = bytes[8..].first_chunk().copied().unwrap_or_default();
    let offer = Offer {
        pid: word(0),
        fd: word(4).cast_signed(),
        nonce,
    };
    let rings = if shared && offer.pid != 0 {
        RingPair::open(&offer).ok()
    } else {
        None
    };
    stream.write(&[u8::from(rings.is_some())])?;
    Ok(rings)
}
