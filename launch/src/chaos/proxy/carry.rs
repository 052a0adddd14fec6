//! One connection through the proxy: two directions, each a reader, a bounded queue and a writer.
//!
//! The reader reads as long as there is place. The writer takes one piece after the other and asks
//! the weather what becomes of it when its time has come, so a change of the weather counts for what
//! is on its way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{
    Counters, Door, PIECE_BYTES, Passage, QUEUED_PIECES, Settings, Way, Weather, will_be_reset,
};

/// Slices per second in which a limited direction sends.
const SLICES_PER_SECOND: u64 = 50;

/// What an end says, and when.
struct Piece {
    said: Instant,
    what: What,
}

enum What {
    Bytes(Vec<u8>),
    /// It will say no more.
    End,
    /// It has given the connection up.
    Broken,
}

#[derive(Clone, Copy)]
enum Direction {
    Forth,
    Back,
}

impl Direction {
    fn way(self, weather: &Weather) -> Way {
        match self {
            Self::Forth => weather.forth,
            Self::Back => weather.back,
        }
    }

    fn opposite(self) -> Self {
        match self {
            Self::Forth => Self::Back,
            Self::Back => Self::Forth,
        }
    }

    fn counter(self, counters: &Counters) -> &AtomicU64 {
        match self {
            Self::Forth => &counters.forth_bytes,
            Self::Back => &counters.back_bytes,
        }
    }
}

/// How a direction ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    /// Everything was said and passed on.
    Done,
    /// The connection is to be reset.
    Reset,
}

/// Carries a connection to its end.
pub(super) async fn carry(
    mut caller: TcpStream,
    settings: watch::Receiver<Settings>,
    counters: Arc<Counters>,
) {
    // Whatever interrupts this resets both connections.
    will_be_reset(&caller);
    let has_hole = AtomicBool::new(false);
    let line = Line {
        settings: settings.clone(),
        counters: &counters,
        has_hole: &has_hole,
    };
    let target = tokio::select! {
        target = line.clone().reach() => target,
        () = cut(settings.clone(), &has_hole) => None,
    };
    let Some(mut target) = target else {
        return;
    };
    // Small messages wait for no others: the delay is the weather's alone.
    let _slower = (caller.set_nodelay(true), target.set_nodelay(true));
    let close = {
        let (from_caller, to_caller) = caller.split();
        let (from_target, to_target) = target.split();
        tokio::select! {
            close = both(
                line.clone().conduct(Direction::Forth, from_caller, to_target),
                line.clone().conduct(Direction::Back, from_target, to_caller),
            ) => close,
            () = cut(settings, &has_hole) => Close::Reset,
        }
    };
    if close == Close::Done {
        for stream in [&caller, &target] {
            will_be_closed(stream);
        }
    }
}

/// Dropped from now on, the stream ends in order, and what was written arrives.
fn will_be_closed(stream: &TcpStream) {
    #[expect(
        deprecated,
        reason = "only a lingering close blocks, and this one does not linger"
    )]
    let _ended = stream.set_linger(None);
}

/// Until one direction wants a reset, or both are done.
async fn both(forth: impl Future<Output = Close>, back: impl Future<Output = Close>) -> Close {
    tokio::pin!(forth, back);
    tokio::select! {
        close = &mut forth => if close == Close::Done { back.await } else { close },
        close = &mut back => if close == Close::Done { forth.await } else { close },
    }
}

/// Returns when the connection cannot go on: the door is not open, or bytes are missing in it and
/// the weather gives no more excuse. Never, when the proxy is gone: then the task ends anyhow.
async fn cut(mut settings: watch::Receiver<Settings>, has_hole: &AtomicBool) {
    let is_cut = |settings: &Settings| {
        let weather = &settings.weather;
        let is_torn = has_hole.load(Ordering::Relaxed) && !weather.swallows();
        weather.door != Door::Open || is_torn
    };
    if settings.wait_for(is_cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a direction needs to know.
#[derive(Clone)]
struct Line<'a> {
    settings: watch::Receiver<Settings>,
    counters: &'a Counters,
    /// Something was swallowed.
    has_hole: &'a AtomicBool,
}

impl Line<'_> {
    /// Connects to the target. A caller whose words do not arrive reaches nobody, and does not
    /// learn it either.
    async fn reach(mut self) -> Option<TcpStream> {
        let now = Instant::now();
        for direction in [Direction::Forth, Direction::Back] {
            if !self.passes(direction, now).await {
                std::future::pending::<()>().await;
            }
        }
        let target: SocketAddr = self.settings.borrow().target;
        let socket = match target {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.ok()?;
        // From the beginning: the target may see a connection of which nothing is known here yet.
        socket.set_zero_linger().ok()?;
        socket.connect(target).await.ok()
    }

    async fn conduct(
        self,
        direction: Direction,
        reader: ReadHalf<'_>,
        writer: WriteHalf<'_>,
    ) -> Close {
        let (queue, pieces) = mpsc::channel(QUEUED_PIECES);
        let reading = read(reader, queue);
        let writing = self.write(direction, pieces, writer);
        let ((), close) = tokio::join!(reading, writing);
        close
    }

    async fn write(
        mut self,
        direction: Direction,
        mut pieces: mpsc::Receiver<Piece>,
        mut writer: WriteHalf<'_>,
    ) -> Close {
        while let Some(Piece { said, what }) = pieces.recv().await {
            if !self.passes(direction, said).await {
                self.swallow(&what);
                continue;
            }
            let written = match what {
                What::Broken => return Close::Reset,
                What::End => writer.shutdown().await,
                What::Bytes(bytes) => self.pass_on(direction, &bytes, &mut writer).await,
            };
            // That the far end is gone is its news, and takes the way back.
            if written.is_err() && self.passes(direction.opposite(), Instant::now()).await {
                return Close::Reset;
            }
        }
        match self.has_hole.load(Ordering::Relaxed) {
            // An end that did not get through: the other one waits on.
            true => std::future::pending().await,
            false => Close::Done,
        }
    }

    /// Waits until what was said at this time is there. False: it gets lost.
    async fn passes(&mut self, direction: Direction, said: Instant) -> bool {
        loop {
            let way = direction.way(&self.settings.borrow_and_update().weather);
            let due = match way.passage {
                Passage::Swallowing => {
                    self.has_hole.store(true, Ordering::Relaxed);
                    return false;
                }
                Passage::Open => said + way.delay,
                Passage::Holding => said + Duration::from_hours(24),
            };
            if due <= Instant::now() {
                return true;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                changed = self.settings.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
        }
    }

    fn swallow(&self, what: &What) {
        if let What::Bytes(bytes) = what {
            let count = bytes.len() as u64;
            self.counters
                .swallowed_bytes
                .fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Writes in slices no faster than the limit.
    async fn pass_on(
        &self,
        direction: Direction,
        mut bytes: &[u8],
        writer: &mut WriteHalf<'_>,
    ) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let limit = direction.way(&self.settings.borrow().weather);
            let limit = limit.bytes_per_second.map(std::num::NonZeroU64::get);
            let most = limit.map_or(PIECE_BYTES as u64, |limit| limit / SLICES_PER_SECOND);
            let most = usize::try_from(most.max(1)).unwrap_or(PIECE_BYTES);
            let (slice, rest) = bytes.split_at(most.min(bytes.len()));
            writer.write_all(slice).await?;
            let count = slice.len() as u64;
            direction
                .counter(self.counters)
                .fetch_add(count, Ordering::Relaxed);
            if let Some(limit) = limit {
                let nanos = count.saturating_mul(1_000_000_000) / limit;
                tokio::time::sleep(Duration::from_nanos(nanos)).await;
            }
            bytes = rest;
        }
        Ok(())
    }
}

/// Reads to the end of what one side says.
async fn read(mut reader: ReadHalf<'_>, queue: mpsc::Sender<Piece>) {
    loop {
        let mut bytes = vec![0; PIECE_BYTES];
        let what = match reader.read(&mut bytes).await {
            Ok(0) => What::End,
            Ok(count) => {
                bytes.truncate(count);
                What::Bytes(bytes)
            }
            Err(_) => What::Broken,
        };
        let is_last = !matches!(what, What::Bytes(_));
        let said = Instant::now();
        if queue.send(Piece { said, what }).await.is_err() || is_last {
            return;
        }
    }
}
