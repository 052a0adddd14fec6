use mks2_proto::job::{Job, Precision};
use mks2_proto::params::trained_by;
use tch::Device;

use super::*;
use crate::model::small::{VOCAB, job, weights};
use crate::model::{Decoder, Experts, Memory, Pass, Read, SecondHalves, Weights, losses};

/// The weights of a stage as leaves, all others frozen.
fn training(job: &Job, stage: usize, precision: Precision) -> (Weights, Vec<Tensor>) {
    let specs = trained_by(&job.model, VOCAB, &job.stages[stage]);
    let all = weights(job);
    let mut weights = all.clone().computing_in((precision, Device::Cpu));
    for spec in &specs {
        weights.insert_trained(&spec.name, &all.get(&spec.name).expect("there"));
    }
    let leaves = weights.leaves(&specs).expect("there");
    (weights, leaves)
}

/// Gradients of a loss that reads some positions after every block, at `leaves` and at what the input was
/// made of.
fn gradients(
    decoder: &Decoder,
    second: SecondHalves<'_>,
    leaves: &[Tensor],
    recompute: bool,
) -> Vec<Tensor> {
    let tape = Tape::default();
    let ids_bt = Tensor::from_slice(&[3_i64, 1, 4, 1, 5, 9, 2, 6, 5, 3]).view([2, 5]);
    let made_of = Tensor::full([24], 0.5, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let h_btd = decoder.embed(&ids_bt).expect("embedded") * &made_of;
    let h_btd = h_btd.to_kind(decoder.embed(&ids_bt).expect("embedded").kind());
    let positions_bn = Tensor::from_slice(&[0_i64, 4, 2, 3]).view([2, 2]);
    let labels_bn = Tensor::from_slice(&[7_i64, 8, losses::IGNORE, 9]).view([2, 2]);
    let pass = Pass::new(second)
        .reading(Read::At(&positions_bn))
        .after_blocks(&[1, 2])
        .dropping(Some(11))
        .onto(recompute.then_some(&tape));
    let states = decoder.forward(&h_btd, &pass).expect("computed");
    let (sum, _) = losses::next_token(decoder, &states.last_bnd, &labels_bn).expect("a loss");
    let reads = states.after_blocks.iter();
    let reads = reads.map(|(_, read)| read.to_kind(Kind::Float).square().mean(Kind::Float));
    let loss = reads.fold(sum, |loss, read| loss + read);
    let mut wanted: Vec<Tensor> = leaves.iter().map(Tensor::shallow_clone).collect();
    wanted.push(made_of);
    tape.gradients(&loss, &wanted).expect("gradients")
}

#[test]
fn what_is_computed_again_has_the_same_gradients() {
    let mut job = job("sliding_window = 4");
    for stage in &mut job.stages {
        if let Some(experts) = &mut stage.experts {
            experts.lora_dropout = 0.3;
        }
    }
    for precision in [Precision::Fp32, Precision::Bf16] {
        for stage in [1, 2] {
            let (weights, leaves) = training(&job, stage, precision);
            let decoder = Decoder::new(&job.model.decoder, VOCAB, &weights).expect("a decoder");
            let memory = Memory::new(&job.model, "memory", &weights).expect("a memory");
            let settings = job.stages[2].experts.clone().expect("settings");
            let experts = Experts::new(
                &job.model,
                &settings,
                std::slice::from_ref(&memory),
                &weights,
            );
            let experts = experts.expect("a mixture");
            let second = match stage {
                1 => SecondHalves::Memory(&memory),
                _ => SecondHalves::Experts(&experts),
            };
            let [kept, again] =
                [false, true].map(|again| gradients(&decoder, second, &leaves, again));
            for (kept, again) in kept.iter().zip(&again) {
                assert_eq!(kept.defined(), again.defined());
                assert!(
                    !kept.defined() || kept.equal(again),
                    "stage {stage}, {precision:?}"
                );
            }
            let trained = kept.iter().filter(|gradient| gradient.defined()).count();
            assert!(trained > leaves.len() / 2, "{trained} of {}", leaves.len());
        }
    }
}

#[test]
fn of_a_block_only_its_input_stays() {
    let job = job("");
    let (weights, _) = training(&job, 1, Precision::Fp32);
    let decoder = Decoder::new(&job.model.decoder, VOCAB, &weights).expect("a decoder");
    let memory = Memory::new(&job.model, "memory", &weights).expect("a memory");
    let tape = Tape::default();
    let ids_bt = Tensor::from_slice(&[3_i64, 1, 4]).view([1, 3]);
    let pass = Pass::new(SecondHalves::Memory(&memory)).onto(Some(&tape));
    let h_btd = decoder.embed(&ids_bt).expect("embedded");
    let states = decoder.forward(&h_btd, &pass).expect("computed");
    assert!(states.last_bnd.requires_grad());
    let segments = tape.segments.borrow();
    assert_eq!(segments.len(), 3);
    for segment in segments.iter() {
        assert!(segment.outputs.iter().all(|output| output.is_leaf()));
    }
}
