//! What cannot be answered, as OpenAI's API says it: a status, and why.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mks2_proto::failure::{ExitCode, Failure};
use mks2_proto::generate::{TOO_LONG, Words};
use serde_json::{Value, json};

use super::LATER;

/// What is wrong with a request, in the API's word.
const INVALID: &str = "invalid_request_error";
/// What is wrong is not the request's fault.
const SERVER: &str = "server_error";

/// A request that is not answered.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    /// The API's word for the reason, where it has one.
    code: Option<&'static str>,
    message: String,
    /// The field of the request that is to blame.
    param: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let is_theirs = status.is_client_error();
        Self {
            status,
            kind: if is_theirs { INVALID } else { SERVER },
            code: None,
            message: message.into(),
            param: None,
        }
    }

    /// A field of the request is wrong.
    pub(super) fn field(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// A field of the request is of another type.
    pub(super) fn kind(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            ..Self::field(param, message)
        }
    }

    /// The model has another name.
    pub(super) fn no_such_model(asked: &str, name: &str) -> Self {
        let message = format!("there is no model '{asked}' here: this one is called '{name}'");
        Self {
            code: Some("model_not_found"),
            param: Some("model"),
            ..Self::new(StatusCode::NOT_FOUND, message)
        }
    }

    /// Too many wait already.
    pub(super) fn busy(count: usize, most: usize) -> Self {
        let message = format!(
            "there is no room for {count} more prompts now: at most {most} may wait; try again"
        );
        Self {
            kind: "rate_limit_error",
            code: Some("rate_limit_exceeded"),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// The server ends, or the program that computes is gone.
    pub(super) fn closed() -> Self {
        let message = "this server ends and takes nothing new";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// What the model says of a prompt that came in this field.
    pub(super) fn of_prompt(field: &'static str, why: Words) -> Self {
        let is_too_long = why.what.starts_with(TOO_LONG);
        let refusal = Self::from(Failure::from(why));
        match is_too_long {
            true => Self {
                code: Some("context_length_exceeded"),
                param: Some(field),
                ..refusal
            },
            false => refusal,
        }
    }

    /// As the body of a response, or as an event of a stream.
    pub(super) fn body(&self) -> Value {
        json!({
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            },
        })
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = match failure.exit {
            ExitCode::Usage | ExitCode::Settings | ExitCode::Data => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let Failure {
            what, why, cure, ..
        } = failure;
        Self::new(status, format!("{what}: {why}; {cure}"))
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
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
    Refusal::new(
        StatusCode::NOT_FOUND,
        "there is no such path here: /v1/completions, /v1/chat/completions, /v1/models, \
         /tokenize, /detokenize, /tokenizer_info, /health and /metrics are",
    )
}

/// Another method than the path takes.
pub(super) async fn no_such_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path takes another method: what asks something is posted, all else is got",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_words_of_the_api() {
        let too_long = Failure::usage(format!("{TOO_LONG}: 9 tokens"), "why", "cure");
        let of_model = |failure| Refusal::of_prompt("messages", Words::from(&failure));
        let other = Failure::usage("there is no token 7", "why", "cure");
        for (refusal, kind, code, param) in [
            (
                Refusal::no_such_model("a", "b"),
                INVALID,
                json!("model_not_found"),
                json!("model"),
            ),
            (
                Refusal::busy(1, 2),
                "rate_limit_error",
                json!("rate_limit_exceeded"),
                Value::Null,
            ),
            (
                of_model(too_long),
                INVALID,
                json!("context_length_exceeded"),
                json!("messages"),
            ),
            (of_model(other), INVALID, Value::Null, Value::Null),
            (Refusal::closed(), SERVER, Value::Null, Value::Null),
        ] {
            let error = refusal.body()["error"].clone();
            assert_eq!(error["type"], kind);
            assert_eq!((&error["code"], &error["param"]), (&code, &param));
        }
    }
}
