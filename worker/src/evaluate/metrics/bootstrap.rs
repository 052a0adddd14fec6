//! How certain a metric is: it is computed again for many samples of the items, each drawn with
//! replacement and as large as the whole ([Efron 1979](https://doi.org/10.1214/aos/1176344552)).

use mks2_proto::splitmix;

/// How many samples.
pub const SAMPLES: usize = 1000;
/// Decides what is drawn, the same for every metric and task.
const SEED: u64 = 1234;
/// The interval lies between these shares of the samples.
const BETWEEN: [f64; 2] = [0.025, 0.975];

/// What the samples say of a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// 2.5 % of the samples are below it.
    pub low: f64,
    /// 2.5 % of them are above it.
    pub high: f64,
    /// Their standard deviation.
    pub deviation: f64,
}

/// The spread of each of the `N` numbers that `metrics` gives for some of `items` items, which it gets
/// as indices.
pub fn spread<const N: usize>(
    items: usize,
    mut metrics: impl FnMut(&[usize]) -> [f64; N],
) -> [Spread; N] {
    let mut state = SEED;
    let mut drawn = vec![0; items];
    let mut found: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(SAMPLES));
    for _ in 0..SAMPLES {
        for index in &mut drawn {
            let number = u128::from(splitmix::next(&mut state));
            *index = ((number * items as u128) >> 64) as usize;
        }
        for (values, value) in found.iter_mut().zip(metrics(&drawn)) {
            values.push(value);
        }
    }
    found.map(|mut values| {
        values.sort_unstable_by(f64::total_cmp);
        Spread {
            low: quantile(&values, BETWEEN[0]),
            high: quantile(&values, BETWEEN[1]),
            deviation: deviation(&values),
        }
    })
}

/// A quantile of sorted values, between two of them in proportion.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    match (sorted.get(below), sorted.get(below + 1)) {
        (Some(low), Some(high)) => low + part * (high - low),
        (Some(only), None) => *only,
        _ => 0.0,
    }
}

/// Standard deviation of a sample; 0 for a single value.
#[must_use]
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// The mean; 0 of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_values() {
        let sorted = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert!((quantile(&sorted, 0.0)).abs() < 1e-12);
        assert!((quantile(&sorted, 0.975) - 3.9).abs() < 1e-12);
        assert!((quantile(&sorted, 1.0) - 4.0).abs() < 1e-12);
        assert!((quantile(&[7.0], 0.3) - 7.0).abs() < 1e-12);
    }

    #[test]
    fn the_spread_of_a_share_is_that_of_theory_and_repeats() {
        // 40 of 100: the standard error is sqrt(0.4 * 0.6 / 100) = 0.049.
        let share = |drawn: &[usize]| {
            let hits = drawn.iter().filter(|index| **index < 40).count();
            [hits as f64 / drawn.len() as f64]
        };
        let [found] = spread(100, share);
        assert!((found.deviation - 0.049).abs() < 0.004, "{found:?}");
        assert!((found.low - 0.304).abs() < 0.02, "{found:?}");
        assert!((found.high - 0.496).abs() < 0.02, "{found:?}");
        assert_eq!(spread(100, share), [found]);
        // A single item is always drawn.
        let [alone] = spread(1, |drawn| [drawn[0] as f64 + 5.0]);
        assert!((alone.low - 5.0).abs() < 1e-12 && alone.deviation.abs() < 1e-12);
    }
}
