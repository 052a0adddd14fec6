//! The fixed point of every tensor: an exponent e, by which gradients are scaled with 2^e.
//!
//! Magnitudes are counted as exponents too: x has exponent k when 2^(k-1) <= |x| < 2^k. A lane's
//! element fits when k + e <= 51, so 2,048 lanes fit into 62 bits. A fitted exponent leaves
//! [`HEADROOM`] bits free: gradients may grow a thousandfold from one step to the next, and the
//! largest element is still resolved to 41 bits, 17 more than fp32 has.
//!
//! The magnitudes are those of single lanes, shared in the ballot, not of the reduced gradient: where
//! lanes cancel, a lane may be far larger than their sum, and it is the lane that must fit. Both are
//! the same on every rank; the maximum over lanes depends on no order.

/// Largest |x| * 2^e of a lane, as an exponent.
pub(super) const LANE_BITS: i16 = 51;
/// Bits kept free above the largest element of the step before.
pub(super) const HEADROOM: i16 = 10;
/// No exponent: nothing but zeros so far.
pub(super) const NONE: i16 = i16::MIN;
/// The magnitude of infinities and NaN.
pub(super) const NOT_FINITE: i16 = i16::MAX;
/// Largest magnitude: 2,048 lanes of it still have a finite sum in fp32. What is larger counts as
/// not finite.
const LARGEST: i16 = 116;
/// Smallest normal fp32, as an exponent: smaller magnitudes count as this one.
const SMALLEST: i16 = -125;

/// The exponent of a magnitude: of `bits`, the largest |x| in fp32, times `factor`.
pub(super) fn of_magnitude(bits: u32, factor: f32) -> i16 {
    let product = f64::from(f32::from_bits(bits)) * f64::from(factor.abs());
    if !product.is_finite() {
        return NOT_FINITE;
    }
    if product == 0.0 {
        return NONE;
    }
    // Products of two fp32 magnitudes, even subnormal ones, are normal in f64.
    let exponent = ((product.to_bits() >> 52) & 0x7ff) as i16 - 1022;
    if exponent > LARGEST {
        NOT_FINITE
    } else {
        exponent.max(SMALLEST)
    }
}

/// The exponent that fits a magnitude with headroom.
pub(super) fn fit(seen: i16) -> i16 {
    LANE_BITS - HEADROOM - seen
}

/// Whether a lane of this magnitude exceeds the range.
pub(super) fn overflows(seen: i16, exponent: i16) -> bool {
    seen != NONE && exponent != NONE && seen + exponent > LANE_BITS
}

/// The exponent after a step: at once coarser when gradients have grown, one bit finer per step
/// when they have shrunk, so that a quiet step does not make the next one overflow.
pub(super) fn follow(exponent: i16, seen: i16) -> i16 {
    match (exponent, seen) {
        (_, NONE | NOT_FINITE) => exponent,
        (NONE, _) => fit(seen),
        _ => fit(seen).min(exponent + 1),
    }
}

/// 2^exponent.
pub(super) fn power(exponent: i16) -> f64 {
    f64::from_bits(((i64::from(exponent) + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_have_the_exponent_of_the_next_power_of_two() {
        let of = |value: f32| of_magnitude(value.to_bits(), 1.0);
        assert_eq!(
            [of(1.0), of(1.5), of(2.0), of(0.5), of(0.0)],
            [1, 1, 2, 0, NONE]
        );
        assert_eq!(of(2f32.powi(116) * 0.99), 116);
        assert_eq!(of(f32::MAX), NOT_FINITE);
        assert_eq!(of(f32::from_bits(1)), SMALLEST);
        assert_eq!([of(f32::INFINITY), of(f32::NAN)], [NOT_FINITE; 2]);
        assert_eq!(of_magnitude(3f32.to_bits(), -0.25), 0);
        assert_eq!(of_magnitude(0, f32::INFINITY), NOT_FINITE);
    }

    #[test]
    fn powers_are_exact_over_the_whole_range() {
        for seen in SMALLEST..=LARGEST {
            assert_eq!(power(fit(seen)), 2f64.powi(i32::from(fit(seen))));
            assert_eq!(power(-fit(seen)), 2f64.powi(-i32::from(fit(seen))));
        }
    }

    #[test]
    fn exponents_follow_growth_at_once_and_shrinking_slowly() {
        assert_eq!(follow(NONE, NONE), NONE);
        assert_eq!(follow(NONE, 3), fit(3));
        assert_eq!(follow(fit(3), 5), fit(5));
        assert_eq!(follow(fit(3), -20), fit(3) + 1);
        assert_eq!(follow(fit(3), NONE), fit(3));
        assert!(!overflows(3 + HEADROOM, fit(3)));
        assert!(overflows(4 + HEADROOM, fit(3)));
    }
}
