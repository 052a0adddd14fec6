//! Log lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::{Layer, fmt};

use super::{BoxMakeWriter, BoxedLayer, LogFormat, Options};
use crate::failure::Failure;

/// The layer that writes log lines, filtered by `MKS2_LOG`, `RUST_LOG` or the verbosity.
pub(super) fn layer(
    options: &Options,
    writer: BoxMakeWriter,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<BoxedLayer, Failure> {
    let filter = filter(options.verbosity, &variable)?;
    let set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    let colors = !options.no_color && !set("NO_COLOR") && std::io::stderr().is_terminal();
    // Somebody may close standard error; telling it of that would be a panic.
    let layer = match options.log_format {
        LogFormat::Text => fmt::layer()
            .log_internal_errors(false)
            .with_writer(writer)
            .with_ansi(colors)
            .with_target(options.verbosity > 0)
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .log_internal_errors(false)
            .with_writer(writer)
            .with_filter(filter)
            .boxed(),
    };
    Ok(layer)
}

fn filter(verbosity: i8, variable: impl Fn(&str) -> Option<String>) -> Result<EnvFilter, Failure> {
    let given = ["MKS2_LOG", "RUST_LOG"]
        .into_iter()
        .find_map(|name| Some((name, variable(name).filter(|value| !value.is_empty())?)));
    let Some((name, text)) = given else {
        return Ok(EnvFilter::new(default_filter(verbosity)));
    };
    EnvFilter::try_new(&text).map_err(|error| {
        Failure::settings(
            format!("{name} cannot be read: {text}"),
            error.to_string(),
            format!("write it like {name}=info or {name}=warn,mks2_worker=debug"),
        )
    })
}

/// Other crates speak from warnings upwards only; the OpenTelemetry SDK's own complaints about a
/// collector that does not answer are shown when asked for, since they come again and again.
fn default_filter(verbosity: i8) -> &'static str {
    match verbosity {
        i8::MIN..=-1 => "error,opentelemetry=off",
        0 => "warn,mks2=info,opentelemetry=off",
        1 => "info,mks2=debug,h2=warn,hyper=warn,tonic=warn,tower=warn",
        2.. => "debug,mks2=trace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_variable_wins_over_the_common_one_and_both_over_verbosity() {
        let both = |name: &str| match name {
            "MKS2_LOG" => Some("mks2=trace".to_owned()),
            "RUST_LOG" => Some("error".to_owned()),
            _ => None,
        };
        assert_eq!(filter(0, both).expect("valid").to_string(), "mks2=trace");
        let common = |name: &str| (name == "RUST_LOG").then(|| "error".to_owned());
        assert_eq!(filter(2, common).expect("valid").to_string(), "error");
        let empty = |_: &str| Some(String::new());
        assert!(
            filter(1, empty)
                .expect("valid")
                .to_string()
                .contains("mks2=debug")
        );
    }

    #[test]
    fn a_filter_that_cannot_be_read_names_the_variable_and_an_example() {
        let wrong = |name: &str| (name == "MKS2_LOG").then(|| "mks2=loud".to_owned());
        let failure = filter(0, wrong).expect_err("no such level");
        assert_eq!(failure.what, "MKS2_LOG cannot be read: mks2=loud");
        assert!(failure.cure.contains("MKS2_LOG=info"));
    }

    #[test]
    fn every_verbosity_has_a_filter_that_can_be_read() {
        for verbosity in [-1, 0, 1, 2, 9] {
            assert!(EnvFilter::try_new(default_filter(verbosity)).is_ok());
        }
    }
}
