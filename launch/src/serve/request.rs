//! The fields of a request.
//!
//! Each is read by itself, so that a refusal can name it and say what it may be. Those that nobody reads are
//! not looked at.

use std::sync::Arc;

use axum::Json;
use axum::extract::FromRequest;
use axum::extract::Request;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::Server;
use super::refusal::Refusal;

/// Bytes of the text of a field that a refusal repeats.
const SHOWN: usize = 60;

/// An object of fields.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// The field of this name, which may be left out or null; `right` is what it may be.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn take<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        right: &str,
    ) -> Result<Option<T>, Refusal> {
        let value = match self.0.remove(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        // Most are right, and some are large.
        let shown = match &value {
            Value::Array(_) | Value::Object(_) => String::new(),
            value => format!(", not {}", shown(value)),
        };
        serde_json::from_value(value)
            .map(Some)
            .map_err(|_| Refusal::kind(name, format!("{name} must be {right}{shown}")))
    }

    /// The field of this name; `right` is what it must be.
    ///
    /// # Errors
    /// When it is something else, or not there.
    pub(super) fn need<T: DeserializeOwned>(
        &mut self,
        name: &'static str,
        right: &str,
    ) -> Result<T, Refusal> {
        let value = self.take(name, right)?;
        value.ok_or_else(|| Refusal::kind(name, format!("{name} is missing: it must be {right}")))
    }

    /// The field of this name, true or false; without it false.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn is(&mut self, name: &'static str) -> Result<bool, Refusal> {
        Ok(self.take(name, "true or false")?.unwrap_or(false))
    }

    /// A count.
    ///
    /// # Errors
    /// When it is something else.
    pub(super) fn count(&mut self, name: &'static str) -> Result<Option<u32>, Refusal> {
        self.take(name, "a whole number, 0 or larger")
    }
}

/// A short value.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > SHOWN {
        let borders = text.char_indices().map(|(at, _)| at);
        let at = borders.take_while(|at| *at <= SHOWN).last();
        text.truncate(at.unwrap_or_default());
        text += "...";
    }
    text
}

impl FromRequest<Arc<Server>> for Fields {
    type Rejection = Refusal;

    /// The body is not read where nothing is taken any more.
    async fn from_request(request: Request, server: &Arc<Server>) -> Result<Self, Refusal> {
        server.hub.has_room()?;
        let Json(fields) = Json::from_request(request, server).await?;
        Ok(Self(fields))
    }
}

#[cfg(test)]
impl From<Value> for Fields {
    fn from(value: Value) -> Self {
        match value {
            Value::Object(fields) => Self(fields),
            _ => Self(Map::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_of_another_type_is_named_with_what_it_may_be() {
        let mut fields = Fields::from(json!({
            "echo": "yes", "stream": null, "max_tokens": -1, "stop": {}, "long": "ä".repeat(99),
        }));
        let mut refused = |name, right| {
            let refused = fields.take::<u32>(name, right).expect_err("refused");
            let error = refused.body()["error"].clone();
            assert_eq!(error["param"], name);
            error["message"].as_str().expect("words").to_owned()
        };
        assert_eq!(
            refused("max_tokens", "a whole number"),
            "max_tokens must be a whole number, not -1"
        );
        assert_eq!(refused("stop", "texts"), "stop must be texts");
        assert!(refused("long", "short").ends_with("ää..."));
        assert!(!fields.is("stream").expect("null is nothing"));
        fields.is("echo").expect_err("a text is neither");
        let missing = fields.need::<String>("prompt", "a text");
        let error = missing.expect_err("missing").body()["error"].clone();
        assert_eq!(error["message"], "prompt is missing: it must be a text");
    }
}
