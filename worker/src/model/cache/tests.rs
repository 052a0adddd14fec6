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
    let mut cache = decoder.cache(i64::MAX);
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
    let mut cache = decoder.cache(i64::MAX);
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

/// A decoder, and a cache of it for so many positions, with rows of these lengths.
fn with_rows(most: i64, lengths: &[i64]) -> (Decoder, Cache) {
    let job = job("");
    let decoder = Decoder::new(&job.model.decoder, VOCAB, &weights(&job)).expect("a decoder");
    let mut cache = decoder.cache(most);
    for length in lengths {
        let _ = add(&decoder, &mut cache, *length).expect("read");
    }
    (decoder, cache)
}

fn add(decoder: &Decoder, cache: &mut Cache, length: i64) -> Result<Tensor> {
    let ids_1t = Tensor::from_slice(&text(length as usize)).unsqueeze(0);
    let h_1td = decoder.embed(&ids_1t).expect("embedded");
    tch::no_grad(|| decoder.read(&h_1td, &[length], (SecondHalves::Mlp, Wanted::Last), cache))
}

#[test]
fn a_long_row_takes_no_more_than_there_may_be_and_gives_it_back() {
    let (decoder, mut cache) = with_rows(2000, &[5, 6, 7, 8, 9, 10]);
    assert!(cache.may_have(7, 285) && !cache.may_have(7, 286));
    // Beside the short ones there is no room for it; nothing happens to them.
    let error = add(&decoder, &mut cache, 600).expect_err("too long");
    assert!(
        error.to_string().contains("2000 positions in all"),
        "{error}"
    );
    assert_eq!((cache.rows(), cache.room), (6, (6, ROOM)));
    for _ in 0..5 {
        cache.remove(0);
    }
    let _ = add(&decoder, &mut cache, 600).expect("there is room now");
    // A power of two more would be beyond what there may be.
    assert_eq!(cache.room, (2, 1000));
    assert_eq!(cache.blocks[0][0].size()[..2], [2, 1000]);
    cache.remove(1);
    assert_eq!(cache.blocks[2][1].size()[1], ROOM);
    assert_eq!(cache.longest(), 6);
    // An empty one stays as it is until something else comes: often, that is as long.
    let _ = add(&decoder, &mut cache, 300).expect("read");
    cache.remove(0);
    cache.remove(0);
    assert_eq!(cache.room, (2, 512));
    let _ = add(&decoder, &mut cache, 5).expect("read");
    assert_eq!(cache.room, (2, ROOM));
}

#[test]
fn a_row_that_was_away_goes_on_as_if_it_had_not_been() {
    let (decoder, mut cache) = with_rows(400, &[5, 70, 9]);
    let next = |cache: &mut Cache| {
        let ids: Vec<i64> = (0..cache.rows()).map(|row| cache.length(row)).collect();
        let h_b1d = decoder.embed(
            &Tensor::from_slice(&ids)
                .remainder(i64::from(VOCAB))
                .unsqueeze(1),
        );
        let advanced = decoder.advance(&h_b1d.expect("embedded"), SecondHalves::Mlp, cache);
        tch::no_grad(|| advanced.expect("computed"))
    };
    let (_, mut beside) = with_rows(400, &[5, 70, 9]);
    let parked = cache.park(1).expect("parked");
    assert_eq!((parked.length(), cache.rows(), cache.longest()), (70, 2, 9));
    decoder.resume(&parked, &mut cache).expect("it is back");
    let (found, right) = (next(&mut cache), next(&mut beside));
    // The last row has taken its place.
    for (row, was) in [(0, 0), (1, 2), (2, 1)] {
        close(&found.get(row), &right.get(was), "a row");
    }
}
