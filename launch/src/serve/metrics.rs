//! `/metrics`, in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use mks2_proto::generate::Event;

use super::Shared;

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    answers: AtomicU64,
    prompt_tokens: AtomicU64,
    tokens: AtomicU64,
}

impl Metrics {
    /// An answer is complete.
    pub(super) fn answered(&self, event: &Event) {
        if let Event::Done {
            prompt_tokens,
            tokens,
            ..
        } = event
        {
            self.answers.fetch_add(1, Ordering::Relaxed);
            let prompt = u64::from(*prompt_tokens);
            self.prompt_tokens.fetch_add(prompt, Ordering::Relaxed);
            self.tokens
                .fetch_add(tokens.len() as u64, Ordering::Relaxed);
        }
    }

    fn text(&self, waiting: usize) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut text = String::new();
        for (name, kind, help, value) in [
            (
                "mks2_answers_total",
                "counter",
                "Complete answers.",
                count(&self.answers),
            ),
            (
                "mks2_prompt_tokens_total",
                "counter",
                "Tokens of the prompts of complete answers.",
                count(&self.prompt_tokens),
            ),
            (
                "mks2_generated_tokens_total",
                "counter",
                "Tokens of complete answers.",
                count(&self.tokens),
            ),
            (
                "mks2_prompts_waiting",
                "gauge",
                "Prompts that wait or are being answered.",
                waiting as u64,
            ),
        ] {
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        }
        text
    }
}

pub(super) async fn show(State(server): Shared) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let text = server.metrics.text(server.hub.waiting());
    ([(header::CONTENT_TYPE, kind)], text)
}
