//! Curves as inline SVG: no script, no network, colours from the page's style.

use std::fmt::Write;

use super::text::{escape, short};
use crate::units::count;

/// Width of the drawing, in its own units: those of the screen where two charts stand side by side.
const WIDTH: f64 = 460.0;
/// Height.
const HEIGHT: f64 = 220.0;
/// Room for the labels on the left.
const LEFT: f64 = 58.0;
/// Room on the right, for half of the last label.
const RIGHT: f64 = 24.0;
/// Room above the highest point.
const ABOVE: f64 = 10.0;
/// Room for the labels below.
const BELOW: f64 = 28.0;
/// Points of a curve: more would not be seen.
const POINTS: usize = 300;
/// From this ratio of the highest to the lowest value on, the axis is logarithmic.
const LOG_RATIO: f64 = 20.0;

/// One curve.
pub(super) struct Curve {
    /// Name in the legend.
    pub(super) name: String,
    /// (step, value), ascending in steps; a value that is not finite is a gap.
    pub(super) points: Vec<(f64, f64)>,
}

/// How values are laid on the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// Equal differences are equal lengths.
    Linear,
    /// Logarithmic where the values are positive and far apart.
    LogIfWide,
}

/// A chart of curves over steps, with a legend; nothing if there is no finite point.
pub(super) fn chart(title: &str, curves: &[Curve], axis: Axis) -> String {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let missing = all().filter(|(_, value)| !value.is_finite()).count();
    let curves: Vec<Curve> = curves.iter().map(thinned).filter(Curve::is_seen).collect();
    let Some(scale) = Scale::of(
        curves.iter().flat_map(|curve| curve.points.iter().copied()),
        axis,
    ) else {
        return String::new();
    };
    let mut html = caption(title, &curves, &scale, missing);
    let _ = write!(
        html,
        r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#,
        escape(title)
    );
    html.push_str(&axes(&scale));
    for (number, curve) in curves.iter().enumerate() {
        let _ = write!(
            html,
            r#"<path class="curve c{}" d="{}"/>"#,
            number % 4,
            path(curve, &scale)
        );
    }
    format!("<figure>{html}</svg></figure>")
}

fn caption(title: &str, curves: &[Curve], scale: &Scale, missing: usize) -> String {
    let mut html = format!("<figcaption><b>{}</b>", escape(title));
    for (number, curve) in curves.iter().enumerate() {
        let last = curve
            .points
            .iter()
            .rev()
            .find(|(_, value)| value.is_finite());
        let _ = write!(
            html,
            r#"<span class="key"><svg viewBox="0 0 24 8" aria-hidden="true"><path class="curve c{}" d="M1,4H23"/></svg>{} <em>{}</em></span>"#,
            number % 4,
            escape(&curve.name),
            last.map(|(_, value)| short(*value)).unwrap_or_default()
        );
    }
    if scale.log {
        html.push_str(r#"<span class="key">log scale</span>"#);
    }
    if missing > 0 {
        let _ = write!(
            html,
            r#"<span class="key failed">{} not finite</span>"#,
            crate::units::plural(missing as u64, "value")
        );
    }
    html + "</figcaption>"
}

fn axes(scale: &Scale) -> String {
    let mut svg = String::new();
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BELOW);
    for tick in scale.ticks() {
        let y = scale.y(tick);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{x}" y="{ty:.1}" text-anchor="end">{label}</text>"#,
            x = LEFT - 7.0,
            ty = y + 4.5,
            label = short(tick)
        );
    }
    let _ = write!(
        svg,
        r#"<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>"#
    );
    for tick in scale.steps() {
        let x = scale.x(tick);
        let _ = write!(
            svg,
            r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="{bottom}" y2="{y2}"/><text class="tick" x="{x:.1}" y="{ty}" text-anchor="middle">{label}</text>"#,
            y2 = bottom + 4.0,
            ty = bottom + 19.0,
            label = count(tick as u64)
        );
    }
    let _ = write!(
        svg,
        r#"<text class="tick" x="{x}" y="{y}" text-anchor="end">step</text>"#,
        x = LEFT - 7.0,
        y = bottom + 19.0
    );
    svg
}

/// Lines between neighbours, none over a gap; a point alone is a dot.
fn path(curve: &Curve, scale: &Scale) -> String {
    let mut path = String::new();
    let mut drawing = false;
    for &(step, value) in &curve.points {
        if !value.is_finite() {
            drawing = false;
            continue;
        }
        let (x, y) = (scale.x(step), scale.y(value));
        let _ = match drawing {
            true => write!(path, "L{x:.1},{y:.1}"),
            false => write!(path, "M{x:.1},{y:.1}h0"),
        };
        drawing = true;
    }
    path
}

impl Curve {
    fn is_seen(&self) -> bool {
        self.points.iter().any(|(_, value)| value.is_finite())
    }
}

/// The mean of equal stretches, so that a noisy curve of many steps stays readable. A stretch
/// without a finite value stays a gap.
fn thinned(curve: &Curve) -> Curve {
    let stretch = curve.points.len().div_ceil(POINTS).max(1);
    let points = curve.points.chunks(stretch).map(|points| {
        let x = points.iter().map(|point| point.0).sum::<f64>() / points.len() as f64;
        let finite: Vec<f64> = points
            .iter()
            .map(|point| point.1)
            .filter(|y| y.is_finite())
            .collect();
        (x, finite.iter().sum::<f64>() / finite.len() as f64)
    });
    Curve {
        name: curve.name.clone(),
        points: points.collect(),
    }
}

/// From data to the drawing's units.
struct Scale {
    first: f64,
    last: f64,
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    fn of(points: impl Iterator<Item = (f64, f64)>, axis: Axis) -> Option<Self> {
        let mut points = points.filter(|(x, y)| x.is_finite() && y.is_finite());
        let (x, y) = points.next()?;
        let start = Self {
            first: x,
            last: x,
            low: y,
            high: y,
            log: false,
        };
        let scale = points.fold(start, |scale, (x, y)| Self {
            first: scale.first.min(x),
            last: scale.last.max(x),
            low: scale.low.min(y),
            high: scale.high.max(y),
            log: false,
        });
        Some(scale.with_room(axis))
    }

    /// Zero belongs to the axis where it is near; a wide range of positive values is logarithmic.
    fn with_room(mut self, axis: Axis) -> Self {
        let wide = self.low > 0.0 && self.high / self.low >= LOG_RATIO;
        self.log = wide && axis == Axis::LogIfWide;
        if !self.log && self.low > 0.0 && self.low < 0.5 * self.high {
            self.low = 0.0;
        }
        if self.high - self.low <= 1e-9 * self.high.abs() {
            let room = (0.5 * self.high.abs()).max(1e-9);
            (self.low, self.high) = (self.low - room, self.high + room);
        }
        self
    }

    fn x(&self, step: f64) -> f64 {
        let width = WIDTH - LEFT - RIGHT;
        if self.last > self.first {
            LEFT + width * (step - self.first) / (self.last - self.first)
        } else {
            LEFT + 0.5 * width
        }
    }

    fn y(&self, value: f64) -> f64 {
        let of = |value: f64| if self.log { value.ln() } else { value };
        let share = (of(value) - of(self.low)) / (of(self.high) - of(self.low));
        (HEIGHT - BELOW) - share * (HEIGHT - BELOW - ABOVE)
    }

    /// Round values between the lowest and the highest.
    fn ticks(&self) -> Vec<f64> {
        if !self.log {
            return round_values(self.low, self.high, 4.0);
        }
        let decades = (self.high / self.low).log10();
        let factors: &[f64] = if decades < 2.5 {
            &[1.0, 2.0, 5.0]
        } else {
            &[1.0]
        };
        let (first, last) = (
            self.low.log10().floor() as i32,
            self.high.log10().ceil() as i32,
        );
        let every = if decades > 8.0 { 3 } else { 1 };
        let powers = (first..=last).filter(|power| power % every == 0);
        let ticks =
            powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        ticks
            .filter(|tick| (self.low..=self.high).contains(tick))
            .collect()
    }

    /// Round steps between the first and the last; the first alone if there is no other.
    fn steps(&self) -> Vec<f64> {
        let mut steps = round_values(self.first, self.last, 4.0);
        steps.retain(|step| step.fract() == 0.0);
        if steps.is_empty() {
            vec![self.first.round()]
        } else {
            steps
        }
    }
}

/// About `number` round values from `low` to `high`.
fn round_values(low: f64, high: f64, number: f64) -> Vec<f64> {
    let rough = (high - low) / number;
    if rough <= 0.0 || !rough.is_finite() {
        return Vec::new();
    }
    let power = 10f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = nice
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last).map(|n| n as f64 * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve {
            name: "a<b".into(),
            points: points.to_vec(),
        }
    }

    fn drawn(svg: &str) -> Vec<(f64, f64)> {
        let path = svg
            .rsplit(" d=\"")
            .next()
            .and_then(|rest| rest.split('"').next())
            .unwrap();
        let points = path.split(['M', 'L']).filter(|point| !point.is_empty());
        let pair = |point: &str| {
            let (x, y) = point.trim_end_matches("h0").split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        points.map(pair).collect()
    }

    #[test]
    fn a_chart_keeps_its_curve_inside_and_escapes_names() {
        for low in [0.1, 1e-7, -3.0, 2.0] {
            let svg = chart(
                "loss",
                &[curve(&[(1.0, 5.0), (2.0, low), (3.0, 2.0)])],
                Axis::LogIfWide,
            );
            assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
            assert_eq!(drawn(&svg).len(), 3);
            for (x, y) in drawn(&svg) {
                assert!((LEFT..=WIDTH).contains(&x) && (0.0..=HEIGHT - BELOW).contains(&y));
            }
        }
    }

    #[test]
    fn no_points_one_point_and_constant_points_are_fine() {
        assert_eq!(chart("empty", &[curve(&[])], Axis::LogIfWide), "");
        for points in [
            &[(1.0, 2.0)][..],
            &[(1.0, 2.0), (2.0, 2.0)],
            &[(1.0, 0.0), (2.0, 0.0)],
        ] {
            let svg = chart("flat", &[curve(points)], Axis::LogIfWide);
            assert_eq!(drawn(&svg).len(), points.len());
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_gaps_and_counted() {
        let points = [
            (1.0, 2.0),
            (2.0, f64::NAN),
            (3.0, f64::INFINITY),
            (4.0, 3.0),
        ];
        let svg = chart("loss", &[curve(&points)], Axis::LogIfWide);
        assert!(
            svg.contains("2 values not finite") && !svg.contains("NaN"),
            "{svg}"
        );
        assert_eq!(drawn(&svg).len(), 2);
        assert_eq!(
            chart(
                "nothing else",
                &[curve(&[(1.0, f64::NAN)])],
                Axis::LogIfWide
            ),
            ""
        );
    }

    #[test]
    fn a_wide_range_of_positive_values_is_logarithmic() {
        let wide = chart(
            "norm",
            &[curve(&[(1.0, 0.01), (2.0, 100.0)])],
            Axis::LogIfWide,
        );
        assert!(
            wide.contains("log scale") && wide.contains(">10</text>"),
            "{wide}"
        );
        assert!(
            !chart("loss", &[curve(&[(1.0, 1.0), (2.0, 9.0)])], Axis::LogIfWide)
                .contains("log scale")
        );
        assert!(
            !chart(
                "signed",
                &[curve(&[(1.0, -1.0), (2.0, 90.0)])],
                Axis::LogIfWide
            )
            .contains("log scale")
        );
    }

    #[test]
    fn long_curves_are_thinned_by_their_means() {
        let points: Vec<(f64, f64)> = (0..10 * 2 * 150)
            .map(|i| (f64::from(i), f64::from(i % 2)))
            .collect();
        let thin = thinned(&curve(&points));
        assert_eq!(thin.points.len(), POINTS);
        assert!(thin.points.iter().all(|(_, y)| (y - 0.5).abs() < 1e-9));
    }

    #[test]
    fn ticks_are_round_and_steps_whole() {
        let near = |found: Vec<f64>, wanted: &[f64]| {
            assert_eq!(found.len(), wanted.len(), "{found:?}");
            assert!(
                found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-9),
                "{found:?}"
            );
        };
        near(round_values(0.0, 1.0, 4.0), &[0.0, 0.5, 1.0]);
        near(
            round_values(701.0, 1400.0, 4.0),
            &[800.0, 1000.0, 1200.0, 1400.0],
        );
        near(
            Scale::of([(1.0, 1.0), (3.0, 1.0)].into_iter(), Axis::Linear)
                .unwrap()
                .steps(),
            &[1.0, 2.0, 3.0],
        );
        near(
            Scale::of([(7.0, 1.0)].into_iter(), Axis::Linear)
                .unwrap()
                .steps(),
            &[7.0],
        );
    }
}
