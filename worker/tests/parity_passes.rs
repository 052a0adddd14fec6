//! Different ways to the same numbers: reading some positions is reading all and selecting,
//! masked keys are absent keys, a shuffled memory keeps its statistics.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its fixture has failed"
)]

#[path = "parity/fixture.rs"]
#[expect(dead_code, reason = "shared with the parity tests")]
mod fixture;

use fixture::{Fixture, assert_close};
use mks2_worker::model::{Decoder, Memory, Pass, Read, SecondHalves, Weights, losses};
use tch::{Kind, Tensor};

struct Peer {
    fixture: Fixture,
    weights: Weights,
    decoder: Decoder,
    memory: Memory,
}

fn peer(name: &str) -> Peer {
    let fixture = Fixture::load(name);
    let weights = fixture.weights();
    let shape = &fixture.model().decoder;
    let decoder = Decoder::new(shape, fixture.case.vocab_size, &weights).unwrap();
    let memory = Memory::new(fixture.model(), "see", &weights).unwrap();
    Peer {
        fixture,
        weights,
        decoder,
        memory,
    }
}

#[test]
fn reading_some_positions_is_reading_all_and_selecting() {
    let Peer {
        fixture,
        decoder,
        memory,
        ..
    } = peer("memory_gated");
    let h = fixture.get("input/h");
    let (b, t) = (h.size()[0], h.size()[1]);
    let pass = Pass::new(SecondHalves::Memory(&memory)).after_blocks(&[1, 2]);
    let all = decoder.forward(&h, &pass).unwrap();
    let tail = decoder.forward(&h, &pass.reading(Read::From(2))).unwrap();
    assert_close("tail", &tail.last_bnd, &all.last_bnd.narrow(1, 2, t - 2));
    assert_close(
        "tail of 1",
        &tail.after_blocks[0].1,
        &all.after_blocks[0].1.narrow(1, 2, t - 2),
    );
    let positions = Tensor::from_slice(&[0_i64, 4, 3, 1]).view([b, 2]);
    let some = decoder
        .forward(&h, &pass.reading(Read::At(&positions)))
        .unwrap();
    let select = |x: &Tensor| {
        let index = positions.unsqueeze(-1).expand([b, 2, x.size()[2]], false);
        x.gather(1, &index, false)
    };
    assert_close("some", &some.last_bnd, &select(&all.last_bnd));
    for ((_, some), (_, all)) in some.after_blocks.iter().zip(&all.after_blocks) {
        assert_close("block", some, &select(all));
    }
}

#[test]
fn keys_that_are_masked_are_absent() {
    let Peer {
        fixture, decoder, ..
    } = peer("memory_plain");
    let h = fixture.get("input/h");
    let (b, t) = (h.size()[0], h.size()[1]);
    let pass = Pass::new(SecondHalves::Mlp);
    let short = decoder
        .forward(&h.narrow(1, 2, t - 2), &pass)
        .unwrap()
        .last_bnd;
    // Rotary positions are relative: two masked positions in front change nothing.
    let keys = Tensor::arange(t, (Kind::Int64, h.device()))
        .ge(2)
        .expand([b, t], false);
    for read in [Read::All, Read::From(2)] {
        let long = decoder
            .forward(&h, &pass.keys(&keys).reading(read))
            .unwrap()
            .last_bnd;
        let first = long.size()[1] - (t - 2);
        assert_close("behind the mask", &long.narrow(1, first, t - 2), &short);
    }
}

#[test]
fn a_shuffled_memory_keeps_its_statistics_and_loses_its_content() {
    let Peer {
        fixture,
        decoder,
        memory,
        ..
    } = peer("memory_plain");
    let h = fixture.get("input/h");
    let run = |memory: &Memory| {
        decoder
            .forward(&h, &Pass::new(SecondHalves::Memory(memory)))
            .unwrap()
            .last_bnd
            .detach()
    };
    let weights = Weights::new();
    let (plain, shuffled) = (run(&memory), run(&memory.shuffled(1, &weights)));
    assert!((&plain - &shuffled).abs().max().double_value(&[]) > 0.01);
    assert_close("same seed", &run(&memory.shuffled(1, &weights)), &shuffled);
    assert!(
        (run(&memory.shuffled(2, &weights)) - &shuffled)
            .abs()
            .max()
            .double_value(&[])
            > 0.01
    );
}

#[test]
fn a_leaf_without_part_in_the_loss_has_no_gradient() {
    let Peer {
        fixture,
        weights,
        decoder,
        ..
    } = peer("memory_plain");
    let h = fixture.get("input/h");
    let last = decoder
        .forward(&h, &Pass::new(SecondHalves::Mlp))
        .unwrap()
        .last_bnd;
    let leaves = ["memory.see.layers.0.up_proj.weight", "model.norm.weight"]
        .map(|name| weights.get(name).unwrap());
    let gradients = Tensor::run_backward(&[last.sum(Kind::Float)], &leaves, false, false);
    assert!(!gradients[0].defined() && gradients[1].defined());
}

#[test]
fn labelled_positions_are_found_in_order() {
    let none = losses::IGNORE;
    let labels = Tensor::from_slice(&[none, 7, none, 8, none, none, none, 9]).view([2, 4]);
    let found = losses::labelled(&labels).unwrap();
    let values = |x: &Tensor| Vec::<i64>::try_from(&x.flatten(0, -1)).unwrap();
    assert_eq!(values(&found.positions_bn), [1, 3, 3, 0]);
    assert_eq!(values(&found.labels_bn), [7, 8, 9, none]);
}

#[test]
fn a_missing_or_misshapen_weight_is_named() {
    let Peer { fixture, .. } = peer("memory_plain");
    let shape = &fixture.model().decoder;
    let missing = Decoder::new(shape, fixture.case.vocab_size, &Weights::new()).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "weight 'model.embed_tokens.weight' is missing"
    );
    let other = Decoder::new(shape, 5, &fixture.weights()).unwrap_err();
    let text = "'model.embed_tokens.weight' has shape [37, 16], expected [5, 16] (-1: any)";
    assert_eq!(other.to_string(), text);
}
