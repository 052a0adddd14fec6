//! The plan's promises, over thousands of random shapes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mks2_proto::failure::{ExitCode, Failure};
use proptest::prelude::{
    ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest,
};

use super::{CorpusShape, Plan, PlanError, RowRef, WINDOW_GROUPS};

fn shape(rows: u64, group_rows: u32) -> CorpusShape {
    CorpusShape { rows, group_rows }
}

fn plan(seed: u64, sources: &[(CorpusShape, f64)], lanes: u32, microbatch: u32) -> Plan {
    Plan::new(seed, "memory", sources, lanes, microbatch).unwrap()
}

fn shapes() -> impl Strategy<Value = CorpusShape> {
    (1_u64..400, 1_u32..20).prop_map(|(rows, group_rows)| shape(rows, group_rows))
}

/// Draws of one lane in its first `steps` steps.
fn lane_rows(plan: &Plan, lane: u32, steps: u64) -> Vec<RowRef> {
    (0..steps).flat_map(|step| plan.rows(step, lane)).collect()
}

/// How often each (epoch, row) of `source` was drawn by all lanes in the first `steps` steps.
fn uses(plan: &Plan, source: u16, steps: u64) -> BTreeMap<(u64, u64), u32> {
    let mut uses = BTreeMap::new();
    for lane in 0..plan.lanes() {
        for drawn in lane_rows(plan, lane, steps)
            .iter()
            .filter(|row| row.source == source)
        {
            *uses.entry((drawn.epoch, drawn.row)).or_insert(0) += 1;
        }
    }
    uses
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// P1: after the steps that cover some epochs, each of these epochs has used each row once,
    /// and no row of any epoch was used twice.
    #[test]
    fn every_row_exactly_once_per_epoch(
        seed in any::<u64>(), shape in shapes(), lanes in 1_u32..24, microbatch in 1_u32..6,
        epochs in 1_u64..5,
    ) {
        let plan = plan(seed, &[(shape, 1.0)], lanes, microbatch);
        // A lane is at most one row ahead of or behind its exact share.
        let per_lane = epochs * shape.rows / u64::from(lanes) + 2;
        let uses = uses(&plan, 0, per_lane.div_ceil(u64::from(microbatch)));
        prop_assert!(uses.values().all(|count| *count == 1));
        for epoch in 0..epochs {
            let used = uses.range((epoch, 0)..(epoch, u64::MAX)).count() as u64;
            prop_assert_eq!(used, shape.rows, "epoch {}", epoch);
        }
        let ahead = uses.keys().map(|(epoch, _)| *epoch).max().unwrap_or(0);
        let slots = u64::from(microbatch) * u64::from(lanes) * per_lane.div_ceil(u64::from(microbatch));
        prop_assert!(ahead <= slots / shape.rows + 1 + u64::from(lanes) / shape.rows);
    }

    /// P1 for mixtures: each source keeps its own epochs, each row once in each.
    #[test]
    fn sources_keep_their_own_epochs(
        seed in any::<u64>(),
        sources in prop::collection::vec((shapes(), 0.1_f64..5.0), 1..5),
        lanes in 1_u32..10, microbatch in 1_u32..8,
    ) {
        let plan = plan(seed, &sources, lanes, microbatch);
        let steps = 60;
        for (source, (shape, _)) in sources.iter().enumerate() {
            let uses = uses(&plan, source as u16, steps);
            prop_assert!(uses.values().all(|count| *count == 1));
            prop_assert_eq!(uses.len() as u64, plan.drawn(source as u16, steps));
            // Lanes differ by a few draws, so all epochs but the last few are complete.
            let drawn = uses.len() as u64;
            let complete = (drawn.saturating_sub(6 * u64::from(lanes))) / shape.rows;
            for epoch in 0..complete {
                let used = uses.range((epoch, 0)..(epoch, u64::MAX)).count() as u64;
                prop_assert_eq!(used, shape.rows, "source {} epoch {}", source, epoch);
            }
        }
    }

    /// P2: rows depend on (step, lane) alone, not on the order in which they are asked for, and
    /// not on who asks; every microbatch is full.
    #[test]
    fn any_order_of_questions_gives_the_same_rows(
        seed in any::<u64>(),
        sources in prop::collection::vec((shapes(), 0.1_f64..5.0), 1..4),
        lanes in 1_u32..9, microbatch in 1_u32..9, workers in 1_u32..5,
    ) {
        let first = plan(seed, &sources, lanes, microbatch);
        let forward: Vec<Vec<RowRef>> = (0..20)
            .flat_map(|step| (0..lanes).map(move |lane| (step, lane)))
            .map(|(step, lane)| first.rows(step, lane).collect())
            .collect();
        prop_assert!(forward.iter().all(|rows| rows.len() == microbatch as usize));
        for worker in 0..workers {
            let own = plan(seed, &sources, lanes, microbatch);
            prop_assert_eq!(own.digest(), first.digest());
            for step in (0..20).rev() {
                for lane in (0..lanes).rev().filter(|lane| lane % workers == worker) {
                    let rows: Vec<RowRef> = own.rows(step, lane).collect();
                    prop_assert_eq!(&rows, &forward[(step * u64::from(lanes)) as usize + lane as usize]);
                }
            }
        }
    }

    /// Each global batch holds each source's share to within a few rows.
    #[test]
    fn batches_hold_the_shares(
        seed in any::<u64>(),
        weights in prop::collection::vec(0.1_f64..5.0, 2..5),
        lanes in 1_u32..10, microbatch in 1_u32..8, step in 0_u64..1 << 40,
    ) {
        let sources: Vec<_> = weights.iter().map(|weight| (shape(100, 7), *weight)).collect();
        let plan = plan(seed, &sources, lanes, microbatch);
        let sum: f64 = weights.iter().sum();
        for (source, weight) in weights.iter().enumerate() {
            let drawn = (0..lanes)
                .flat_map(|lane| plan.rows(step, lane))
                .filter(|row| usize::from(row.source) == source)
                .count() as f64;
            let share = plan.batch() as f64 * weight / sum;
            prop_assert!((drawn - share).abs() <= 3.0, "{} of {}", drawn, share);
        }
    }

    /// A lane that keeps its latest few groups reads each of its groups once per epoch.
    #[test]
    fn a_lane_reads_each_of_its_groups_once(
        seed in any::<u64>(), rows in 200_u64..3000, group_rows in 1_u32..20, lanes in 1_u32..6,
    ) {
        let shape = shape(rows, group_rows);
        let plan = plan(seed, &[(shape, 1.0)], lanes, 1);
        for lane in 0..lanes {
            let drawn = lane_rows(&plan, lane, rows / u64::from(lanes));
            let groups: Vec<u64> = drawn
                .iter()
                .filter(|row| row.epoch == 0)
                .map(|row| row.row / u64::from(group_rows))
                .collect();
            let distinct = groups.iter().collect::<BTreeSet<_>>().len() as u64;
            let (mut kept, mut reads) = (Vec::new(), 0_u64);
            for group in &groups {
                match kept.iter().position(|held| held == group) {
                    Some(at) => _ = kept.remove(at),
                    None => reads += 1,
                }
                kept.insert(0, *group);
                kept.truncate(WINDOW_GROUPS as usize);
            }
            prop_assert_eq!(reads, distinct);
            let share = rows.div_ceil(u64::from(lanes)).div_ceil(u64::from(group_rows)) + 2;
            prop_assert!(distinct <= share);
        }
    }
}

#[test]
fn seeking_far_is_as_cheap_as_starting() {
    let plan = plan(
        7,
        &[
            (shape(10_000_000_000, 128), 0.7),
            (shape(9_999_999_967, 100), 0.3),
        ],
        2000,
        32,
    );
    let seek = |_| {
        let begin = Instant::now();
        let rows: Vec<RowRef> = plan.rows(1_000_000_000, 1999).collect();
        let elapsed = begin.elapsed();
        assert_eq!(rows.len(), 32);
        assert!(
            rows.iter()
                .all(|row| row.row < 10_000_000_000 && row.epoch > 0)
        );
        elapsed
    };
    // The machine may have other work to do.
    let quickest = (0..20).map(seek).min().unwrap();
    assert!(quickest < Duration::from_millis(10), "{quickest:?}");
}

#[test]
fn fewer_rows_than_lanes_work() {
    let plan = plan(1, &[(shape(3, 128), 1.0)], 8, 2);
    let uses = uses(&plan, 0, 30);
    assert!(uses.values().all(|count| *count == 1));
    assert_eq!(uses.len(), 30 * 16);
    let whole = uses.keys().filter(|(epoch, _)| *epoch < 150).count();
    assert_eq!(whole, 450);
}

#[test]
fn epochs_stages_and_seeds_have_orders_of_their_own() {
    let sources = [(shape(1580, 128), 1.0)];
    let first = |seed, stage: &str, step| -> Vec<u64> {
        let plan = Plan::new(seed, stage, &sources, 1, 64).unwrap();
        plan.rows(step, 0).map(|row| row.row).collect()
    };
    let orders = [
        first(1, "memory", 0),
        first(2, "memory", 0),
        first(1, "experts", 0),
        first(1, "memory", 1580 / 64 + 1),
    ];
    for (index, order) in orders.iter().enumerate() {
        assert!(orders.iter().skip(index + 1).all(|other| other != order));
    }
}

/// Neighbours in the corpus end up far apart, over epochs each row pairs with most others.
#[test]
fn a_batch_mixes_the_corpus() {
    let plan = plan(3, &[(shape(1580, 128), 1.0)], 8, 8);
    let mut partners = BTreeSet::new();
    for step in 0..400 {
        let batch: Vec<u64> = (0..8)
            .flat_map(|lane| plan.rows(step, lane))
            .map(|row| row.row)
            .collect();
        if batch.contains(&0) {
            partners.extend(batch);
        }
    }
    // 16 passes with 63 partners each: 1,008 draws of 1,579 reach 745 rows if all are equal.
    assert!(partners.len() > 600, "{}", partners.len());
}

/// Fixed numbers: a change of the order is a change of every run's meaning.
#[test]
fn the_order_never_changes() {
    let plan = plan(42, &[(shape(1000, 16), 3.0), (shape(50, 16), 1.0)], 4, 4);
    let rows: Vec<(u16, u64, u64)> = plan
        .rows(100, 2)
        .map(|row| (row.source, row.epoch, row.row))
        .collect();
    assert_eq!(rows, GOLDEN);
}

const GOLDEN: [(u16, u64, u64); 4] = [(0, 1, 145), (0, 1, 156), (1, 8, 13), (0, 1, 157)];

#[test]
fn epoch_counts_passes() {
    let plan = plan(1, &[(shape(160, 16), 1.0)], 4, 4);
    assert!((plan.epoch(15) - 1.5).abs() < 1e-12);
    assert_eq!(plan.drawn(0, 15), 240);
    assert_eq!(plan.drawn(1, 15), 0);
    assert_eq!(plan.rows(0, 4).count(), 0);
}

#[test]
fn numbers_that_make_no_plan_are_refused() {
    let one = [(shape(10, 4), 1.0)];
    let refused = |sources: &[(CorpusShape, f64)], lanes, microbatch| {
        Plan::new(1, "memory", sources, lanes, microbatch).unwrap_err()
    };
    assert!(matches!(refused(&one, 0, 1), PlanError::NothingToDo { .. }));
    assert!(matches!(refused(&one, 1, 0), PlanError::NothingToDo { .. }));
    assert!(matches!(refused(&[], 1, 1), PlanError::NoSources { .. }));
    assert!(matches!(
        refused(&[(shape(10, 0), 1.0)], 1, 1),
        PlanError::EmptyGroups { .. }
    ));
    let empty = refused(&[(shape(0, 4), 1.0)], 1, 1);
    assert!(matches!(empty, PlanError::EmptyCorpus { .. }));
    assert_eq!(Failure::from(empty).exit, ExitCode::Data);
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = refused(&[(shape(10, 4), weight)], 1, 1);
        assert!(matches!(error, PlanError::Weight { .. }));
        let failure = Failure::from(error);
        assert_eq!(failure.exit, ExitCode::Settings);
        assert!(failure.why.contains("number 0") && failure.cure.contains("weight"));
    }
}
