//! Pictures as the visual encoder wants them.

use tch::{Device, Kind, Tensor};

use crate::text::Draw;

/// Means of the red, green and blue channel that CLIP was normalised with (Radford et al. 2021).
pub(crate) const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviations, likewise.
pub(crate) const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// Brightness of what a shift brings into the picture.
const BACKGROUND: u8 = 255;

/// Normalised pixels `[b, 3, side, side]`, fp32, of `b` pictures in RGB bytes `[side, side, 3]`.
///
/// # Panics
/// When a picture has another size.
pub(crate) fn to_pixels(pictures: &[&[u8]], side: usize, device: Device) -> Tensor {
    let plane = side * side;
    let mut pixels = vec![0f32; pictures.len() * 3 * plane];
    for (picture, planes) in pictures.iter().zip(pixels.chunks_exact_mut(3 * plane)) {
        assert_eq!(
            picture.len(),
            3 * plane,
            "a picture must have {side} x {side} RGB pixels"
        );
        for channel in 0..3 {
            let (scale, offset) = (1.0 / (255.0 * STD[channel]), MEAN[channel] / STD[channel]);
            let plane = &mut planes[channel * plane..][..plane];
            for (value, rgb) in plane.iter_mut().zip(picture.chunks_exact(3)) {
                *value = f32::from(rgb[channel]) * scale - offset;
            }
        }
    }
    let (b, side) = (pictures.len() as i64, side as i64);
    Tensor::from_slice(&pixels)
        .view([b, 3, side, side])
        .to_kind(Kind::Float)
        .to_device(device)
}

/// The picture moved by up to `share` of its side in both directions, by chance keyed by `draw`.
pub(crate) fn shifted(picture: &[u8], side: usize, share: f64, draw: Draw) -> Vec<u8> {
    let reach = (share * side as f64) as i64;
    let by = |purpose| Draw { purpose, ..draw }.below(2 * reach as u64 + 1) as i64 - reach;
    let (dx, dy) = (by(draw.purpose), by(draw.purpose + 1));
    let mut out = vec![BACKGROUND; picture.len()];
    let side = side as i64;
    for y in 0..side {
        for x in 0..side {
            let (from_x, from_y) = (x - dx, y - dy);
            if (0..side).contains(&from_x) && (0..side).contains(&from_y) {
                let (to, from) = (
                    3 * (y * side + x) as usize,
                    3 * (from_y * side + from_x) as usize,
                );
                out[to..to + 3].copy_from_slice(&picture[from..from + 3]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_and_black_become_the_ends_of_clips_range() {
        let (white, black) = (vec![255u8; 12], vec![0u8; 12]);
        let pixels = to_pixels(&[&white, &black], 2, Device::Cpu);
        assert_eq!(pixels.size(), [2, 3, 2, 2]);
        let at = |b, c| pixels.double_value(&[b, c, 1, 1]);
        assert!((at(0, 0) - 1.930_336).abs() < 1e-5, "{}", at(0, 0));
        assert!((at(1, 2) + 1.480_22).abs() < 1e-5, "{}", at(1, 2));
    }

    #[test]
    fn a_shift_moves_pixels_and_fills_with_white() {
        let mut picture = vec![255u8; 8 * 8 * 3];
        picture[3 * (4 * 8 + 4)] = 7;
        let draw = |row| Draw {
            seed: 3,
            step: 0,
            row,
            purpose: 10,
        };
        let places: std::collections::BTreeSet<usize> = (0..100)
            .filter_map(|row| {
                shifted(&picture, 8, 0.25, draw(row))
                    .iter()
                    .position(|&v| v == 7)
            })
            .collect();
        assert_eq!(places.len(), 25, "five places in each direction");
        assert_eq!(shifted(&picture, 8, 0.0, draw(1)), picture);
    }
}
