//! One block of 512 bytes as a tar header, and pax records.

use std::collections::HashMap;
use std::ops::Range;

// Fields of a header: POSIX.1-1988 (ustar), with GNU's binary sizes.
const NAME: Range<usize> = 0..100;
const SIZE: Range<usize> = 124..136;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const MAGIC: Range<usize> = 257..263;
const PREFIX: Range<usize> = 345..500;

/// What a header describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// GNU: the content is the name of the next entry.
    LongName,
    /// The content is pax records about the next entry.
    Pax,
    /// Global pax records or a long link name: of no meaning here.
    Passed,
    /// A link, device or anything else.
    Other(u8),
}

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) size: u64,
    pub(super) kind: Kind,
}

impl Header {
    /// The header in a block, or `None` if its checksum or size is wrong.
    pub(super) fn parse(block: &[u8]) -> Option<Self> {
        if block.len() != 512 || octal(&block[CHECKSUM])? != checksum(block) {
            return None;
        }
        let mut name = text(&block[NAME]).to_vec();
        // Only POSIX's magic has a prefix there; GNU's keeps other things in its place.
        let prefix = text(&block[PREFIX]);
        if &block[MAGIC] == b"ustar\0" && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        // Before POSIX, folders were files with a slash at the end. (In newer headers, a long name
        // that is cut there may end so too.)
        let old = !block[MAGIC].starts_with(b"ustar");
        let kind = match block[KIND] {
            0 if old && name.ends_with(b"/") => Kind::Folder,
            b'0' | 0 | b'7' => Kind::File,
            b'5' => Kind::Folder,
            b'L' => Kind::LongName,
            b'x' => Kind::Pax,
            b'K' | b'g' => Kind::Passed,
            other => Kind::Other(other),
        };
        // Links name a size that has no content behind it.
        let has_content = !matches!(kind, Kind::Other(b'1'..=b'6'));
        let size = if has_content {
            number(&block[SIZE])?
        } else {
            0
        };
        Some(Self { name, size, kind })
    }
}

/// The sum of all bytes, with the checksum itself read as blanks.
fn checksum(block: &[u8]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    sum(&block[..CHECKSUM.start]) + 8 * u64::from(b' ') + sum(&block[CHECKSUM.end..])
}

/// Bytes up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// An octal number with blanks or zeros around it; empty is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text(field)).ok()?.trim();
    if digits.is_empty() {
        Some(0)
    } else {
        u64::from_str_radix(digits, 8).ok()
    }
}

/// An octal number, or GNU's binary form: the first bit set, then big endian.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 == 0 {
        return octal(field);
    }
    let (high, low) = field.split_at(field.len() - 8);
    let fits = high[0] == 0x80 && high[1..].iter().all(|&byte| byte == 0);
    let low = low.try_into().ok().map(u64::from_be_bytes)?;
    fits.then_some(low)
}

/// Records of the form `LENGTH NAME=VALUE\n`; what does not fit ends the list.
pub(super) fn pax_records(content: &[u8]) -> HashMap<&[u8], &[u8]> {
    let mut records = HashMap::new();
    let mut rest = content;
    while let Some((name, value, after)) = pax_record(rest) {
        records.insert(name, value);
        rest = after;
    }
    records
}

fn pax_record(rest: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = rest.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&rest[..blank]).ok()?.parse().ok()?;
    let record = rest.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &rest[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"00000010246\0"), Some(4262));
        assert_eq!(number(b"     10246 \0"), Some(4262));
        assert_eq!(
            number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]),
            Some((2 << 32) + 1)
        );
        assert_eq!(number(&[0xFF; 12]), None);
        assert_eq!(number(b"9999\0\0\0\0\0\0\0\0"), None);
    }

    #[test]
    fn pax_records_are_read_and_damage_ends_them() {
        let records = pax_records(b"16 path=a/b=c.t\n12 size=123\nrubbish");
        assert_eq!(records[&b"path"[..]], b"a/b=c.t");
        assert_eq!(records[&b"size"[..]], b"123");
        assert!(pax_records(b"99 path=x\n").is_empty());
        assert!(pax_records(b"0 =\n").is_empty());
    }

    #[test]
    fn no_block_panics() {
        for fill in 0..=255u8 {
            let mut block = [fill; 512];
            let _ = Header::parse(&block);
            let sum = format!("{:06o}\0 ", checksum(&block));
            block[CHECKSUM].copy_from_slice(sum.as_bytes());
            let _ = Header::parse(&block);
        }
        assert_eq!(Header::parse(&[0; 10]), None);
    }
}
