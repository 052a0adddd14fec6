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
        gpus(plan),
        costs(plan),
        corpora(plan),
        models(plan),
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
        let kind = stage.kind.name().to_owned();
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
    let training = || plan.stages.iter().filter(|stage| stage.steps > 0);
    let Some(first) = training().next() else {
        return String::new();
    };
    let kinds = first.memory.kinds().map(|(name, _)| format!(">{name}"));
    let headings = std::iter::once("memory per worker").chain(kinds.iter().map(String::as_str));
    let mut table = Table::new(&headings.chain([">total"]).collect::<Vec<_>>());
    for stage in training() {
        let sizes = stage.memory.kinds().map(|(_, size)| size);
        let sizes = sizes.into_iter().chain([stage.memory.total]).map(bytes);
        table.row(std::iter::once(stage.name.clone()).chain(sizes));
    }
    format!(
        "{}activations are an estimate, of a lane at a time; libtorch and the process itself are not \
         counted: about {} more on a CPU\n",
        table.render(),
        bytes(PROCESS_BYTES)
    )
}

fn gpus(plan: &Plan) -> String {
    let training = || plan.stages.iter().filter(|stage| stage.steps > 0);
    let names = training().map(|stage| stage.name.as_str());
    let headings = ["fits on", ">size"].into_iter().chain(names);
    let mut table = Table::new(&headings.collect::<Vec<_>>());
    for gpu in &plan.gpus {
        let answers = training().map(|stage| match gpu.fits.contains(&stage.name) {
            true => "yes".to_owned(),
            false => "no".to_owned(),
        });
        let size = format!("{} GB", gpu.bytes / 1_000_000_000);
        table.row([gpu.name.to_owned(), size].into_iter().chain(answers));
    }
    match table.is_empty() {
        true => String::new(),
        false => format!(
            "{}one worker each, 2 GB and a twentieth left to driver and allocator\n",
            table.render()
        ),
    }
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
    format!(
        "{}FLOPs of forward and backward as PyTorch counts them: 2 for a multiplication and an \
         addition, attention included, texts of full length\n",
        table.render()
    )
}

fn models(plan: &Plan) -> String {
    let mut table = Table::new(&["models", "language model", "visual encoder", ""]);
    for models in &plan.models {
        let state = match &models.problem {
            Some(problem) => format!("[model] is taken as it stands: {problem}"),
            None => "as [model] says".to_owned(),
        };
        table.row([
            models.stage.clone(),
            models.decoder.clone(),
            models.vision.clone(),
            state,
        ]);
    }
    match table.is_empty() {
        true => String::new(),
        false => table.render(),
    }
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
