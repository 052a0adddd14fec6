mod recovery;

use std::sync::{Barrier, Mutex};

use mks2_proto::params::{Init, ParamSpec};
use proptest::prelude::*;

use super::*;
use crate::collectives::tcp::Mesh;
use crate::collectives::{EachBlock, Result as Exchanged, schedule};
use crate::flat::{Buffer, le_bytes};

const LANES: u32 = 8;

/// Ranks as threads of this process: every operation is an exchange of bytes through a table.
struct Table {
    barrier: Barrier,
    cells: Vec<Mutex<Vec<u8>>>,
}

struct Local<'a> {
    table: &'a Table,
    rank: usize,
    sequence: u64,
}

impl Local<'_> {
    fn swap(&mut self, mine: &[u8]) -> Vec<Vec<u8>> {
        self.sequence += 1;
        *self.table.cells[self.rank].lock().unwrap() = mine.to_vec();
        self.table.barrier.wait();
        let all = self
            .table
            .cells
            .iter()
            .map(|cell| cell.lock().unwrap().clone())
            .collect();
        self.table.barrier.wait();
        all
    }
}

impl Collective for Local<'_> {
    fn rank(&self) -> usize {
        self.rank
    }
    fn world(&self) -> usize {
        self.table.cells.len()
    }
    fn sequence(&self) -> u64 {
        self.sequence
    }
    fn all_gather(&mut self, mine: &[u8]) -> Exchanged<Vec<Vec<u8>>> {
        Ok(self.swap(mine))
    }
    fn multicast(&mut self, root: usize, _to: &[usize], mine: &[u8]) -> Exchanged<Vec<u8>> {
        Ok(self.swap(mine).swap_remove(root))
    }
    fn reduce_scatter_i64(&mut self, data: &[i64], each: &mut EachBlock<'_>) -> Exchanged<()> {
        let own = self.own_shard(data.len());
        let mut sums = vec![0; own.len()];
        for bytes in self.swap(le_bytes(data)) {
            kernels::accumulate_i64(&mut sums, &bytes[8 * own.start..8 * own.end]);
        }
        each(0, &sums);
        Ok(())
    }
    fn all_gather_f32(&mut self, data: &mut [f32]) -> Exchanged<()> {
        for (rank, bytes) in self.swap(le_bytes(data)).iter().enumerate() {
            for at in schedule::shard(data.len(), self.world(), rank) {
                data[at] = f32::from_le_bytes(*bytes[4 * at..].first_chunk().unwrap());
            }
        }
        Ok(())
    }
    fn all_reduce_f32(&mut self, data: &mut [f32]) -> Exchanged<()> {
        let all = self.swap(le_bytes(data));
        data.fill(0.0);
        all.iter()
            .for_each(|bytes| kernels::accumulate_f32(data, bytes));
        Ok(())
    }
}

fn layout() -> Arc<FlatLayout> {
    let spec = |name: &str, shape: &[usize]| ParamSpec {
        name: name.into(),
        shape: shape.to_vec(),
        init: Init::Zeros,
    };
    Arc::new(
        FlatLayout::new(&[
            spec("m", &[9, 31]),
            spec("late", &[3, 5]),
            spec("v", &[50]),
            spec("s", &[]),
        ])
        .unwrap(),
    )
}

/// A lane's gradients: of many magnitudes, reproducible, different in every step. `late` has none
/// in step 0; the scalar is undefined in odd lanes.
fn gradients(layout: &FlatLayout, step: u32, lane: u32) -> Vec<Tensor> {
    let value = |tensor: usize, at: usize| {
        let mut bits = blake3::hash(format!("{step} {lane} {tensor} {at}").as_bytes()).as_bytes()
            [..8]
            .to_vec();
        let power = f32::from(bits.pop().unwrap() % 24) - 20.0 - 3.0 * step as f32;
        let sign = if bits.pop().unwrap() < 128 { 1.0 } else { -1.0 };
        sign * power.exp2() * (1.0 + f32::from(bits[0]) / 256.0 + f32::from(bits[1]) / 65536.0)
    };
    let tensor = |(at, span): (usize, &Span)| match span.name.as_str() {
        "late" if step == 0 => Tensor::zeros(&span.shape[..], (Kind::Float, Device::Cpu)),
        "s" if lane % 2 == 1 => Tensor::new(),
        _ => Tensor::from_slice(&(0..span.len).map(|el| value(at, el)).collect::<Vec<_>>())
            .view(&span.shape[..]),
    };
    layout.spans().iter().enumerate().map(tensor).collect()
}

struct Rank {
    reducer: Reducer,
    state: FlatState,
}

impl Rank {
    fn new(mode: Reduction) -> Self {
        let reducer = Reducer::new(layout(), mode, LANES, Device::Cpu).unwrap();
        Self {
            reducer,
            state: FlatState::new(layout(), Device::Cpu).unwrap(),
        }
    }

    /// One step with the lanes in the given order.
    fn step(&mut self, step: u32, lanes: &[u32], collective: &mut dyn Collective) -> Verdict {
        self.reducer.begin_step();
        for &lane in lanes {
            let grads = gradients(&self.reducer.layout, step, lane);
            self.reducer.add_lane(lane, &grads, 0.125).unwrap();
        }
        let verdict = self.reducer.finish(collective, &mut self.state).unwrap();
        if verdict == Verdict::Applied {
            self.reducer.commit_step();
        }
        verdict
    }

    fn bits(&self) -> Vec<u32> {
        self.state
            .host(Buffer::Grads)
            .unwrap()
            .iter()
            .map(|value| value.to_bits())
            .collect()
    }
}

/// Three steps with `deal[rank]` = lanes; the gradients of every step and the state at the end,
/// checked to be equal on all ranks.
fn run(deal: &[Vec<u32>], prepare: impl Fn(&mut Rank) + Sync) -> (Vec<Vec<u32>>, Vec<u8>) {
    let cells = deal.iter().map(|_| Mutex::default()).collect();
    let table = Table {
        barrier: Barrier::new(deal.len()),
        cells,
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let spawn = |(rank, lanes): (usize, &Vec<u32>)| {
            let (table, prepare, lanes) = (&table, &prepare, lanes.clone());
            scope.spawn(move || {
                let mut collective = Local {
                    table,
                    rank,
                    sequence: 0,
                };
                let mut own = Rank::new(Reduction::Exact);
                prepare(&mut own);
                let mut steps = Vec::new();
                for step in 0..3 {
                    while own.step(step, &lanes, &mut collective) != Verdict::Applied {}
                    steps.push(own.bits());
                }
                (steps, own.reducer.state_bytes())
            })
        };
        let threads: Vec<_> = deal.iter().enumerate().map(spawn).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        results.windows(2).all(|pair| pair[0] == pair[1]),
        "ranks differ"
    );
    results.into_iter().next().unwrap()
}

fn alone() -> (Vec<Vec<u32>>, Vec<u8>) {
    run(&[(0..LANES).collect()], |_| ())
}

/// P4: the bits do not depend on the number of workers.
#[test]
fn the_same_bits_for_every_world() {
    let reference = alone();
    for world in [2, 3, 4, 8] {
        let deal: Vec<Vec<u32>> = (0..world)
            .map(|rank| (0..LANES).filter(|lane| lane % world == rank).collect())
            .collect();
        assert_eq!(run(&deal, |_| ()), reference, "{world} ranks");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// ... nor on who holds which lane, in which order, even for ranks that hold none.
    #[test]
    fn the_same_bits_for_every_dealing(
        order in Just((0..LANES).collect::<Vec<_>>()).prop_shuffle(),
        owners in prop::collection::vec(0usize..5, LANES as usize),
    ) {
        let mut deal = vec![Vec::new(); 5];
        for (lane, owner) in order.into_iter().zip(owners) {
            deal[owner].push(lane);
        }
        prop_assert_eq!(run(&deal, |_| ()), alone());
    }
}

#[test]
fn operators_give_the_same_bits_as_the_loops() {
    let reference = alone();
    let operators = |rank: &mut Rank| rank.reducer.by_operators = true;
    assert_eq!(run(&[vec![0, 1, 2, 3, 4, 5, 6, 7]], operators), reference);
    assert_eq!(
        run(&[vec![6, 0, 3], vec![1, 2, 4, 5, 7]], operators),
        reference
    );
}

#[test]
fn what_could_not_be_held_is_computed_again_with_the_same_bits() {
    let tight = |rank: &mut Rank| rank.reducer.held_limit = 700;
    assert_eq!(run(&[vec![0, 1, 2, 3, 4, 5, 6], vec![7]], tight), alone());
}

/// Against sums in f64: what remains is the one rounding to fp32 and 2^-40 of the largest element.
#[test]
fn sums_are_those_of_f64_but_for_one_rounding() {
    let mut rank = Rank::new(Reduction::Exact);
    for step in 0..3 {
        assert_eq!(
            rank.step(step, &[7, 0, 1, 2, 3, 4, 5, 6], &mut Mesh::alone()),
            Verdict::Applied
        );
        let layout = layout();
        let mut exact = vec![0f64; layout.total()];
        for lane in 0..LANES {
            for (span, gradient) in layout.spans().iter().zip(gradients(&layout, step, lane)) {
                if gradient.defined() {
                    let values = Vec::<f32>::try_from(gradient.view([-1])).unwrap();
                    values
                        .iter()
                        .enumerate()
                        .for_each(|(at, &v)| exact[span.offset + at] += f64::from(v) * 0.125);
                }
            }
        }
        let sums = rank.state.host(Buffer::Grads).unwrap();
        for span in layout.spans() {
            let largest = exact[span.range()]
                .iter()
                .fold(0f64, |most, value| most.max(value.abs()));
            for at in span.range() {
                let rounding = exact[at].abs() * 2f64.powi(-24);
                let error = (f64::from(sums[at]) - exact[at]).abs();
                assert!(
                    error <= rounding * 1.0001 + largest * 2f64.powi(-36),
                    "{} at {at}: {error}",
                    span.name
                );
            }
        }
    }
}

#[test]
fn growth_beyond_the_headroom_raises_the_exponent_and_repeats() {
    let mut rank = Rank::new(Reduction::Exact);
    let mut one = Mesh::alone();
    let mut step = |rank: &mut Rank, size: f64| {
        rank.reducer.begin_step();
        for lane in 0..LANES {
            let mut grads = gradients(&rank.reducer.layout, 1, lane);
            grads[1] = Tensor::full([9, 31], size, (Kind::Float, Device::Cpu));
            rank.reducer.add_lane(lane, &grads, 1.0).unwrap();
        }
        let verdict = rank.reducer.finish(&mut one, &mut rank.state).unwrap();
        rank.reducer.commit_step();
        verdict
    };
    assert_eq!(step(&mut rank, 1.0), Verdict::Applied);
    assert_eq!(step(&mut rank, 1000.0), Verdict::Applied);
    let before = rank.bits();
    let overflow = Verdict::Overflow {
        tensors: vec!["m".into()],
    };
    assert_eq!(step(&mut rank, 1.0e9), overflow);
    assert_eq!(rank.bits(), before);
    assert_eq!(step(&mut rank, 1.0e9), Verdict::Applied);
    let grads = rank.state.view_of(Buffer::Grads, "m").unwrap();
    assert_eq!(grads.double_value(&[8, 30]), 8.0e9);
}

#[test]
fn infinities_and_nan_are_named_in_both_modes() {
    for mode in [Reduction::Exact, Reduction::Fast] {
        for bad in [f64::NAN, f64::INFINITY, 3.0e38] {
            let mut rank = Rank::new(mode);
            for lane in 0..LANES {
                let grads = gradients(&rank.reducer.layout, 1, lane);
                let _ = grads[3].get(17).fill_(bad);
                rank.reducer.add_lane(lane, &grads, 1.0).unwrap();
            }
            let verdict = rank
                .reducer
                .finish(&mut Mesh::alone(), &mut rank.state)
                .unwrap();
            let tensor = rank.reducer.layout.spans()[3].name.clone();
            assert_eq!(verdict, Verdict::NonFinite { tensor });
        }
    }
}

#[test]
fn exponents_are_saved_and_taken_up_again() {
    let lanes: Vec<u32> = (0..LANES).collect();
    let (mut first, mut second) = (Rank::new(Reduction::Exact), Rank::new(Reduction::Exact));
    first.step(0, &lanes, &mut Mesh::alone());
    second
        .reducer
        .load_state(&first.reducer.state_bytes())
        .unwrap();
    for rank in [&mut first, &mut second] {
        assert_eq!(rank.step(1, &lanes, &mut Mesh::alone()), Verdict::Applied);
    }
    assert_eq!(first.bits(), second.bits());
    assert_eq!(first.reducer.state_bytes(), second.reducer.state_bytes());
    let whole = first.reducer.state_bytes();
    for cut in 0..whole.len() {
        assert!(second.reducer.load_state(&whole[..cut]).is_err());
    }
}

#[test]
fn a_lane_counts_once_and_none_is_missing() {
    let mut rank = Rank::new(Reduction::Exact);
    let grads = gradients(&rank.reducer.layout, 0, 0);
    rank.reducer.add_lane(3, &grads, 1.0).unwrap();
    assert!(rank.reducer.add_lane(3, &grads, 1.0).is_err());
    assert!(rank.reducer.add_lane(LANES, &grads, 1.0).is_err());
    assert!(rank.reducer.add_lane(4, &grads[1..], 1.0).is_err());
    let error = rank
        .reducer
        .finish(&mut Mesh::alone(), &mut rank.state)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "lane 0 was added 0 times in one step instead of once"
    );
}

#[test]
fn fast_mode_sums_in_fp32() {
    let mut rank = Rank::new(Reduction::Fast);
    let lanes: Vec<u32> = (0..LANES).collect();
    assert_eq!(rank.step(1, &lanes, &mut Mesh::alone()), Verdict::Applied);
    let mut sum = Tensor::zeros([9, 31], (Kind::Float, Device::Cpu));
    for lane in lanes {
        sum += &gradients(&rank.reducer.layout, 1, lane)[1] * 0.125;
    }
    assert!(rank.state.view_of(Buffer::Grads, "m").unwrap().equal(&sum));
}
