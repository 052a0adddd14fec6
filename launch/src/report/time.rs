//! Where the time went, as a bar and a table.

use mks2_proto::goodput::{Activity, TimeSpent};

use super::Sources;
use super::html::section;
use super::text::escape;
use crate::goodput::shares;
use crate::units::{clock, percent};

/// What each activity is, for people.
fn explained(activity: Activity) -> &'static str {
    match activity {
        Activity::Useful => "steps that count",
        Activity::Data => "waiting for samples",
        Activity::Straggler => "waiting for slower workers",
        Activity::Recovery => "steps that lost a worker, or were computed again",
        Activity::Checkpoint => "waiting for a checkpoint",
        Activity::Coordinator => "waiting for a coordinator",
        Activity::Restart => "workers starting or missing",
        Activity::Evaluation => "evaluating",
    }
}

/// The section; nothing where no worker has said anything of its time.
pub(super) fn time(sources: &Sources) -> String {
    let books = &sources.past.books;
    let run = books.run();
    if books.workers().next().is_none() {
        return String::new();
    }
    let used: Vec<Activity> = shares(&run)
        .filter(|(activity, share)| *activity == Activity::Useful || *share > 0.0)
        .map(|(activity, _)| activity)
        .collect();
    let mut rows = row("all workers", &run, &used);
    for (member, spent) in books.workers() {
        rows += &row(&escape(member.as_str()), &spent, &used);
    }
    let headings: String = used
        .iter()
        .map(|activity| format!("<th class=n>{}", activity.name()))
        .collect();
    let content = format!(
        "{}<div class=wide><table class=stages><thead><tr><th>worker<th class=n>time{headings}</thead>\
         <tbody>{rows}</tbody></table></div>",
        bar(&run)
    );
    section(
        "Where the time went",
        "Every moment of every worker, by what it was spent on. Places that nobody had count as restarts.",
        &content,
    )
}

/// One bar of all parts, and what their colours mean.
fn bar(run: &TimeSpent) -> String {
    let parts: Vec<(Activity, f64)> = shares(run).filter(|(_, share)| *share > 0.0).collect();
    let pieces: String = parts
        .iter()
        .map(|(activity, share)| {
            let (name, width) = (activity.name(), 100.0 * share);
            format!("<i class=t-{name} style=\"width:{width:.3}%\"></i>")
        })
        .collect();
    let keys: String = parts
        .iter()
        .map(|(activity, share)| {
            let (name, share) = (activity.name(), percent(*share));
            let explained = explained(*activity);
            format!("<li><i class=t-{name}></i><b>{share}</b> {name}: {explained}")
        })
        .collect();
    format!("<div class=stack>{pieces}</div><ul class=parts>{keys}</ul>")
}

fn row(name: &str, spent: &TimeSpent, used: &[Activity]) -> String {
    let time = clock(std::time::Duration::from_micros(spent.total()));
    let cells: String = used
        .iter()
        .map(|activity| {
            let share = spent.share(*activity).unwrap_or_default();
            format!("<td class=n>{}", percent(share))
        })
        .collect();
    format!("<tr><td><b>{name}</b><td class=n>{time}{cells}")
}
