//! A connection to one peer as two byte streams that never block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

use super::frame::HEADER_BYTES;
use super::ring::RingPair;

/// Bytes that are taken from a socket at a time.
const SCRATCH_BYTES: usize = 256 << 10;

/// A connection after its handshake. With shared memory the socket carries nothing more; its end
/// tells of the peer's.
pub(super) struct Link {
    socket: TcpStream,
    ring: Option<RingPair>,
    scratch: Vec<u8>,
    start: usize,
    end: usize,
    ended: bool,
}

impl Link {
    /// Takes over a connected socket.
    pub(super) fn new(socket: TcpStream, ring: Option<RingPair>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let scratch = if ring.is_some() {
            Vec::new()
        } else {
            vec![0; SCRATCH_BYTES]
        };
        Ok(Self {
            socket,
            ring,
            scratch,
            start: 0,
            end: 0,
            ended: false,
        })
    }

    /// Whether bytes go through shared memory.
    pub(super) fn is_shared(&self) -> bool {
        self.ring.is_some()
    }

    /// The socket once more, for somebody else to look at.
    pub(super) fn twin(&self) -> io::Result<TcpStream> {
        self.socket.try_clone()
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends the beginning of `bytes`; 0 when there is no room now.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.ring {
            Some(ring) => ring.write(bytes),
            None => match self.socket.write(bytes) {
                Err(error) if would_block(&error) => Ok(0),
                result => result,
            },
        }
    }

    /// What has arrived and was not consumed; empty when there is nothing now.
    pub(super) fn readable(&mut self) -> io::Result<&[u8]> {
        if self.ring.is_none() && self.end - self.start < HEADER_BYTES && !self.ended {
            self.fill()?;
        }
        match &self.ring {
            Some(ring) => ring.readable(),
            None => Ok(&self.scratch[self.start..self.end]),
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.scratch.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match self.socket.read(&mut self.scratch[self.end..]) {
            Ok(0) => self.ended = true,
            Ok(count) => self.end += count,
            Err(error) if would_block(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Forgets the first `count` bytes of [`Link::readable`].
    pub(super) fn consume(&mut self, count: usize) {
        match &mut self.ring {
            Some(ring) => ring.consume(count),
            None => self.start += count,
        }
    }

    /// An error once the peer has closed the connection. Called when nothing moves: bytes that
    /// came before the end have then been consumed.
    pub(super) fn check_alive(&mut self) -> io::Result<()> {
        if self.is_shared() && !self.ended {
            match self.socket.read(&mut [0; 8]) {
                Ok(0) => self.ended = true,
                Ok(_) => {
                    return Err(io::Error::new(
                        ErrorKind::InvalidData,
                        "unexpected bytes beside the ring",
                    ));
                }
                Err(error) if would_block(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if self.ended && self.readable()?.len() < HEADER_BYTES {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "it closed the connection",
            ));
        }
        Ok(())
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
