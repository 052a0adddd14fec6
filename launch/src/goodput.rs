//! Where the time of a run went, in words and as JSON.

use mks2_coordinator::books::Books;
use mks2_proto::goodput::{Activity, TimeSpent};
use serde_json::{Map, Value, json};

use crate::units::percent;

/// Less than this part of the time is not worth a word.
pub(crate) const WORTH_A_WORD: f64 = 0.0005;

/// `useful 93.1 %, straggler 4.0 %, restart 2.9 %`: the useful part, then the others by their size.
pub(crate) fn words(spent: &TimeSpent) -> String {
    let mut parts: Vec<_> = shares(spent).collect();
    // Useful stays where it is, in front.
    if let Some(others) = parts.get_mut(1..) {
        others.sort_by(|a, b| b.1.total_cmp(&a.1));
    }
    let told = parts
        .into_iter()
        .filter(|(activity, share)| *activity == Activity::Useful || *share >= WORTH_A_WORD);
    let told = told.map(|(activity, share)| format!("{} {}", activity.name(), percent(share)));
    told.collect::<Vec<_>>().join(", ")
}

/// Seconds in all, and the part of each activity in them: together 1. Null where no time has gone.
pub(crate) fn json(spent: &TimeSpent) -> Value {
    let mut parts: Map<String, Value> = shares(spent)
        .map(|(activity, share)| (activity.name().to_owned(), json!(share)))
        .collect();
    if parts.is_empty() {
        return Value::Null;
    }
    parts.insert("seconds".into(), json!(spent.total() as f64 / 1e6));
    Value::Object(parts)
}

/// The same for a run and each of its workers; none before a worker has said anything.
pub(crate) fn of_run(books: &Books) -> Option<Value> {
    let workers: Map<String, Value> = books
        .workers()
        .map(|(member, spent)| (member.to_string(), json(&spent)))
        .collect();
    (!workers.is_empty()).then(|| json!({ "run": json(&books.run()), "workers": workers }))
}

/// Every activity with its part of the time.
pub(crate) fn shares(spent: &TimeSpent) -> impl Iterator<Item = (Activity, f64)> {
    let all = Activity::ALL.into_iter();
    all.filter_map(|activity| Some((activity, spent.share(activity)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent() -> TimeSpent {
        let mut spent = TimeSpent::ZERO;
        spent.add(Activity::Useful, 90_000_000);
        spent.add(Activity::Data, 1_000_000);
        spent.add(Activity::Restart, 8_990_000);
        spent.add(Activity::Recovery, 10_000);
        spent
    }

    #[test]
    fn the_useful_part_comes_first_and_trifles_go_untold() {
        assert_eq!(words(&spent()), "useful 90.0 %, restart 9.0 %, data 1.0 %");
        assert_eq!(words(&TimeSpent::ZERO), "");
    }

    #[test]
    fn all_parts_together_are_the_whole() {
        let json = json(&spent());
        let parts = Activity::ALL.map(|activity| json[activity.name()].as_f64().expect("a share"));
        assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(json["seconds"], 100.0);
        assert_eq!(super::json(&TimeSpent::ZERO), Value::Null);
    }
}
