//! The bootstrap stage as the trainer runs it, lane by lane, against one loss over the whole batch.

use mks2_proto::job::Job;
use mks2_worker::model::losses;
use mks2_worker::objective::bootstrap::{BootstrapObjective, Lane};
use mks2_worker::objective::{Objective, TokenBatch};
use mks2_worker::text::TextEncoder;
use serde_json::json;
use tch::{Device, Tensor};

use crate::fixture::Fixture;

/// A job of one bootstrap stage with the fixture's shapes.
fn job(fixture: &Fixture) -> Job {
    let settings = &fixture.case.bootstrap;
    let stage = json!({"name": "bootstrap", "kind": "bootstrap", "bootstrap": settings});
    let job = json!({"name": "parity", "model": fixture.model(), "stage": [stage]});
    serde_json::from_value(job).unwrap()
}

/// A tokenizer of the fixture's size; nothing is ever encoded with it.
fn encoder(fixture: &Fixture) -> TextEncoder {
    let words = (0..fixture.case.vocab_size).map(|id| (id.to_string(), json!(id)));
    let vocab: serde_json::Map<String, serde_json::Value> = words.collect();
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "0"});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": model,
    });
    TextEncoder::from_json(tokenizer.to_string().as_bytes(), 7).unwrap()
}

/// Rows `[first, first + rows)` of the fixture's batch.
fn lane(fixture: &Fixture, first: i64, rows: i64) -> Lane {
    let part = |name: &str| fixture.input(name).narrow(0, first, rows);
    let labelled = losses::labelled(&part("labels")).unwrap();
    let targets = labelled
        .labels_bn
        .not_equal(losses::IGNORE)
        .count_nonzero(None);
    let texts = TokenBatch {
        ids_bt: part("ids"),
        positions_bn: labelled.positions_bn,
        labels_bn: labelled.labels_bn,
        end_b1: part("ends").unsqueeze(1),
        targets: targets.int64_value(&[]) as usize,
    };
    // The CLIP reads its texts at their ends alone.
    let names = TokenBatch {
        ids_bt: part("names"),
        positions_bn: part("ends").unsqueeze(1),
        labels_bn: part("ends").unsqueeze(1),
        end_b1: part("ends").unsqueeze(1),
        targets: 0,
    };
    Lane {
        texts,
        names,
        pixels_bcyx: part("pixels"),
        second_bcyx: Some(part("second")),
    }
}

#[test]
fn the_bootstrap_losses_agree_with_views_however_the_rows_are_dealt() {
    let fixture = Fixture::load("stage_bootstrap");
    let weights = fixture.weights();
    let (job, encoder) = (job(&fixture), encoder(&fixture));
    let stage = &job.stages[0];
    let objective = BootstrapObjective::new(&job, stage, &encoder, &weights, Device::Cpu).unwrap();
    for per_lane in [4, 2, 1] {
        let lanes: Vec<Lane> = (0..4 / per_lane)
            .map(|number| lane(&fixture, number * per_lane, per_lane))
            .collect();
        let shares: Vec<_> = lanes.iter().map(|l| objective.share(l).unwrap()).collect();
        let global = objective.global(&shares).unwrap();
        let parts: Vec<_> = (0..)
            .zip(&lanes)
            .map(|(number, lane)| objective.loss(number, lane, &global).unwrap())
            .collect();
        let language = parts.iter().map(|part| part.sums[0]).sum();
        let found = objective.losses(&[language], &global);
        let (language, contrastive) = (found.language.unwrap(), found.contrastive.unwrap());
        let outputs = [
            ("language", language),
            ("contrastive", contrastive),
            ("views", found.total - language - contrastive),
            ("loss", found.total),
        ];
        for (name, value) in outputs {
            fixture.check_output(name, &Tensor::from(value));
        }
        let carried = parts.into_iter().map(|part| part.loss);
        let loss = carried.reduce(|sum, part| sum + part).unwrap();
        fixture.check_gradients(&loss, &weights, &[]);
    }
}
