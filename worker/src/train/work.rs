//! What a worker has done of a step so far. It outlives a generation that fails in the middle.

use std::collections::BTreeMap;

use mks2_proto::failure::Failure;

use crate::objective::{Objective, Share};

/// Seconds that a step spent waiting for others.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waits {
    pub(super) data: f64,
    pub(super) comm: f64,
}

/// What all workers have agreed on at the end of a step.
#[derive(Clone, Debug)]
pub(super) struct Vote {
    /// Some worker was asked to stop.
    pub(super) stop: bool,
    /// Some worker was asked to let the generation end behind this step.
    pub(super) regroup: bool,
    /// The lanes' sums, added in lane order.
    pub(super) sums: Vec<f64>,
}

/// A worker's part of a step.
pub(super) struct Work<O: Objective> {
    /// Inputs of the lanes held, and what the others need of them.
    lanes: BTreeMap<u32, (O::Lane, Share)>,
    /// What has been gathered of all lanes.
    pub(super) global: Option<O::Global>,
    /// Sums of the lanes whose gradients are in the reducer.
    sums: BTreeMap<u32, Share>,
    /// The state holds the step's reduced gradient.
    pub(super) is_reduced: bool,
    overflows: u32,
    pub(super) waits: Waits,
}

impl<O: Objective> Default for Work<O> {
    fn default() -> Self {
        Self {
            lanes: BTreeMap::new(),
            global: None,
            sums: BTreeMap::new(),
            is_reduced: false,
            overflows: 0,
            waits: Waits::default(),
        }
    }
}

/// Lanes with their inputs.
type Inputs<'a, O> = Vec<(u32, &'a <O as Objective>::Lane)>;

impl<O: Objective> Work<O> {
    pub(super) fn has_inputs(&self, lane: u32) -> bool {
        self.lanes.contains_key(&lane)
    }

    pub(super) fn put_inputs(&mut self, lane: u32, inputs: O::Lane, share: Share) {
        self.lanes.insert(lane, (inputs, share));
    }

    /// What the others need of this worker's lanes, in lane order.
    pub(super) fn shares(&self) -> Vec<(u32, Share)> {
        let shares = self.lanes.iter();
        shares
            .map(|(lane, (_, share))| (*lane, share.clone()))
            .collect()
    }

    /// What was gathered of all lanes.
    ///
    /// # Errors
    /// When nothing was: a fault of the program.
    pub(super) fn global(&self) -> Result<&O::Global, Failure> {
        self.global.as_ref().ok_or_else(|| {
            Failure::internal(
                "a step cannot go on",
                "its global batch has not been gathered",
            )
        })
    }

    /// The lanes whose gradients are not in the reducer, and what they need.
    ///
    /// # Errors
    /// As [`Work::global`].
    pub(super) fn to_compute(&self) -> Result<(Inputs<'_, O>, &O::Global), Failure> {
        let missing = self
            .lanes
            .iter()
            .filter(|(lane, _)| !self.sums.contains_key(lane));
        let missing = missing.map(|(lane, (inputs, _))| (*lane, inputs));
        Ok((missing.collect(), self.global()?))
    }

    /// Sums of lanes whose gradients are in the reducer now.
    pub(super) fn put_sums(&mut self, sums: Vec<(u32, Vec<f64>)>) {
        let shares = sums.into_iter().map(|(lane, counts)| {
            let share = Share {
                counts,
                features: Vec::new(),
            };
            (lane, share)
        });
        self.sums.extend(shares);
    }

    /// Sums of this worker's lanes, in lane order.
    pub(super) fn sums(&self) -> Vec<(u32, Share)> {
        let sums = self.sums.iter();
        sums.map(|(lane, sum)| (*lane, sum.clone())).collect()
    }

    /// The reducer has forgotten all lanes, for an overflow.
    pub(super) fn compute_again(&mut self) {
        self.sums.clear();
        self.overflows += 1;
    }

    /// How often that has happened.
    pub(super) fn overflows(&self) -> u32 {
        self.overflows
    }

    /// Lets go of lanes that are not in `held`. True when the reducer has to forget all lanes,
    /// since a part of one cannot be taken out of its sums.
    pub(super) fn keep(&mut self, held: &[u32]) -> bool {
        self.is_reduced = false;
        self.lanes.retain(|lane, _| held.contains(lane));
        let is_tainted = self.sums.keys().any(|lane| !held.contains(lane));
        if is_tainted {
            self.sums.clear();
        }
        is_tainted
    }
}
