//! `cargo xtask results`: the sample job with several seeds, and docs/results.md.

use std::fs;
use std::path::PathBuf;

use clap::Args;

use crate::demo::{self, Figures, percent};
use crate::fault::{Fault, Outcome};
use crate::ui::{self, Stages};
use crate::{places, setup};

/// Which seeds of which job.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Job file.
    #[arg(long, default_value = "examples/emoji/job.toml")]
    job: PathBuf,
    /// Seeds; the spread needs three.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Worker processes.
    #[arg(long, default_value_t = 2)]
    workers: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let mut stages = Stages::default();
    stages.run("set-up", setup::run)?;
    stages.run("release build", demo::build)?;
    stages.run("import", demo::import)?;
    let mut runs = Vec::new();
    for seed in &arguments.seeds {
        let folder = places::root().join(format!("runs/results/seed-{seed}"));
        let settings = [format!("seed={seed}")];
        stages.run(&format!("seed {seed}"), || {
            demo::train(&arguments.job, &folder, arguments.workers, &settings)
        })?;
        runs.push(Figures::read(&demo::read_report(&folder)?));
    }
    stages.table();
    let table = table(&arguments.seeds, &runs);
    ui::say(format_args!("\n{table}"));
    let page = page(arguments, &table);
    let path = places::root().join("docs/results.md");
    fs::write(&path, page).map_err(|error| Fault::file("write", &path, &error))
}

/// One row per figure: each seed, mean, and the standard deviation over seeds.
fn table(seeds: &[u64], runs: &[Figures]) -> String {
    let head: Vec<String> = std::iter::once("figure".to_owned())
        .chain(seeds.iter().map(|seed| format!("seed {seed}")))
        .chain(["mean".to_owned(), "standard deviation".to_owned()])
        .collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let first = runs.first().cloned().unwrap_or_default();
    let rows = first.values.iter().map(|(name, _)| {
        let values: Vec<f64> = runs.iter().filter_map(|run| value(run, name)).collect();
        let cells = values.iter().map(|value| percent(name, *value));
        let (mean, deviation) = mean_and_deviation(&values);
        let deviation = deviation.map_or_else(|| "-".to_owned(), |value| percent(name, value));
        std::iter::once((*name).to_owned())
            .chain(cells)
            .chain([percent(name, mean), deviation])
            .collect()
    });
    ui::table(&head, &rows.collect::<Vec<Vec<String>>>())
}

fn value(run: &Figures, name: &str) -> Option<f64> {
    run.values
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| *value)
}

/// Mean, and the sample standard deviation where there are two values or more.
fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (
        mean,
        (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
    )
}

fn page(arguments: &Arguments, table: &str) -> String {
    let seeds: Vec<String> = arguments.seeds.iter().map(u64::to_string).collect();
    format!(
        "# Results on the sample corpus\n\n\
         Written by `cargo xtask results --job {job} --seeds {seeds}`; run it to get this page \
         again. Every number is measured on {job}, with {workers} workers on a CPU.\n\n\
         The colour questions are about objects that no training question names, and no caption \
         says a colour: an answer can come from pictures alone. \"LoRA alone\" is the same language \
         model without visual memory, \"memory shuffled\" the control whose memory keeps its \
         statistics and loses its content. A colour probe is a linear classifier on a frozen state, \
         fitted on the training objects: how much of the colour is there to be read. Chance of \
         retrieval R@1 over 1,580 pictures is 0.06 %.\n\n\
         {table}\n",
        job = arguments.job.display(),
        seeds = seeds.join(","),
        workers = arguments.workers,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_spread_are_those_of_the_textbook() {
        let (mean, deviation) = mean_and_deviation(&[0.5, 0.6, 0.7]);
        assert!((mean - 0.6).abs() < 1e-12);
        assert!((deviation.expect("three values") - 0.1).abs() < 1e-12);
        assert_eq!(mean_and_deviation(&[1.0]), (1.0, None));
    }

    #[test]
    fn each_seed_has_its_column() {
        let run = |share| Figures {
            values: vec![("colour questions: MKS2", share)],
        };
        let text = table(&[1, 2], &[run(0.5), run(0.7)]);
        assert!(text.contains("seed 2") && text.contains("60.0 %"), "{text}");
    }
}
