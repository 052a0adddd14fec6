//! Pictures as files have them become what CLIP's processor makes of them.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its fixture has failed"
)]

use std::path::{Path, PathBuf};

use mks2_dataset::picture::{Limits, decode, resize_square};
use serde_json::Value;

/// Share of the values that may be more than one level of 255 away.
const FAR: f64 = 0.001;

fn folder() -> PathBuf {
    // `cargo xtask parity` makes them afresh and says where.
    std::env::var_os("MKS2_PARITY_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures"),
        |fresh| Path::new(&fresh).join("pictures"),
    )
}

#[test]
fn every_form_of_file_becomes_the_pixels_of_clips_processor() {
    let cases = std::fs::read(folder().join("expected.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
    let expected = std::fs::read(folder().join("expected.bin")).unwrap();
    let mut expected = expected.as_slice();
    assert!(cases.len() > 15);
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case["file"].as_str().unwrap();
        let side = u32::try_from(case["side"].as_u64().unwrap()).unwrap();
        let (right, rest) = expected.split_at((side * side * 3) as usize);
        expected = rest;
        let bytes = std::fs::read(folder().join(name)).unwrap();
        let picture = decode(&bytes, &Limits::default()).unwrap();
        let square = resize_square(&picture, side).unwrap();
        assert_eq!(square.pixels.len(), right.len());
        let pairs = square.pixels.iter().zip(right);
        let far = pairs.clone().filter(|(a, b)| a.abs_diff(**b) > 1).count();
        let most = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        let share = far as f64 / right.len() as f64;
        if share > FAR {
            wrong.push(format!(
                "{name} at {side}: {share:.4} are up to {most} levels away"
            ));
        }
    }
    assert!(expected.is_empty());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
