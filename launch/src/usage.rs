//! A command line that cannot be read, as a [`Failure`] of three lines like every other one.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, FromArgMatches};
use mks2_proto::env;
use mks2_proto::failure::Failure;

use crate::cli::{Cli, LogFormat};

/// Least likeness of an option that a typing error may have meant.
const LIKENESS: f64 = 0.6;

/// Why there is no command to carry out.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Help or the version was asked for.
    Help(clap::Error),
    /// The command line is wrong; errors are to have this form.
    Wrong(Box<Failure>, LogFormat),
}

/// Reads the command line.
///
/// # Errors
/// A request for help, or what is wrong (exit 2).
pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Cli, Refused> {
    let words: Vec<OsString> = words.collect();
    let parsed = Cli::command()
        .try_get_matches_from(&words)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Refused::Help(error),
        _ => Refused::Wrong(Box::new(failure(&error, &words)), log_format(&words)),
    })
}

/// The form of errors that was asked for, as far as it can be read.
fn log_format(words: &[OsString]) -> LogFormat {
    let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
    let asked = words
        .windows(2)
        .any(|pair| pair == ["--log-format", "json"])
        || words.contains(&"--log-format=json")
        || std::env::var(env::LOG_FORMAT).is_ok_and(|form| form == "json");
    if asked {
        LogFormat::Json
    } else {
        LogFormat::Text
    }
}

fn failure(error: &clap::Error, words: &[OsString]) -> Failure {
    let (path, command) = named(words);
    let text = error.render().to_string();
    let message = message(&text);
    let (what, why) = match message.split_once("': ") {
        Some((what, why)) => (format!("{what}'"), why.to_owned()),
        None => (message, usage(error, &path)),
    };
    Failure::usage(what, why, cure(error, &path, &command))
}

/// The command that the words name, as far as they do: `mks2 data import`.
fn named(words: &[OsString]) -> (String, Command) {
    let mut command = Cli::command();
    command.build();
    let mut path = vec![command.get_name().to_owned()];
    for word in words.iter().skip(1).filter_map(|word| word.to_str()) {
        if let Some(next) = command.find_subcommand(word) {
            path.push(next.get_name().to_owned());
            command = next.clone();
        }
    }
    (path.join(" "), command)
}

/// The first paragraph of clap's text, on one line and without its label.
fn message(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or(text);
    let lines = paragraph
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("[possible values"));
    let line = lines.collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

fn usage(error: &clap::Error, path: &str) -> String {
    let text = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string(),
        _ => format!("{path} takes other words"),
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.split_first() {
        Some((&"Usage:", rest)) => format!("the usage is: {}", rest.join(" ")),
        _ => words.join(" "),
    }
}

fn cure(error: &clap::Error, path: &str, command: &Command) -> String {
    let suggested = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    let suggested = suggested
        .into_iter()
        .find_map(|kind| text_of(error.get(kind)?));
    let suggested = meant_command(error, command).or(suggested);
    let see = format!("see `{path} --help`");
    if let Some(meant) = suggested.or_else(|| meant_option(error, command)) {
        return format!("did you mean '{meant}'? ({see})");
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) if !values.is_empty() => {
            format!("use one of {} ({see})", values.join(", "))
        }
        _ => see,
    }
}

fn text_of(value: &ContextValue) -> Option<String> {
    match value {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

/// The command that an unknown one is likely to mean; clap finds no swapped letters.
fn meant_command(error: &clap::Error, command: &Command) -> Option<String> {
    let given = text_of(error.get(ContextKind::InvalidSubcommand)?)?;
    let names = command.get_subcommands().map(Command::get_name);
    likest(&given, names).map(str::to_owned)
}

/// The option that an unknown one is likely to mean.
fn meant_option(error: &clap::Error, command: &Command) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let given = text_of(error.get(ContextKind::InvalidArg)?)?;
    let given = given.strip_prefix("--")?;
    let options = command
        .get_arguments()
        .filter_map(|argument| argument.get_long());
    likest(given, options).map(|option| format!("--{option}"))
}

fn likest<'a>(given: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    words
        .map(|word| (strsim::normalized_damerau_levenshtein(given, word), word))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> Failure {
        match parse(line.split(' ').map(OsString::from)) {
            Err(Refused::Wrong(failure, _)) => *failure,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_has_three_lines_and_a_cure() {
        let cases = [
            ("mks2 tarin job.toml", "'tarin'", "did you mean 'train'?"),
            (
                "mks2 data import x.tar --otu y",
                "'--otu'",
                "did you mean '--out'?",
            ),
            (
                "mks2 data import x.tar",
                "--out <URL>",
                "mks2 data import --help",
            ),
            (
                "mks2 train j --workers 0",
                "1 or larger",
                "mks2 train --help",
            ),
            (
                "mks2 train j --resume fuzz",
                "neither auto nor never",
                "--help",
            ),
            ("mks2 train j --listen 999", "127.0.0.1:7000", "--help"),
            (
                "mks2 train j --log-format xml",
                "'xml'",
                "use one of text, json",
            ),
        ];
        for (line, words, cure) in cases {
            let failure = refused(line);
            let text = failure.to_string();
            assert_eq!(failure.exit.code(), 2);
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(
                text.contains(words) && failure.cure.contains(cure),
                "{line}: {text}"
            );
        }
    }

    #[test]
    fn the_form_of_errors_is_known_before_the_rest_is_read() {
        for line in ["mks2 --log-format json fly", "mks2 fly --log-format=json"] {
            match parse(line.split(' ').map(OsString::from)) {
                Err(Refused::Wrong(_, form)) => assert_eq!(form, LogFormat::Json),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["mks2 --help", "mks2 train --help", "mks2 --version", "mks2"] {
            let asked = parse(line.split(' ').map(OsString::from));
            assert!(matches!(asked, Err(Refused::Help(_))), "{line}");
        }
    }
}
