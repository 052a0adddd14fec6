//! `mks2 config`: every setting with its origin, the schema, all mistakes at once.

mod reference;

use mks2_proto::failure::Failure;
use mks2_proto::job::load::{self, Origin, Setting};

use crate::cli::{ConfigCommand, JobArgs};
use crate::output::Output;
use crate::table::Table;

/// Longest value that a table shows whole.
const VALUE_CHARS: usize = 60;

pub(crate) fn run(command: ConfigCommand, output: &Output) -> Result<(), Failure> {
    match command {
        ConfigCommand::Show { job, json, toml } => show(&job, json, toml, output),
        ConfigCommand::Schema => {
            output.result(&format!("{:#}", load::json_schema()));
            Ok(())
        }
        ConfigCommand::Reference => {
            output.result(&reference::render(&load::json_schema()));
            Ok(())
        }
        ConfigCommand::Check { job } => check(&job, output),
    }
}

fn show(args: &JobArgs, json: bool, toml: bool, output: &Output) -> Result<(), Failure> {
    let resolved = load::load(&args.job, &args.overrides())?;
    if toml {
        output.result(&resolved.toml);
    } else if json {
        output.result(&format!("{:#}", as_json(&resolved.origins, args)));
    } else {
        let file = args.job.display().to_string();
        let mut table = Table::new(&["setting", "value", "origin"]);
        for setting in &resolved.origins {
            let value = shortened(&setting.value);
            table.row([setting.key.clone(), value, setting.origin.describe(&file)]);
        }
        output.result(&table.render());
    }
    Ok(())
}

/// `[{key, value, origin, place}]`, with `origin` one of `file`, `environment`, `set`, `default`.
fn as_json(settings: &[Setting], args: &JobArgs) -> serde_json::Value {
    let file = args.job.display().to_string();
    let entry = |setting: &Setting| {
        let origin = match setting.origin {
            Origin::File(_) => "file",
            Origin::Environment(_) => "environment",
            Origin::Set => "set",
            Origin::Default => "default",
        };
        serde_json::json!({
            "key": setting.key,
            "value": setting.value,
            "origin": origin,
            "place": setting.origin.describe(&file),
        })
    };
    settings.iter().map(entry).collect()
}

fn check(args: &JobArgs, output: &Output) -> Result<(), Failure> {
    let mut problems = load::check(&args.job, &args.overrides())?;
    let Some(last) = problems.pop() else {
        output.result(&format!("{} is fine", args.job.display()));
        return Ok(());
    };
    problems.iter().for_each(|problem| output.problem(problem));
    Err(last)
}

fn shortened(value: &str) -> String {
    match value.char_indices().nth(VALUE_CHARS) {
        Some((cut, _)) => format!("{} ...", &value[..cut]),
        None => value.to_owned(),
    }
}
