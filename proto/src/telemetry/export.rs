//! OTLP export over gRPC: one provider per signal, a runtime of its own.
//!
//! The runtime (one thread, `telemetry`) exists only while something is exported. It is apart from
//! the program's, so that a blocked program still exports and its end does not cut the last batch.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithExportConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;

use super::BoxedLayer;
use super::settings::{Settings, Target};
use crate::failure::Failure;

/// The name of the instrumentation scope, and the prefix of the targets of all our crates.
pub(super) const SCOPE: &str = "mks2";

/// The providers of the signals that are exported.
pub(super) struct Exporters {
    runtime: Runtime,
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

impl Exporters {
    /// None when the environment asks for nothing.
    pub(super) fn start(
        service: &'static str,
        settings: &Settings,
    ) -> Result<Option<Self>, Failure> {
        if settings.is_empty() {
            return Ok(None);
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()
            .map_err(|error| Failure::internal("telemetry cannot start", error.to_string()))?;
        // The gRPC channels hand their work to the runtime in whose context they are made.
        let inside = runtime.enter();
        let resource = resource(service);
        let traces = settings
            .traces
            .as_ref()
            .map(|to| traces(to, &resource))
            .transpose()?;
        let metrics = settings
            .metrics
            .as_ref()
            .map(|to| metrics(to, &resource))
            .transpose()?;
        let logs = settings
            .logs
            .as_ref()
            .map(|to| logs(to, &resource))
            .transpose()?;
        drop(inside);
        Ok(Some(Self {
            runtime,
            traces,
            metrics,
            logs,
        }))
    }

    /// The layers that turn our spans and events into exported ones.
    pub(super) fn layers(&self) -> Vec<BoxedLayer> {
        let spans = self.traces.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(SCOPE))
                .with_location(false)
                .with_filter(ours(LevelFilter::DEBUG))
                .boxed()
        });
        let records = self.logs.as_ref().map(|provider| {
            OpenTelemetryTracingBridge::new(provider)
                .with_filter(ours(LevelFilter::INFO))
                .boxed()
        });
        spans.into_iter().chain(records).collect()
    }

    /// Makes the providers those of the process, for metrics and for propagation.
    pub(super) fn register(&self, propagate: bool) {
        if let Some(provider) = &self.traces {
            global::set_tracer_provider(provider.clone());
        }
        if let Some(provider) = &self.metrics {
            global::set_meter_provider(provider.clone());
        }
        if propagate {
            global::set_text_map_propagator(TraceContextPropagator::new());
        }
    }

    /// Sends what is buffered, then ends. The SDK has no common deadline, so a thread of its own
    /// does the work and is left behind when it takes too long.
    pub(super) fn shutdown(self, deadline: Duration) -> bool {
        let Self {
            runtime,
            traces,
            metrics,
            logs,
        } = self;
        let (done, finished) = mpsc::sync_channel(1);
        let flush = move || {
            let clean = [
                traces.map(|provider| provider.shutdown_with_timeout(deadline)),
                metrics.map(|provider| provider.shutdown_with_timeout(deadline)),
                logs.map(|provider| provider.shutdown_with_timeout(deadline)),
            ];
            // Nobody listens any more when the deadline has passed.
            let _ = done.send(clean.into_iter().flatten().all(|result| result.is_ok()));
        };
        let started = std::thread::Builder::new()
            .name("telemetry-flush".into())
            .spawn(flush);
        let clean = started.is_ok() && finished.recv_timeout(deadline).unwrap_or(false);
        runtime.shutdown_background();
        clean
    }
}

/// Our own crates only: everything else would report on the exporter's own connections.
fn ours(level: LevelFilter) -> Targets {
    Targets::new().with_target(SCOPE, level)
}

/// Who sends: name, version and a number that no other process shares. The environment wins.
fn resource(service: &'static str) -> Resource {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let instance = format!("{:016x}{:016x}", rand_part(), rand_part());
    let builder = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.namespace", SCOPE),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
            KeyValue::new("process.pid", i64::from(std::process::id())),
            KeyValue::new("host.name", host.trim().to_owned()),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => builder.with_service_name(name).build(),
        _ => builder.build(),
    }
}

/// The standard library's per-process random keys, as a number.
fn rand_part() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn traces(to: &Target, resource: &Resource) -> Result<SdkTracerProvider, Failure> {
    let mut builder = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&to.endpoint);
    if let Some(tls) = tls(to)? {
        builder = builder.with_tls_config(tls);
    }
    let exporter = builder.build().map_err(|error| refused(to, &error))?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
    Ok(provider.with_resource(resource.clone()).build())
}

fn metrics(to: &Target, resource: &Resource) -> Result<SdkMeterProvider, Failure> {
    let mut builder = MetricExporter::builder()
        .with_tonic()
        .with_endpoint(&to.endpoint);
    if let Some(tls) = tls(to)? {
        builder = builder.with_tls_config(tls);
    }
    let exporter = builder.build().map_err(|error| refused(to, &error))?;
    let provider = SdkMeterProvider::builder().with_periodic_exporter(exporter);
    Ok(provider.with_resource(resource.clone()).build())
}

fn logs(to: &Target, resource: &Resource) -> Result<SdkLoggerProvider, Failure> {
    let mut builder = LogExporter::builder()
        .with_tonic()
        .with_endpoint(&to.endpoint);
    if let Some(tls) = tls(to)? {
        builder = builder.with_tls_config(tls);
    }
    let exporter = builder.build().map_err(|error| refused(to, &error))?;
    let provider = SdkLoggerProvider::builder().with_batch_exporter(exporter);
    Ok(provider.with_resource(resource.clone()).build())
}

/// None for a plain `http://` endpoint.
fn tls(to: &Target) -> Result<Option<ClientTlsConfig>, Failure> {
    if to.endpoint.starts_with("http://") {
        return Ok(None);
    }
    let mut tls = ClientTlsConfig::new().with_enabled_roots();
    if let Some(authority) = &to.authority {
        tls = tls.ca_certificate(Certificate::from_pem(pem(authority)?));
    }
    if let Some((certificate, key)) = &to.identity {
        tls = tls.identity(Identity::from_pem(pem(certificate)?, pem(key)?));
    }
    Ok(Some(tls))
}

fn pem(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::settings(
            format!(
                "the collector's certificate file {} cannot be read",
                path.display()
            ),
            error.to_string(),
            "correct OTEL_EXPORTER_OTLP_CERTIFICATE and its companions, or unset them",
        )
    })
}

fn refused(to: &Target, error: &ExporterBuildError) -> Failure {
    Failure::settings(
        format!("telemetry cannot be sent to {}", to.endpoint),
        error.to_string(),
        "give OTEL_EXPORTER_OTLP_ENDPOINT as http://HOST:4317, or unset it",
    )
}
