//! What cannot be answered, as OpenAI's API says it: a status, and why.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mks2_proto::failure::{ExitCode, Failure};
use serde_json::{Value, json};

use super::LATER;

/// A request that is not answered.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// The field of the request that is to blame.
    param: Option<&'static str>,
}

impl Refusal {
    /// A field of the request is wrong.
    pub(super) fn field(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "invalid_request_error",
            message: message.into(),
            param: Some(param),
        }
    }

    /// The model has another name.
    pub(super) fn no_such_model(asked: &str, name: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "model_not_found",
            message: format!("there is no model '{asked}' here: this one is called '{name}'"),
            param: Some("model"),
        }
    }

    /// Too many wait already.
    pub(super) fn busy(count: usize, most: usize) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: "rate_limit_exceeded",
            message: format!(
                "there is no room for {count} more prompts now: at most {most} may wait; try again"
            ),
            param: None,
        }
    }

    /// The server ends, or the program that computes is gone.
    pub(super) fn closed() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "server_error",
            message: "this server ends and takes nothing new".into(),
            param: None,
        }
    }

    /// As the body of a response, or as an event of a stream.
    pub(super) fn body(&self) -> Value {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.status.as_u16(),
            },
        })
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let (status, kind) = match failure.exit {
            ExitCode::Usage | ExitCode::Settings | ExitCode::Data => {
                (StatusCode::BAD_REQUEST, "invalid_request_error")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        };
        let Failure {
            what, why, cure, ..
        } = failure;
        Self {
            status,
            kind,
            message: format!("{what}: {why}; {cure}"),
            param: None,
        }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self {
            status: rejection.status(),
            kind: "invalid_request_error",
            message: rejection.body_text(),
            param: None,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = (self.status, Json(self.body()));
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => {
                let later = LATER.as_secs().to_string();
                ([(header::RETRY_AFTER, later)], body).into_response()
            }
            _ => body.into_response(),
        }
    }
}

/// No such path.
pub(super) async fn no_such_page() -> Refusal {
    Refusal {
        status: StatusCode::NOT_FOUND,
        kind: "invalid_request_error",
        message: "there is no such path here: /v1/completions, /v1/chat/completions, /v1/models, \
                  /tokenize, /detokenize, /tokenizer_info, /health and /metrics are"
            .into(),
        param: None,
    }
}

/// Another method than the path takes.
pub(super) async fn no_such_method() -> Refusal {
    Refusal {
        status: StatusCode::METHOD_NOT_ALLOWED,
        kind: "invalid_request_error",
        message: "this path takes another method: what asks something is posted, all else is got"
            .into(),
        param: None,
    }
}
