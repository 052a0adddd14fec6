//! Pictures: decoding under limits, and scaling to the model's square.
//!
//! The header is checked before anything is decoded, truncated files are told from broken ones,
//! and a decoder that panics loses one picture, not the process.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};

mod complete;
mod jpeg;

/// Longest side, relative to the shorter one, that is scaled as a whole before the crop; what is
/// outside can not be in the centre square.
const MAX_ASPECT: u32 = 4;

/// What a picture may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest encoded size, bytes.
    pub max_bytes: u64,
    /// Largest area, pixels.
    pub max_pixels: u64,
    /// Longest side, pixels.
    pub max_side: u32,
}

impl Default for Limits {
    /// 15 MiB (so that a row group of 128 stays below parquet's 2 GiB), 50 megapixels, 16,384.
    fn default() -> Self {
        Self {
            max_bytes: 15 << 20,
            max_pixels: 50_000_000,
            max_side: 16_384,
        }
    }
}

impl Limits {
    /// # Errors
    /// [`PictureError::TooManyPixels`].
    fn check(&self, width: u32, height: u32) -> Result<(), PictureError> {
        let area = u64::from(width) * u64::from(height);
        match area > self.max_pixels || width.max(height) > self.max_side {
            true => Err(PictureError::TooManyPixels { width, height }),
            false => Ok(()),
        }
    }
}

/// A decoded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbPicture {
    /// Pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// `height * width * 3` bytes: line by line, red, green, blue.
    pub pixels: Vec<u8>,
}

/// Why a picture can not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PictureError {
    /// The encoded picture is too large.
    #[error("{bytes} bytes are more than the limit of {limit}")]
    TooManyBytes {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Not a PNG, JPEG or WebP file.
    #[error("not a PNG, JPEG or WebP file")]
    UnknownFormat,
    /// The header announces too many pixels; nothing was decoded.
    #[error("{width} x {height} pixels are more than the limit")]
    TooManyPixels {
        /// Pixels in a line.
        width: u32,
        /// Lines.
        height: u32,
    },
    /// The file ends too early.
    #[error("the file ends before the picture does")]
    Truncated,
    /// The decoder refused it.
    #[error("{0}")]
    Broken(String),
    /// The decoder panicked.
    #[error("the decoder panicked")]
    Panicked,
}

impl PictureError {
    /// The kind, as the quarantine counts it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooManyBytes { .. } => "picture_too_many_bytes",
            Self::UnknownFormat => "picture_unknown_format",
            Self::TooManyPixels { .. } => "picture_too_many_pixels",
            Self::Truncated => "picture_truncated",
            Self::Broken(_) => "picture_broken",
            Self::Panicked => "picture_decoder_panicked",
        }
    }
}

/// Decodes a picture: upright, 8 bits, transparent pixels over white.
///
/// # Errors
/// [`PictureError`].
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbPicture, PictureError> {
    isolated(|| Ok(to_rgb(decode_any(bytes, limits)?)))
}

/// Decodes a picture and forgets it: proves that it can be decoded. Gives width and height.
///
/// # Errors
/// [`PictureError`].
pub fn verify(bytes: &[u8], limits: &Limits) -> Result<(u32, u32), PictureError> {
    isolated(|| decode_any(bytes, limits).map(|image| (image.width(), image.height())))
}

/// Scales the short side to `side` (bicubic, antialiased) and crops the centre square, as CLIP
/// does. A picture of that size already is left alone.
///
/// # Errors
/// [`PictureError::Broken`] for a side or a picture of no pixels.
pub fn resize_square(picture: &RgbPicture, side: u32) -> Result<RgbPicture, PictureError> {
    if picture.width == side && picture.height == side && side > 0 {
        return Ok(picture.clone());
    }
    if side == 0 || picture.width == 0 || picture.height == 0 {
        return Err(PictureError::Broken("a side has no pixels".into()));
    }
    let (short, long) = sorted(picture.width, picture.height);
    let centred = crop(picture, long.min(short.saturating_mul(MAX_ASPECT)));
    let scale = |length: u32| {
        let scaled = u64::from(length) * u64::from(side) / u64::from(short);
        u32::try_from(scaled).unwrap_or(u32::MAX).max(side)
    };
    let scaled = scale_to(&centred, scale(centred.width), scale(centred.height))?;
    Ok(crop(&scaled, side))
}

/// A file's picture as a square of this side: decoded, scaled and cropped.
///
/// # Errors
/// [`PictureError`].
pub fn square(bytes: &[u8], limits: &Limits, side: u32) -> Result<RgbPicture, PictureError> {
    resize_square(&decode(bytes, limits)?, side)
}

/// Scales a picture to fit into `width` x `height` pixels, keeping its shape.
///
/// # Errors
/// [`PictureError::Broken`] for a picture of no pixels.
pub fn fit(picture: &RgbPicture, width: u32, height: u32) -> Result<RgbPicture, PictureError> {
    if picture.width == 0 || picture.height == 0 {
        return Err(PictureError::Broken("a side has no pixels".into()));
    }
    let scale = (f64::from(width) / f64::from(picture.width))
        .min(f64::from(height) / f64::from(picture.height));
    let scaled =
        |side: u32, most: u32| ((f64::from(side) * scale).round() as u32).clamp(1, most.max(1));
    scale_to(
        picture,
        scaled(picture.width, width),
        scaled(picture.height, height),
    )
}

/// Runs a decoder; its panic becomes an error.
fn isolated<T>(decode: impl FnOnce() -> Result<T, PictureError>) -> Result<T, PictureError> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or(Err(PictureError::Panicked))
}

fn decode_any(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, PictureError> {
    let size = bytes.len() as u64;
    if size > limits.max_bytes {
        return Err(PictureError::TooManyBytes {
            bytes: size,
            limit: limits.max_bytes,
        });
    }
    let format = image::guess_format(bytes).map_err(|_| PictureError::UnknownFormat)?;
    if !matches!(
        format,
        ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP
    ) {
        return Err(PictureError::UnknownFormat);
    }
    let decoded = match format {
        ImageFormat::Jpeg => jpeg::decode(bytes, limits),
        _ => decode_known(bytes, format, limits),
    };
    decoded.map_err(|error| match error {
        PictureError::Broken(_) if !complete::is_complete(bytes, format) => PictureError::Truncated,
        other => other,
    })
}

fn decode_known(
    bytes: &[u8],
    format: ImageFormat,
    limits: &Limits,
) -> Result<DynamicImage, PictureError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut allowed = image::Limits::no_limits();
    // The widest pixel has 8 bytes; the rest is for tables and metadata.
    allowed.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(64 << 20));
    reader.limits(allowed);
    let mut decoder = reader.into_decoder().map_err(|error| broken(&error))?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    if !complete::is_complete(bytes, format) {
        return Err(PictureError::Truncated);
    }
    let orientation = decoder.orientation().ok();
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| broken(&error))?;
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    Ok(image)
}

fn broken(error: &ImageError) -> PictureError {
    PictureError::Broken(error.to_string())
}

/// 8-bit RGB; transparent pixels are laid over white.
fn to_rgb(image: DynamicImage) -> RgbPicture {
    let (width, height) = (image.width(), image.height());
    if !image.color().has_alpha() {
        return RgbPicture {
            width,
            height,
            pixels: image.into_rgb8().into_raw(),
        };
    }
    let rgba = image.into_rgba8();
    let mut pixels = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.as_raw().chunks_exact(4) {
        let alpha = u32::from(pixel[3]);
        for &channel in &pixel[..3] {
            let mixed = (u32::from(channel) * alpha + 255 * (255 - alpha) + 127) / 255;
            pixels.push(u8::try_from(mixed).unwrap_or(u8::MAX));
        }
    }
    RgbPicture {
        width,
        height,
        pixels,
    }
}

fn sorted(a: u32, b: u32) -> (u32, u32) {
    (a.min(b), a.max(b))
}

/// The centre of a picture, no side longer than `longest`.
fn crop(picture: &RgbPicture, longest: u32) -> RgbPicture {
    let (width, height) = (picture.width.min(longest), picture.height.min(longest));
    if (width, height) == (picture.width, picture.height) {
        return picture.clone();
    }
    let left = ((picture.width - width) / 2) as usize * 3;
    let top = ((picture.height - height) / 2) as usize;
    let lines = picture.pixels.chunks_exact(picture.width as usize * 3);
    let kept = lines.skip(top).take(height as usize);
    let pixels = kept
        .flat_map(|line| &line[left..left + width as usize * 3])
        .copied()
        .collect();
    RgbPicture {
        width,
        height,
        pixels,
    }
}

/// Lines first, then columns, as Pillow does: values are cut off between both, so that the order shows.
fn scale_to(picture: &RgbPicture, width: u32, height: u32) -> Result<RgbPicture, PictureError> {
    scale_once(&scale_once(picture, width, picture.height)?, width, height)
}

fn scale_once(picture: &RgbPicture, width: u32, height: u32) -> Result<RgbPicture, PictureError> {
    let fault = |error: &dyn std::fmt::Display| PictureError::Broken(error.to_string());
    let mut pixels = vec![0; width as usize * height as usize * 3];
    // The typed views keep the compiler from making code for every other kind of pixel.
    let from = TypedImageRef::<U8x3>::from_buffer(picture.width, picture.height, &picture.pixels)
        .map_err(|error| fault(&error))?;
    let mut to = TypedImage::<U8x3>::from_buffer(width, height, &mut pixels)
        .map_err(|error| fault(&error))?;
    // Catmull-Rom is the bicubic kernel with a = -0.5, the one of Pillow.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new()
        .resize_typed::<U8x3>(&from, &mut to, &options)
        .map_err(|error| fault(&error))?;
    Ok(RgbPicture {
        width,
        height,
        pixels,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
        let image = image::RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([
                u8::try_from(x % 256).unwrap(),
                u8::try_from(y % 256).unwrap(),
                90,
            ])
        });
        if format == ImageFormat::Jpeg {
            return jpeg::encoded(&image, false);
        }
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

    #[test]
    fn each_format_is_decoded() {
        for format in FORMATS {
            let picture = decode(&encoded(40, 30, format), &Limits::default()).unwrap();
            assert_eq!((picture.width, picture.height), (40, 30), "{format:?}");
            assert_eq!(picture.pixels.len(), 40 * 30 * 3);
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_and_late_cuts_are_called_truncated() {
        for format in FORMATS {
            let bytes = encoded(64, 64, format);
            for cut in [
                bytes.len() / 3,
                bytes.len() / 2,
                bytes.len() - 20,
                bytes.len() - 1,
            ] {
                let error = decode(&bytes[..cut], &Limits::default()).unwrap_err();
                assert_eq!(error, PictureError::Truncated, "{format:?} cut at {cut}");
            }
            for cut in 0..30 {
                assert!(
                    decode(&bytes[..cut], &Limits::default()).is_err(),
                    "{format:?} {cut}"
                );
            }
        }
    }

    #[test]
    fn a_huge_header_is_refused_before_decoding() {
        let bytes = header_only_png(60_000, 60_000);
        let error = decode(&bytes, &Limits::default()).unwrap_err();
        assert_eq!(
            error,
            PictureError::TooManyPixels {
                width: 60_000,
                height: 60_000
            }
        );
    }

    /// A PNG whose header announces a size that the file does not have.
    fn header_only_png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = encoded(1, 1, ImageFormat::Png);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
            })
        })
    }

    #[test]
    fn limits_and_unknown_formats() {
        let bytes = encoded(64, 64, ImageFormat::Png);
        let small = Limits {
            max_bytes: 10,
            ..Limits::default()
        };
        assert_eq!(
            decode(&bytes, &small).unwrap_err().kind(),
            "picture_too_many_bytes"
        );
        let few = Limits {
            max_pixels: 64 * 63,
            ..Limits::default()
        };
        assert_eq!(
            verify(&bytes, &few).unwrap_err().kind(),
            "picture_too_many_pixels"
        );
        let error = decode(b"GIF89a not allowed", &Limits::default()).unwrap_err();
        assert_eq!(error, PictureError::UnknownFormat);
        assert_eq!(
            decode(b"", &Limits::default()).unwrap_err(),
            PictureError::UnknownFormat
        );
    }

    #[test]
    fn flipped_bytes_never_panic_through() {
        for format in FORMATS {
            let bytes = encoded(32, 32, format);
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0xA5;
                let _ = verify(&damaged, &Limits::default());
            }
        }
    }

    #[test]
    fn transparent_pixels_lie_over_white() {
        let image = image::RgbaImage::from_raw(2, 1, vec![0, 0, 0, 0, 10, 20, 30, 255]).unwrap();
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        let picture = decode(bytes.get_ref(), &Limits::default()).unwrap();
        assert_eq!(picture.pixels, [255, 255, 255, 10, 20, 30]);
    }

    #[test]
    fn the_centre_square_is_kept() {
        let mut pixels = vec![0u8; 30 * 10 * 3];
        for line in pixels.chunks_exact_mut(30 * 3) {
            line[10 * 3..20 * 3].fill(255);
        }
        let picture = RgbPicture {
            width: 30,
            height: 10,
            pixels,
        };
        let same = resize_square(&picture, 10).unwrap();
        assert!(same.pixels.iter().all(|&byte| byte == 255));
        let half = resize_square(&picture, 5).unwrap();
        assert_eq!((half.width, half.height, half.pixels.len()), (5, 5, 75));
    }

    #[test]
    fn a_thumbnail_keeps_the_shape() {
        let picture = RgbPicture {
            width: 200,
            height: 100,
            pixels: vec![9; 200 * 100 * 3],
        };
        let small = fit(&picture, 32, 32).unwrap();
        assert_eq!((small.width, small.height), (32, 16));
        assert_eq!(small.pixels.len(), 32 * 16 * 3);
    }

    #[test]
    fn extreme_shapes_stay_small() {
        let picture = RgbPicture {
            width: 16_384,
            height: 1,
            pixels: vec![7; 16_384 * 3],
        };
        let square = resize_square(&picture, 224).unwrap();
        assert_eq!(square.pixels, vec![7; 224 * 224 * 3]);
        assert!(resize_square(&picture, 0).is_err());
    }
}
