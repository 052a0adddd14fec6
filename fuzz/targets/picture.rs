//! A picture, whatever is in it, is refused or becomes a square.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mks2_dataset::picture::{Limits, square};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        max_pixels: 1 << 20,
        max_side: 4096,
        ..Limits::default()
    };
    if let Ok(picture) = square(bytes, &limits, 24) {
        assert_eq!(picture.pixels.len(), 3 * 24 * 24);
    }
});
