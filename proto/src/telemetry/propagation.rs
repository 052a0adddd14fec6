//! Trace context between processes: W3C `traceparent` in gRPC metadata and in the environment of
//! child processes. All of it does nothing while nothing is exported.

use std::collections::HashMap;

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, global};
use tonic::metadata::{KeyRef, MetadataKey, MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Writes the context of `span` into a request's metadata.
pub fn inject(span: &Span, metadata: &mut MetadataMap) {
    let context = span.context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Write(metadata));
    });
}

/// The context that a request brought along.
#[must_use]
pub fn extract(metadata: &MetadataMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&Read(metadata)))
}

/// Makes `span` a child of the caller's span. To be called before the span is entered: once
/// started, a span keeps its parent.
pub fn continue_from(span: &Span, metadata: &MetadataMap) {
    adopt(span, extract(metadata));
}

/// What to put into the environment of a child process, so that its spans hang under `span`.
#[must_use]
pub fn child_environment(span: &Span) -> Vec<(String, String)> {
    let context = span.context();
    let mut carrier = HashMap::new();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier
        .into_iter()
        .filter(|(_, value): &(String, String)| !value.is_empty())
        .map(|(key, value)| (key.to_uppercase(), value))
        .collect()
}

/// Makes `span` a child of the span that the parent process left in the environment
/// (`TRACEPARENT`, `TRACESTATE`). To be called before the span is entered.
pub fn continue_from_environment(span: &Span) {
    let carrier: HashMap<String, String> = ["traceparent", "tracestate"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name.to_uppercase()).ok()?)))
        .collect();
    adopt(
        span,
        global::get_text_map_propagator(|propagator| propagator.extract(&carrier)),
    );
}

fn adopt(span: &Span, context: Context) {
    if context.span().span_context().is_valid() {
        // Fails only when the span is not exported, or was started before.
        let _ = span.set_parent(context);
    }
}

struct Write<'a>(&'a mut MetadataMap);

impl Injector for Write<'_> {
    fn set(&mut self, key: &str, value: String) {
        // Header names and values of the W3C format are always valid metadata.
        if let (Ok(key), Ok(value)) = (
            MetadataKey::from_bytes(key.as_bytes()),
            MetadataValue::try_from(value),
        ) {
            self.0.insert(key, value);
        }
    }
}

struct Read<'a>(&'a MetadataMap);

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .keys()
            .filter_map(|key| match key {
                KeyRef::Ascii(key) => Some(key.as_str()),
                KeyRef::Binary(_) => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_travels_while_nothing_is_exported() {
        let mut metadata = MetadataMap::new();
        inject(&tracing::info_span!("alone"), &mut metadata);
        assert!(metadata.is_empty());
        assert!(child_environment(&tracing::info_span!("alone")).is_empty());
    }
}
