//! Byte streams through shared memory, for two workers on one machine.
//!
//! The dialing worker makes an anonymous file (`memfd`), which the other opens through
//! `/proc/PID/fd/FD`: that works exactly when both share machine, user and process namespace, and
//! leaves nothing behind when either dies. A nonce proves that it is the right file. Each direction
//! is a ring of [`CAPACITY`] bytes with one writer and one reader.
//!
//! ```text
//! 0: nonce [32]   64: ring 0 written   128: ring 0 read   192: ring 1 written   256: ring 1 read
//! 4096: ring 0 [CAPACITY]   4096 + CAPACITY: ring 1 [CAPACITY]
//! ```
//!
//! `written` and `read` count bytes for ever; the writer alone moves the first, the reader the
//! second, with release and acquire. Written amounts are multiples of 64 but for the last of a
//! message, so numbers never straddle the ring's end.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of one direction's ring.
pub(super) const CAPACITY: usize = 2 << 20;
const DATA: usize = 4096;
const SIZE: usize = DATA + 2 * CAPACITY;
const LINE: usize = 64;

/// Where a peer finds the memory: process, file descriptor and the nonce inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) pid: u32,
    pub(super) fd: i32,
    pub(super) nonce: [u8; 32],
}

/// The mapped memory of a pair of workers.
struct Mapping(NonNull<u8>);

// SAFETY: the mapping belongs to no thread; access goes through atomics and the ring's protocol.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(file: &File) -> io::Result<Self> {
        // SAFETY: a new shared mapping of SIZE bytes, which the file has, at an address that the
        // system chooses.
        let address = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address.cast::<u8>()) {
            Some(address) if address.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => {
                Ok(Self(address))
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn counter(&self, line: usize) -> &AtomicU64 {
        // SAFETY: the lines 1 to 4 lie inside the mapping, are aligned, hold only atomics and live
        // as long as `self`.
        unsafe { self.0.add(line * LINE).cast::<AtomicU64>().as_ref() }
    }

    fn data(&self, ring: usize) -> NonNull<u8> {
        // SAFETY: ring is 0 or 1, so the result is inside the mapping.
        unsafe { self.0.add(DATA + ring * CAPACITY) }
    }

    fn nonce(&self) -> &[u8; 32] {
        // SAFETY: the first line is written before the file is offered and never again.
        unsafe { self.0.cast::<[u8; 32]>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size, and no reference outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

/// This worker's ends of both directions.
pub(super) struct RingPair {
    memory: Mapping,
    /// Ring that this side writes; it reads the other one.
    outgoing: usize,
    /// Own counters, so that the shared ones need not be read back.
    written: u64,
    read: u64,
}

impl RingPair {
    /// Makes the memory. The file must stay open until the peer has answered the offer.
    pub(super) fn create(nonce: [u8; 32]) -> io::Result<(Self, File, Offer)> {
        // SAFETY: the name ends in zero; the flags take no further arguments.
        let fd = unsafe {
            libc::memfd_create(
                c"mks2-ring".as_ptr(),
                libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(SIZE as u64)?;
        // SAFETY: plain call on an open descriptor.
        if unsafe {
            libc::fcntl(
                fd,
                libc::F_ADD_SEALS,
                libc::F_SEAL_SHRINK | libc::F_SEAL_GROW,
            )
        } < 0
        {
            return Err(io::Error::last_os_error());
        }
        let memory = Mapping::new(&file)?;
        // SAFETY: the first 32 bytes are inside the mapping, which nobody else knows yet.
        unsafe { memory.0.cast::<[u8; 32]>().write(nonce) };
        let offer = Offer {
            pid: std::process::id(),
            fd,
            nonce,
        };
        Ok((
            Self {
                memory,
                outgoing: 0,
                written: 0,
                read: 0,
            },
            file,
            offer,
        ))
    }

    /// Opens the memory that a peer offers.
    pub(super) fn open(offer: &Offer) -> io::Result<Self> {
        let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        let path = format!("/proc/{}/fd/{}", offer.pid, offer.fd);
        if !std::fs::read_link(&path)?
            .to_string_lossy()
            .starts_with("/memfd:mks2-ring")
        {
            return refuse("the descriptor is no ring");
        }
        let file = File::options().read(true).write(true).open(path)?;
        // SAFETY: plain call on an open descriptor.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if file.metadata()?.len() != SIZE as u64 || seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return refuse("the ring has another size or may shrink");
        }
        let memory = Mapping::new(&file)?;
        if memory.nonce() != &offer.nonce {
            return refuse("the ring holds another nonce");
        }
        Ok(Self {
            memory,
            outgoing: 1,
            written: 0,
            read: 0,
        })
    }

    /// Copies as much of `bytes` as fits, in multiples of 64 bytes unless all of it fits.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let read = self
            .memory
            .counter(2 + 2 * self.outgoing)
            .load(Ordering::Acquire);
        let used = self.written.wrapping_sub(read);
        if used > CAPACITY as u64 {
            return Err(damaged());
        }
        let free = CAPACITY - used as usize;
        let count = if bytes.len() <= free {
            bytes.len()
        } else {
            free / LINE * LINE
        };
        let start = (self.written % CAPACITY as u64) as usize;
        let first = count.min(CAPACITY - start);
        let ring = self.memory.data(self.outgoing);
        // SAFETY: both parts lie inside the ring, in bytes that the reader has given back and does
        // not touch before `written` moves; `bytes` is not shared memory.
        unsafe {
            ring.add(start)
                .copy_from_nonoverlapping(NonNull::from(&bytes[..first]).cast(), first);
            ring.copy_from_nonoverlapping(
                NonNull::from(&bytes[first..count]).cast(),
                count - first,
            );
        }
        self.written += count as u64;
        self.memory
            .counter(1 + 2 * self.outgoing)
            .store(self.written, Ordering::Release);
        Ok(count)
    }

    /// What has arrived, up to the ring's end; empty when nothing has.
    pub(super) fn readable(&self) -> io::Result<&[u8]> {
        let incoming = 1 - self.outgoing;
        let written = self
            .memory
            .counter(1 + 2 * incoming)
            .load(Ordering::Acquire);
        let arrived = written.wrapping_sub(self.read);
        if arrived > CAPACITY as u64 {
            return Err(damaged());
        }
        let start = (self.read % CAPACITY as u64) as usize;
        let count = (arrived as usize).min(CAPACITY - start);
        // SAFETY: these bytes lie inside the ring, were written before `written` was, and stay
        // untouched by the writer until `consume`, which needs `self` exclusively.
        Ok(unsafe {
            std::slice::from_raw_parts(self.memory.data(incoming).add(start).as_ptr(), count)
        })
    }

    /// Gives the first `count` bytes of [`RingPair::readable`] back to the writer.
    pub(super) fn consume(&mut self, count: usize) {
        self.read += count as u64;
        let incoming = 1 - self.outgoing;
        self.memory
            .counter(2 + 2 * incoming)
            .store(self.read, Ordering::Release);
    }
}

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the shared ring's counters are damaged",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (RingPair, RingPair) {
        let (near, file, offer) = RingPair::create([9; 32]).unwrap();
        let far = RingPair::open(&offer).unwrap();
        drop(file);
        (near, far)
    }

    #[test]
    fn bytes_arrive_in_order_in_both_directions_and_wrap() {
        let (mut near, mut far) = pair();
        let message: Vec<u8> = (0..3 * CAPACITY + 100)
            .map(|at| (at * 7 % 251) as u8)
            .collect();
        for _ in 0..2 {
            let (mut sent, mut received) = (0, Vec::new());
            while received.len() < message.len() {
                sent += near
                    .write(&message[sent..message.len().min(sent + 300_032)])
                    .unwrap();
                let arrived = far.readable().unwrap();
                let count = arrived.len().min(200_000);
                received.extend_from_slice(&arrived[..count]);
                far.consume(count);
            }
            assert!(received == message);
            std::mem::swap(&mut near, &mut far);
        }
    }

    #[test]
    fn a_full_ring_takes_nothing_more() {
        let (mut near, mut far) = pair();
        assert_eq!(near.write(&vec![1; CAPACITY + 64]).unwrap(), CAPACITY);
        assert_eq!(near.write(&[2; 64]).unwrap(), 0);
        far.consume(100);
        assert_eq!(near.write(&[2; 200]).unwrap(), 64);
    }

    #[test]
    fn a_wrong_offer_is_refused() {
        let (_near, file, offer) = RingPair::create([1; 32]).unwrap();
        assert!(
            RingPair::open(&Offer {
                nonce: [2; 32],
                ..offer
            })
            .is_err()
        );
        assert!(RingPair::open(&Offer { fd: 0, ..offer }).is_err());
        assert!(
            RingPair::open(&Offer {
                pid: u32::MAX,
                ..offer
            })
            .is_err()
        );
        drop(file);
        assert!(RingPair::open(&offer).is_err());
    }

    #[test]
    fn damaged_counters_are_noticed() {
        let (mut near, far) = pair();
        far.memory.counter(2).store(u64::MAX / 2, Ordering::Release);
        assert!(near.write(&[0; 8]).is_err());
        near.memory
            .counter(1)
            .store(u64::MAX / 2, Ordering::Release);
        assert!(far.readable().is_err());
    }
}
