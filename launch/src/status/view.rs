//! A live status as text and as JSON.

use mks2_proto::goodput::{Activity, TimeSpent};
use mks2_proto::v1::{self, MemberStatus, Phase, RunState, StatusResponse};
use serde_json::{Value, json};

use crate::goodput::{self, WORTH_A_WORD};
use crate::table::Table;
use crate::units::{count, percent};

/// The state in one word.
pub(super) fn state_word(state: RunState) -> &'static str {
    match state {
        RunState::Unspecified => "unknown",
        RunState::WaitingForMembers => "waiting",
        RunState::Running => "running",
        RunState::Stopping => "stopping",
        RunState::Stopped => "stopped",
        RunState::Finished => "finished",
        RunState::Failed => "failed",
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "unknown",
        Phase::Starting => "starting",
        Phase::Loading => "loading",
        Phase::Gathering => "gathering",
        Phase::Computing => "computing",
        Phase::Reducing => "reducing",
        Phase::Voting => "voting",
        Phase::Updating => "updating",
        Phase::Checkpointing => "checkpointing",
        Phase::Evaluating => "evaluating",
        Phase::Regrouping => "regrouping",
        Phase::Auditing => "auditing",
    }
}

/// Lanes as stretches: `0-3, 6`.
fn stretches(lanes: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for lane in lanes {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == *lane => *end = *lane,
            _ => parts.push((*lane, *lane)),
        }
    }
    let words = parts.into_iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

pub(super) fn text(status: &StatusResponse) -> String {
    let mut lines = vec![
        format!("run         {} (job '{}')", status.run_id, status.job_name),
        format!("directory   {}", status.run_url),
        format!(
            "state       {}: {}",
            state_word(status.state()),
            status.reason
        ),
        format!(
            "step        {} of {}",
            count(status.step),
            count(status.total_steps)
        ),
    ];
    if let Some(stage) = &status.stage {
        let (done, of) = (
            status.step.saturating_sub(stage.first_step),
            stage.last_step.saturating_sub(stage.first_step),
        );
        lines.push(format!(
            "stage       {}, {} of {}",
            stage.stage,
            count(done),
            count(of)
        ));
    }
    if let Some(metrics) = &status.metrics {
        lines.push(format!("loss        {:.4}", metrics.loss));
    }
    lines.push(match &status.latest_checkpoint {
        Some(latest) => format!(
            "checkpoint  step {} (stage {})",
            count(latest.step),
            latest.stage
        ),
        None => "checkpoint  none yet".into(),
    });
    lines.push(format!(
        "generation  {} (term {})",
        status.generation, status.term
    ));
    lines.push(workers(status));
    let spent = spent(status.spent);
    if spent.total() > 0 {
        lines.push(format!("time        {}", goodput::words(&spent)));
    }
    lines.extend(status.notices.iter().map(|notice| {
        let step = count(notice.step);
        format!("after step {step}: {}: {}", notice.what, notice.why)
    }));
    let members = members(&status.members, &status.candidates);
    let times = times(&status.members);
    format!("{}\n\n{members}\n{times}", lines.join("\n"))
}

fn spent(wire: Option<v1::TimeSpent>) -> TimeSpent {
    wire.map(TimeSpent::from).unwrap_or_default()
}

/// How many there are and are to be, and who came and went.
fn workers(status: &StatusResponse) -> String {
    let workers = status.members.len();
    let mut words = match status.wanted_members {
        0 => format!("workers     {workers}"),
        wanted => format!("workers     {workers} of {wanted}"),
    };
    for (number, what) in [
        (status.members_lost, "lost"),
        (status.members_joined, "joined"),
        (status.members_left, "let go"),
    ] {
        if number > 0 {
            words.push_str(&format!(", {number} {what}"));
        }
    }
    words
}

/// Members by rank, then those who prepare to take part.
fn members(members: &[MemberStatus], candidates: &[MemberStatus]) -> String {
    let mut table = Table::new(&[
        ">rank", "worker", "host", "device", "lanes", ">step", "phase", ">silent",
    ]);
    let joins = [false, true];
    let groups = joins.into_iter().zip([members, candidates]);
    for (joins, member) in groups.flat_map(|(j, group)| group.iter().map(move |m| (j, m))) {
        let phase = match member.collective {
            _ if joins => "joining".to_owned(),
            0 => phase_word(member.phase()).to_owned(),
            number => format!("{} (collective {number})", phase_word(member.phase())),
        };
        let silent = format!("{:.1} s", member.silent_ms as f64 / 1000.0);
        table.row([
            match joins {
                true => "-".into(),
                false => member.rank.to_string(),
            },
            member.member_id.clone(),
            member.host.clone(),
            member.device.clone(),
            stretches(&member.lanes),
            count(member.step),
            phase,
            if member.connected {
                silent
            } else {
                "gone".into()
            },
        ]);
    }
    table.render()
}

/// Where each member's time has gone, without what nobody has spent any on.
fn times(members: &[MemberStatus]) -> String {
    let all: Vec<_> = members.iter().map(|one| spent(one.spent)).collect();
    let is_worth_a_word = |activity: &Activity| {
        let shares = all.iter().filter_map(|spent| spent.share(*activity));
        *activity == Activity::Useful || shares.fold(0.0, f64::max) >= WORTH_A_WORD
    };
    let shown: Vec<_> = Activity::ALL.into_iter().filter(is_worth_a_word).collect();
    let names = shown.iter().map(|activity| format!(">{}", activity.name()));
    let headings: Vec<_> = ["worker".to_owned()].into_iter().chain(names).collect();
    let mut table = Table::new(&headings.iter().map(String::as_str).collect::<Vec<_>>());
    for (member, spent) in members.iter().zip(&all) {
        let shares = shown.iter().map(|activity| spent.share(*activity));
        let shares = shares.map(|share| share.map(percent).unwrap_or_default());
        table.row([member.member_id.clone()].into_iter().chain(shares));
    }
    match all.iter().any(|spent| spent.total() > 0) {
        true => table.render(),
        false => String::new(),
    }
}

pub(super) fn json(status: &StatusResponse) -> Value {
    json!({
        "live": true,
        "run_id": status.run_id,
        "job": status.job_name,
        "run_url": status.run_url,
        "state": state_word(status.state()),
        "reason": status.reason,
        "term": status.term,
        "generation": status.generation,
        "step": status.step,
        "total_steps": status.total_steps,
        "lanes": status.lanes,
        "stage": status.stage.as_ref().map(|stage| json!({
            "name": stage.stage, "first_step": stage.first_step, "last_step": stage.last_step,
        })),
        "loss": status.metrics.as_ref().map(|metrics| metrics.loss),
        "checkpoint": status.latest_checkpoint.as_ref().map(|latest| json!({
            "step": latest.step, "stage": latest.stage, "final": latest.r#final,
        })),
        "members": status.members.iter().map(member_json).collect::<Value>(),
        "stalled": Some(&status.stalled).filter(|stalled| !stalled.is_empty()),
        "candidates": status.candidates.iter().map(member_json).collect::<Value>(),
        "workers": { "min": status.min_members, "wanted": status.wanted_members },
        "members_lost": status.members_lost,
        "members_joined": status.members_joined,
        "members_left": status.members_left,
        "checkpoints_skipped": status.checkpoints_skipped,
        "goodput": goodput::json(&spent(status.spent)),
        "notices": status.notices.iter().map(|notice| json!({
            "step": notice.step, "what": notice.what, "why": notice.why,
            "lost": Some(&notice.lost_member).filter(|lost| !lost.is_empty()),
        })).collect::<Value>(),
        "failure": status.failure.as_ref().map(|failed| json!({
            "error": failed.what, "why": failed.why, "fix": failed.cure,
            "exit_code": failed.exit_code,
        })),
    })
}

fn member_json(member: &MemberStatus) -> Value {
    json!({
        "rank": member.rank,
        "member": member.member_id,
        "host": member.host,
        "device": member.device,
        "lanes": member.lanes,
        "step": member.step,
        "phase": phase_word(member.phase()),
        "collective": member.collective,
        "silent_ms": member.silent_ms,
        "connected": member.connected,
        "goodput": goodput::json(&spent(member.spent)),
    })
}

#[cfg(test)]
mod tests {
    use mks2_proto::v1::StageChanged;

    use super::*;

    #[test]
    fn lanes_are_shown_as_stretches() {
        assert_eq!(stretches(&[0, 1, 2, 3, 6]), "0-3, 6");
        assert_eq!(stretches(&[]), "");
    }

    #[test]
    fn a_status_names_stage_step_and_members() {
        let status = StatusResponse {
            run_id: "emoji-1".into(),
            state: RunState::Running.into(),
            step: 120,
            total_steps: 400,
            stage: Some(StageChanged {
                stage: "memory".into(),
                first_step: 100,
                last_step: 300,
            }),
            members: vec![MemberStatus {
                member_id: "worker-0".into(),
                lanes: vec![0, 1],
                phase: Phase::Reducing.into(),
                collective: 7,
                connected: true,
                spent: Some(v1::TimeSpent {
                    useful_us: 900_000,
                    data_us: 100_000,
                    ..v1::TimeSpent::default()
                }),
                ..MemberStatus::default()
            }],
            ..StatusResponse::default()
        };
        let shown = text(&status);
        for words in [
            "step        120 of 400",
            "memory, 20 of 200",
            "reducing (collective 7)",
            "worker    useful    data\nworker-0  90.0 %  10.0 %\n",
        ] {
            assert!(shown.contains(words), "{words} in\n{shown}");
        }
        assert_eq!(json(&status)["members"][0]["phase"], "reducing");
    }
}
