//! Normal draws that have the same bits on every machine.
//!
//! Pair `i` of values comes from one 64-bit word, number `i` of the [`splitmix`](crate::splitmix) stream of
//! a key, through the Box-Muller transform in f64. Logarithm and
//! sine are short series of our own: the ones of the system differ in the last bit between C
//! libraries, while `+ - * / sqrt` are rounded alike everywhere.

use std::f64::consts::{LN_2, PI, SQRT_2};

use crate::splitmix::{GOLDEN, mix};

/// The key of a parameter's stream.
pub(super) fn key(seed: u64, name: &str) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("mks2 2026 initial values of parameters");
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    let mut word = [0; 8];
    hasher.finalize_xof().fill(&mut word);
    u64::from_le_bytes(word)
}

/// Fills `out` with draws of standard deviation `std`.
pub(super) fn normal(key: u64, std: f64, out: &mut [f32]) {
    let (pairs, rest) = out.as_chunks_mut::<2>();
    let mut counter = key;
    for pair in pairs {
        counter = counter.wrapping_add(GOLDEN);
        let (a, b) = box_muller(mix(counter));
        *pair = [(a * std) as f32, (b * std) as f32];
    }
    if let [last] = rest {
        *last = (box_muller(mix(counter.wrapping_add(GOLDEN))).0 * std) as f32;
    }
}

/// Two independent standard normal values; the largest possible magnitude is 6.66.
fn box_muller(word: u64) -> (f64, f64) {
    const UNIT: f64 = 1.0 / 4_294_967_296.0;
    let high = ((word >> 32) + 1) as f64 * UNIT;
    let low = (word & 0xFFFF_FFFF) as f64 * UNIT;
    let radius = (-2.0 * ln(high)).sqrt();
    let (sin, cos) = sin_cos_turns(low);
    (radius * cos, radius * sin)
}

/// Natural logarithm of a normal positive number, to about 1e-13.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mut mantissa = f64::from_bits((bits & 0x000F_FFFF_FFFF_FFFF) | 0x3FF0_0000_0000_0000);
    if mantissa > SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    // ln m = 2 atanh(s), |s| < 0.172
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let z = s * s;
    const ODD: [f64; 8] = [
        1.0 / 15.0,
        1.0 / 13.0,
        1.0 / 11.0,
        1.0 / 9.0,
        1.0 / 7.0,
        1.0 / 5.0,
        1.0 / 3.0,
        1.0,
    ];
    exponent * LN_2 + 2.0 * s * horner(&ODD, z)
}

/// Sine and cosine of `turns` full turns, `0 <= turns < 1`, to about 1e-13.
fn sin_cos_turns(turns: f64) -> (f64, f64) {
    const SIN: [f64; 7] = [
        1.0 / 6_227_020_800.0,
        -1.0 / 39_916_800.0,
        1.0 / 362_880.0,
        -1.0 / 5_040.0,
        1.0 / 120.0,
        -1.0 / 6.0,
        1.0,
    ];
    const COS: [f64; 8] = [
        -1.0 / 87_178_291_200.0,
        1.0 / 479_001_600.0,
        -1.0 / 3_628_800.0,
        1.0 / 40_320.0,
        -1.0 / 720.0,
        1.0 / 24.0,
        -0.5,
        1.0,
    ];
    let quarters = turns * 4.0;
    let nearest = (quarters + 0.5) as u32;
    let angle = (quarters - f64::from(nearest)) * (PI / 2.0);
    let z = angle * angle;
    let (s, c) = (angle * horner(&SIN, z), horner(&COS, z));
    match nearest & 3 {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

fn horner(coefficients: &[f64], x: f64) -> f64 {
    coefficients
        .iter()
        .fold(0.0, |sum, coefficient| sum * x + coefficient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_agree_with_the_system() {
        for i in 1..4000 {
            let x = f64::from(i) / 4000.0;
            assert!((ln(x) - x.ln()).abs() < 1e-12, "ln {x}");
            let (s, c) = sin_cos_turns(x);
            assert!((s - (2.0 * PI * x).sin()).abs() < 1e-12, "sin {x}");
            assert!((c - (2.0 * PI * x).cos()).abs() < 1e-12, "cos {x}");
        }
        assert!((ln(1.0 / 4_294_967_296.0) + 32.0 * LN_2).abs() < 1e-12);
    }

    #[test]
    fn draws_are_normal() {
        let mut values = vec![0.0_f32; 400_001];
        normal(key(7, "x"), 2.0, &mut values);
        let n = values.len() as f64;
        let moment = |p: i32| {
            values
                .iter()
                .map(|v| f64::from(v / 2.0).powi(p))
                .sum::<f64>()
                / n
        };
        assert!(moment(1).abs() < 0.01);
        assert!((moment(2) - 1.0).abs() < 0.01);
        assert!(moment(3).abs() < 0.03);
        assert!((moment(4) - 3.0).abs() < 0.06);
        let neighbours = values
            .windows(2)
            .map(|w| f64::from(w[0]) * f64::from(w[1]) / 4.0)
            .sum::<f64>()
            / n;
        assert!(neighbours.abs() < 0.01);
    }

    #[test]
    fn bits_never_change() {
        let mut values = [0.0_f32; 3];
        normal(key(1, "model.embed_tokens.weight"), 0.02, &mut values);
        let mut hasher = blake3::Hasher::new();
        let mut many = vec![0.0_f32; 100_000];
        normal(key(1, "model.embed_tokens.weight"), 0.02, &mut many);
        many.iter().for_each(|v| {
            hasher.update(&v.to_le_bytes());
        });
        assert_eq!(values, many[..3]);
        assert_eq!(&hasher.finalize().to_hex()[..16], "69b9f8dd1708b24a");
    }
}
