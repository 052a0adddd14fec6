//! Frames: the unit of everything that a mesh sends after its handshake.
//!
//! ```text
//! header (64 bytes): magic u32 | version u8 | kind u8 | 0 u16 | generation u64 | sequence u64
//!                    total u64 | offset u64 | length u32 | 0 x 12 | checksum [8]
//! payload (length bytes), then zeros up to the next multiple of 64
//! ```
//!
//! All little endian. A message of `total` bytes goes as frames of at most [`FRAME_BYTES`], at
//! rising offsets; an empty message is one frame. The checksum is the first eight bytes of blake3
//! over the 56 bytes before it. The padding keeps every number in the payload aligned in a ring.

use super::{Identity, Kind};

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 64;
/// Most payload bytes of a frame.
pub(super) const FRAME_BYTES: usize = 1 << 20;
const MAGIC: u32 = u32::from_le_bytes(*b"mksf");
const VERSION: u8 = 1;
const CHECKED: usize = 56;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    /// Bytes of the whole message.
    pub(super) total: u64,
    /// Bytes of the message before this frame.
    pub(super) offset: u64,
    /// Payload bytes of this frame.
    pub(super) length: u32,
}

/// Zeros that follow `length` payload bytes.
pub(super) fn padding(length: usize) -> usize {
    length.next_multiple_of(HEADER_BYTES) - length
}

impl Header {
    /// The frame at `offset` of a message of `total` bytes.
    pub(super) fn at(identity: Identity, total: usize, offset: usize) -> Self {
        let length = (total - offset).min(FRAME_BYTES) as u32;
        Self {
            identity,
            total: total as u64,
            offset: offset as u64,
            length,
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_le_bytes());
        put(4, &[VERSION, self.identity.kind as u8]);
        put(8, &self.identity.generation.to_le_bytes());
        put(16, &self.identity.sequence.to_le_bytes());
        put(24, &self.total.to_le_bytes());
        put(32, &self.offset.to_le_bytes());
        put(40, &self.length.to_le_bytes());
        let sum = checksum(&bytes);
        bytes[CHECKED..].copy_from_slice(&sum);
        bytes
    }

    /// Reads a header; `Err` says what is wrong with it.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let word = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |word| u32::from_le_bytes(*word))
        };
        let long = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |long| u64::from_le_bytes(*long))
        };
        if bytes[CHECKED..] != checksum(bytes) {
            return Err("the header's checksum is wrong".into());
        }
        if word(0) != MAGIC || bytes[4] != VERSION {
            return Err(format!(
                "the header has magic {:08x}, version {}",
                word(0),
                bytes[4]
            ));
        }
        let kind =
            Kind::from_code(bytes[5]).ok_or_else(|| format!("kind {} is unknown", bytes[5]))?;
        let identity = Identity {
            generation: long(8),
            sequence: long(16),
            kind,
        };
        let header = Self {
            identity,
            total: long(24),
            offset: long(32),
            length: word(40),
        };
        let end = header.offset.checked_add(u64::from(header.length));
        if header.length as usize > FRAME_BYTES || end.is_none_or(|end| end > header.total) {
            return Err(format!(
                "{} bytes at {} do not fit {}",
                header.length, header.offset, header.total
            ));
        }
        Ok(header)
    }
}

fn checksum(bytes: &[u8; HEADER_BYTES]) -> [u8; HEADER_BYTES - CHECKED] {
    let hash = blake3::hash(&bytes[..CHECKED]);
    let mut sum = [0; HEADER_BYTES - CHECKED];
    sum.copy_from_slice(&hash.as_bytes()[..HEADER_BYTES - CHECKED]);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let identity = Identity {
            generation: 7,
            sequence: u64::MAX,
            kind: Kind::AllGatherF32,
        };
        Header::at(identity, FRAME_BYTES + 5, FRAME_BYTES)
    }

    #[test]
    fn headers_round_trip() {
        assert_eq!(header().length, 5);
        assert_eq!(Header::decode(&header().encode()).unwrap(), header());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let whole = header().encode();
        for bit in 0..8 * HEADER_BYTES {
            let mut bytes = whole;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_are_limited() {
        for (total, offset, length) in [
            (10, 8, 5),
            (u64::MAX, u64::MAX, 1),
            (1 << 40, 0, 1 + FRAME_BYTES as u32),
        ] {
            assert!(
                Header::decode(
                    &Header {
                        total,
                        offset,
                        length,
                        ..header()
                    }
                    .encode()
                )
                .is_err()
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_and_lengths_stay_in_bounds(
            mut bytes in prop::array::uniform32(any::<u8>()),
            rest in prop::array::uniform32(any::<u8>()),
            is_checked: bool,
        ) {
            let mut header = [0; HEADER_BYTES];
            header[..32].copy_from_slice(&bytes);
            header[32..].copy_from_slice(&rest);
            // Without a right checksum nothing gets further.
            prop_assert!(Header::decode(&header).is_err());
            if is_checked {
                bytes[..5].copy_from_slice(&[b'm', b'k', b's', b'f', VERSION]);
                bytes[5] %= 8;
                header[..32].copy_from_slice(&bytes);
                let sum = checksum(&header);
                header[CHECKED..].copy_from_slice(&sum);
                if let Ok(read) = Header::decode(&header) {
                    prop_assert!(read.length as usize <= FRAME_BYTES);
                    prop_assert!(read.offset + u64::from(read.length) <= read.total);
                    prop_assert_eq!(read.encode()[..44].to_vec(), {
                        let mut known = header[..44].to_vec();
                        known[6..8].fill(0);
                        known
                    });
                }
            }
        }
    }

    #[test]
    fn frames_end_on_64_bytes() {
        assert_eq!(
            [padding(0), padding(1), padding(64), padding(65)],
            [0, 63, 0, 63]
        );
    }
}
