//! Curves as inline SVG: no script, no network, colours from the page's style.

use std::fmt::Write;

/// Width of the drawing, in its own units.
const WIDTH: f64 = 640.0;
/// Height.
const HEIGHT: f64 = 240.0;
/// Room for the labels on the left.
const LEFT: f64 = 52.0;
/// Room for the labels below.
const BELOW: f64 = 26.0;
/// Points of a curve: more would not be seen.
const POINTS: usize = 320;

/// One curve.
pub(super) struct Curve {
    /// Name in the legend.
    pub(super) name: String,
    /// (step, value), ascending in steps.
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart of curves over steps, with a legend; nothing if there is no point.
pub(super) fn chart(title: &str, curves: &[Curve]) -> String {
    let curves: Vec<Curve> = curves.iter().filter(|c| !c.points.is_empty()).map(thinned).collect();
    let all = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let Some(scale) = Scale::of(all()) else { return String::new() };
    let mut svg = String::new();
    let _ = write!(
        svg,
        r#"<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">"#,
        title = escape(title)
    );
    for tick in scale.ticks() {
        let y = scale.y(tick);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{x}" y="{ty:.1}" text-anchor="end">{label}</text>"#,
            x = LEFT - 6.0,
            ty = y + 4.0,
            label = short(tick)
        );
    }
    for (step, anchor) in [(scale.first, "start"), (scale.last, "end")] {
        let _ = write!(
            svg,
            r#"<text class="tick" x="{x:.1}" y="{y}" text-anchor="{anchor}">step {step}</text>"#,
            x = scale.x(step),
            y = HEIGHT - 6.0
        );
    }
    for (number, curve) in curves.iter().enumerate() {
        let path: Vec<String> =
            curve.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", scale.x(x), scale.y(y))).collect();
        let _ = write!(svg, r#"<polyline class="curve c{number}" points="{}"/>"#, path.join(" "));
    }
    svg.push_str("</svg><figcaption>");
    let _ = write!(svg, "<b>{}</b> ", escape(title));
    for (number, curve) in curves.iter().enumerate() {
        let _ = write!(svg, r#"<span class="key c{number}">{}</span> "#, escape(&curve.name));
    }
    svg.push_str("</figcaption></figure>");
    svg
}

/// The mean of equal stretches, so that a noisy curve of many steps stays readable.
fn thinned(curve: &Curve) -> Curve {
    let stretch = curve.points.len().div_ceil(POINTS).max(1);
    let points = curve.points.chunks(stretch).map(|points| {
        let n = points.len() as f64;
        let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        (x / n, y / n)
    });
    Curve { name: curve.name.clone(), points: points.collect() }
}

/// From data to the drawing's units.
struct Scale {
    first: f64,
    last: f64,
    low: f64,
    high: f64,
}

impl Scale {
    fn of(points: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let mut points = points.filter(|(x, y)| x.is_finite() && y.is_finite());
        let (x, y) = points.next()?;
        let start = Self { first: x, last: x, low: y, high: y };
        let mut scale = points.fold(start, |scale, (x, y)| Self {
            first: scale.first.min(x),
            last: scale.last.max(x),
            low: scale.low.min(y),
            high: scale.high.max(y),
        });
        if scale.low > 0.0 && scale.low < 0.5 * scale.high {
            scale.low = 0.0;
        }
        if scale.high - scale.low < 1e-12 {
            scale.high = scale.low + 1.0;
        }
        Some(scale)
    }

    fn x(&self, step: f64) -> f64 {
        let share = (step - self.first) / (self.last - self.first).max(1e-12);
        LEFT + share * (WIDTH - LEFT - 4.0)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        (HEIGHT - BELOW) - share * (HEIGHT - BELOW - 8.0)
    }

    /// Round values between the lowest and the highest.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 4.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

/// A number of at most four digits.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v >= 1e6 => format!("{:.1}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => trimmed(format!("{value:.2}")),
        v if v >= 0.001 => trimmed(format!("{value:.4}")),
        _ => format!("{value:.0e}"),
    }
}

fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text for HTML and its attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f64, f64)]) -> Curve {
        Curve { name: "a<b".into(), points: points.to_vec() }
    }

    #[test]
    fn a_chart_keeps_its_curve_inside_and_escapes_names() {
        let svg = chart("loss", &[curve(&[(1.0, 5.0), (2.0, 0.1), (3.0, 2.0)])]);
        assert!(svg.contains("a&lt;b"));
        let points = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            assert!((LEFT..=WIDTH).contains(&x.parse().unwrap()));
            assert!((0.0..=HEIGHT).contains(&y.parse().unwrap()));
        }
    }

    #[test]
    fn no_points_and_constant_points_are_fine() {
        assert_eq!(chart("empty", &[curve(&[])]), "");
        assert!(chart("flat", &[curve(&[(1.0, 2.0), (2.0, 2.0)])]).contains("polyline"));
        assert!(!chart("nan", &[curve(&[(1.0, 2.0), (2.0, 3.0)])]).contains("NaN"));
    }

    #[test]
    fn long_curves_are_thinned_by_their_means() {
        let points: Vec<(f64, f64)> = (0..3200).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let thin = thinned(&curve(&points));
        assert_eq!(thin.points.len(), POINTS);
        assert!(thin.points.iter().all(|(_, y)| (y - 0.5).abs() < 1e-9));
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(0.0, "0"), (1234567.0, "1.2M"), (0.25, "0.25"), (3.0, "3"), (12000.0, "12k")] {
            assert_eq!(short(value), text);
        }
    }
}
