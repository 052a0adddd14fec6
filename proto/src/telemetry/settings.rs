//! The standard OpenTelemetry variables that decide what is exported and how it is secured.
//!
//! Endpoint, headers, timeout, sampler and intervals are read by the SDK itself.

use std::path::PathBuf;

/// A kind of telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }
}

/// Where one signal goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// As the user wrote it.
    pub(super) endpoint: String,
    /// Authority that signs the collector's certificate, PEM; none: the system's.
    pub(super) authority: Option<PathBuf>,
    /// Certificate and key of this client, PEM.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

/// What the environment asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) traces: Option<Target>,
    pub(super) metrics: Option<Target>,
    pub(super) logs: Option<Target>,
    /// Whether trace context travels between processes.
    pub(super) propagate: bool,
    /// Wishes that are not fulfilled, for the log.
    pub(super) notes: Vec<String>,
}

impl Settings {
    /// Reads the environment through `variable`. An empty variable counts as not set, as the
    /// specification says.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let mut settings = Self {
            propagate: propagates(get),
            ..Self::default()
        };
        if get("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
            return settings;
        }
        settings.traces = target(Signal::Traces, get, &mut settings.notes);
        settings.metrics = target(Signal::Metrics, get, &mut settings.notes);
        settings.logs = target(Signal::Logs, get, &mut settings.notes);
        settings
    }

    /// Whether nothing at all is exported.
    pub(super) fn is_empty(&self) -> bool {
        self.traces.is_none() && self.metrics.is_none() && self.logs.is_none()
    }
}

/// W3C trace context is the only format that mks2 speaks; it is on unless the list leaves it out.
fn propagates(get: impl Fn(&str) -> Option<String>) -> bool {
    get("OTEL_PROPAGATORS")
        .is_none_or(|list| list.split(',').any(|name| name.trim() == "tracecontext"))
}

fn target(
    signal: Signal,
    get: impl Fn(&str) -> Option<String>,
    notes: &mut Vec<String>,
) -> Option<Target> {
    // The variable of the signal wins over the common one.
    let setting = |suffix: &str| {
        get(&format!("OTEL_EXPORTER_OTLP_{}_{suffix}", signal.name()))
            .or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{suffix}")))
    };
    let endpoint = setting("ENDPOINT")?;
    let choice = format!("OTEL_{}_EXPORTER", signal.name());
    if let Some(exporters) = get(&choice) {
        let mut names = exporters.split(',').map(str::trim);
        if !names.any(|name| name == "otlp") {
            if exporters.trim() != "none" {
                notes.push(format!(
                    "{choice}={exporters} is not known here; nothing is exported"
                ));
            }
            return None;
        }
    }
    if let Some(protocol) = setting("PROTOCOL").filter(|protocol| protocol.trim() != "grpc") {
        notes.push(format!(
            "OTLP over {protocol} is not spoken here, so no {} are exported; give the collector's \
             gRPC endpoint and OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
            signal.name().to_lowercase()
        ));
        return None;
    }
    Some(Target {
        endpoint,
        authority: setting("CERTIFICATE").map(PathBuf::from),
        identity: setting("CLIENT_CERTIFICATE")
            .zip(setting("CLIENT_KEY"))
            .map(|(certificate, key)| (certificate.into(), key.into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Settings {
        Settings::read(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

    #[test]
    fn without_an_endpoint_nothing_is_exported() {
        assert!(read(&[]).is_empty());
        assert!(read(&[("OTEL_TRACES_EXPORTER", "otlp")]).is_empty());
        assert!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).is_empty());
    }

    #[test]
    fn the_common_endpoint_serves_all_signals_and_one_signal_may_stand_alone() {
        let all = read(&[ENDPOINT]);
        assert!(all.traces.is_some() && all.metrics.is_some() && all.logs.is_some());
        let alone = read(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://metrics:4317")]);
        assert_eq!(
            alone.metrics.expect("asked for").endpoint,
            "http://metrics:4317"
        );
        assert!(alone.traces.is_none() && alone.logs.is_none());
    }

    #[test]
    fn the_switches_that_the_sdk_ignores_are_honoured() {
        assert!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]).is_empty());
        assert!(!read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "1")]).is_empty());
        let quiet = read(&[ENDPOINT, ("OTEL_LOGS_EXPORTER", "none")]);
        assert!(quiet.logs.is_none() && quiet.traces.is_some() && quiet.notes.is_empty());
        assert!(!read(&[("OTEL_PROPAGATORS", "none")]).propagate);
        assert!(read(&[("OTEL_PROPAGATORS", "baggage, tracecontext")]).propagate);
    }

    #[test]
    fn a_protocol_that_is_not_spoken_is_said_and_not_exported() {
        let http = read(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
        assert!(http.is_empty());
        assert_eq!(http.notes.len(), 3);
        let mixed = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ]);
        assert!(mixed.traces.is_some() && mixed.logs.is_none());
    }

    #[test]
    fn certificates_are_taken_from_the_variables() {
        let secured = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "me.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "me.key"),
        ]);
        let target = secured.traces.expect("asked for");
        assert_eq!(target.authority, Some("ca.pem".into()));
        assert_eq!(target.identity, Some(("me.pem".into(), "me.key".into())));
    }
}
