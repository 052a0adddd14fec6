//! What the bridge costs for one picture.

use super::{Gradients, attention, product};
use crate::job::{Bridge, Model};

/// Operations and kept numbers; `is_trained`: a memory stage trains it.
pub(super) fn bridge(model: &Model, is_trained: bool) -> (u64, u64) {
    let soft = u64::from(model.soft_tokens());
    let d = model.decoder.hidden_size as usize;
    let (width, (flops, kept), learns) = match model.q_former() {
        None => (model.vision.hidden_size, (0, 0), false),
        Some(shape) => {
            let learns = is_trained && shape.train_q_former;
            (shape.hidden_size, q_former(model, shape, learns), learns)
        }
    };
    let needs = Gradients {
        input: learns,
        weight: is_trained,
    };
    let linear = product(soft, [d, width as usize], needs);
    // The linear layer keeps what goes into it.
    (flops + linear, kept + soft * u64::from(width))
}

fn q_former(model: &Model, shape: &Bridge, is_trained: bool) -> (u64, u64) {
    let [h, f, v] = [
        shape.hidden_size,
        shape.intermediate_size,
        model.vision.hidden_size,
    ]
    .map(|size| size as usize);
    let queries = u64::from(shape.num_query_tokens);
    let patches = u64::from(model.vision.patches());
    let needs = Gradients {
        input: is_trained,
        weight: is_trained,
    };
    let of_patches = Gradients {
        input: false,
        weight: is_trained,
    };
    let matrices = [[h, h], [h, h], [h, h], [h, h], [f, h], [h, f]];
    let products = matrices.map(|matrix| product(queries, matrix, needs));
    let block = products.iter().sum::<u64>() + attention([queries; 2], h, is_trained);
    let look = 2 * product(queries, [h, h], needs)
        + 2 * product(patches, [h, v], of_patches)
        + attention([queries, patches], h, is_trained);
    let blocks = u64::from(shape.num_hidden_layers);
    let looking = blocks.div_ceil(shape.cross_attention_frequency.max(1).into());
    let of_block = queries * (9 * h + 3 * f) as u64;
    let of_look = queries * 5 * h as u64 + patches * 2 * h as u64;
    let kept = blocks * of_block + looking * of_look + patches * v as u64;
    let flops = blocks * block + looking * look;
    (flops, if is_trained { kept } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{BridgeKind, Job};

    /// As `FlopCounterMode` counts transformers' `Blip2QFormerModel` with eager attention and a linear layer,
    /// on one picture.
    #[test]
    fn a_q_former_costs_what_pytorch_counts() {
        let mut job: Job = toml::from_str(include_str!("../../job/sample.toml")).expect("a job");
        for (train_q_former, flops) in [(true, 342_720), (false, 148_032)] {
            job.model.bridge = Bridge {
                kind: BridgeKind::QFormer,
                train_q_former,
                num_query_tokens: 6,
                hidden_size: 12,
                intermediate_size: 16,
                num_hidden_layers: 3,
                num_attention_heads: 3,
                ..Bridge::default()
            };
            assert_eq!(bridge(&job.model, true).0, flops);
        }
    }
}
