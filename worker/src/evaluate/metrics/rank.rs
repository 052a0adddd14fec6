//! Where the first right one stands when everything is ordered by likeness.

/// The place, from 1, of the likest of the `right` ones among `likeness`. A tie counts against it.
#[must_use]
pub fn rank(likeness: &[f32], right: &[usize]) -> usize {
    let best = right.iter().filter_map(|at| likeness.get(*at));
    let best = best.copied().fold(f32::NEG_INFINITY, f32::max);
    // What is no number is never less: it counts against, too.
    let is_less = |value: f32| value < best;
    let before = likeness
        .iter()
        .enumerate()
        .filter(|(at, value)| !is_less(**value) && !right.contains(at));
    1 + before.count()
}
