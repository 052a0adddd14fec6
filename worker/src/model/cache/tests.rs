use super::*;
use crate::model::small::{VOCAB, job, weights};
use crate::model::{Decoder, Experts, Memory};

/// The logits behind each position of `ids`, computed without a cache.
fn at_once(decoder: &Decoder, second: SecondHalves<'_>, ids: &[i64]) -> Tensor {
    let ids_1t = Tensor::from_slice(ids).unsqueeze(0);
    let h_1td = decoder.embed(&ids_1t).expect("embedded");
    let states = decoder
        .forward(&h_1td, &Pass::new(second))
        .expect("computed");
    decoder.logits(&states.last_bnd).squeeze_dim(0)
}

fn close(ours: &Tensor, right: &Tensor, what: &str) {
    let size = |x: &Tensor| x.abs().max().double_value(&[]);
    let error = size(&(ours - right)) / size(right);
    assert!(error < 2e-5, "{what}: {error:e}");
}

/// A text as long as `length`.
fn text(length: usize) -> Vec<i64> {
    (0..length)
        .map(|at| ((at * at + 3 * at + length) % VOCAB as usize) as i64)
        .collect()
}

/// Rows that begin with so many tokens and go on to the same length, one leaving and another one coming.
fn goes_on_as_at_once(decoder: &Decoder, second: SecondHalves<'_>) {
    // Beyond the room that there is at first.
    let whole = text(ROOM as usize + 9);
    let right = at_once(decoder, second, &whole);
    let mut cache = Cache::default();
    let read = |cache: &mut Cache, lengths: &[i64]| {
        let longest = *lengths.iter().max().expect("a row");
        let ids_t = Tensor::from_slice(&whole[..longest as usize]);
        let ids_bt = ids_t.unsqueeze(0).repeat([lengths.len() as i64, 1]);
        let h_btd = decoder.embed(&ids_bt).expect("embedded");
        let first = cache.rows();
        let states_b1d = decoder
            .read(&h_btd, lengths, (second, Wanted::Last), cache)
            .expect("read");
        let logits = decoder.logits(&states_b1d).squeeze_dim(1);
        for (row, length) in lengths.iter().enumerate() {
            assert_eq!(cache.length(first + row), *length);
            close(&logits.get(row as i64), &right.get(length - 1), "read");
        }
    };
    let advance = |cache: &mut Cache| {
        let places: Vec<i64> = (0..cache.rows()).map(|row| cache.length(row)).collect();
        let ids: Vec<i64> = places.iter().map(|at| whole[*at as usize]).collect();
        let ids_b1 = Tensor::from_slice(&ids).unsqueeze(1);
        let h_b1d = decoder.embed(&ids_b1).expect("embedded");
        let states_b1d = decoder.advance(&h_b1d, second, cache).expect("computed");
        let logits = decoder.logits(&states_b1d).squeeze_dim(1);
        for (row, at) in places.iter().enumerate() {
            close(
                &logits.get(row as i64),
                &right.get(*at),
                &format!("position {at}"),
            );
        }
    };
    read(&mut cache, &[5, 1, 9]);
    advance(&mut cache);
    advance(&mut cache);
    cache.remove(0);
    advance(&mut cache);
    read(&mut cache, &[12, 2]);
    advance(&mut cache);
    cache.remove(1);
    cache.remove(2);
    assert_eq!(cache.rows(), 2);
    while (0..2).all(|row| cache.length(row) < whole.len() as i64) {
        advance(&mut cache);
    }
}

#[test]
fn every_position_is_as_if_all_were_computed_at_once() {
    for window in ["", "sliding_window = 6"] {
        let job = job(window);
        let weights = weights(&job);
        let decoder = Decoder::new(&job.model.decoder, VOCAB, &weights).expect("a decoder");
        let memory = Memory::new(&job.model, "memory", &weights).expect("a memory");
        let settings = job.stages[2].experts.clone().expect("experts");
        let memories = [memory.clone()];
        let experts = Experts::new(&job.model, &settings, &memories, &weights).expect("experts");
        for second in [
            SecondHalves::Mlp,
            SecondHalves::Memory(&memory),
            SecondHalves::Experts(&experts),
        ] {
            tch::no_grad(|| goes_on_as_at_once(&decoder, second));
        }
    }
}

#[test]
fn rows_of_the_wrong_shape_are_refused() {
    let job = job("");
    let weights = weights(&job);
    let decoder = Decoder::new(&job.model.decoder, VOCAB, &weights).expect("a decoder");
    let mut cache = Cache::default();
    let h_btd = Tensor::zeros([2, 4, 24], (Kind::Float, Device::Cpu));
    for lengths in [vec![4], vec![4, 5], vec![0, 4]] {
        let read = decoder.read(
            &h_btd,
            &lengths,
            (SecondHalves::Mlp, Wanted::Last),
            &mut cache,
        );
        assert!(read.is_err(), "{lengths:?}");
    }
    assert_eq!(cache.rows(), 0);
    let read = decoder.read(
        &h_btd,
        &[4, 3],
        (SecondHalves::Mlp, Wanted::Last),
        &mut cache,
    );
    assert!(read.is_ok());
    let h_b1d = Tensor::zeros([3, 1, 24], (Kind::Float, Device::Cpu));
    assert!(
        decoder
            .advance(&h_b1d, SecondHalves::Mlp, &mut cache)
            .is_err()
    );
}
