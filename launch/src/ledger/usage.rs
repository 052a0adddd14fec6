//! How often the committed steps have used the rows of each corpus: the plan, asked and counted.

use std::ops::Range;

use mks2_coordinator::ledger::{Leg, Steps};
use mks2_dataset::plan::Plan;
use serde::Serialize;

/// Rows of a corpus up to which every one is counted for itself (4 bytes each).
const MAX_COUNTED: u64 = 1 << 27;

/// What a stage has used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct StageUsage {
    pub(super) stage: String,
    /// Steps of the stage.
    pub(super) steps: u64,
    /// Those that are committed.
    pub(super) committed: u64,
    /// Rows that its steps use in all.
    pub(super) rows_planned: u64,
    /// Rows that the committed steps have used.
    pub(super) rows_used: u64,
    /// By corpus; empty where the plan cannot be known.
    pub(super) corpora: Vec<CorpusUsage>,
}

/// What a stage has used of a corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct CorpusUsage {
    pub(super) corpus: String,
    /// Rows of the corpus.
    pub(super) rows: u64,
    /// Uses of its rows.
    pub(super) used: u64,
    /// Uses of the row that was used least; absent where rows are too many to be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) times_min: Option<u32>,
    /// Uses of the row that was used most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) times_max: Option<u32>,
    /// Rows of the last pass, if it is not complete.
    pub(super) rows_of_last_pass: u64,
}

/// Counts what the committed steps of a stage have used.
pub(super) fn of_stage(leg: &Leg, steps: &Steps, plan: Option<&Plan>) -> StageUsage {
    let committed = steps.within(leg.before, leg.last_step());
    StageUsage {
        stage: leg.name.clone(),
        steps: leg.steps,
        committed,
        rows_planned: leg.steps * leg.batch,
        rows_used: committed * leg.batch,
        corpora: plan.map_or_else(Vec::new, |plan| count(leg, &stretches(leg, steps), plan)),
    }
}

/// The committed steps of a stage, counted from 0 within it, as unbroken stretches: one, as long as
/// none is missing.
fn stretches(leg: &Leg, steps: &Steps) -> Vec<Range<u64>> {
    let mut stretches: Vec<Range<u64>> = Vec::new();
    let behind = steps.committed.range(leg.before + 1..);
    for (step, _) in behind.take_while(|(step, _)| **step <= leg.last_step()) {
        let step = step - leg.before - 1;
        match stretches.last_mut() {
            Some(last) if last.end == step => last.end = step + 1,
            _ => stretches.push(step..step + 1),
        }
    }
    stretches
}

fn count(leg: &Leg, stretches: &[Range<u64>], plan: &Plan) -> Vec<CorpusUsage> {
    let shapes = (0_u16..).zip(plan.shapes());
    let mut corpora: Vec<CorpusUsage> = shapes
        .zip(&leg.corpora)
        .map(|((source, shape), corpus)| {
            let drawn = |steps| plan.drawn(source, steps);
            let used = stretches.iter().map(|s| drawn(s.end) - drawn(s.start));
            let used: u64 = used.sum();
            CorpusUsage {
                corpus: corpus.clone(),
                rows: shape.rows,
                used,
                times_min: None,
                times_max: None,
                rows_of_last_pass: used % shape.rows,
            }
        })
        .collect();
    for (times, corpus) in times(stretches, plan).iter().zip(&mut corpora) {
        corpus.times_min = times.iter().min().copied();
        corpus.times_max = times.iter().max().copied();
    }
    corpora
}

/// Uses of every row by source; none of a source with too many rows.
fn times(stretches: &[Range<u64>], plan: &Plan) -> Vec<Vec<u32>> {
    let room = |rows: u64| match rows <= MAX_COUNTED {
        true => usize::try_from(rows).unwrap_or_default(),
        false => 0,
    };
    let mut times: Vec<Vec<u32>> = plan
        .shapes()
        .map(|shape| vec![0; room(shape.rows)])
        .collect();
    if times.iter().all(Vec::is_empty) {
        return times;
    }
    for stretch in stretches {
        for row in (0..plan.lanes()).flat_map(|lane| plan.rows_over(stretch.clone(), lane)) {
            let of_source = times.get_mut(usize::from(row.source));
            if let Some(count) = of_source.and_then(|times| times.get_mut(row.row as usize)) {
                *count += 1;
            }
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use mks2_coordinator::ledger::StepLine;
    use mks2_dataset::plan::CorpusShape;
    use mks2_proto::ids::Generation;

    use super::*;

    /// A stage behind 5 steps of another one, of 4 lanes with 4 rows each.
    fn leg() -> Leg {
        Leg {
            name: "memory".into(),
            from: Vec::new(),
            before: 5,
            steps: 30,
            batch: 16,
            corpora: vec!["a".into(), "b".into()],
        }
    }

    fn plan(weights: [f64; 2]) -> Plan {
        let shape = |rows| CorpusShape {
            rows,
            group_rows: 7,
        };
        let sources = [(shape(50), weights[0]), (shape(20), weights[1])];
        Plan::new(1, "memory", &sources, 4, 4).expect("a plan")
    }

    fn steps(committed: impl Iterator<Item = u64>) -> Steps {
        let line = |step| StepLine {
            step,
            stage: String::new(),
            samples: 0,
            workers: 1,
            generation: Generation(1),
        };
        Steps {
            committed: committed.map(|step| (step, line(step))).collect(),
            ..Steps::default()
        }
    }

    #[test]
    fn rows_are_used_as_often_as_passes_are_made() {
        let usage = of_stage(&leg(), &steps(1..=25), Some(&plan([3.0, 1.0])));
        assert_eq!(
            (usage.committed, usage.rows_planned, usage.rows_used),
            (20, 480, 320)
        );
        let [a, b] = &usage.corpora[..] else {
            panic!("two corpora");
        };
        assert_eq!((a.used, b.used), (240, 80));
        assert_eq!(
            (a.times_min, a.times_max, a.rows_of_last_pass),
            (Some(4), Some(5), 40)
        );
        assert_eq!(
            (b.times_min, b.times_max, b.rows_of_last_pass),
            (Some(4), Some(4), 0)
        );
    }

    #[test]
    fn missing_steps_and_other_stages_are_not_counted() {
        let some = steps((1..=12).filter(|step| *step != 8));
        assert_eq!(stretches(&leg(), &some), [0..2, 3..7]);
        let usage = of_stage(&leg(), &some, Some(&plan([1.0, 1.0])));
        let used: u64 = usage.corpora.iter().map(|corpus| corpus.used).sum();
        assert_eq!((used, usage.rows_used), (96, 96));
        let counted: u32 = times(&stretches(&leg(), &some), &plan([1.0, 1.0]))
            .iter()
            .flatten()
            .sum();
        assert_eq!(counted, 96, "counted one by one it is the same");
        let none = of_stage(&leg(), &steps(1..=5), None);
        assert_eq!(
            (none.committed, none.rows_used, none.corpora.len()),
            (0, 0, 0)
        );
    }
}
