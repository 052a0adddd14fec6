use std::sync::Arc;

use mks2_proto::params::{Init, ParamSpec};

use super::*;
use crate::flat::{Buffer, FlatLayout};

fn state(rows: usize, bias: usize) -> FlatState {
    let specs = [
        ParamSpec {
            name: "w".into(),
            shape: vec![rows, 7],
            init: Init::Zeros,
        },
        ParamSpec {
            name: "b".into(),
            shape: vec![bias],
            init: Init::Zeros,
        },
    ];
    FlatState::new(Arc::new(FlatLayout::new(&specs).unwrap()), Device::Cpu).unwrap()
}

fn wave(len: usize, phase: f32) -> Vec<f32> {
    (0..len)
        .map(|at| (at as f32 * 0.37 + phase).sin() * 0.1)
        .collect()
}

#[test]
fn the_schedule_warms_up_and_ends_at_its_floor() {
    let optimizer = Optimizer {
        lr: 1.0,
        warmup_steps: 4,
        min_lr_ratio: 0.1,
        ..Optimizer::default()
    };
    let rates: Vec<f64> = (0..20)
        .map(|step| learning_rate(&optimizer, step, 20))
        .collect();
    assert_eq!(rates[..4], [0.25, 0.5, 0.75, 1.0]);
    assert!(rates[3..].windows(2).all(|pair| pair[1] < pair[0]));
    assert!((rates[19] - 0.1).abs() < 1e-12);
    assert_eq!(learning_rate(&optimizer, 40, 20), rates[19]);
    assert_eq!(learning_rate(&optimizer, 1, 2), 1.0);
    assert_eq!(
        learning_rate(
            &Optimizer {
                warmup_steps: 0,
                ..optimizer
            },
            0,
            1
        ),
        0.1
    );
}

#[test]
fn the_norm_is_that_of_f64_and_alike_on_both_paths() {
    let values = wave(3 * NORM_BLOCK + 17, 0.2);
    let exact = values
        .iter()
        .map(|&v| f64::from(v).powi(2))
        .sum::<f64>()
        .sqrt();
    let buffer = Tensor::from_slice(&values);
    assert!((global_norm(&buffer).unwrap() / exact - 1.0).abs() < 1e-14);
    let on_device = block_squares_on_device(&buffer, BLOCKS_AT_ONCE).unwrap();
    for (a, b) in on_device.iter().zip(block_squares(&values)) {
        assert!((a / b - 1.0).abs() < 1e-14);
    }
}

#[test]
fn a_device_sums_slices_to_the_bits_of_the_whole() {
    for len in [NORM_BLOCK - 1, 8 * NORM_BLOCK, 43 * NORM_BLOCK + 17] {
        let buffer = Tensor::from_slice(&wave(len, 0.4));
        let whole = block_squares_on_device(&buffer, usize::MAX).unwrap();
        assert_eq!(whole.len(), len.div_ceil(NORM_BLOCK));
        for at_once in [4, 8, 9] {
            let sliced = block_squares_on_device(&buffer, at_once).unwrap();
            let bits = |sums: &[f64]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&sliced), bits(&whole), "{at_once} of {len}");
        }
    }
}

#[test]
fn slices_cover_every_block_once_and_stay_small() {
    for blocks in [0, 1, 3, 4, 7, 8, 11, 4000] {
        let all: Vec<_> = slices(blocks, 4).collect();
        let covered: Vec<usize> = all.iter().cloned().flatten().collect();
        assert_eq!(covered, (0..blocks).collect::<Vec<_>>());
        assert!(all.iter().all(|slice| slice.len() < 8), "{all:?}");
        assert!(blocks < 4 || all.iter().all(|slice| slice.len() >= 4));
    }
}

#[test]
fn clipping_scales_only_what_is_too_long() {
    let mut state = state(3, 2);
    state.load(Buffer::Grads, "b", &[3.0, 4.0]).unwrap();
    assert_eq!(clip(&mut state, 10.0).unwrap(), 5.0);
    assert_eq!(clip(&mut state, 0.0).unwrap(), 5.0);
    assert_eq!(clip(&mut state, 1.0).unwrap(), 5.0);
    assert!((global_norm(&state.grads).unwrap() - 1.0).abs() < 1e-6);
}

/// The rule in the module's header, in f64.
#[test]
fn adamw_follows_its_rule_and_leaves_padding_zero() {
    let settings = Optimizer {
        weight_decay: 0.3,
        ..Optimizer::default()
    };
    let mut state = state(5, 3);
    let start = wave(35, 0.0);
    state.load(Buffer::Weights, "w", &start).unwrap();
    let (mut w, mut m, mut v) = (
        start.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(),
        [0f64; 35],
        [0f64; 35],
    );
    for step in 0..5 {
        let grad = wave(35, step as f32);
        state.load(Buffer::Grads, "w", &grad).unwrap();
        AdamW::new(&settings).apply(&mut state, step, 1e-2).unwrap();
        for at in 0..35 {
            let g = f64::from(grad[at]);
            m[at] = settings.beta1 * m[at] + (1.0 - settings.beta1) * g;
            v[at] = settings.beta2 * v[at] + (1.0 - settings.beta2) * g * g;
            let t = step as i32 + 1;
            let mean = m[at] / (1.0 - settings.beta1.powi(t));
            let root = (v[at] / (1.0 - settings.beta2.powi(t))).sqrt() + settings.eps;
            w[at] -= 1e-2 * (0.3 * w[at] + mean / root);
        }
    }
    let weights = state.host(Buffer::Weights).unwrap();
    for at in 0..35 {
        assert!(
            (f64::from(weights[at]) - w[at]).abs() < 1e-6,
            "element {at}"
        );
    }
    assert!(weights[35..].iter().all(|&value| value == 0.0));
}

/// Without decay a group's update differs: the bias keeps what the matrix loses.
#[test]
fn only_matrices_decay() {
    let settings = Optimizer {
        weight_decay: 0.5,
        ..Optimizer::default()
    };
    let mut state = state(1, 7);
    state.load(Buffer::Weights, "w", &[1.0; 7]).unwrap();
    state.load(Buffer::Weights, "b", &[1.0; 7]).unwrap();
    AdamW::new(&settings).apply(&mut state, 0, 0.1).unwrap();
    let weights = state.host(Buffer::Weights).unwrap();
    assert_eq!(weights[..7], [0.95; 7]);
    assert_eq!(weights[16..23], [1.0; 7]);
}
