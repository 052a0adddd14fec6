//! P8: a peer is lost at any operation of a reduction. Some of those that are left have seen the
//! operation succeed and some have not; done again by them, the step has the bits of a quiet one.

use super::*;
use crate::collectives::CollectiveError;

/// Lanes of three ranks.
const DEAL: [&[u32]; 3] = [&[0, 1, 2], &[3, 4, 5], &[6, 7]];
/// The step in which rank 2 is lost.
const FATAL: u32 = 1;

/// Where the third rank is lost: after operation `at`, which the first two have seen succeed or not.
#[derive(Clone, Copy, Debug)]
struct Cut {
    at: u64,
    seen: [bool; 2],
}

/// Operations that end with a cut: the last one is taken part in, and may be heard of or not.
struct Severed<'a> {
    inner: Local<'a>,
    at: u64,
    seen: bool,
}

impl Severed<'_> {
    fn until<T>(&mut self, run: impl FnOnce(&mut Self) -> Exchanged<T>) -> Exchanged<T> {
        let lost = || Err(CollectiveError::Broken("a peer was lost".into()));
        if self.inner.sequence == self.at {
            return lost();
        }
        let result = run(self);
        if self.inner.sequence == self.at && !self.seen {
            return lost();
        }
        result
    }
}

impl Collective for Severed<'_> {
    fn rank(&self) -> usize {
        self.inner.rank
    }
    fn world(&self) -> usize {
        self.inner.world()
    }
    fn sequence(&self) -> u64 {
        self.inner.sequence
    }
    fn all_gather(&mut self, mine: &[u8]) -> Exchanged<Vec<Vec<u8>>> {
        self.until(|own| own.inner.all_gather(mine))
    }
    fn multicast(&mut self, root: usize, to: &[usize], mine: &[u8]) -> Exchanged<Vec<u8>> {
        self.until(|own| own.inner.multicast(root, to, mine))
    }
    fn reduce_scatter_i64(&mut self, data: &[i64], each: &mut EachBlock<'_>) -> Exchanged<()> {
        self.until(|own| own.inner.reduce_scatter_i64(data, each))
    }
    fn all_gather_f32(&mut self, data: &mut [f32]) -> Exchanged<()> {
        self.until(|own| own.inner.all_gather_f32(data))
    }
    fn all_reduce_f32(&mut self, data: &mut [f32]) -> Exchanged<()> {
        self.until(|own| own.inner.all_reduce_f32(data))
    }
}

fn table(world: usize) -> Table {
    Table {
        barrier: Barrier::new(world),
        cells: (0..world).map(|_| Mutex::default()).collect(),
    }
}

/// Gradients of the fatal step outgrow their fixed point if `storms`.
fn add(rank: &mut Rank, step: u32, lanes: &[u32], storms: bool) {
    let factor = if storms && step == FATAL {
        1.0e9
    } else {
        0.125
    };
    for &lane in lanes {
        if !rank.reducer.lanes().contains(&lane) {
            let grads = gradients(&rank.reducer.layout, step, lane);
            rank.reducer.add_lane(lane, &grads, factor).unwrap();
        }
    }
}

/// As the trainer does: until the sum is there, or a peer is lost.
fn attempt(
    rank: &mut Rank,
    step: u32,
    lanes: &[u32],
    storms: bool,
    collective: &mut dyn Collective,
) -> Result<(), ReduceError> {
    loop {
        add(rank, step, lanes, storms);
        match rank.reducer.finish(collective, &mut rank.state)? {
            Verdict::Applied => return Ok(()),
            Verdict::Overflow { .. } => rank.reducer.begin_again(),
            other => panic!("{other:?}"),
        }
    }
}

/// Three steps of ranks that see `cut` in the fatal one; what the first rank holds after each.
fn course(storms: bool, cut: Option<Cut>) -> Vec<(Vec<u32>, Vec<u8>)> {
    let (three, two) = (table(3), table(2));
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|rank| {
                let (three, two) = (&three, &two);
                scope.spawn(move || member(rank, three, two, storms, cut))
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        ended.collect()
    });
    assert_eq!(results[0], results[1], "survivors differ");
    results.into_iter().next().unwrap()
}

fn member(
    rank: usize,
    three: &Table,
    two: &Table,
    storms: bool,
    cut: Option<Cut>,
) -> Vec<(Vec<u32>, Vec<u8>)> {
    let local = |table| Local {
        table,
        rank,
        sequence: 0,
    };
    let (mut all, mut left) = (local(three), local(two));
    let mut own = Rank::new(Reduction::Exact);
    let mut held = DEAL[rank].to_vec();
    let mut outcome = Vec::new();
    for step in 0..3 {
        own.reducer.begin_step();
        let is_fatal = step == FATAL && cut.is_some();
        if let Some(cut) = cut.filter(|_| is_fatal) {
            let mut severed = Severed {
                at: cut.at,
                seen: cut.seen.get(rank).copied().unwrap_or(false),
                inner: local(three),
            };
            // Whether it was seen to succeed or not: the step is done again.
            let _ = attempt(&mut own, step, &held, storms, &mut severed);
            if rank == 2 {
                return outcome;
            }
            let lost = if rank == 0 { &[6][..] } else { &[7][..] };
            held.extend(lost);
        }
        let few = cut.is_some() && step >= FATAL;
        let collective: &mut dyn Collective = if few { &mut left } else { &mut all };
        attempt(&mut own, step, &held, storms, collective).unwrap();
        own.reducer.commit_step();
        outcome.push((own.bits(), own.reducer.state_bytes()));
    }
    outcome
}

#[test]
fn a_peer_may_be_lost_at_any_operation() {
    for storms in [false, true] {
        let quiet = course(storms, None);
        for at in 1..=8 {
            for seen in [[true, true], [true, false], [false, true], [false, false]] {
                let cut = Cut { at, seen };
                assert_eq!(course(storms, Some(cut)), quiet, "storms {storms}, {cut:?}");
            }
        }
    }
}
