use super::*;

const GATE: &str = "model.layers.0.mlp.gate_proj.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";
const NORM: &str = "model.norm.weight";

/// Two matrices that read the same input and something else, apart from each other.
fn apart() -> Weights {
    let flat = Tensor::arange(100, (Kind::Float, Device::Cpu)) / 7;
    let part = |at: i64, shape: &[i64]| flat.narrow(0, at, shape.iter().product()).view(shape);
    let mut weights = Weights::new();
    weights.insert_frozen(UP, &part(0, &[4, 3]));
    weights.insert_frozen(NORM, &part(20, &[3]));
    weights.insert_frozen(GATE, &part(40, &[4, 3]));
    weights
}

fn get(weights: &Weights, name: &str) -> Tensor {
    weights.get(name).expect("there")
}

fn place(weights: &Weights, name: &str) -> usize {
    get(weights, name).data_ptr() as usize
}

/// Whether a model takes both as one where they lie.
fn lie_together(weights: &Weights) -> bool {
    let fused = weights.fused(&[&get(weights, GATE), &get(weights, UP)]);
    fused.expect("frozen").data_ptr() as usize == place(weights, GATE)
}

#[test]
fn what_is_converted_lies_together_and_the_rest_stays() {
    let weights = apart();
    assert!(!lie_together(&weights));
    let norm = place(&weights, NORM);
    let halves = weights.clone().computing_in((Precision::Bf16, Device::Cpu));
    assert!(lie_together(&halves));
    assert_eq!(
        (halves.kind(), place(&halves, NORM)),
        (Kind::BFloat16, norm)
    );
    for name in [GATE, UP] {
        let wanted = get(&weights, name).to_kind(Kind::BFloat16);
        assert_eq!(get(&halves, name), wanted, "{name}");
    }
}

#[test]
fn what_is_kept_is_a_copy_that_lies_together_and_is_computed_from_as_it_is() {
    let weights = apart();
    let kept = weights.clone().kept();
    assert!(lie_together(&kept));
    for name in [GATE, UP, NORM] {
        assert_eq!(get(&kept, name), get(&weights, name), "{name}");
        assert_ne!(place(&kept, name), place(&weights, name), "{name}");
    }
    let before = [GATE, UP, NORM].map(|name| place(&kept, name));
    let again = kept.computing_in((Precision::Fp32, Device::Cpu));
    assert_eq!([GATE, UP, NORM].map(|name| place(&again, name)), before);
}

#[test]
fn what_is_trained_stays_where_it_is() {
    let mut weights = apart();
    let up = get(&weights, UP);
    weights.insert_trained(UP, &up);
    let moved = weights.computing_in((Precision::Bf16, Device::Cpu));
    let trained = get(&moved, UP);
    assert!(trained.requires_grad() && trained.kind() == Kind::Float);
    assert_eq!(trained.data_ptr(), up.data_ptr());
    assert_eq!(get(&moved, GATE).kind(), Kind::BFloat16);
}
