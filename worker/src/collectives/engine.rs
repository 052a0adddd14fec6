//! Moves the messages of one operation: sends and receives at the same time, never blocks for
//! longer than a short wait, and gives up on abort, a peer's death or silence.

use std::io;

use super::frame::{HEADER_BYTES, Header, padding};
use super::link::Link;
use super::pulse::Pulse;
use super::sink::Sink;
use super::wait::{Idle, Pending, Watch};
use super::{CollectiveError, Identity, Peer, Result};

/// A link with its peer's name.
pub(super) struct Neighbour {
    pub(super) peer: Peer,
    pub(super) link: Link,
    /// Whether its machine answers; none: nobody feels it.
    pub(super) pulse: Option<Pulse>,
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        if let Some(pulse) = &self.pulse {
            pulse.forget();
        }
    }
}

impl Neighbour {
    /// An error once the peer has closed the connection, or its machine does not answer. Called
    /// when nothing moves.
    pub(super) fn check_alive(&mut self) -> io::Result<()> {
        self.link.check_alive()?;
        let silence = self.pulse.as_ref().and_then(Pulse::silence);
        silence.map_or(Ok(()), |why| {
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        })
    }

    /// Whether its machine seems to be out of reach.
    pub(super) fn is_faint(&self) -> bool {
        self.pulse.as_ref().is_some_and(Pulse::is_faint)
    }

    pub(super) fn lost(&self, during: Identity, reason: &io::Error) -> CollectiveError {
        CollectiveError::Lost {
            peer: self.peer,
            during,
            reason: reason.to_string(),
        }
    }
}

/// Where a message stands within its frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Payload,
    Padding,
    Done,
}

/// The frame under way.
struct Frame {
    stage: Stage,
    /// Bytes of header or padding that have passed.
    passed: usize,
    start: usize,
    end: usize,
}

impl Frame {
    fn new() -> Self {
        Self {
            stage: Stage::Header,
            passed: 0,
            start: 0,
            end: 0,
        }
    }

    /// After a stage's last byte, in a message of `total` bytes.
    fn next_stage(&mut self, total: usize) {
        self.passed = 0;
        self.stage = match self.stage {
            Stage::Header => Stage::Payload,
            Stage::Payload => Stage::Padding,
            Stage::Padding if self.end < total => {
                self.start = self.end;
                Stage::Header
            }
            Stage::Padding | Stage::Done => Stage::Done,
        };
    }

    fn padding(&self) -> usize {
        padding(self.end - self.start)
    }
}

/// A message on its way out.
pub(super) struct Outgoing<'a> {
    to: usize,
    data: &'a [u8],
    at: usize,
    header: [u8; HEADER_BYTES],
    frame: Frame,
}

impl<'a> Outgoing<'a> {
    /// `data` for the neighbour `to`.
    pub(super) fn new(to: usize, data: &'a [u8]) -> Self {
        Self {
            to,
            data,
            at: 0,
            header: [0; HEADER_BYTES],
            frame: Frame::new(),
        }
    }

    fn is_done(&self) -> bool {
        self.frame.stage == Stage::Done
    }

    /// Sends what there is room for; tells whether anything moved.
    fn pump(&mut self, link: &mut Link, identity: Identity) -> io::Result<bool> {
        let mut moved = false;
        while !self.is_done() {
            if self.frame.stage == Stage::Header && self.frame.passed == 0 {
                let header = Header::at(identity, self.data.len(), self.frame.start);
                self.frame.end = self.frame.start + header.length as usize;
                self.header = header.encode();
            }
            let rest = match self.frame.stage {
                Stage::Header => &self.header[self.frame.passed..],
                Stage::Payload => &self.data[self.at..self.frame.end],
                Stage::Padding => &[0; HEADER_BYTES][self.frame.passed..self.frame.padding()],
                Stage::Done => &[],
            };
            let sent = if rest.is_empty() {
                0
            } else {
                link.write(rest)?
            };
            if sent < rest.len() && sent == 0 {
                break;
            }
            moved = true;
            let finished = sent == rest.len();
            match self.frame.stage {
                Stage::Payload => self.at += sent,
                _ => self.frame.passed += sent,
            }
            if finished {
                self.frame.next_stage(self.data.len());
            }
        }
        Ok(moved)
    }
}

/// How long an incoming message may be.
#[derive(Clone, Copy)]
pub(super) enum Length {
    /// Exactly so many bytes.
    Exactly(usize),
    /// What the sender says, up to a limit.
    AtMost(usize),
}

/// A message on its way in.
pub(super) struct Incoming {
    from: usize,
    slot: usize,
    length: Length,
    /// Known from the first header on.
    total: Option<usize>,
    at: usize,
    frame: Frame,
}

impl Incoming {
    /// A message from neighbour `from` for `slot` of the sink.
    pub(super) fn new(from: usize, slot: usize, length: Length) -> Self {
        Self {
            from,
            slot,
            length,
            total: None,
            at: 0,
            frame: Frame::new(),
        }
    }

    fn is_done(&self) -> bool {
        self.frame.stage == Stage::Done
    }

    /// Takes what has arrived; tells whether anything moved.
    fn pump(
        &mut self,
        neighbour: &mut Neighbour,
        identity: Identity,
        sink: &mut dyn Sink,
    ) -> Result<bool> {
        let mut moved = false;
        while !self.is_done() {
            let peer = neighbour.peer;
            let arrived = match neighbour.link.readable() {
                Ok(arrived) => arrived,
                Err(error) => return Err(neighbour.lost(identity, &error)),
            };
            let (taken, finished) = match self.frame.stage {
                Stage::Header => match arrived.first_chunk() {
                    Some(header) => (self.read_header(header, peer, identity, sink)?, true),
                    None => (0, false),
                },
                Stage::Payload => self.read_payload(arrived, sink),
                Stage::Padding => {
                    let left = self.frame.padding() - self.frame.passed;
                    let taken = left.min(arrived.len());
                    self.frame.passed += taken;
                    (taken, taken == left)
                }
                Stage::Done => (0, false),
            };
            if taken == 0 && !finished {
                break;
            }
            moved = true;
            neighbour.link.consume(taken);
            if finished {
                self.frame.next_stage(self.total.unwrap_or(0));
            }
        }
        Ok(moved)
    }

    fn read_payload(&mut self, arrived: &[u8], sink: &mut dyn Sink) -> (usize, bool) {
        let room = sink.room(self.slot, self.at).min(self.frame.end - self.at);
        let taken = match room.min(arrived.len()) {
            0 => 0,
            count => sink.put(self.slot, self.at, &arrived[..count]),
        };
        self.at += taken;
        (taken, self.at == self.frame.end)
    }

    /// Checks the next frame's header against what must come; gives its length in bytes.
    fn read_header(
        &mut self,
        bytes: &[u8; HEADER_BYTES],
        peer: Peer,
        during: Identity,
        sink: &mut dyn Sink,
    ) -> Result<usize> {
        let header = Header::decode(bytes).map_err(|reason| CollectiveError::Frame {
            peer,
            during,
            reason,
        })?;
        let (fits, expected) = match (self.total, self.length) {
            (Some(total), _) | (None, Length::Exactly(total)) => {
                (header.total == total as u64, total)
            }
            (None, Length::AtMost(limit)) => (header.total <= limit as u64, limit),
        };
        if header.identity != during || !fits {
            return Err(CollectiveError::Mismatch {
                peer,
                expected: during,
                expected_bytes: expected as u64,
                found: header.identity,
                found_bytes: header.total,
            });
        }
        let total = header.total as usize;
        if header != Header::at(during, total, self.frame.start) {
            let reason = format!(
                "{} bytes at {} instead of {}",
                header.length, header.offset, self.frame.start
            );
            return Err(CollectiveError::Frame {
                peer,
                during,
                reason,
            });
        }
        if self.total.replace(total).is_none() {
            sink.begin(self.slot, total);
        }
        self.frame.end = self.frame.start + header.length as usize;
        Ok(HEADER_BYTES)
    }
}

/// Moves all messages to their ends.
pub(super) fn exchange(
    neighbours: &mut [Neighbour],
    identity: Identity,
    mut outgoing: Vec<Outgoing<'_>>,
    mut incoming: Vec<Incoming>,
    sink: &mut dyn Sink,
    watch: &Watch,
) -> Result<()> {
    let mut idle = Idle::new(watch, neighbours);
    loop {
        let mut moved = false;
        for message in &mut outgoing {
            let neighbour = &mut neighbours[message.to];
            let sent = message.pump(&mut neighbour.link, identity);
            moved |= sent.map_err(|error| neighbour.lost(identity, &error))?;
        }
        for message in &mut incoming {
            moved |= message.pump(&mut neighbours[message.from], identity, sink)?;
        }
        outgoing.retain(|message| !message.is_done());
        incoming.retain(|message| !message.is_done());
        if outgoing.is_empty() && incoming.is_empty() {
            idle.reset();
            return Ok(());
        }
        watch.abort.check()?;
        if moved {
            idle.reset();
        } else {
            idle.wait(neighbours, identity, || pending(&outgoing, &incoming))?;
        }
    }
}

fn pending(outgoing: &[Outgoing<'_>], incoming: &[Incoming]) -> Vec<Pending> {
    let receives = incoming.iter().map(|message| Pending {
        neighbour: message.from,
        receive: true,
    });
    let sends = outgoing.iter().map(|message| Pending {
        neighbour: message.to,
        receive: false,
    });
    receives.chain(sends).collect()
}
