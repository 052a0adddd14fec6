//! Whether an encoded picture has its end: decoders forgive what a corpus should not.

use image::ImageFormat;

/// Whether the file reaches the end that its own structure announces.
pub(super) fn is_complete(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Png => png_has_end(bytes),
        ImageFormat::Jpeg => jpeg_scans(bytes) != Err(Unsound::Cut),
        ImageFormat::WebP => webp_has_end(bytes),
        _ => false,
    }
}

/// Walks the chunks (length, name, data, checksum) to `IEND`.
fn png_has_end(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let whole = 4 + u32::from_be_bytes(*length) as usize + 4;
        if after.len() < whole {
            return false;
        }
        if after.starts_with(b"IEND") {
            return true;
        }
        rest = &after[whole..];
    }
    false
}

/// The size in the RIFF header, rounded up to even, is there.
fn webp_has_end(bytes: &[u8]) -> bool {
    bytes
        .get(4..8)
        .and_then(|size| size.try_into().ok())
        .is_some_and(|size| u32::from_le_bytes(size) as usize + 8 <= bytes.len())
}

/// Why the segments of a JPEG do not lead to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsound {
    /// The file ends before.
    Cut,
    /// The second byte of a marker that means nothing.
    Reserved(u8),
}

/// Walks the segments, and the coded data between them, to the end marker; gives the number of scans.
pub(super) fn jpeg_scans(bytes: &[u8]) -> Result<usize, Unsound> {
    let (mut at, mut scans) = (2, 0);
    let byte = |at: usize| bytes.get(at).copied().ok_or(Unsound::Cut);
    loop {
        // Markers may be preceded by any number of fill bytes.
        while byte(at)? == 0xFF && byte(at + 1)? == 0xFF {
            at += 1;
        }
        let marker = byte(at + 1)?;
        let is_marker = byte(at)? == 0xFF;
        at = match (is_marker, marker) {
            (true, 0xD9) => return Ok(scans),
            // Nothing has these, and the decoder goes on behind them in another way: scans could hide.
            (true, 0x02..=0xBF) => return Err(Unsound::Reserved(marker)),
            // Byte stuffing and restart markers belong to the coded data, as do plain bytes.
            (true, 0x00 | 0x01 | 0xD0..=0xD8) => at + 2,
            (true, _) => {
                scans += usize::from(marker == 0xDA);
                let length = u16::from_be_bytes([byte(at + 2)?, byte(at + 3)?]);
                at + 2 + usize::from(length)
            }
            (false, _) => at + 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbnail_inside_a_segment_does_not_end_a_jpeg() {
        // SOI, APP1 of 6 bytes that holds an end marker, then nothing.
        let cut = [0xFF, 0xD8, 0xFF, 0xE1, 0x00, 0x06, 0xFF, 0xD9, 0x00, 0x00];
        assert!(!is_complete(&cut, ImageFormat::Jpeg));
        let whole = [&cut[..], &[0xFF, 0xD9]].concat();
        assert!(is_complete(&whole, ImageFormat::Jpeg));
    }

    #[test]
    fn a_reserved_marker_hides_no_scans() {
        let scans = [0xFF, 0xDA, 0, 2].repeat(3);
        let hidden = [
            &[0xFF, 0xD8, 0xFF, 0x02, 0xFF, 0xFF][..],
            &scans,
            &[0xFF, 0xD9],
        ]
        .concat();
        assert_eq!(jpeg_scans(&hidden), Err(Unsound::Reserved(2)));
        assert_eq!(jpeg_scans(&hidden[..4]), Err(Unsound::Reserved(2)));
        assert_eq!(jpeg_scans(&hidden[..3]), Err(Unsound::Cut));
        let plain = [&[0xFF, 0xD8][..], &scans, &[0xFF, 0xD9]].concat();
        assert_eq!(jpeg_scans(&plain), Ok(3));
    }

    #[test]
    fn endless_lengths_do_not_overflow() {
        let png = [&[0u8; 8][..], &[0xFF; 4], b"IDAT"].concat();
        assert!(!is_complete(&png, ImageFormat::Png));
        assert!(!is_complete(b"RIFF\xFF\xFF\xFF\xFFWEBP", ImageFormat::WebP));
        assert!(!is_complete(b"", ImageFormat::WebP));
    }
}
