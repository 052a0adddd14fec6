//! Forward and gradients agree with independent implementations in PyTorch: transformers for the
//! decoder and the visual encoder, `tests/reference/mks2_reference.py` for the rest and for the
//! losses of the stages. fp32, relative error below 1e-5 per tensor.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its fixture has failed"
)]

#[path = "parity/bootstrap.rs"]
mod bootstrap;
#[path = "parity/fixture.rs"]
mod fixture;
#[path = "parity/metrics.rs"]
mod metrics;
#[path = "parity/training.rs"]
mod training;

use fixture::Fixture;
use mks2_worker::model::{
    Bridge, Decoder, Experts, Memory, Pass, Read, RetrievalHeads, SecondHalves, States, TextTower,
    Vision, losses,
};
use tch::{Kind, Tensor};

fn decoder(fixture: &Fixture) -> (mks2_worker::model::Weights, Decoder) {
    let weights = fixture.weights();
    let shape = &fixture.model().decoder;
    let decoder = Decoder::new(shape, fixture.case.vocab_size, &weights).unwrap();
    (weights, decoder)
}

fn memories(fixture: &Fixture, weights: &mks2_worker::model::Weights) -> Vec<Memory> {
    let names = &fixture.case.experts.as_ref().unwrap().memories;
    names
        .iter()
        .map(|name| Memory::new(fixture.model(), name, weights).unwrap())
        .collect()
}

#[test]
fn a_decoder_block_agrees() {
    let fixture = Fixture::load("decoder_block");
    let (weights, decoder) = decoder(&fixture);
    let h = fixture.input("h");
    let last = decoder
        .forward(&h, &Pass::new(SecondHalves::Mlp))
        .unwrap()
        .last_bnd;
    let loss = fixture.probed(&[("last", &last)]);
    fixture.check_gradients(&loss, &weights, &[("h", &h)]);
}

#[test]
fn the_decoder_agrees_with_transformers_llama() {
    let fixture = Fixture::load("llama");
    let (weights, decoder) = decoder(&fixture);
    let h = decoder.embed(&fixture.input("ids")).unwrap();
    let last = decoder
        .forward(&h, &Pass::new(SecondHalves::Mlp))
        .unwrap()
        .last_bnd;
    let loss = fixture.probed(&[("logits", &decoder.logits(&last))]);
    fixture.check_gradients(&loss, &weights, &[]);
}

#[test]
fn the_visual_encoder_agrees_with_transformers_clip() {
    let fixture = Fixture::load("clip_vision");
    let weights = fixture.weights();
    let vision = Vision::new(&fixture.model().vision, &weights).unwrap();
    let seen = vision.forward(&fixture.input("pixels")).unwrap();
    let loss = fixture.probed(&[("global", &seen.global_be), ("patches", &seen.patches_bpv)]);
    fixture.check_gradients(&loss, &weights, &[]);
}

#[test]
fn the_text_tower_agrees() {
    let fixture = Fixture::load("text_tower");
    let weights = fixture.weights();
    let model = fixture.model();
    let (shape, features) = (
        model.text_tower.as_ref().unwrap(),
        model.vision.projection_dim,
    );
    let tower = TextTower::new(shape, features, fixture.case.vocab_size, &weights).unwrap();
    let features = tower
        .forward(&fixture.input("ids"), &fixture.input("end"))
        .unwrap();
    let loss = fixture.probed(&[("features", &features)]);
    fixture.check_gradients(&loss, &weights, &[]);
}

#[test]
fn the_symmetric_loss_and_its_gradients_agree() {
    let fixture = Fixture::load("clip_loss");
    let [text, images, scale] =
        ["text", "images", "logit_scale"].map(|name| fixture.get(&format!("input/{name}")));
    let ours = losses::clip(&text, &images, &scale);
    fixture.check_output("loss", &ours.loss);
    fixture::assert_close("text", &ours.grad_text_me, &fixture.get("grad/text"));
    fixture::assert_close("images", &ours.grad_images_me, &fixture.get("grad/images"));
    fixture::assert_close(
        "scale",
        &ours.grad_logit_scale,
        &fixture.get("grad/logit_scale"),
    );
}

#[test]
fn the_bridge_agrees() {
    let fixture = Fixture::load("bridge");
    let weights = fixture.weights();
    let patches = fixture.input("patches");
    let soft = Bridge::new(fixture.model(), &weights)
        .unwrap()
        .forward(&patches)
        .unwrap();
    let loss = fixture.probed(&[("soft", &soft)]);
    fixture.check_gradients(&loss, &weights, &[("patches", &patches)]);
}

#[test]
fn the_q_former_agrees_with_transformers_however_often_it_looks() {
    for every in 1..4 {
        let fixture = Fixture::load(&format!("q_former_{every}"));
        let weights = fixture.weights();
        let patches = fixture.input("patches");
        let bridge = Bridge::new(fixture.model(), &weights).unwrap();
        let soft = bridge.forward(&patches).unwrap();
        assert_eq!(soft.size()[1], i64::from(fixture.model().soft_tokens()));
        let loss = fixture.probed(&[("soft", &soft)]);
        fixture.check_gradients(&loss, &weights, &[("patches", &patches)]);
    }
}

#[test]
fn the_visual_memory_agrees_in_both_forms() {
    for name in ["memory_plain", "memory_gated"] {
        let fixture = Fixture::load(name);
        let (weights, decoder) = decoder(&fixture);
        let memory = Memory::new(fixture.model(), "see", &weights).unwrap();
        let h = fixture.input("h");
        let pass = Pass::new(SecondHalves::Memory(&memory)).after_blocks(&[1]);
        let states = decoder.forward(&h, &pass).unwrap();
        let outputs = [
            ("last", &states.last_bnd),
            ("after_1", &states.after_blocks[0].1),
        ];
        let loss = fixture.probed(&outputs);
        fixture.check_gradients(&loss, &weights, &[("h", &h)]);
    }
}

#[test]
fn the_retrieval_loss_agrees_however_its_rows_are_dealt() {
    // With a projection of the image features, and without one.
    for name in ["retrieval", "retrieval_unprojected"] {
        let fixture = Fixture::load(name);
        let weights = fixture.weights();
        let heads = RetrievalHeads::new(fixture.model(), &weights).unwrap();
        let (text, images) = (fixture.input("text"), fixture.input("images"));
        let part = |first: i64, rows: i64| {
            let last_bnd = text.narrow(0, first, rows).unsqueeze(1);
            let states = States {
                last_bnd,
                after_blocks: vec![],
                scores: vec![],
            };
            heads.loss_rows(&states, &images, first).unwrap()
        };
        let loss = (part(0, 2) + part(2, 3)) / 5.0;
        fixture.check_output("loss", &loss);
        fixture.check_gradients(&loss, &weights, &[("text", &text)]);
    }
}

#[test]
fn adapters_and_mixtures_of_two_and_three_experts_agree() {
    for name in ["lora", "mixture_2", "mixture_3"] {
        let fixture = Fixture::load(name);
        let (weights, decoder) = decoder(&fixture);
        let settings = fixture.case.experts.as_ref().unwrap();
        let memories = memories(&fixture, &weights);
        let experts = Experts::new(fixture.model(), settings, &memories, &weights).unwrap();
        let h = fixture.input("h");
        let pass = Pass::new(SecondHalves::Experts(&experts)).recording_scores();
        let states = decoder.forward(&h, &pass).unwrap();
        let loss = fixture.probed(&[("last", &states.last_bnd)]);
        fixture.check_gradients(&loss, &weights, &[("h", &h)]);
        for scores in &states.scores {
            assert_eq!(scores.size()[2], memories.len() as i64 + 1);
            let sums = scores.sum_dim_intlist([-1].as_slice(), false, None::<Kind>);
            fixture::assert_close("sum of scores", &sums, &sums.ones_like());
        }
    }
}

#[test]
fn stage_1_losses_and_gradients_agree() {
    for name in ["stage_memory_plain", "stage_memory_gated"] {
        let fixture = Fixture::load(name);
        let (weights, decoder) = decoder(&fixture);
        let model = fixture.model();
        let vision = Vision::new(&model.vision, &weights).unwrap();
        let bridge = Bridge::new(model, &weights).unwrap();
        let memory = Memory::new(model, "see", &weights).unwrap();
        let heads = RetrievalHeads::new(model, &weights).unwrap();
        let second = SecondHalves::Memory(&memory);

        let seen = vision.forward(&fixture.input("pixels")).unwrap();
        assert!(!seen.global_be.requires_grad() && !seen.patches_bpv.requires_grad());
        let soft = bridge.forward(&seen.patches_bpv).unwrap();
        let ids = fixture.input("caption_ids");
        let words = decoder.embed(&ids.narrow(1, 0, ids.size()[1] - 1)).unwrap();
        let h = Tensor::cat(&[&soft, &words], 1);
        let pass = Pass::new(second).reading(Read::From(soft.size()[1] - 1));
        let states = decoder.forward(&h, &pass).unwrap();
        let labels = fixture.input("caption_labels");
        let (sum, count) = losses::next_token(&decoder, &states.last_bnd, &labels).unwrap();
        let caption = sum / count as f64;

        let text = decoder.embed(&fixture.input("retrieval_ids")).unwrap();
        let end = fixture.input("retrieval_end").unsqueeze(-1);
        let pass = Pass::new(second)
            .reading(Read::At(&end))
            .after_blocks(heads.extra_blocks());
        let states = decoder.forward(&text, &pass).unwrap();
        let retrieval =
            heads.loss_rows(&states, &seen.global_be, 0).unwrap() / ids.size()[0] as f64;

        fixture.check_output("caption", &caption);
        fixture.check_output("retrieval", &retrieval);
        let loss = caption + retrieval;
        fixture.check_output("loss", &loss);
        fixture.check_gradients(&loss, &weights, &[]);
    }
}

#[test]
fn stage_2_loss_and_gradients_agree() {
    let fixture = Fixture::load("stage_experts");
    let (weights, decoder) = decoder(&fixture);
    let settings = fixture.case.experts.as_ref().unwrap();
    let memories = memories(&fixture, &weights);
    let experts = Experts::new(fixture.model(), settings, &memories, &weights).unwrap();
    let (ids, labels) = (fixture.input("ids"), fixture.input("labels"));
    // Positions that lack a second label repeat one without a label.
    let positions = Tensor::from_slice(&[3_i64, 4, 2, 0, 4, 5]).view([3, 2]);
    let wanted = labels.gather(1, &positions, false);
    assert_eq!(
        wanted
            .not_equal(losses::IGNORE)
            .sum(Kind::Int64)
            .int64_value(&[]),
        5
    );
    let h = decoder.embed(&ids).unwrap();
    let pass = Pass::new(SecondHalves::Experts(&experts)).reading(Read::At(&positions));
    let states = decoder.forward(&h, &pass).unwrap();
    let (sum, count) = losses::next_token(&decoder, &states.last_bnd, &wanted).unwrap();
    let loss = sum / count as f64;
    fixture.check_output("loss", &loss);
    fixture.check_gradients(&loss, &weights, &[]);
}
