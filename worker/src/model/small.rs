//! A small model for tests.

use mks2_proto::job::{Job, load};
use mks2_proto::params::{self, trained_by};
use tch::Device;

use super::Weights;
use crate::generator::normal;

/// Tokens that it knows.
pub(super) const VOCAB: u32 = 41;

/// A small model with everything that there is: adapters on attention, routers, a sliding window.
pub(super) fn job(window: &str) -> Job {
    let text = format!(
        r#"
        name = "cached"
        lanes = 1
        [model.decoder]
        hidden_size = 24
        intermediate_size = 32
        num_hidden_layers = 3
        num_attention_heads = 4
        num_key_value_heads = 2
        max_text_tokens = 64
        {window}
        [model.vision]
        image_size = 16
        patch_size = 8
        hidden_size = 16
        intermediate_size = 16
        num_hidden_layers = 2
        num_attention_heads = 2
        projection_dim = 8
        [model.text_tower]
        hidden_size = 16
        intermediate_size = 16
        num_hidden_layers = 1
        num_attention_heads = 2
        [model.memory]
        width = 20
        [data.all]
        url = "all"
        [[stage]]
        name = "base"
        kind = "bootstrap"
        steps = 1
        batch_size = 2
        data = [{{ corpus = "all" }}]
        [[stage]]
        name = "memory"
        kind = "memory"
        from = ["base"]
        steps = 1
        batch_size = 2
        data = [{{ corpus = "all" }}]
        [[stage]]
        name = "experts"
        kind = "experts"
        from = ["base", "memory"]
        steps = 1
        batch_size = 2
        data = [{{ corpus = "all" }}]
        experts = {{ memories = ["memory"], lora_rank = 3, adapt_attention = true, adapter_blocks = [1, 3] }}
        "#
    );
    load::parse(&text).expect("a good job")
}

/// All weights of the job's stages, adapters included, frozen and at random.
pub(super) fn weights(job: &Job) -> Weights {
    let mut specs = params::decoder(&job.model.decoder, VOCAB);
    for stage in &job.stages[1..] {
        specs.extend(trained_by(&job.model, VOCAB, stage));
    }
    let mut weights = Weights::new();
    for (seed, spec) in (7..).zip(&specs) {
        let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
        let random = normal(seed, &shape, Device::Cpu) * 0.3;
        weights.insert_frozen(&spec.name, &random);
    }
    weights
}
