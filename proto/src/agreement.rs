//! What the members of a generation conclude from what each of them has told. All have heard the
//! same, so all conclude the same.

use crate::job::{Audit, Checkpoint, OnCorruption};

/// A place in the job graph. Later ones are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Number of the stage in the job.
    pub stage: u32,
    /// The part of it.
    pub part: Part,
}

/// A part of a stage. Each has collectives of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Part {
    /// Before the first step; an evaluation is all here.
    #[default]
    Start = 0,
    /// From the first step to the last.
    Steps = 1,
    /// After the last one, or after the one at which the run stops.
    Border = 2,
}

impl Part {
    /// The part of this number.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Start),
            1 => Some(Self::Steps),
            2 => Some(Self::Border),
            _ => None,
        }
    }
}

/// How far a member is that has the state of training: its point, the steps that it has committed,
/// and after which of them its copy was compared last.
pub type Place = (Point, u64, u64);

/// Who tells newcomers the state of training: the lowest rank of those that are furthest. None: a
/// newcomer.
pub fn source(places: impl IntoIterator<Item = Option<Place>>) -> Option<usize> {
    let mut found: Option<(usize, Place)> = None;
    let ranks = places.into_iter().enumerate();
    for (rank, place) in ranks.filter_map(|(rank, place)| Some((rank, place?))) {
        if found.is_none_or(|(_, furthest)| place > furthest) {
            found = Some((rank, place));
        }
    }
    found.map(|(rank, _)| rank)
}

/// The earliest of the points that are in the stage of the furthest: where there is no state, all do
/// again what one of them has not done.
pub fn hindmost(points: impl IntoIterator<Item = Point>, furthest: Point) -> Point {
    let points = points.into_iter();
    let there = points.filter(|point| point.stage == furthest.stage);
    there.min().unwrap_or(furthest)
}

/// What a comparison of all copies says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All copies are alike.
    Alike,
    /// Most copies are alike, and those of these ranks, ascending, are not.
    Odd(Vec<usize>),
    /// No copy has a strict majority: nobody can say which is right.
    Split,
}

/// Whether members compare their copies behind a step inside a stage, counted within it: at the pace
/// of comparisons, and before the first checkpoint after each of them, so that there always is a recent one
/// which is known to be right. Where an odd one alone is ended, before each: nothing goes back over what it
/// has saved.
#[must_use]
pub fn compares(audit: &Audit, checkpoint: &Checkpoint, step: u64) -> bool {
    let (every, saved_every) = (audit.every_steps, checkpoint.every_steps.max(1));
    if every == 0 || step == 0 {
        return false;
    }
    let before = step.saturating_sub(saved_every);
    let is_first = step / every > before / every || audit.on_corruption == OnCorruption::Evict;
    step.is_multiple_of(every) || (step.is_multiple_of(saved_every) && is_first)
}

/// Judges digests by rank; ranks without one have nothing to compare.
#[must_use]
pub fn judge<T: Eq>(digests: &[Option<T>]) -> Verdict {
    let voters = || digests.iter().flatten();
    let Some(mut most) = voters().next() else {
        return Verdict::Alike;
    };
    if voters().all(|digest| digest == most) {
        return Verdict::Alike;
    }
    // Whoever has a majority is left when every other vote takes one of its votes away.
    let mut lead = 0_usize;
    for digest in voters() {
        match (lead, digest == most) {
            (0, _) => (most, lead) = (digest, 1),
            (_, true) => lead += 1,
            (_, false) => lead -= 1,
        }
    }
    let votes = voters().filter(|digest| *digest == most).count();
    if 2 * votes <= voters().count() {
        return Verdict::Split;
    }
    let is_odd = |digest: &Option<T>| digest.as_ref().is_some_and(|digest| digest != most);
    let ranks = digests.iter().enumerate();
    let odd = ranks.filter(|(_, digest)| is_odd(digest));
    Verdict::Odd(odd.map(|(rank, _)| rank).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(stage: u32, part: Part) -> Point {
        Point { stage, part }
    }

    #[test]
    fn points_are_in_the_order_of_a_run() {
        assert!(at(0, Part::Start) < at(0, Part::Steps));
        assert!(at(0, Part::Border) < at(1, Part::Start));
        for part in [Part::Start, Part::Steps, Part::Border] {
            assert_eq!(Part::of(part as u8), Some(part));
        }
        assert_eq!(Part::of(3), None);
    }

    #[test]
    fn the_lowest_rank_of_the_furthest_tells_newcomers() {
        let place = |committed, compared| Some((at(1, Part::Steps), committed, compared));
        assert_eq!(
            source([None, place(3, 2), place(4, 2), place(4, 2)]),
            Some(2)
        );
        assert_eq!(source([place(4, 2), None, place(4, 4)]), Some(2));
        assert_eq!(source([None, None]), None);
    }

    #[test]
    fn all_begin_where_the_last_one_of_the_stage_is() {
        let points = [at(1, Part::Border), at(2, Part::Border), at(2, Part::Start)];
        assert_eq!(hindmost(points, at(2, Part::Border)), at(2, Part::Start));
        assert_eq!(hindmost([], at(2, Part::Border)), at(2, Part::Border));
    }

    #[test]
    fn comparisons_have_their_own_pace_and_come_before_the_next_checkpoint() {
        let due = |every_steps: u64, checkpoints: u64, on_corruption| {
            let audit = Audit {
                every_steps,
                on_corruption,
            };
            let checkpoint = Checkpoint {
                every_steps: checkpoints,
                ..Checkpoint::default()
            };
            let all = 0..=12;
            all.filter(|step| compares(&audit, &checkpoint, *step))
                .collect::<Vec<u64>>()
        };
        let rewind = |every, checkpoints| due(every, checkpoints, OnCorruption::Rewind);
        assert_eq!(rewind(4, 5), [4, 5, 8, 10, 12]);
        assert_eq!(rewind(5, 5), [5, 10]);
        assert_eq!(rewind(5, 1), [5, 10]);
        assert_eq!(rewind(5, 3), [5, 6, 10, 12]);
        assert_eq!(rewind(100, 5), [] as [u64; 0]);
        assert_eq!(rewind(0, 5), [] as [u64; 0]);
        assert_eq!(due(100, 5, OnCorruption::Evict), [5, 10]);
    }

    proptest! {
        #[test]
        fn a_verdict_is_what_counting_says(digests in prop::collection::vec(prop::option::of(0_u8..4), 0..9)) {
            let voters: Vec<u8> = digests.iter().flatten().copied().collect();
            let votes = |one: u8| voters.iter().filter(|other| **other == one).count();
            let most = (0..4).find(|one| 2 * votes(*one) > voters.len());
            let is_alike = voters.windows(2).all(|two| two[0] == two[1]);
            let due = match most {
                _ if is_alike => Verdict::Alike,
                None => Verdict::Split,
                Some(most) => {
                    let ranks = (0..digests.len()).filter(|rank| digests[*rank].is_some_and(|one| one != most));
                    Verdict::Odd(ranks.collect())
                }
            };
            prop_assert_eq!(judge(&digests), due);
        }
    }
}
