use std::sync::Arc;

use mks2_proto::job::Reduction;
use mks2_proto::params::{Init, ParamSpec};
use mks2_proto::splitmix;
use proptest::prelude::*;

use super::*;
use crate::exact::Reducer;
use crate::flat::{Buffer, FlatLayout, FlatState};
use crate::replica::{Flip, flip_in};

fn hashes(numbers: &[u8]) -> Vec<Option<Hash>> {
    let hash = |number: &u8| (*number > 0).then(|| blake3::hash(&[*number]));
    numbers.iter().map(hash).collect()
}

#[test]
fn the_odd_ones_are_those_beside_a_strict_majority() {
    let judged = |numbers: &[u8]| judge(&hashes(numbers));
    for alike in [&[][..], &[1], &[1, 1], &[1, 1, 1], &[0, 1, 0], &[0, 0]] {
        assert_eq!(judged(alike), Verdict::Alike, "{alike:?}");
    }
    assert_eq!(judged(&[1, 2, 1]), Verdict::Odd(vec![1]));
    assert_eq!(judged(&[2, 1, 1]), Verdict::Odd(vec![0]));
    assert_eq!(judged(&[3, 1, 1, 2, 1]), Verdict::Odd(vec![0, 3]));
    // Newcomers have nothing to compare.
    assert_eq!(judged(&[0, 1, 2, 0, 1]), Verdict::Odd(vec![2]));
    for split in [&[1, 2][..], &[1, 2, 3], &[1, 1, 2, 2], &[0, 1, 2]] {
        assert_eq!(judged(split), Verdict::Split, "{split:?}");
    }
}

proptest! {
    #[test]
    fn a_verdict_names_exactly_those_beside_a_majority(numbers in prop::collection::vec(0u8..4, 0..9)) {
        let voters: Vec<u8> = numbers.iter().copied().filter(|number| *number > 0).collect();
        let has_majority = |number: u8| {
            2 * voters.iter().filter(|other| **other == number).count() > voters.len()
        };
        match judge(&hashes(&numbers)) {
            Verdict::Alike => prop_assert!(voters.windows(2).all(|two| two[0] == two[1])),
            Verdict::Split => prop_assert!(!voters.iter().any(|number| has_majority(*number))),
            Verdict::Odd(odd) => {
                prop_assert!(!odd.is_empty());
                for (rank, number) in numbers.iter().enumerate() {
                    prop_assert_eq!(odd.contains(&rank), *number > 0 && !has_majority(*number));
                }
            }
        }
    }
}

/// A replica in the middle of a stage, with values of all magnitudes, zeros and padding; and what is
/// frozen beside it.
fn copy() -> (Replica, Vec<Tensor>) {
    let spec = |name, shape: &[usize]| ParamSpec::new(name, shape, Init::Zeros);
    let specs = [
        spec("a.weight", &[37, 30]),
        spec("b.bias", &[5]),
        spec("c.scale", &[]),
    ];
    let layout = Arc::new(FlatLayout::new(&specs).unwrap());
    let mut state = FlatState::new(Arc::clone(&layout), Device::Cpu).unwrap();
    let mut reducer = Reducer::new(Arc::clone(&layout), Reduction::Exact, 4, Device::Cpu).unwrap();
    for (number, buffer) in (1..).zip([Buffer::Weights, Buffer::ExpAvg, Buffer::ExpAvgSq]) {
        let value = |at: usize| (at % 7) as f32 * 10f32.powi(at as i32 % 30 - 20) * number as f32;
        let values: Vec<f32> = (0..layout.total()).map(value).collect();
        state.load_all(buffer, &values).unwrap();
    }
    let exponents = reducer.exponents_mut().iter_mut();
    (3..).zip(exponents).for_each(|(value, e)| *e = value);
    let mut replica = Replica::new(state, reducer);
    replica.progress.step = 12;
    replica.progress.samples = 768;
    replica.progress.loss = Some(0.5);
    let frozen = vec![Tensor::from_slice(&[0.0f32, -0.0, 1.5, f32::NAN])];
    (replica, frozen)
}

#[test]
fn a_thousand_of_a_thousand_flipped_bits_are_found() {
    let (mut replica, mut frozen) = copy();
    let quiet = digest(&replica, &frozen).unwrap();
    let flip = |(replica, frozen): (&mut Replica, &mut Vec<Tensor>), place, choice| {
        match place {
            Flip::Frozen => flip_in(&mut frozen[0], choice).unwrap(),
            _ => replica.flip(place, choice).unwrap(),
        };
    };
    let (mut chance, mut found) = (17, 0);
    for number in 0..1000 {
        let (place, choice) = (
            Flip::ALL[number % Flip::ALL.len()],
            splitmix::next(&mut chance),
        );
        flip((&mut replica, &mut frozen), place, choice);
        let odd = digest(&replica, &frozen).unwrap();
        let verdict = judge(&[Some(quiet), Some(odd), Some(quiet)]);
        found += usize::from(verdict == Verdict::Odd(vec![1]));
        // The same bit again: it is as before.
        flip((&mut replica, &mut frozen), place, choice);
        assert_eq!(digest(&replica, &frozen).unwrap(), quiet);
    }
    assert_eq!(found, 1000);
}

#[test]
fn what_members_do_not_hold_alike_does_not_count() {
    let (mut replica, frozen) = copy();
    let quiet = digest(&replica, &frozen).unwrap();
    replica.progress.seconds = 9.0;
    let _ = replica.state.grads.fill_(3.0);
    assert_eq!(digest(&replica, &frozen).unwrap(), quiet);
}
