//! Rules of the bridge, and of where a Q-Former comes from.

use super::Rules;
use crate::job::{Bridge, BridgeKind, Job, Stage};

const TABLE: &str = "model.bridge";

pub(super) fn check(job: &Job, rules: &mut Rules) {
    let bridge = &job.model.bridge;
    match bridge.kind {
        BridgeKind::Linear => {
            rules.require(
                *bridge == Bridge::default(),
                format!("{TABLE}.kind"),
                "what else stands in the table is of a Q-Former, and a linear bridge has none",
                "set kind = \"q-former\", or take the other keys out",
            );
        }
        BridgeKind::QFormer => sizes(bridge, rules),
    }
    sources(job, rules);
}

fn sizes(bridge: &Bridge, rules: &mut Rules) {
    for (name, value) in [
        ("num_query_tokens", bridge.num_query_tokens),
        ("hidden_size", bridge.hidden_size),
        ("intermediate_size", bridge.intermediate_size),
        ("num_hidden_layers", bridge.num_hidden_layers),
        ("num_attention_heads", bridge.num_attention_heads),
        (
            "cross_attention_frequency",
            bridge.cross_attention_frequency,
        ),
    ] {
        rules.positive(TABLE, name, value.into());
    }
    let heads = ("num_attention_heads", bridge.num_attention_heads);
    rules.divides(TABLE, heads, ("hidden_size", bridge.hidden_size));
    rules.above_zero(TABLE, "layer_norm_eps", bridge.layer_norm_eps);
}

/// A Q-Former is trained here, or comes with the language model; not both.
fn sources(job: &Job, rules: &mut Rules) {
    let named = |stage: &Stage| stage.pretrained.as_ref()?.q_former.clone();
    let frozen = job
        .model
        .q_former()
        .is_some_and(|shape| !shape.train_q_former);
    for stage in &job.stages {
        let Some(url) = named(stage) else {
            continue;
        };
        let key = format!("stage.{}.pretrained.q_former", stage.name);
        rules.require(
            !url.trim().is_empty(),
            key.as_str(),
            "it is empty",
            "write where the folder with config.json and safetensors is, or take it out",
        );
        rules.require(
            frozen,
            key,
            "the job has no Q-Former, or trains one from initial values",
            "set kind = \"q-former\" and train_q_former = false in [model.bridge], or take it out",
        );
    }
    rules.require(
        !frozen || job.stages.iter().any(|stage| named(stage).is_some()),
        format!("{TABLE}.train_q_former"),
        "a Q-Former that is not trained must come from somewhere",
        "name a BLIP-2 folder as q_former in [stage.pretrained], or set train_q_former = true",
    );
}
