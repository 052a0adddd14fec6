//! Who computes which rows: blocks of them, shared by the workers of a run, or all here.

use std::ops::Range;

use mks2_proto::failure::Failure;
use mks2_proto::v1::Phase;

use crate::collectives::Collective;
use crate::control::Control;
use crate::exchange::all_lanes;
use crate::objective::Share;
use crate::team::Setback;

/// Rows that are computed together.
pub(super) const BLOCK: usize = 32;

/// Computes blocks of rows.
pub(super) trait Blocks {
    /// What `compute` makes of each block of `rows` rows, in the order of blocks.
    ///
    /// # Errors
    /// What `compute` says; a lost peer; the wish to stop.
    fn shares(
        &mut self,
        rows: usize,
        compute: &mut dyn FnMut(Range<usize>) -> Result<Share, Failure>,
    ) -> Result<Vec<Share>, Setback>;

    /// Whether all who compute have read the same.
    ///
    /// # Errors
    /// When they have not.
    fn agree(&mut self, _task: &str, _digest: &str) -> Result<(), Setback> {
        Ok(())
    }
}

/// The blocks of `rows` rows, `size` in each.
fn blocks(rows: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows)
        .step_by(size)
        .map(move |first| first..(first + size).min(rows))
}

/// The workers of a run: a block each, then the next ones. All get all shares.
pub(super) struct Workers<'a> {
    pub(super) control: &'a dyn Control,
    pub(super) collective: &'a mut dyn Collective,
}

impl Blocks for Workers<'_> {
    /// Between blocks all learn whether some worker was asked to stop.
    fn shares(
        &mut self,
        rows: usize,
        compute: &mut dyn FnMut(Range<usize>) -> Result<Share, Failure>,
    ) -> Result<Vec<Share>, Setback> {
        let (rank, world) = (self.collective.rank(), self.collective.world());
        let blocks: Vec<Range<usize>> = blocks(rows, BLOCK).collect();
        let mut shares = Vec::with_capacity(blocks.len());
        for round in blocks.chunks(world) {
            let mine = match round.get(rank) {
                Some(block) => vec![(rank as u32, compute(block.clone())?)],
                None => Vec::new(),
            };
            let stop = u8::from(self.control.stop_requested());
            self.gathering();
            let (stop, all) = all_lanes(self.collective, stop, &mine, round.len() as u32)?;
            self.control.set_phase(Phase::Evaluating, 0);
            if stop != 0 {
                return Err(stopped().into());
            }
            shares.extend(all);
        }
        Ok(shares)
    }

    fn agree(&mut self, task: &str, digest: &str) -> Result<(), Setback> {
        self.gathering();
        let all = self.collective.all_gather(digest.as_bytes())?;
        self.control.set_phase(Phase::Evaluating, 0);
        match all.iter().all(|other| other == digest.as_bytes()) {
            true => Ok(()),
            false => Err(Failure::data(
                format!("the workers have read different data for task '{task}'"),
                "its files are not the same on all machines",
                "put them where every worker reaches the same ones, and run the same command again",
            )
            .into()),
        }
    }
}

impl Workers<'_> {
    /// From here on the others are needed.
    fn gathering(&self) {
        let sequence = self.collective.sequence() + 1;
        self.control.set_phase(Phase::Gathering, sequence);
    }
}

fn stopped() -> Failure {
    Failure::stopped(
        "the evaluation was stopped",
        "on request",
        "the same command evaluates again from the beginning of the stage",
    )
}

/// This process, with blocks of `size` rows; `told` hears how many rows are done.
pub(super) struct Alone<'a> {
    pub(super) size: usize,
    pub(super) told: &'a mut dyn FnMut(usize) -> Result<(), Failure>,
}

impl Blocks for Alone<'_> {
    fn shares(
        &mut self,
        rows: usize,
        compute: &mut dyn FnMut(Range<usize>) -> Result<Share, Failure>,
    ) -> Result<Vec<Share>, Setback> {
        let mut shares = Vec::new();
        for block in blocks(rows, self.size) {
            let done = block.end;
            shares.push(compute(block)?);
            (self.told)(done)?;
        }
        Ok(shares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_block() {
        let found: Vec<Range<usize>> = blocks(70, 32).collect();
        assert_eq!(found, [0..32, 32..64, 64..70]);
        assert_eq!(blocks(0, 32).count(), 0);
        let mut heard = Vec::new();
        let mut alone = Alone {
            size: 2,
            told: &mut |done| {
                heard.push(done);
                Ok(())
            },
        };
        let share = |block: Range<usize>| {
            Ok(Share {
                counts: block.map(|row| row as f64).collect(),
                features: Vec::new(),
            })
        };
        let shares = alone.shares(5, &mut { share }).expect("computed");
        let rows: Vec<f64> = shares.into_iter().flat_map(|share| share.counts).collect();
        assert_eq!(rows, [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(heard, [2, 4, 5]);
    }
}
