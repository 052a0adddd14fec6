use mks2_proto::params::Init;
use proptest::prelude::*;

use super::*;

fn spec(name: &str, shape: &[usize]) -> ParamSpec {
    ParamSpec {
        name: name.into(),
        shape: shape.to_vec(),
        init: Init::Zeros,
    }
}

fn small() -> Arc<FlatLayout> {
    let specs = [
        spec("norm", &[5]),
        spec("b.weight", &[3, 4]),
        spec("tau", &[]),
        spec("a.weight", &[2, 2]),
    ];
    Arc::new(FlatLayout::new(&specs).unwrap())
}

#[test]
fn matrices_come_first_and_names_ascend() {
    let layout = small();
    let names: Vec<&str> = layout
        .spans()
        .iter()
        .map(|span| span.name.as_str())
        .collect();
    assert_eq!(names, ["a.weight", "b.weight", "norm", "tau"]);
    assert_eq!(layout.decayed(), 0..32);
    assert_eq!(layout.undecayed(), 32..64);
    assert_eq!(layout.parameters(), 4 + 12 + 5 + 1);
}

#[test]
fn a_name_may_not_appear_twice() {
    let specs = [spec("a", &[2]), spec("a", &[2, 2])];
    assert!(matches!(FlatLayout::new(&specs), Err(FlatError::Duplicate(name)) if name == "a"));
}

#[test]
fn views_share_storage_and_are_leaves() {
    let mut state = FlatState::new(small(), Device::Cpu).unwrap();
    state.load(Buffer::Weights, "b.weight", &[1.0; 12]).unwrap();
    let weight = state.view("b.weight").unwrap().set_requires_grad(true);
    assert!(weight.is_leaf());
    let loss = (&weight * 3.0).sum(Kind::Float);
    let grads = Tensor::run_backward(&[loss], &[&weight], false, false);
    assert_eq!(grads[0].size(), [3, 4]);
    no_grad(|| {
        let _ = state.weights.g_mul_scalar_(2.0);
    });
    assert_eq!(weight.double_value(&[2, 3]), 2.0);
    assert!(weight.is_leaf() && weight.requires_grad());
}

#[test]
fn buffers_start_on_64_bytes_and_padding_stays_zero() {
    let mut state = FlatState::new(small(), Device::Cpu).unwrap();
    state.load_all(Buffer::Weights, &[7.0; 64]).unwrap();
    let weights = state.host(Buffer::Weights).unwrap();
    assert_eq!(weights.as_ptr() as usize % 64, 0);
    assert_eq!(weights.iter().filter(|&&value| value == 7.0).count(), 22);
    assert_eq!(weights.iter().filter(|&&value| value == 0.0).count(), 42);
}

#[test]
fn the_digest_is_of_the_values_in_name_order() {
    let mut state = FlatState::new(small(), Device::Cpu).unwrap();
    let mut hasher = blake3::Hasher::new();
    for (name, len, first) in [
        ("a.weight", 4, 1.0),
        ("b.weight", 12, 2.0),
        ("norm", 5, 3.0),
        ("tau", 1, 4.0),
    ] {
        let values: Vec<f32> = (0..len).map(|at| first + at as f32).collect();
        state.load(Buffer::Weights, name, &values).unwrap();
        for value in &values {
            hasher.update(&value.to_le_bytes());
        }
    }
    assert_eq!(state.weights_digest().unwrap(), hasher.finalize());
}

#[test]
fn wrong_lengths_and_names_are_refused() {
    let mut state = FlatState::new(small(), Device::Cpu).unwrap();
    let error = state.load(Buffer::Grads, "norm", &[0.0; 4]).unwrap_err();
    assert_eq!(error.to_string(), "'norm' holds 5 values, 4 were given");
    assert!(matches!(state.view("absent"), Err(FlatError::Unknown(_))));
}

proptest! {
    #[test]
    fn any_layout_is_aligned_disjoint_and_independent_of_order(
        shapes in prop::collection::vec(prop::collection::vec(1usize..9, 0..4), 1..20),
        rotation in 0usize..20,
    ) {
        let mut specs: Vec<ParamSpec> =
            shapes.iter().enumerate().map(|(at, shape)| spec(&format!("p{at}"), shape)).collect();
        let layout = FlatLayout::new(&specs).unwrap();
        let rotation = rotation % specs.len();
        specs.rotate_left(rotation);
        prop_assert_eq!(&FlatLayout::new(&specs).unwrap(), &layout);
        let mut end = 0;
        for span in layout.spans() {
            prop_assert_eq!(span.offset % ALIGN_ELEMENTS, 0);
            prop_assert!(span.offset >= end && span.offset - end < ALIGN_ELEMENTS);
            prop_assert_eq!(span.decay, layout.decayed().contains(&span.offset));
            end = span.range().end;
        }
        prop_assert_eq!(layout.total(), end.next_multiple_of(ALIGN_ELEMENTS));
    }
}
