//! The loss of a long text over a large vocabulary: by pieces of rows as the stages compute it, and with all
//! logits at once. Forward and backward, and the memory that both take beside their inputs.

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Args;
use mks2_proto::failure::Failure;
use mks2_proto::job::Decoder as Shape;
use mks2_proto::params;
use serde_json::{Value, json};
use tch::{Device, Reduction, Tensor};

use super::process::{memory, reset_peak};
use super::stage::median;
use crate::device;
use crate::generator::{below, normal};
use crate::model::{Decoder, Weights, losses};

/// The loss to measure.
#[derive(Debug, Args)]
pub(super) struct Loss {
    /// Positions with a label.
    #[arg(long, default_value_t = 8192)]
    tokens: i64,
    /// Tokens that the head knows.
    #[arg(long, default_value_t = 32_000)]
    vocab: u32,
    /// Width of the states.
    #[arg(long, default_value_t = 512)]
    hidden: u32,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// Measured passes of each, in turn.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
}

/// How the loss is computed.
type Way<'a> = dyn Fn() -> Result<Tensor, Failure> + 'a;

/// Seconds and peak bytes of both.
pub(super) fn measure(settings: &Loss) -> Result<Value, Failure> {
    device::prepare(settings.threads);
    let decoder = decoder(settings)?;
    let (t, d) = (settings.tokens, i64::from(settings.hidden));
    let states_1td = normal(1, &[1, t, d], Device::Cpu).set_requires_grad(true);
    let labels_1t = below(2, i64::from(settings.vocab), &[1, t], Device::Cpu);
    let in_pieces = || Ok(losses::next_token(&decoder, &states_1td, &labels_1t)?.0);
    let at_once = || {
        let logits_tv = decoder.logits(&states_1td.squeeze_dim(0));
        let targets_t = labels_1t.squeeze_dim(0);
        let weight = None::<Tensor>;
        Ok(logits_tv.cross_entropy_loss(&targets_t, weight, Reduction::Sum, losses::IGNORE, 0.0))
    };
    let ways: [(&str, &Way); 2] = [("pieces", &in_pieces), ("whole", &at_once)];
    let mut seconds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for repetition in 0..=settings.repetitions {
        for (name, loss) in ways {
            reset_peak();
            let before = memory("VmRSS:");
            let began = Instant::now();
            let gradients = Tensor::run_backward(&[loss()?], &[&states_1td], false, false);
            if repetition > 0 {
                let spent = began.elapsed().as_secs_f64();
                seconds.entry(name).or_default().push(spent);
            }
            drop(gradients);
            let extra = memory("VmHWM:").saturating_sub(before);
            let most = bytes.entry(name).or_default();
            *most = (*most).max(extra);
        }
    }
    let of = |name: &str| median(seconds.get(name).cloned().unwrap_or_default());
    Ok(json!({
        "pieces_seconds": of("pieces"), "whole_seconds": of("whole"),
        "pieces_bytes": bytes.get("pieces"), "whole_bytes": bytes.get("whole"),
    }))
}

/// A decoder of which the head alone is large.
fn decoder(settings: &Loss) -> Result<Decoder, Failure> {
    let shape = Shape {
        hidden_size: settings.hidden,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: None,
        qkv_bias: false,
        sliding_window: None,
        rope_theta: 1e4,
        rope_scaling: None,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        max_text_tokens: 16,
    };
    let weights = Weights::initial(&params::decoder(&shape, settings.vocab), 0, Device::Cpu);
    Ok(Decoder::new(&shape, settings.vocab, &weights)?)
}
