//! SplitMix64 ([Steele, Lea, Flood 2014](https://doi.org/10.1145/2660193.2660195)): numbers that are the
//! same on every machine, for everything that a seed decides.

/// What the state grows by from number to number: 2^64 over the golden ratio.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The next number of a stream.
pub fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(GOLDEN);
    mix(*state)
}

/// The output function: a bijection of 64 bits that stirs them well.
#[must_use]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_numbers_are_those_of_the_reference() {
        // From the authors' implementation, for the seed 1234567.
        let mut state = 1_234_567;
        let numbers = [(); 3].map(|()| next(&mut state));
        let reference = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(numbers, reference);
    }
}
