//! The plan asked the other way round: not which rows a step uses, but which steps use a row.
//!
//! Everything on the way from a slot to its row is a bijection that can be inverted: the pattern of
//! the mixture, the walk of a lane around the epochs, the shuffle of a window, the permutation of
//! row groups. So a question costs some microseconds for each pass over the corpus, whatever the
//! number of steps.

use super::epoch::EpochOrder;
use super::{Plan, Source, mul_div};

/// One use of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Use {
    /// Step within the stage, from 0.
    pub step: u64,
    /// The lane.
    pub lane: u32,
    /// Place in the lane's microbatch, from 0.
    pub slot: u32,
    /// Pass over the row's source, from 0.
    pub epoch: u64,
}

impl Plan {
    /// Where the first `steps` steps use a row of a source, in ascending order. A source or row
    /// that the plan does not have is never used.
    #[must_use]
    pub fn uses(&self, source: u16, row: u64, steps: u64) -> Vec<Use> {
        let Some(Source { shape, key }) = self.inner.sources.get(usize::from(source)) else {
            return Vec::new();
        };
        if row >= shape.rows {
            return Vec::new();
        }
        let epochs = 0..self.epochs(source, shape.rows, steps);
        let mut uses: Vec<Use> = epochs
            .filter_map(|epoch| {
                let order = EpochOrder::new(*shape, key, epoch);
                self.use_in(source, &order, row, epoch, steps)
            })
            .collect();
        uses.sort_unstable();
        uses
    }

    /// Epochs of a source that its lanes have entered in the first `steps` steps.
    fn epochs(&self, source: u16, rows: u64, steps: u64) -> u64 {
        let slots = steps.saturating_mul(u64::from(self.inner.microbatch));
        let entered = |lane| {
            let drawn = self.drawn_by(lane, source, slots);
            (drawn > 0).then(|| self.place(rows, lane, drawn - 1).epoch + 1)
        };
        (0..self.inner.lanes).filter_map(entered).max().unwrap_or(0)
    }

    /// The use of a row in one epoch, if the first `steps` steps come to it.
    fn use_in(
        &self,
        source: u16,
        order: &EpochOrder,
        row: u64,
        epoch: u64,
        steps: u64,
    ) -> Option<Use> {
        let lanes = u64::from(self.inner.lanes);
        let rows = self.inner.sources[usize::from(source)].shape.rows;
        let before = order.place_of(row);
        let stretch = mul_div(before + 1, lanes, rows, 1);
        let places = mul_div(stretch, rows, lanes, 0)..mul_div(stretch + 1, rows, lanes, 0);
        let number = u32::try_from(stretch).ok()?;
        let place = order.window(number, &places, before).unshuffled(before);
        // In epoch e lane m takes stretch (m + e) mod M.
        let lane = u32::try_from((stretch + lanes - epoch % lanes) % lanes).ok()?;
        let turns = (epoch + u64::from(lane) - stretch) / lanes;
        let walked = turns.checked_mul(rows)?.checked_add(place)?;
        let nth = walked - mul_div(u64::from(lane), rows, lanes, 0);
        self.at_slot(source, lane, nth, steps).map(|slot| Use {
            step: slot / u64::from(self.inner.microbatch),
            lane,
            slot: (slot % u64::from(self.inner.microbatch)) as u32,
            epoch,
        })
    }

    /// The slot of a lane in which it draws its `nth` sample from a source.
    fn at_slot(&self, source: u16, lane: u32, nth: u64, steps: u64) -> Option<u64> {
        let slots = steps.saturating_mul(u64::from(self.inner.microbatch));
        let begin = self.pattern_start(lane);
        let mixture = &self.inner.mixture;
        let nth = mixture.count(source, begin).checked_add(nth)?;
        let slot = mixture.slot_of(source, nth, begin.saturating_add(slots))?;
        Some(slot - begin)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::{
        ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest,
    };

    use super::*;
    use crate::plan::CorpusShape;

    fn shapes() -> impl Strategy<Value = CorpusShape> {
        (1_u64..200, 1_u32..20).prop_map(|(rows, group_rows)| CorpusShape { rows, group_rows })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Both directions of the plan tell the same, for every row of every source.
        #[test]
        fn the_steps_of_a_row_are_the_steps_that_draw_it(
            seed in any::<u64>(),
            sources in prop::collection::vec((shapes(), 0.1_f64..5.0), 1..4),
            lanes in 1_u32..24, microbatch in 1_u32..6, steps in 0_u64..60,
        ) {
            let plan = Plan::new(seed, "memory", &sources, lanes, microbatch).unwrap();
            let mut drawn: BTreeMap<(u16, u64), Vec<Use>> = BTreeMap::new();
            for (step, lane) in (0..steps).flat_map(|step| (0..lanes).map(move |lane| (step, lane))) {
                for (slot, row) in (0..).zip(plan.rows(step, lane)) {
                    let used = Use { step, lane, slot, epoch: row.epoch };
                    drawn.entry((row.source, row.row)).or_default().push(used);
                }
            }
            for (source, (shape, _)) in (0..).zip(&sources) {
                for row in 0..shape.rows {
                    let expected = drawn.remove(&(source, row)).unwrap_or_default();
                    prop_assert_eq!(plan.uses(source, row, steps), expected);
                }
                prop_assert!(plan.uses(source, shape.rows, steps).is_empty());
            }
            prop_assert!(plan.uses(99, 0, steps).is_empty());
        }

        /// A stretch of steps at once gives what its steps give one by one.
        #[test]
        fn steps_can_be_asked_for_together(
            seed in any::<u64>(), shape in shapes(), lanes in 1_u32..9, microbatch in 1_u32..6,
            first in 0_u64..50, count in 0_u64..9,
        ) {
            let plan = Plan::new(seed, "memory", &[(shape, 1.0)], lanes, microbatch).unwrap();
            for lane in 0..=lanes {
                let together: Vec<_> = plan.rows_over(first..first + count, lane).collect();
                let single: Vec<_> = (first..first + count).flat_map(|step| plan.rows(step, lane)).collect();
                prop_assert_eq!(together, single);
            }
        }
    }

    #[test]
    fn a_far_row_of_a_huge_corpus_is_found_at_once() {
        let shape = CorpusShape {
            rows: 10_000_000_019,
            group_rows: 128,
        };
        let plan = Plan::new(1, "memory", &[(shape, 1.0), (shape, 0.01)], 512, 8).unwrap();
        let steps = 10_000_000;
        let find = |_| {
            let began = std::time::Instant::now();
            let row = plan.rows(steps - 1, 300).next().unwrap();
            let uses = plan.uses(row.source, row.row, steps);
            let last = uses.last().unwrap();
            assert_eq!((last.step, last.lane, last.slot), (steps - 1, 300, 0));
            began.elapsed()
        };
        // The machine may have other work to do.
        let quickest = (0..20).map(find).min().unwrap();
        assert!(quickest.as_millis() < 500, "{quickest:?}");
    }
}
