//! A plan for people.

use super::{Plan, StagePlan};
use crate::table::Table;
use crate::units::{bytes, count, plural, short};

/// What a worker on a CPU takes before it has a tensor: libtorch, its threads, the program. Measured.
const PROCESS_BYTES: u64 = 200 << 20;

pub(super) fn render(plan: &Plan) -> String {
    let parts = [
        heading(plan),
        stages(plan),
        parameters(plan),
        memory(plan),
        costs(plan),
        corpora(plan),
    ];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

fn heading(plan: &Plan) -> String {
    let workers = plural(plan.workers.into(), "worker");
    let lanes = plural(plan.lanes.into(), "lane");
    let dealt = match (plan.lanes_per_worker.first(), plan.lanes_per_worker.last()) {
        (Some(most), Some(least)) if most != least => format!("{most} or {least} each"),
        (Some(each), _) => format!("{each} each"),
        _ => String::new(),
    };
    let threads = plural(plan.threads.into(), "thread");
    let mode = match plan.reduction {
        mks2_proto::job::Reduction::Exact => "exact sums",
        mks2_proto::job::Reduction::Fast => "fast sums",
    };
    format!(
        "{}: {} of {} steps\n{workers}, {lanes} ({dealt}), device {}, {threads} per worker, {mode}\n",
        plan.job,
        plural(plan.stages.len() as u64, "stage"),
        count(plan.total_steps),
        plan.device,
    )
}

fn stages(plan: &Plan) -> String {
    let mut table = Table::new(&[
        "stage",
        "kind",
        ">steps",
        ">batch",
        ">per lane",
        ">samples",
        "data (passes)",
    ]);
    for stage in &plan.stages {
        let kind = format!("{:?}", stage.kind).to_lowercase();
        let training = stage.steps > 0;
        let when_training = |text: String| if training { text } else { "-".into() };
        table.row([
            stage.name.clone(),
            kind,
            when_training(count(stage.steps)),
            when_training(count(stage.batch_size.into())),
            when_training(count(stage.microbatch.into())),
            when_training(count(stage.samples)),
            data(stage),
        ]);
    }
    table.render()
}

fn data(stage: &StagePlan) -> String {
    let words = stage.sources.iter().map(|source| match source.epochs {
        Some(epochs) => format!("{} ({epochs:.1})", source.corpus),
        None => format!("{} (?)", source.corpus),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn parameters(plan: &Plan) -> String {
    let mut table = Table::new(&["parameters", "module", ">count", "", ">FLOPs/token"]);
    for stage in &plan.stages {
        for (index, module) in stage.parameters.iter().enumerate() {
            let first = index == 0;
            table.row([
                if first {
                    stage.name.clone()
                } else {
                    String::new()
                },
                module.module.clone(),
                count(module.parameters),
                if module.trained { "trained" } else { "frozen" }.to_owned(),
                if first {
                    short(stage.flops_per_token)
                } else {
                    String::new()
                },
            ]);
        }
    }
    table.render()
}

fn memory(plan: &Plan) -> String {
    let mut table = Table::new(&[
        "memory per worker",
        ">weights",
        ">gradients",
        ">moments",
        ">sums",
        ">activations",
        ">total",
    ]);
    for stage in plan.stages.iter().filter(|stage| stage.steps > 0) {
        let memory = &stage.memory;
        let sizes = [
            memory.weights,
            memory.gradients,
            memory.moments,
            memory.sums,
            memory.activations,
            memory.total,
        ];
        let name = std::iter::once(stage.name.clone());
        table.row(name.chain(sizes.into_iter().map(bytes)));
    }
    format!(
        "{}activations are an estimate; libtorch and the process itself are not counted: about {} \
         more on a CPU\n",
        table.render(),
        bytes(PROCESS_BYTES)
    )
}

fn costs(plan: &Plan) -> String {
    let mut table = Table::new(&["costs", ">FLOPs/step", ">FLOPs", ">checkpoint"]);
    for stage in plan.stages.iter().filter(|stage| stage.steps > 0) {
        table.row([
            stage.name.clone(),
            short(stage.flops_per_step),
            short(stage.flops_per_step.saturating_mul(stage.steps)),
            bytes(stage.checkpoint_bytes),
        ]);
    }
    table.render()
}

fn corpora(plan: &Plan) -> String {
    let mut table = Table::new(&["corpus", ">rows", ">read per pass", "where"]);
    for corpus in &plan.corpora {
        let place = match &corpus.problem {
            Some(problem) => format!("{} ({problem})", corpus.url),
            None => corpus.url.clone(),
        };
        table.row([
            corpus.name.clone(),
            corpus.rows.map_or_else(|| "?".into(), count),
            corpus.bytes.map_or_else(|| "?".into(), bytes),
            place,
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}
