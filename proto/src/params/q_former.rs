//! The parameters of a Q-Former, by the names that transformers' `Blip2Model` has for them.
//!
//! ```text
//! query_tokens                                                 [1, q, h]
//! qformer.layernorm.{weight, bias}                             [h]
//! qformer.encoder.layer.0.attention.attention.{query,key,value}.{weight [h, h], bias [h]}
//! qformer.encoder.layer.0.attention.output.{dense.{weight [h, h], bias}, LayerNorm.{weight, bias}}
//! qformer.encoder.layer.0.crossattention.*                     as attention; key and value [h, v]
//! qformer.encoder.layer.0.intermediate_query.dense.{weight [w, h], bias}
//! qformer.encoder.layer.0.output_query.{dense.{weight [h, w], bias}, LayerNorm.{weight, bias}}
//! ```

use super::specs::{layer_norm, normal};
use super::{Init, ParamSpec};
use crate::job::Bridge;

/// Standard deviation of matrices and queries, as BERT starts and LAVIS starts BLIP-2's queries.
const STD: f32 = 0.02;

/// A Q-Former that looks at features of this width.
pub fn q_former(shape: &Bridge, features: u32) -> Vec<ParamSpec> {
    let (h, w) = (shape.hidden_size as usize, shape.intermediate_size as usize);
    let queries = [1, shape.num_query_tokens as usize, h];
    let mut specs = vec![ParamSpec::new("query_tokens", &queries, normal(STD))];
    layer_norm("qformer.layernorm", h, &mut specs);
    for layer in 0..shape.num_hidden_layers {
        let at = format!("qformer.encoder.layer.{layer}");
        attention(&format!("{at}.attention"), h, h, &mut specs);
        if layer.is_multiple_of(shape.cross_attention_frequency.max(1)) {
            let features = features as usize;
            attention(&format!("{at}.crossattention"), h, features, &mut specs);
        }
        affine(
            &format!("{at}.intermediate_query.dense"),
            [w, h],
            &mut specs,
        );
        affine(&format!("{at}.output_query.dense"), [h, w], &mut specs);
        layer_norm(&format!("{at}.output_query.LayerNorm"), h, &mut specs);
    }
    specs
}

fn attention(at: &str, h: usize, seen: usize, specs: &mut Vec<ParamSpec>) {
    for (name, inputs) in [("query", h), ("key", seen), ("value", seen)] {
        affine(&format!("{at}.attention.{name}"), [h, inputs], specs);
    }
    affine(&format!("{at}.output.dense"), [h, h], specs);
    layer_norm(&format!("{at}.output.LayerNorm"), h, specs);
}

fn affine(at: &str, shape: [usize; 2], specs: &mut Vec<ParamSpec>) {
    specs.push(ParamSpec::new(format!("{at}.weight"), &shape, normal(STD)));
    specs.push(ParamSpec::new(
        format!("{at}.bias"),
        &shape[..1],
        Init::Zeros,
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{BridgeKind, Experts, Job, Stage, StageKind};
    use crate::params::{frozen_by, trained_by};

    fn job(train_q_former: bool) -> Job {
        let mut job: Job = toml::from_str(include_str!("../job/sample.toml")).expect("a job");
        job.model.bridge = Bridge {
            kind: BridgeKind::QFormer,
            train_q_former,
            ..Bridge::default()
        };
        job
    }

    fn stage(job: &Job, kind: StageKind) -> Stage {
        let stage = job.stages.iter().find(|stage| stage.kind == kind);
        let mut stage = stage.expect("there").clone();
        if let Some(settings) = &mut stage.experts {
            *settings = Experts {
                pictures: true,
                ..settings.clone()
            };
        }
        stage
    }

    #[test]
    fn a_q_former_is_trained_or_read_by_those_that_see() {
        for train in [true, false] {
            let job = job(train);
            let all = q_former(&job.model.bridge, job.model.vision.hidden_size);
            let holds = |specs: &[ParamSpec]| all.iter().all(|spec| specs.contains(spec));
            let memory = stage(&job, StageKind::Memory);
            assert_eq!(holds(&trained_by(&job.model, 300, &memory)), train);
            assert_eq!(holds(&frozen_by(&job.model, 300, &memory)), !train);
            let experts = stage(&job, StageKind::Experts);
            assert!(!holds(&trained_by(&job.model, 300, &experts)));
            assert!(holds(&frozen_by(&job.model, 300, &experts)));
            // What a memory stage trains is what others attach.
            let mut attach = memory.clone();
            attach.kind = StageKind::Attach;
            let mut brought = frozen_by(&job.model, 300, &attach);
            let mut trained = trained_by(&job.model, 300, &memory);
            brought.sort_by(|a, b| a.name.cmp(&b.name));
            trained.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(brought, trained);
        }
    }
}
