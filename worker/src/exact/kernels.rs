//! The loops of exact reduction on the CPU.
//!
//! Each loop is written once, without branches and bounds checks, and compiled for the baseline,
//! for AVX2 and for AVX-512; the widest that the machine has is chosen at run time. All give the
//! same bits: they use only multiplications by powers of two, single additions and integer
//! operations, which IEEE and the instruction sets fix.
//!
//! Rounding: for |x| < 2^51 the sum `x + 1.5 * 2^52` lies in [2^52, 2^53], where doubles are whole
//! numbers, so the addition itself rounds x to nearest even; the difference of the two bit patterns
//! is that whole number. It is what `round` and a conversion give, in two vector instructions.
#![allow(unsafe_code)]

/// 1.5 * 2^52.
const MAGIC: f64 = 6_755_399_441_055_744.0;
/// 2^52: its low bits count in ones.
const TWO_52: u64 = 0x4330_0000_0000_0000;
/// 2^84: its low bits count in units of 2^32.
const TWO_84: u64 = 0x4530_0000_0000_0000;
/// 2^84 + 2^63 + 2^52.
const OFFSET: f64 =
    f64::from_bits(TWO_84) + f64::from_bits(0x43e0_0000_0000_0000) + f64::from_bits(TWO_52);

#[inline(always)]
fn fixed(value: f32, scale: f64) -> i64 {
    let shifted = f64::from(value) * scale + MAGIC;
    (shifted.to_bits().wrapping_sub(MAGIC.to_bits())).cast_signed()
}

/// An int64 as f64, rounded once to nearest even: two exact halves and one addition.
#[inline(always)]
fn to_f64(sum: i64) -> f64 {
    let biased = sum.cast_unsigned() ^ (1 << 63);
    let high = f64::from_bits((biased >> 32) | TWO_84);
    let low = f64::from_bits((biased & 0xffff_ffff) | TWO_52);
    (high - OFFSET) + low
}

#[inline(always)]
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

#[inline(always)]
fn store_body(sums: &mut [i64], values: &[f32], scale: f64) -> u32 {
    let mut largest = 0u32;
    for (sum, &value) in sums.iter_mut().zip(values) {
        largest = largest.max(magnitude(value));
        *sum = fixed(value, scale);
    }
    largest
}

#[inline(always)]
fn add_body(sums: &mut [i64], values: &[f32], scale: f64) -> u32 {
    let mut largest = 0u32;
    for (sum, &value) in sums.iter_mut().zip(values) {
        largest = largest.max(magnitude(value));
        *sum = sum.wrapping_add(fixed(value, scale));
    }
    largest
}

#[inline(always)]
fn largest_body(values: &[f32]) -> u32 {
    values
        .iter()
        .fold(0, |largest, &value| largest.max(magnitude(value)))
}

#[inline(always)]
fn to_float_body(values: &mut [f32], sums: &[i64], scale: f64) {
    for (value, &sum) in values.iter_mut().zip(sums) {
        *value = (to_f64(sum) * scale) as f32;
    }
}

#[inline(always)]
fn sum_i64_body(out: &mut [i64], own: &[i64], bytes: &[u8]) {
    for ((out, &own), other) in out.iter_mut().zip(own).zip(bytes.as_chunks::<8>().0) {
        *out = own.wrapping_add(i64::from_le_bytes(*other));
    }
}

#[inline(always)]
fn accumulate_i64_body(out: &mut [i64], bytes: &[u8]) {
    for (out, other) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *out = out.wrapping_add(i64::from_le_bytes(*other));
    }
}

#[inline(always)]
fn accumulate_f32_body(out: &mut [f32], bytes: &[u8]) {
    for (out, other) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *out += f32::from_le_bytes(*other);
    }
}

/// Declares a loop, its two wider builds and the choice between them.
macro_rules! dispatched {
    ($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $kind:ty),*) $(-> $result:ty)?) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $kind),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
                fn wide($($arg: $kind),*) $(-> $result)? { $body($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn middle($($arg: $kind),*) $(-> $result)? { $body($($arg),*) }
                if is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features were found on this machine.
                    return unsafe { wide($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was found on this machine.
                    return unsafe { middle($($arg),*) };
                }
            }
            $body($($arg),*)
        }
    };
}

dispatched! {
    /// `sums = round(values * scale)`. `scale` is a power of two times what makes every product
    /// smaller than 2^51; else the sums are meaningless. Returns the bits of the largest magnitude
    /// in `values`: 0x7f800000 and above mean infinity or NaN.
    store_fixed = store_body(sums: &mut [i64], values: &[f32], scale: f64) -> u32
}
dispatched! {
    /// `sums += round(values * scale)`; otherwise like [`store_fixed`].
    add_fixed = add_body(sums: &mut [i64], values: &[f32], scale: f64) -> u32
}
dispatched! {
    /// The bits of the largest magnitude.
    largest_magnitude = largest_body(values: &[f32]) -> u32
}
dispatched! {
    /// `values = sums * scale`, through one rounding to f64 and one to fp32.
    to_float = to_float_body(values: &mut [f32], sums: &[i64], scale: f64)
}
dispatched! {
    /// `out = own + bytes`, bytes being little-endian int64.
    sum_i64 = sum_i64_body(out: &mut [i64], own: &[i64], bytes: &[u8])
}
dispatched! {
    /// `out += bytes`, bytes being little-endian int64.
    accumulate_i64 = accumulate_i64_body(out: &mut [i64], bytes: &[u8])
}
dispatched! {
    /// `out += bytes`, bytes being little-endian fp32.
    accumulate_f32 = accumulate_f32_body(out: &mut [f32], bytes: &[u8])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_widest_build_rounds_like_the_plain_definition(
            values in prop::collection::vec(-1.0e3f32..1.0e3, 0..70), exponent in -20i32..40,
        ) {
            let scale = 2f64.powi(exponent);
            let plain: Vec<i64> = values.iter()
                .map(|&value| (f64::from(value) * scale).round_ties_even() as i64).collect();
            let mut sums = vec![7; values.len()];
            let largest = store_fixed(&mut sums, &values, scale);
            prop_assert_eq!(&sums, &plain);
            prop_assert_eq!(add_fixed(&mut sums, &values, scale), largest);
            prop_assert!(sums.iter().zip(&plain).all(|(sum, once)| *sum == 2 * once));
            prop_assert_eq!(largest_magnitude(&values), largest);
        }

        #[test]
        fn sums_go_back_through_f64(
            sums in prop::collection::vec(-(1i64 << 62)..(1i64 << 62), 0..70), exponent in -60i32..10,
        ) {
            let scale = 2f64.powi(exponent);
            let mut values = vec![0f32; sums.len()];
            to_float(&mut values, &sums, scale);
            for (value, &sum) in values.iter().zip(&sums) {
                prop_assert_eq!(value.to_bits(), ((sum as f64 * scale) as f32).to_bits());
            }
        }
    }

    #[test]
    fn ties_go_to_even_and_the_range_is_used_up() {
        let limit = 2f32.powi(51);
        let values = [
            0.5,
            1.5,
            2.5,
            -0.5,
            -1.5,
            -2.5,
            limit * 0.999,
            -limit * 0.999,
            0.0,
            -0.0,
        ];
        let mut sums = [0; 10];
        store_fixed(&mut sums, &values, 1.0);
        assert_eq!(sums[..6], [0, 2, 2, 0, -2, -2]);
        assert_eq!(sums[6], -sums[7]);
        assert_eq!(sums[6], f64::from(values[6]) as i64);
        assert_eq!(sums[8..], [0, 0]);
        assert_eq!(to_f64(0).to_bits(), 0);
        assert_eq!(OFFSET, 2f64.powi(84) + 2f64.powi(63) + 2f64.powi(52));
    }

    #[test]
    fn what_is_not_finite_shows_in_the_magnitude() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(largest_magnitude(&[1.0, bad, 2.0]) >= 0x7f80_0000);
        }
        assert!(largest_magnitude(&[f32::MAX, f32::MIN]) < 0x7f80_0000);
    }

    #[test]
    fn bytes_are_added() {
        let bytes: Vec<u8> = [5i64, -6]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let mut out = [0i64; 2];
        sum_i64(&mut out, &[1, 2], &bytes);
        accumulate_i64(&mut out, &bytes);
        assert_eq!(out, [11, -10]);
        let bytes: Vec<u8> = [0.5f32, 0.25]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let mut out = [1f32, 2.0];
        accumulate_f32(&mut out, &bytes);
        assert_eq!(out, [1.5, 2.25]);
    }
}
