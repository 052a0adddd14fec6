//! `mks2 memory diff`: two memories side by side, their cards and their weights.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use mks2_dataset::memory::card::{Card, Group};
use mks2_dataset::memory::{self, Artefact, Tensor};
use mks2_proto::failure::Failure;
use serde::Serialize;

use super::{DiffArgs, answer, show};
use crate::output::Output;
use crate::table::Table;

/// What differs.
#[derive(Debug, Serialize)]
struct Difference {
    a: String,
    b: String,
    /// Both are the same memory.
    same: bool,
    /// Lines of the card that differ.
    card: Vec<Line>,
    /// Weights, block by block, and what was trained beside the memory.
    weights: Vec<Distance>,
    /// Groups whose weights cannot be compared, and why.
    incomparable: Vec<String>,
}

/// A line of the cards.
#[derive(Debug, Serialize)]
struct Line {
    what: &'static str,
    a: String,
    b: String,
}

/// How far weights are apart.
#[derive(Debug, Serialize)]
struct Distance {
    what: String,
    numbers: u64,
    /// `|a - b| / |a|`; absent: `a` is zero, and `b` is not.
    distance: Option<f64>,
    /// Of the angle between them; absent: one of them is zero.
    cosine: Option<f64>,
}

/// Sums over the numbers of two tensors.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    numbers: u64,
    a: f64,
    b: f64,
    both: f64,
    apart: f64,
}

/// Compares two memories.
///
/// # Errors
/// One that cannot be used (exit 8), storage (5).
pub(super) async fn run(args: &DiffArgs, output: &Output) -> Result<(), Failure> {
    let (a, b) = (
        Artefact::open(&args.a).await?,
        Artefact::open(&args.b).await?,
    );
    let mut difference = Difference {
        a: a.id.clone(),
        b: b.id.clone(),
        same: a.id == b.id,
        card: lines(&a.card, &b.card),
        weights: Vec::new(),
        incomparable: Vec::new(),
    };
    for group in Group::ALL {
        match mismatch(&a.card, &b.card, group) {
            Some(why) => difference.incomparable.push(why),
            None => difference.weights.extend(distances(&a, &b, group).await?),
        }
    }
    answer(args.json, &difference, || render(&difference), output)
}

/// A line of a card, in words.
type Word = fn(&Card) -> String;

/// Lines of the cards that differ.
fn lines(a: &Card, b: &Card) -> Vec<Line> {
    let words: [(&'static str, Word); 8] = [
        ("name", |card| card.name.clone()),
        ("licence", show::licence),
        ("network", show::network),
        ("base", show::base),
        ("corpora", show::corpora),
        ("trained", show::trained),
        ("losses", show::losses),
        ("made with", |card| card.made_with.clone()),
    ];
    let lines = words.into_iter().map(|(what, word)| Line {
        what,
        a: word(a),
        b: word(b),
    });
    lines.filter(|line| line.a != line.b).collect()
}

/// Why the weights of a group have no distance.
fn mismatch(a: &Card, b: &Card, group: Group) -> Option<String> {
    let of = |card: &Card| -> BTreeMap<String, Vec<usize>> {
        let entries = card.entries().filter(|(of, _)| *of == group);
        entries
            .map(|(_, entry)| (entry.name.clone(), entry.shape.clone()))
            .collect()
    };
    let (ours, theirs) = (of(a), of(b));
    if ours == theirs {
        return None;
    }
    let name = group.name();
    let first = ours
        .iter()
        .find(|(name, shape)| theirs.get(*name) != Some(shape));
    let differs = match first {
        Some((tensor, shape)) => match theirs.get(tensor) {
            Some(other) => format!("'{tensor}' is {shape:?} in one and {other:?} in the other"),
            None => format!("the other has no '{tensor}'"),
        },
        None => format!("the other has {} tensors more", theirs.len() - ours.len()),
    };
    Some(format!(
        "the weights of the {name} cannot be compared: {differs}"
    ))
}

/// Distances of the weights of a group: of each block, or of all together.
async fn distances(a: &Artefact, b: &Artefact, group: Group) -> memory::Result<Vec<Distance>> {
    let mut sums: BTreeMap<(usize, String), Sums> = BTreeMap::new();
    let mut ours = std::pin::pin!(a.tensors_of(group));
    let mut theirs = std::pin::pin!(b.tensors_of(group));
    // Names and their order are those of both cards.
    while let (Some(one), Some(other)) = (ours.try_next().await?, theirs.try_next().await?) {
        sums.entry(place(group, &one.name))
            .or_default()
            .add(&one, &other);
    }
    let distances = sums
        .into_iter()
        .map(|((_, what), sums)| sums.distance(what));
    Ok(distances.collect())
}

/// What a tensor is counted with, and where that stands.
fn place(group: Group, name: &str) -> (usize, String) {
    let block = name
        .strip_prefix("layers.")
        .and_then(|rest| rest.split('.').next());
    match block.and_then(|block| block.parse::<usize>().ok()) {
        Some(block) => (block, format!("block {}", block + 1)),
        None => (0, group.name().to_owned()),
    }
}

impl Sums {
    fn add(&mut self, one: &Tensor, other: &Tensor) {
        for (a, b) in one.numbers().zip(other.numbers()) {
            let (a, b) = (f64::from(a), f64::from(b));
            self.numbers += 1;
            self.a += a * a;
            self.b += b * b;
            self.both += a * b;
            self.apart += (a - b) * (a - b);
        }
    }

    fn distance(self, what: String) -> Distance {
        let finite = |number: f64| number.is_finite().then_some(number);
        let distance = match self.apart == 0.0 {
            true => Some(0.0),
            false => finite((self.apart / self.a).sqrt()),
        };
        Distance {
            what,
            numbers: self.numbers,
            distance,
            cosine: finite(self.both / (self.a * self.b).sqrt()),
        }
    }
}

fn render(difference: &Difference) -> String {
    let mut text = match difference.same {
        true => format!("both are the memory {}\n", difference.a),
        false => format!("a  {}\nb  {}\n", difference.a, difference.b),
    };
    if !difference.card.is_empty() {
        let mut table = Table::new(&["card", "a", "b"]);
        for line in &difference.card {
            table.row([line.what, &line.a, &line.b]);
        }
        text = text + "\n" + &table.render();
    }
    if !difference.weights.is_empty() {
        let mut table = Table::new(&["weights", ">numbers", ">distance", ">cosine"]);
        let number = |number: Option<f64>| number.map_or_else(|| "-".into(), |n| format!("{n:.6}"));
        for one in &difference.weights {
            table.row([
                one.what.clone(),
                crate::units::count(one.numbers),
                number(one.distance),
                number(one.cosine),
            ]);
        }
        text = text + "\n" + &table.render();
    }
    let reasons = difference.incomparable.iter();
    text + &reasons.map(|why| format!("\n{why}\n")).collect::<String>()
}
