//! JPEG files, by the decoder whose pixels models have been trained on: MozJPEG computes the same bits as the
//! libjpeg-turbo of Pillow. Others round the colours in another way where these are stored at half the size.

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};
use mozjpeg::{ColorSpace, Decompress, Marker};

use super::complete::{self, Unsound};
use super::{Limits, PictureError};

/// The segment with the Exif metadata, and what it begins with.
const APP1: Marker = Marker::APP(1);
const EXIF: &[u8] = b"Exif\0\0";
/// Each scan of a progressive file goes over the whole picture, however few bytes it has. Encoders make about ten.
const MOST_SCANS: usize = 200;

/// Decodes a file, and turns it upright.
///
/// # Errors
/// [`PictureError`].
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, PictureError> {
    // The C library unwinds out of a file that it cannot read, with a message and without a panic's print.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_or_unwind(bytes, limits)));
    decoded.unwrap_or_else(|payload| match payload.downcast::<String>() {
        Ok(message) => Err(PictureError::Broken(*message)),
        Err(_) => Err(PictureError::Panicked),
    })
}

fn decode_or_unwind(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, PictureError> {
    let decoder = Decompress::with_markers(&[APP1])
        .from_mem(bytes)
        .map_err(broken)?;
    let (width, height) = decoder.size();
    let (width, height) = (width as u32, height as u32);
    limits.check(width, height)?;
    match complete::jpeg_scans(bytes) {
        Err(Unsound::Cut) => return Err(PictureError::Truncated),
        Err(Unsound::Reserved(marker)) => {
            let why = format!("it has a marker FF {marker:02X}, which is reserved");
            return Err(PictureError::Broken(why));
        }
        Ok(scans) if scans > MOST_SCANS => {
            let why = format!("it has {scans} scans, more than {MOST_SCANS}");
            return Err(PictureError::Broken(why));
        }
        Ok(_) => {}
    }
    let exif = decoder
        .markers()
        .find_map(|marker| marker.data.strip_prefix(EXIF));
    let orientation = exif.and_then(Orientation::from_exif_chunk);
    let pixels = match decoder.components().len() {
        4 => {
            let mut started = decoder
                .to_colorspace(ColorSpace::JCS_CMYK)
                .map_err(broken)?;
            let inks: Vec<[u8; 4]> = started.read_scanlines().map_err(broken)?;
            drop(started);
            let mut pixels = Vec::with_capacity(inks.len() * 3);
            pixels.extend(inks.into_iter().flat_map(to_light));
            pixels
        }
        _ => {
            let mut started = decoder.rgb().map_err(broken)?;
            started.read_scanlines().map_err(broken)?
        }
    };
    let image = RgbImage::from_raw(width, height, pixels);
    let image = image.ok_or_else(|| PictureError::Broken("it has too few pixels".into()))?;
    let mut image = DynamicImage::from(image);
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    Ok(image)
}

/// Inks over white, as Pillow mixes them: files of this kind hold what the inks leave of the light.
fn to_light([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|ink| {
        let product = u32::from(255 - ink) * u32::from(black) + 128;
        let taken = (product + (product >> 8)) >> 8;
        u8::try_from(u32::from(black).saturating_sub(taken)).unwrap_or(u8::MAX)
    })
}

fn broken(error: std::io::Error) -> PictureError {
    PictureError::Broken(error.to_string())
}

/// A file with these pixels.
#[cfg(test)]
pub(super) fn encoded(image: &RgbImage, is_progressive: bool) -> Vec<u8> {
    let mut encoder = mozjpeg::Compress::new(ColorSpace::JCS_RGB);
    encoder.set_size(image.width() as usize, image.height() as usize);
    if is_progressive {
        encoder.set_progressive_mode();
    }
    let mut encoder = encoder.start_compress(Vec::new()).unwrap();
    encoder.write_scanlines(image).unwrap();
    encoder.finish().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A progressive file.
    fn progressive() -> Vec<u8> {
        encoded(&RgbImage::from_pixel(24, 16, image::Rgb([90; 3])), true)
    }

    #[test]
    fn the_decoders_own_words_say_what_is_wrong() {
        let mut damaged = progressive();
        let frame = damaged.windows(2).position(|pair| pair == [0xFF, 0xC2]);
        // Bits of a sample.
        damaged[frame.unwrap() + 4] = 9;
        let error = decode(&damaged, &Limits::default()).unwrap_err();
        let PictureError::Broken(message) = error else {
            panic!("{error:?}");
        };
        assert!(message.contains("precision 9"), "{message}");
    }

    #[test]
    fn a_reserved_marker_is_named() {
        let whole = progressive();
        let marked = [&whole[..2], &[0xFF, 0x02, 0, 2], &whole[2..]].concat();
        for refused in [
            decode(&marked, &Limits::default()).unwrap_err(),
            crate::picture::decode(&marked, &Limits::default()).unwrap_err(),
        ] {
            assert_eq!(refused.kind(), "picture_broken", "{refused}");
            assert!(refused.to_string().contains("02"), "{refused}");
        }
    }

    #[test]
    fn endless_scans_are_refused() {
        let whole = progressive();
        assert!(decode(&whole, &Limits::default()).is_ok());
        let (end, scan) = (whole.len() - 2, [0xFF, 0xDA, 0, 2]);
        let many = [&whole[..end], &scan.repeat(MOST_SCANS), &whole[end..]].concat();
        let error = decode(&many, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("scans"), "{error}");
    }
}
