//! The result of `mks2 chaos`, as text and as JSON.

use std::path::Path;

use mks2_coordinator::ledger::Violation;
use mks2_proto::failure::Failure;
use serde::Serialize;

use super::schedule::{Planned, Rhythm};
use super::score::{Kind, Score, Times};
use crate::table::Table;
use crate::units::{count, percent, plural};

/// Everything that is told.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) command: Vec<String>,
    pub(super) seed: u64,
    pub(super) workers: u32,
    pub(super) rhythm: Rhythm,
    pub(super) plan: Vec<Planned>,
    /// The machine's load at the beginning and at the end.
    pub(super) load_under_chaos: [f64; 2],
    pub(super) load_of_quiet_run: [f64; 2],
    pub(super) ledger_holds: bool,
    pub(super) violations: Vec<Violation>,
    pub(super) score: Score,
}

impl Report {
    fn is_clean(&self) -> bool {
        self.ledger_holds && self.score.is_clean()
    }
}

/// For people.
pub(super) fn text(report: &Report) -> String {
    let score = &report.score;
    [faults(score), losses(score), rates(report), ending(report)].join("\n")
}

fn faults(score: &Score) -> String {
    let mut table = Table::new(&[
        "fault",
        ">times",
        ">lost",
        ">noticed, median",
        ">p99",
        ">next step, median",
        ">p99",
        ">without coordinator",
    ]);
    let cells = |times: &Option<Times>| match times {
        Some(times) => [times.median_seconds, times.p99_seconds].map(|t| format!("{t:.2} s")),
        None => ["".to_owned(), String::new()],
    };
    for (name, kind) in &score.faults {
        let Kind {
            count: number,
            lost,
            headless,
            noticed,
            recovered,
        } = kind;
        let mut row = vec![(*name).to_owned(), count(*number), count(*lost)];
        row.extend(cells(noticed));
        row.extend(cells(recovered));
        row.push(count(*headless));
        table.row(row);
    }
    table.render()
}

fn losses(score: &Score) -> String {
    let mut table = Table::new(&["possible steps that were not done", ">share"]);
    let mut lost: Vec<_> = score.lost_to.iter().collect();
    lost.sort_by(|a, b| b.1.total_cmp(a.1));
    for (cause, share) in lost {
        table.row([(*cause).to_owned(), format!("{:.2} %", share * 100.0)]);
    }
    table.render()
}

fn rates(report: &Report) -> String {
    let mut table = Table::new(&["quiet run", ">workers", ">steps", ">seconds per step"]);
    for rate in &report.score.rates {
        table.row([
            rate.stage.clone(),
            count(rate.workers.into()),
            count(rate.steps),
            format!("{:.3}", rate.step_seconds),
        ]);
    }
    let load = |[from, to]: [f64; 2]| format!("{from:.1} to {to:.1}");
    format!(
        "{}\nload of the machine: {} under chaos, {} in the quiet run\n",
        table.render(),
        load(report.load_under_chaos),
        load(report.load_of_quiet_run)
    )
}

fn ending(report: &Report) -> String {
    let score = &report.score;
    let mut text = format!(
        "goodput         {}: {} useful steps of {:.0} that {:.2} workers alive could have made in \
         {:.0} s at the quiet run's rates\n",
        percent(score.goodput),
        count(score.steps_useful),
        score.steps_possible,
        score.workers_alive,
        score.scored_seconds
    );
    if let Some(share) = score.goodput_at_own_rate {
        text.push_str(&format!(
            "                {} at the rates of its own undisturbed steps, 30 s before and after\n",
            percent(share)
        ));
    }
    text.push_str(&format!(
        "computed again  {}, and up to {} of steps in progress\n",
        plural(score.steps_again, "step"),
        plural(score.lanes_again, "lane")
    ));
    text.push_str(&format!(
        "rows            {} lost, {} doubled\n",
        count(score.rows_lost),
        count(score.rows_doubled)
    ));
    text.push_str(&format!(
        "bits            {} different, in the losses of {} and the weights of {}\n",
        count(score.bits.different),
        plural(score.bits.steps_compared, "step"),
        plural(score.bits.checkpoints_compared, "checkpoint")
    ));
    text.push_str(match report.ledger_holds {
        true => "ledger          holds\n",
        false => "ledger          does not hold\n",
    });
    for ended in &score.ended_by_itself {
        text.push_str(&format!("by itself       {ended}\n"));
    }
    text
}

/// The failure of a run that is not like the quiet one.
pub(super) fn verdict(report: &Report, path: &Path) -> Result<(), Failure> {
    if report.is_clean() {
        return Ok(());
    }
    let score = &report.score;
    let ledger = report.violations.first();
    let ledger = ledger.map_or_else(String::new, |first| {
        format!("; the ledger: {}: {}", first.place, first.what)
    });
    Err(Failure::checkpoint(
        "the run under chaos is not the quiet one",
        format!(
            "{} rows lost, {} doubled, {} steps or checkpoints different{ledger}",
            count(score.rows_lost),
            count(score.rows_doubled),
            count(score.bits.different)
        ),
        format!(
            "report it with {}, the logs next to it and --seed {}",
            path.display(),
            report.seed
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chaos::capacity::Measurement;
    use crate::chaos::score::Bits;

    fn report() -> Report {
        let second = Duration::from_secs(1);
        Report {
            command: Vec::new(),
            seed: 7,
            workers: 4,
            rhythm: Rhythm {
                kill: second,
                stop: second,
                cut: second,
                scale: second,
                coordinator: second,
                length: second,
            },
            plan: Vec::new(),
            load_under_chaos: [0.5, 4.0],
            load_of_quiet_run: [4.0, 4.0],
            ledger_holds: true,
            violations: Vec::new(),
            score: Score {
                goodput: 0.975,
                goodput_at_own_rate: Some(0.981),
                scored_seconds: 600.0,
                steps_useful: 1_560,
                steps_possible: 1_600.0,
                workers_alive: 3.9,
                lost_to: [("kill", 0.02), ("pause", 0.005)].into(),
                faults: [("kill", Kind::default())].into(),
                ended_by_itself: vec!["0:12 worker-1: it ended".into()],
                steps_again: 0,
                lanes_again: 80,
                rows_lost: 0,
                rows_doubled: 0,
                bits: Bits::default(),
                rates: vec![Measurement {
                    stage: "memory".into(),
                    workers: 4,
                    steps: 40,
                    step_seconds: 0.375,
                }],
                outcomes: Vec::new(),
            },
        }
    }

    #[test]
    fn the_parts_of_the_loss_and_what_was_compared_are_shown() {
        let text = text(&report());
        for words in [
            "kill                               2.00 %",
            "memory           4     40             0.375",
            "load of the machine: 0.5 to 4.0 under chaos",
            "goodput         97.5 %: 1,560 useful steps of 1600",
            "98.1 % at the rates of its own undisturbed steps",
            "computed again  0 steps, and up to 80 lanes",
            "by itself       0:12 worker-1: it ended",
        ] {
            assert!(text.contains(words), "'{words}' is not in:\n{text}");
        }
        assert!(verdict(&report(), Path::new("chaos.json")).is_ok());
    }

    #[test]
    fn whatever_differs_fails_with_the_seed() {
        let mut spoiled = [report(), report(), report(), report()];
        spoiled[0].score.rows_lost = 64;
        spoiled[1].score.rows_doubled = 64;
        spoiled[2].score.bits.different = 1;
        spoiled[3].ledger_holds = false;
        for report in &spoiled {
            let failure = verdict(report, Path::new("out/chaos.json")).expect_err("it differs");
            assert_eq!(failure.exit.code(), 8);
            assert!(failure.cure.contains("--seed 7"), "{failure}");
            assert!(failure.cure.contains("out/chaos.json"), "{failure}");
        }
    }
}
