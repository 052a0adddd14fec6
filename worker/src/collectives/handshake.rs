//! How two workers find out that they belong together, before any tensor byte.
//!
//! ```text
//! dialer                                       acceptor
//! hello: purpose, seat, run, nonce        -->           its door
//!                                         <--  hello, or why not
//! proof over both hellos                  -->
//!                                         <--  proof over both hellos
//! ------------------------------------------- a link of a generation: its trainer
//!                                         <--  hello and answer: welcome, or why not
//! offer of shared memory, or none         -->
//!                                         <--  taken or not
//! ```
//!
//! A proof is blake3 keyed with a key derived from the run's token, over the sender's side and both
//! hellos. The token itself is never sent, and the nonces make every proof a new one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::CollectiveError;
use super::ring::{Offer, RingPair};

const MAGIC: &[u8; 8] = b"mks2mesh";
const VERSION: u32 = 2;
const HELLO_BYTES: usize = 96;
const OFFER_BYTES: usize = 40;
/// How long a read may block before it is looked whether it still makes sense.
const TICK: Duration = Duration::from_millis(20);

/// What all workers of a run know, and strangers do not.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret {
    run: [u8; 32],
    key: [u8; 32],
}

impl Secret {
    pub(super) fn new(run_id: &str, token: &str) -> Self {
        let key = blake3::derive_key("mks2 2026 data plane handshake v1", token.as_bytes());
        let run = *blake3::hash(run_id.as_bytes()).as_bytes();
        Self { run, key }
    }

    /// What a worker says first.
    pub(super) fn hello(&self, seat: Seat) -> Hello {
        Hello {
            seat,
            run: self.run,
            nonce: nonce(),
        }
    }

    fn proof(&self, side: Side, dialer: &[u8], acceptor: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&[side as u8]).update(dialer).update(acceptor);
        hasher.finalize()
    }
}

/// A worker's place in a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) generation: u64,
    pub(super) world: u32,
    pub(super) rank: u32,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Purpose {
    /// The messages of a generation.
    Link = 0,
    /// To find out whether the acceptor can be reached.
    Pulse = 1,
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
    /// There is no sense in going on.
    Over(CollectiveError),
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

/// The first words of either side. In the place of the acceptor's answer the dialer says what the
/// connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) seat: Seat,
    run: [u8; 32],
    nonce: [u8; 32],
}

impl Hello {
    fn encode(&self, word: u32) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &word.to_le_bytes());
        put(16, &self.seat.generation.to_le_bytes());
        put(24, &self.seat.rank.to_le_bytes());
        put(28, &self.seat.world.to_le_bytes());
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
        let seat = Seat {
            generation: u64::from_le_bytes(*bytes[16..].first_chunk()?),
            rank: word(24),
            world: word(28),
        };
        let (run, nonce) = (*bytes[32..].first_chunk()?, *bytes[64..].first_chunk()?);
        Some((Self { seat, run, nonce }, word(12)))
    }
}

/// Which side a proof comes from.
#[derive(Clone, Copy)]
enum Side {
    Dialer,
    Acceptor,
}

/// The dialer's side at the acceptor's door.
pub(super) async fn call<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    secret: &Secret,
    hello: &Hello,
    purpose: Purpose,
) -> Result<(), Refusal> {
    let mine = hello.encode(purpose as u32);
    stream.write_all(&mine).await?;
    let mut theirs = [0; HELLO_BYTES];
    stream.read_exact(&mut theirs).await?;
    let Some((_, answer)) = Hello::decode(&theirs) else {
        return Err(Refusal::Never("it does not speak this protocol".into()));
    };
    if answer != Answer::Welcome as u32 {
        return Err(Refusal::Never("it belongs to another run".into()));
    }
    let proof = secret.proof(Side::Dialer, &mine, &theirs);
    stream.write_all(proof.as_bytes()).await?;
    let mut proof = [0; 32];
    stream.read_exact(&mut proof).await?;
    // This comparison takes the same time whatever differs.
    if blake3::Hash::from(proof) != secret.proof(Side::Acceptor, &mine, &theirs) {
        return Err(Refusal::Never(
            "its proof of the run's token is wrong".into(),
        ));
    }
    Ok(())
}

/// The same over a connection of its own.
pub(super) async fn reach(
    address: SocketAddr,
    secret: &Secret,
    hello: &Hello,
    purpose: Purpose,
) -> Result<tokio::net::TcpStream, Refusal> {
    let connected = tokio::net::TcpStream::connect(address).await;
    let mut stream = connected.map_err(|error| Refusal::Unreached(error.to_string()))?;
    stream.set_nodelay(true)?;
    call(&mut stream, secret, hello, purpose).await?;
    Ok(stream)
}

/// The acceptor's side at its door: who is there, and what for.
pub(super) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    secret: &Secret,
) -> Result<(Hello, Purpose), Refusal> {
    let mut theirs = [0; HELLO_BYTES];
    stream.read_exact(&mut theirs).await?;
    let Some((hello, purpose)) = Hello::decode(&theirs) else {
        return Err(Refusal::Later("it does not speak this protocol".into()));
    };
    let is_ours = hello.run == secret.run;
    let answer = if is_ours {
        Answer::Welcome
    } else {
        Answer::Run
    };
    let mine = secret.hello(Seat::default()).encode(answer as u32);
    stream.write_all(&mine).await?;
    if !is_ours {
        return Err(Refusal::Later("a worker of another run came".into()));
    }
    let mut proof = [0; 32];
    stream.read_exact(&mut proof).await?;
    let (rank, generation) = (hello.seat.rank, hello.seat.generation);
    if blake3::Hash::from(proof) != secret.proof(Side::Dialer, &theirs, &mine) {
        return Err(Refusal::Later(format!(
            "rank {rank} of generation {generation} sent a wrong proof of the run's token"
        )));
    }
    let proof = secret.proof(Side::Acceptor, &theirs, &mine);
    stream.write_all(proof.as_bytes()).await?;
    let purpose = match purpose {
        0 => Purpose::Link,
        _ => Purpose::Pulse,
    };
    Ok((hello, purpose))
}

/// A socket whose reads and writes end when they make no sense any more.
pub(super) struct Timed<'a> {
    socket: TcpStream,
    check: &'a dyn Fn() -> Result<(), Refusal>,
}

impl<'a> Timed<'a> {
    pub(super) fn new(
        socket: TcpStream,
        check: &'a dyn Fn() -> Result<(), Refusal>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TICK))?;
        socket.set_write_timeout(Some(TICK))?;
        Ok(Self { socket, check })
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (mut bytes, mut at) = ([0; N], 0);
        while at < N {
            match self.socket.read(&mut bytes[at..]) {
                Ok(0) => return Err(Refusal::Later("it closed the connection".into())),
                Ok(count) => at += count,
                Err(error) if is_tick(&error) => (self.check)()?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_tick(&error) => (self.check)()?,
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

/// The dialer's side with the trainer of rank `rank`, behind its door. `shared` allows shared memory.
pub(super) fn take_seat(
    stream: &mut Timed<'_>,
    own: Seat,
    rank: usize,
    shared: bool,
) -> Result<Option<RingPair>, Refusal> {
    let Some((hello, answer)) = Hello::decode(&stream.read::<HELLO_BYTES>()?) else {
        return Err(Refusal::Never("it does not speak this protocol".into()));
    };
    check_answer(own, rank, hello.seat, answer)?;
    offer_memory(stream, shared)
}

fn check_answer(own: Seat, rank: usize, theirs: Seat, answer: u32) -> Result<(), Refusal> {
    if answer == Answer::Generation as u32 {
        let text = format!(
            "it is in generation {}, this worker in {}",
            theirs.generation, own.generation
        );
        return Err(if theirs.generation < own.generation {
            Refusal::Later(text)
        } else {
            Refusal::Never(text)
        });
    }
    let fits = theirs.generation == own.generation && theirs.world == own.world;
    if answer != Answer::Welcome as u32 || !fits || theirs.rank as usize != rank {
        let text = format!(
            "it is rank {} of {} and refused rank {} of {}",
            theirs.rank, theirs.world, own.rank, own.world
        );
        return Err(Refusal::Never(text));
    }
    Ok(())
}

/// The acceptor's side with a worker that came through its door: the peer's rank, one of those that
/// `expected` names.
pub(super) fn give_seat(
    stream: &mut Timed<'_>,
    own: &Hello,
    theirs: Seat,
    expected: impl Fn(usize) -> bool,
    shared: bool,
) -> Result<(usize, Option<RingPair>), Refusal> {
    let rank = theirs.rank as usize;
    let answer = match theirs {
        theirs if theirs.generation != own.seat.generation => Answer::Generation,
        theirs if theirs.world != own.seat.world || !expected(rank) => Answer::Rank,
        _ => Answer::Welcome,
    };
    stream.write(&own.encode(answer as u32))?;
    if answer != Answer::Welcome {
        return Err(Refusal::Later(format!(
            "rank {rank} of generation {} was turned away: {answer:?}",
            theirs.generation
        )));
    }
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

#[cfg(test)]
mod tests;
