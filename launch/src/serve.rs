//! `mks2 serve`: a model over HTTP, in the words of OpenAI's API and of what evaluation harnesses ask
//! beside it.
//!
//! ```text
//! client ──► completions | chat | tokens ──► hub ──► the program that computes
//!        ◄── one object, or a stream of events ◄──┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`hub`] | who waits for which answer; how many may wait; who went away |
//! | [`completions`], [`chat`] | `/v1/completions`, `/v1/chat/completions` |
//! | [`messages`] | dialogues and single questions as prompts |
//! | [`tokens`] | `/tokenize`, `/detokenize`, `/tokenizer_info` |
//! | [`reply`] | answers as one object or as a stream |
//! | [`request`] | the fields of requests |
//! | [`refusal`] | errors as JSON with a status |
//! | [`metrics`] | `/metrics` |

mod chat;
mod completions;
mod hub;
mod messages;
mod metrics;
mod refusal;
mod reply;
mod request;
mod tokens;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Args;
use mks2_dataset::pretrained::chat::{self as published, Words};
use mks2_proto::env;
use mks2_proto::failure::Failure;
use mks2_proto::generate::Event;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::engine::{Answers, Asking, ModelArgs, Started};
use crate::output::Output;
use crate::train::Signals;
use hub::Hub;
use messages::Form;
use metrics::Metrics;

/// Largest body of a request: pictures come in base64.
const MOST_BODY: usize = 32 << 20;

const EXAMPLES: &str = "\
Examples:
  mks2 serve runs/emoji
      The model of a run at http://127.0.0.1:8000/v1.
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
      -d '{\"prompt\": \"What color is the fox?\", \"max_tokens\": 8, \"temperature\": 0}'
  mks2 serve models/Llama-2-7b-hf --name llama --listen 0.0.0.0:8000
      A published language model, for all who can reach this machine.
  lm_eval --model local-completions --tasks piqa \\
      --model_args model=llama,base_url=http://127.0.0.1:8000/v1/completions,tokenizer_backend=remote,max_length=4096
      Scored by lm-evaluation-harness; max_length is what the model has positions for.

Ctrl-C and SIGTERM let what was asked be answered, for at most MKS2_GRACE seconds (25), and refuse what is
new. Nobody who can reach the address is asked who they are, and nothing is encrypted.";

/// Options of `serve`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What clients call the model [default: the last part of its location]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where to listen; port 0 takes any free one
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Prompts that are answered or wait at the same time; those that are too many are refused with 429
    #[arg(long, default_value = "256", value_name = "N")]
    queue: NonZeroUsize,
}

/// What all requests share.
pub(crate) struct Server {
    /// The way to the program.
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    model: Model,
    /// How it takes messages.
    form: Form,
    /// What a published model comes with for dialogues.
    words: Option<Words>,
}

/// The model that is asked.
#[derive(Clone, Debug)]
struct Model {
    /// What clients call it.
    name: String,
    /// Seconds since 1970 at which it was there.
    created: u64,
    /// Tokens of text that it has positions for.
    positions: u32,
    /// Whether it can be shown pictures.
    sees: bool,
    end: String,
    begin: Option<String>,
}

/// A model that is there.
struct Begun {
    asking: Asking,
    said: Answers,
    model: Model,
    form: Form,
    words: Option<Words>,
}

type Shared = State<Arc<Server>>;

/// Answers until a signal comes.
///
/// # Errors
/// No such model (exit 2, 3), storage (5), an address in use, the program that computes (6).
pub(crate) async fn run(args: &ServeArgs, output: &Output) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let listener = bind(args.listen).await?;
    let begun = tokio::select! {
        begun = args.begin(output) => begun?,
        _ = signals.next() => return Ok(()),
    };
    let metrics = Arc::new(Metrics::default());
    let (asking, said, model) = (begun.asking, begun.said, begun.model);
    let (hub, listening) = Hub::new(asking, args.queue.get(), model.positions);
    let address = listener.local_addr();
    let address = address.map_err(|error| Failure::io("the address is not known", error))?;
    output.note(&format!("{} at http://{address}/v1", model.name));
    let server = Arc::new(Server {
        hub: Arc::clone(&hub),
        metrics: Arc::clone(&metrics),
        model,
        form: begun.form,
        words: begun.words,
    });
    let (drain, draining) = watch::channel(false);
    let served = axum::serve(listener, router(server)).with_graceful_shutdown(until(draining));
    let served = async { served.await.map_err(unserved) };
    let heard = hub::listen(listening, said, metrics);
    tokio::pin!(served, heard);
    let failure = tokio::select! {
        // It only returns when the program is gone.
        failure = &mut heard => Some(failure),
        ended = &mut served => return ended,
        signal = signals.next() => {
            output.note(&format!("{signal}: what was asked is answered, nothing new is taken"));
            None
        }
    };
    hub.close();
    // Meanwhile connections are taken.
    let rest = async {
        let told = async {
            answered(&hub).await;
            drain.send_replace(true);
        };
        tokio::join!(served, told).0
    };
    // What waits gets its answer, or is told that none comes.
    let rest = tokio::time::timeout(env::grace(), rest);
    match failure {
        Some(failure) => {
            let _ = rest.await;
            Err(failure)
        }
        None => tokio::select! {
            failure = heard => Err(failure),
            ended = rest => ended.unwrap_or(Ok(())),
            _ = signals.next() => Ok(()),
        },
    }
}

impl ServeArgs {
    /// Starts the program and waits until its model is there.
    async fn begin(&self, output: &Output) -> Result<Begun, Failure> {
        let Started {
            asking,
            answers: mut said,
            folder,
        } = self.model.start(output).await?;
        let form = Form::of(folder.as_ref()).await?;
        if let Form::Missing(why) = &form {
            output.note(&format!("no dialogues: {why}"));
        }
        let words = match &folder {
            Some(folder) => Some(published::words(folder).await?),
            None => None,
        };
        let model = self.ready(&mut said).await?;
        Ok(Begun {
            asking,
            said,
            model,
            form,
            words,
        })
    }

    /// Waits until the model is there.
    async fn ready(&self, said: &mut Answers) -> Result<Model, Failure> {
        match said.next().await? {
            Some(Event::Ready {
                positions,
                sees,
                end,
                begin,
            }) => Ok(Model {
                name: self
                    .name
                    .clone()
                    .unwrap_or_else(|| name_of(&self.model.model)),
                created: now(),
                positions,
                sees,
                end,
                begin,
            }),
            _ => {
                let why = "it said nothing of its model";
                Err(Failure::internal(
                    "the program that generates is not ready",
                    why,
                ))
            }
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// Waits until nobody waits for an answer. Probes and those who come meanwhile are told that it ends; then nobody
/// is let in.
async fn answered(hub: &Hub) {
    while hub.waiting() > 0 {
        tokio::time::sleep(SOON).await;
    }
}

async fn until(mut draining: watch::Receiver<bool>) {
    let _ = draining.wait_for(|draining| *draining).await;
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::environment(
            format!("{address} cannot be listened on"),
            error.to_string(),
            "choose another --listen; port 0 takes any free one",
        )
    })
}

fn unserved(error: std::io::Error) -> Failure {
    Failure::io("requests cannot be taken any more", error)
}

/// The last part of a path or URL.
fn name_of(location: &str) -> String {
    let parts = location.trim_end_matches('/').rsplit('/');
    let mut parts = parts.filter(|part| !part.is_empty() && *part != "." && *part != "..");
    parts.next().unwrap_or("mks2").to_owned()
}

fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions::complete))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/models", get(models))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::info))
        .route("/health", get(health))
        .route("/metrics", get(metrics::show))
        .fallback(refusal::no_such_page)
        .method_not_allowed_fallback(refusal::no_such_method)
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .with_state(server)
}

async fn models(State(server): Shared) -> Json<Value> {
    Json(json!({
        "object": "list",
        "data": [{
            "id": server.model.name,
            "object": "model",
            "created": server.model.created,
            "owned_by": "mks2",
            "max_model_len": server.model.positions,
        }],
    }))
}

async fn health(State(server): Shared) -> impl IntoResponse {
    match server.hub.is_open() {
        true => (StatusCode::OK, Json(json!({"status": "ok"}))),
        false => {
            let body = Json(json!({"status": "ends"}));
            (StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}

/// How soon it is noticed that all is answered.
const SOON: Duration = Duration::from_millis(20);
/// How long a client whose prompts are too many should wait.
const LATER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_the_last_part_of_its_location() {
        for (location, name) in [
            ("runs/emoji", "emoji"),
            ("s3://bucket/models/llama/", "llama"),
            ("./", "mks2"),
            ("/", "mks2"),
        ] {
            assert_eq!(name_of(location), name);
        }
    }
}
