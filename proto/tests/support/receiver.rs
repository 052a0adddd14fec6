//! A real OTLP receiver: a gRPC server with the collector's three services that keeps what it got.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::runtime::Runtime;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// What has arrived so far.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) traces: Vec<ExportTraceServiceRequest>,
    pub(crate) metrics: Vec<ExportMetricsServiceRequest>,
    pub(crate) logs: Vec<ExportLogsServiceRequest>,
}

#[derive(Clone, Default)]
struct Inbox(Arc<Mutex<Received>>);

/// The running receiver; it ends when dropped.
pub(crate) struct Receiver {
    runtime: Runtime,
    inbox: Inbox,
    pub(crate) endpoint: String,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let inbox = Inbox::default();
        let _inside = runtime.enter();
        let incoming =
            TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let address = incoming.local_addr().expect("the port's address");
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(inbox.clone()))
            .add_service(MetricsServiceServer::new(inbox.clone()))
            .add_service(LogsServiceServer::new(inbox.clone()))
            .serve_with_incoming(incoming);
        runtime.spawn(server);
        Self {
            endpoint: format!("http://{address}"),
            inbox,
            runtime,
        }
    }

    /// Calls `look` on what has arrived.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Received) -> T) -> T {
        look(&self.inbox.0.lock().expect("no test thread panicked"))
    }

    /// Waits until `ready` holds; the caller's assertions say what is missing when it never does.
    pub(crate) fn wait(&self, limit: Duration, ready: impl Fn(&Received) -> bool) {
        let end = Instant::now() + limit;
        while Instant::now() < end && !self.look(&ready) {
            self.runtime
                .block_on(tokio::time::sleep(Duration::from_millis(20)));
        }
    }

    /// All spans with the `service.name` of their resource.
    pub(crate) fn spans(&self) -> Vec<(String, Span)> {
        self.look(|received| {
            let resources = received
                .traces
                .iter()
                .flat_map(|request| &request.resource_spans);
            resources
                .flat_map(|resource| {
                    let attributes = resource.resource.as_ref().map(|r| r.attributes.as_slice());
                    let service = text(attributes.unwrap_or_default(), "service.name");
                    let scopes = resource.scope_spans.iter();
                    let spans = scopes.flat_map(|scope| scope.spans.iter().cloned());
                    spans
                        .map(move |span| (service.clone(), span))
                        .collect::<Vec<_>>()
                })
                .collect()
        })
    }
}

/// The text of an attribute, empty when it is absent.
pub(crate) fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()?.value.clone()) {
        Some(Value::StringValue(text)) => text,
        _ => String::new(),
    }
}

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0
            .lock()
            .expect("no panic")
            .traces
            .push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Inbox {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0
            .lock()
            .expect("no panic")
            .metrics
            .push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Inbox {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.0
            .lock()
            .expect("no panic")
            .logs
            .push(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}
