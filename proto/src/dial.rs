//! Connecting to a coordinator: endpoint, token, deadlines, trace context; and how a refusal
//! travels.
//!
//! ```text
//! state machine ── Refusal ──► status() ── gRPC ──► refusal() / failure() ── Failure ──► user
//! ```

mod refusal;

use std::time::Duration;

use prost::{Message, bytes::Bytes};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

pub use refusal::{failure, is_transient, refusal, status};

use crate::{
    failure::Failure,
    ids::Token,
    telemetry,
    v1::{self, coordinator_client::CoordinatorClient},
};

/// Version of the wire protocol; a coordinator refuses workers of another one.
pub const PROTOCOL: u32 = 6;
/// The level of compression for what others wait for.
const QUICKLY: i32 = 1;
/// What a generation may have, decompressed: enough for half a million members.
const MOST_GENERATION_BYTES: usize = 64 << 20;
/// What the coordinator may send before it was read. Where thousands are told of thousands a sign of
/// life does not wait behind megabytes.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;
/// Largest message in either direction; checked before it is decoded.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Metadata key of the token.
pub const AUTHORIZATION: &str = "authorization";

/// A client whose requests carry the token and the trace context.
pub type Client = CoordinatorClient<InterceptedService<Channel, Bearer>>;

/// Where to connect and how long to wait.
#[derive(Clone, Debug)]
pub struct Target {
    /// `http://HOST:PORT`.
    pub endpoint: String,
    /// The run's token.
    pub token: Token,
    /// Limit for the TCP connection.
    pub connect_timeout: Duration,
    /// Limit for an answer (a stream: for its beginning).
    pub request_timeout: Duration,
}

impl Target {
    /// A target with the usual deadlines.
    #[must_use]
    pub fn new(endpoint: impl Into<String>, token: Token) -> Self {
        Self {
            endpoint: endpoint.into(),
            token,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
        }
    }

    /// Connects at once.
    ///
    /// # Errors
    /// [`ExitCode::Environment`](crate::failure::ExitCode::Environment) when nobody answers,
    /// [`ExitCode::Usage`](crate::failure::ExitCode::Usage) when the endpoint is no URL.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let channel = self.endpoint()?.connect().await;
        let channel = channel.map_err(|error| unreachable_failure(&self.endpoint, &error))?;
        let client = CoordinatorClient::with_interceptor(channel, Bearer::new(&self.token)?);
        Ok(client
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(|error| {
            Failure::usage(
                format!("'{}' is no address of a coordinator", self.endpoint),
                error.to_string(),
                "give it as http://HOST:PORT",
            )
        })?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .timeout(self.request_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            // One that is heard and hears nothing finds that out by itself.
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_millis(1500))
            .keep_alive_while_idle(true))
    }
}

/// A generation as a directive carries it.
#[must_use]
pub fn encoded(generation: &v1::Generation) -> Bytes {
    let compressed = zstd::bulk::compress(&generation.encode_to_vec(), QUICKLY);
    // Into memory of its own nothing can fail; if it did, whoever is told nothing says so.
    compressed.unwrap_or_default().into()
}

/// The generation that a directive carries.
///
/// # Errors
/// [`ExitCode::Environment`](crate::failure::ExitCode::Environment) when it is none.
pub fn generation(encoded: &Bytes) -> Result<v1::Generation, Failure> {
    let none = |why: String| {
        Failure::environment(
            "the coordinator announces what is no generation",
            why,
            "use the same version of mks2 and mks2-worker everywhere",
        )
    };
    if encoded.is_empty() {
        return Err(none("it is empty".to_owned()));
    }
    let bytes = zstd::bulk::decompress(encoded, MOST_GENERATION_BYTES);
    let bytes = bytes.map_err(|error| none(error.to_string()))?;
    v1::Generation::decode(bytes.as_slice()).map_err(|error| none(error.to_string()))
}

fn unreachable_failure(endpoint: &str, error: &tonic::transport::Error) -> Failure {
    Failure::environment(
        format!("the coordinator at {endpoint} cannot be reached"),
        innermost(error),
        "check that it runs and that the address is right; a local run has one while `mks2 train` runs",
    )
}

/// The last message of a chain of errors: the operating system's own words.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string().to_lowercase()
}

/// Adds the token and the trace context to each request.
#[derive(Clone)]
pub struct Bearer {
    header: MetadataValue<Ascii>,
}

impl Bearer {
    /// Prepares the header.
    ///
    /// # Errors
    /// When the token holds characters that no header can carry; [`Token`] excludes them.
    pub fn new(token: &Token) -> Result<Self, Failure> {
        let text = format!("Bearer {}", token.reveal());
        let mut header: MetadataValue<Ascii> = text.parse().map_err(|_| {
            Failure::usage(
                "the run's token cannot be sent",
                "it holds characters that are not visible ASCII",
                "choose another one in MKS2_TOKEN",
            )
        })?;
        header.set_sensitive(true);
        Ok(Self { header })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(AUTHORIZATION, self.header.clone());
        telemetry::inject(&tracing::Span::current(), metadata);
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::ExitCode;

    fn target(endpoint: &str) -> Target {
        Target::new(endpoint, token())
    }

    fn token() -> Token {
        Token::new("long-enough").expect("good")
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_address() {
        let failure = target("http://127.0.0.1:1")
            .connect()
            .await
            .expect_err("closed port");
        assert_eq!(failure.exit, ExitCode::Environment);
        assert!(failure.what.contains("127.0.0.1:1"), "{failure}");
        assert!(failure.why.contains("refused"), "{failure}");
    }

    #[tokio::test]
    async fn a_broken_address_is_a_usage_error() {
        let failure = target("http://[").connect().await.expect_err("no URL");
        assert_eq!(failure.exit, ExitCode::Usage);
    }

    #[test]
    fn the_token_is_in_the_header() {
        let mut bearer = Bearer::new(&token()).expect("visible");
        let request = bearer.call(Request::new(())).expect("accepted");
        let header = request.metadata().get(AUTHORIZATION).expect("present");
        assert_eq!(header.to_str().expect("ascii"), "Bearer long-enough");
        assert!(header.is_sensitive());
    }
}
