//! Adapters as a part of their matrices.

use mks2_proto::failure::Failure;
use mks2_proto::{job, params};
use tch::Kind;

use crate::model::Weights;

/// Makes all adapters part of their matrices: `W + alpha / r B A`, computed in fp64 and rounded once. Each
/// of these matrices is read with its adapter alone, so nothing else changes.
pub(super) fn fold(
    weights: &mut Weights,
    model: &job::Model,
    settings: &job::Experts,
) -> Result<(), Failure> {
    let scale = settings.lora_alpha / f64::from(settings.lora_rank.max(1));
    for spec in params::experts(model, settings) {
        let Some(at) = spec.name.strip_suffix(".lora_a") else {
            continue;
        };
        let Some(matrix) = matrix_of(at) else {
            continue;
        };
        let part = |name: &str| Ok::<_, Failure>(weights.get(name)?.to_kind(Kind::Double));
        let (a_ri, b_or) = (part(&spec.name)?, part(&format!("{at}.lora_b"))?);
        let whole = part(&matrix)? + b_or.matmul(&a_ri) * scale;
        weights.insert_frozen(&matrix, &whole.to_kind(Kind::Float));
    }
    Ok(())
}

/// The matrix that the adapter `experts.layers.<layer>.<of>.<matrix>` stands on.
fn matrix_of(adapter: &str) -> Option<String> {
    let parts: Vec<&str> = adapter.split('.').collect();
    let ["experts", "layers", layer, of, matrix] = parts[..] else {
        return None;
    };
    Some(match of {
        "mlp" | "self_attn" => format!("model.layers.{layer}.{of}.{matrix}.weight"),
        memory => format!("memory.{memory}.layers.{layer}.{matrix}.weight"),
    })
}

#[cfg(test)]
mod tests {
    use super::matrix_of;

    #[test]
    fn every_adapter_stands_on_a_matrix() {
        for (adapter, matrix) in [
            (
                "experts.layers.2.mlp.up_proj",
                "model.layers.2.mlp.up_proj.weight",
            ),
            (
                "experts.layers.0.self_attn.q_proj",
                "model.layers.0.self_attn.q_proj.weight",
            ),
            (
                "experts.layers.1.seen.down_proj",
                "memory.seen.layers.1.down_proj.weight",
            ),
        ] {
            assert_eq!(matrix_of(adapter).as_deref(), Some(matrix));
        }
        assert_eq!(matrix_of("experts.layers.1.router"), None);
    }
}
