//! Logs, traces and metrics: set up once, first thing in each `main`.
//!
//! | what | where it goes | when |
//! |---|---|---|
//! | log lines | standard error, as text or JSON | always |
//! | spans, metrics, log records | an OTLP collector, over gRPC | only when `OTEL_EXPORTER_OTLP_ENDPOINT` (or its form for one signal) is set |
//!
//! Without that variable nothing is exported and nothing is started: no thread, no connection.
//! The standard variables that the SDK leaves to the application are honoured here:
//! `OTEL_SDK_DISABLED`, `OTEL_{TRACES,METRICS,LOGS}_EXPORTER`, `OTEL_PROPAGATORS` and the
//! certificate variables. Only the crates of mks2 are exported; the gRPC stack below is not, since
//! its spans would feed the exporter with the exporter's own work.
//!
//! What is filtered on standard error is said by `MKS2_LOG`, else `RUST_LOG`, else the verbosity.
//! Numbers in span and event fields are `i64` or `f64`: OpenTelemetry has no unsigned integers,
//! and a `u64` arrives as text.

use std::fmt;
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::failure::Failure;

mod export;
mod instruments;
mod lines;
mod propagation;
mod settings;

pub use instruments::{Instruments, StepSample, observe_time};
pub use propagation::{
    child_environment, continue_from, continue_from_environment, extract, inject,
};
pub use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// How long a process that ends waits for the collector.
pub const FLUSH_DEADLINE: Duration = Duration::from_secs(3);

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// How log lines are written on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: time, level, target, message.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// What `MKS2_LOG_FORMAT` says; text when it is not set.
    ///
    /// # Errors
    /// A value that is neither `text` nor `json`.
    pub fn from_environment() -> Result<Self, Failure> {
        let name = crate::env::LOG_FORMAT;
        match std::env::var(name).unwrap_or_default().as_str() {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(Failure::settings(
                format!("'{other}' is no form of logs"),
                format!("{name} must be text or json"),
                format!("set {name}=json, or unset it"),
            )),
        }
    }
}

/// What a `main` decides about its telemetry.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `service.name` of everything exported: `mks2`, `mks2-worker`, `mks2-coordinator`.
    /// `OTEL_SERVICE_NAME` wins.
    pub service: &'static str,
    /// Text or JSON on standard error.
    pub log_format: LogFormat,
    /// Below 0: errors only; 0: what a user wants to know; 1: debug; 2 and more: trace.
    pub verbosity: i8,
    /// No colours, whatever the terminal can. `NO_COLOR` has the same effect.
    pub no_color: bool,
}

/// Keeps the export alive; dropped at the end of `main`, it flushes with a deadline.
///
/// `std::process::exit` drops nothing: call [`Guard::shutdown`] before it.
#[must_use = "telemetry ends when the guard is dropped"]
pub struct Guard {
    exporters: Option<export::Exporters>,
}

impl Guard {
    /// Whether anything is exported.
    #[must_use]
    pub fn is_exporting(&self) -> bool {
        self.exporters.is_some()
    }

    /// Sends what is buffered and ends the export. False: the collector did not take everything
    /// within the deadline, and the rest is lost.
    pub fn shutdown(mut self, deadline: Duration) -> bool {
        self.finish(deadline)
    }

    fn finish(&mut self, deadline: Duration) -> bool {
        self.exporters
            .take()
            .is_none_or(|exporters| exporters.shutdown(deadline))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.finish(FLUSH_DEADLINE);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("exporting", &self.is_exporting())
            .finish()
    }
}

/// Sets up this process' telemetry, with log lines on standard error.
///
/// # Errors
/// A filter in `MKS2_LOG` or `RUST_LOG` that cannot be read, an endpoint or certificate that
/// cannot be used, or a second call in one process.
pub fn init(options: &Options) -> Result<Guard, Failure> {
    init_with_writer(options, BoxMakeWriter::new(std::io::stderr))
}

/// Like [`init`], with log lines to `writer`: for a caller that draws progress bars between them.
///
/// # Errors
/// As [`init`].
pub fn init_with_writer(options: &Options, writer: BoxMakeWriter) -> Result<Guard, Failure> {
    let variable = |name: &str| std::env::var(name).ok();
    let mut layers = vec![lines::layer(options, writer, variable)?];
    let settings = settings::Settings::read(variable);
    let exporters = export::Exporters::start(options.service, &settings)?;
    if let Some(exporters) = &exporters {
        layers.extend(exporters.layers());
        exporters.register(settings.propagate);
    }
    tracing_subscriber::registry()
        .with(layers)
        .try_init()
        .map_err(|error| {
            Failure::internal(
                "telemetry was set up twice in one process",
                error.to_string(),
            )
        })?;
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    Ok(Guard { exporters })
}
