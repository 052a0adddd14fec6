//! What may be said of stores: locations and errors without secrets.

use std::io::ErrorKind;
use std::sync::OnceLock;

use object_store::client::{HttpError, HttpErrorKind};
use url::Url;

use crate::error::Trouble;

/// Most characters of a store's own words that are shown.
const MAX_DETAIL_CHARS: usize = 400;

/// A location as it may be shown: without user, password and query.
#[must_use]
pub fn shown(location: &str) -> String {
    match Url::parse(location) {
        Ok(mut url) if location.contains("://") => {
            let cleaned = url.set_username("").and_then(|()| url.set_password(None));
            url.set_query(None);
            if cleaned.is_ok() || url.username().is_empty() {
                url.to_string()
            } else {
                redact(location)
            }
        }
        _ => location.to_owned(),
    }
}

/// Text without secrets: values of secret environment variables and of signing parameters.
#[must_use]
pub fn redact(text: &str) -> String {
    let mut clean = text.to_owned();
    for secret in secrets() {
        clean = clean.replace(secret.as_str(), "***");
    }
    for parameter in SIGNING_PARAMETERS {
        clean = blank_values(&clean, parameter);
    }
    clean
}

/// Parameters of URLs that grant access.
const SIGNING_PARAMETERS: [&str; 5] = [
    "X-Amz-Signature=",
    "X-Amz-Credential=",
    "X-Amz-Security-Token=",
    "sig=",
    "Signature=",
];

/// Values of environment variables that must never be shown.
fn secrets() -> &'static [String] {
    static SECRETS: OnceLock<Vec<String>> = OnceLock::new();
    SECRETS.get_or_init(|| {
        let secret = |name: &str| {
            ["AWS_", "AZURE_", "GOOGLE_"]
                .iter()
                .any(|cloud| name.starts_with(cloud))
                && ["SECRET", "TOKEN", "KEY", "SAS", "PASSWORD"]
                    .iter()
                    .any(|word| name.contains(word))
        };
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| secret(name) && value.len() >= 8)
            .map(|(_, value)| value)
            .collect()
    })
}

/// Where clouds give credentials to their own machines. Asked last of all: trouble with them means
/// that nothing else had any.
const CREDENTIAL_SERVICES: [&str; 3] = [
    "169.254.169.254",
    "169.254.170.2",
    "metadata.google.internal",
];

/// What stores answer when the bucket or container itself is missing.
const NO_BUCKET: [&str; 4] = [
    "NoSuchBucket",
    "The specified bucket does not exist",
    "ContainerNotFound",
    "The specified container does not exist",
];

/// The bucket of an object's URL: `s3://bucket` of `s3://bucket/a/b`.
pub(crate) fn bucket_of(object: &str) -> Option<&str> {
    let start = object.find("://")? + 3;
    let end = object[start..]
        .find('/')
        .map_or(object.len(), |at| start + at);
    Some(&object[..end])
}

/// The URL scheme and bucket of a store, from its own name: `AmazonS3(bucket)`, or
/// `MicrosoftAzure { account: a, container: c }`.
pub(super) fn bucket_url(kind: &str) -> Option<String> {
    let inside = |before: &str, after: char| {
        let (_, rest) = kind.split_once(before)?;
        Some(rest.split(after).next().unwrap_or(rest).trim().to_owned())
    };
    if kind.starts_with("AmazonS3") {
        inside("(", ')').map(|bucket| format!("s3://{bucket}"))
    } else if kind.starts_with("GoogleCloudStorage") {
        inside("(", ')').map(|bucket| format!("gs://{bucket}"))
    } else if kind.starts_with("MicrosoftAzure") {
        inside("container:", '}').map(|container| format!("az://{container}"))
    } else {
        (kind == "InMemory").then(|| "memory:/".to_owned())
    }
}

/// Replaces what follows `parameter`, up to the next delimiter.
fn blank_values(text: &str, parameter: &str) -> String {
    let mut parts = text.split(parameter);
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(|c: char| "&\"' \n)>".contains(c))
            .unwrap_or(part.len());
        clean.push_str(parameter);
        clean.push_str("***");
        clean.push_str(&part[end..]);
    }
    clean
}

/// The kind of trouble behind a store's error, and its words without secrets on one line.
#[must_use]
pub fn diagnose(error: &object_store::Error) -> (Trouble, String) {
    let io = deepest_io(error);
    let own_words = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| own_words.contains(word));
    let trouble = match (error, io.map(std::io::Error::kind)) {
        _ if is_silence(error, &own_words) => Trouble::Silent,
        _ if says(&CREDENTIAL_SERVICES) => Trouble::NoCredentials,
        _ if says(&NO_BUCKET) => Trouble::NoBucket,
        (object_store::Error::NotFound { .. }, _) => Trouble::Missing,
        (object_store::Error::AlreadyExists { .. }, _) => Trouble::Exists,
        (object_store::Error::Precondition { .. }, _) => Trouble::Changed,
        (
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. },
            _,
        ) => Trouble::Denied,
        (_, Some(kind)) => of_system(kind),
        _ => Trouble::Other,
    };
    let words = match (trouble, io) {
        (Trouble::Missing, _) => "it does not exist".to_owned(),
        (Trouble::NoBucket, _) => "its bucket does not exist".to_owned(),
        (Trouble::NoCredentials, _) => "no credentials were found: neither in the environment nor \
            from a service of this machine"
            .to_owned(),
        (_, Some(io)) => system_words(io),
        _ => own_words,
    };
    let line = redact(&words)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    (trouble, line.chars().take(MAX_DETAIL_CHARS).collect())
}

/// Whether no answer came, or one that says "later": a server that is overloaded or out of order.
fn is_silence(error: &object_store::Error, own_words: &str) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(http) = current.downcast_ref::<HttpError>() {
            return matches!(
                http.kind(),
                HttpErrorKind::Connect
                    | HttpErrorKind::Request
                    | HttpErrorKind::Timeout
                    | HttpErrorKind::Interrupted
            );
        }
        cause = current.source();
    }
    // Statuses have no variant of their own (RFC 9110, section 15).
    let status = own_words.split_once("non-2xx status code: ");
    let status = status.and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    matches!(status, Some(408 | 429 | 500 | 502..=506 | 508..=599))
}

/// The trouble behind an error of the operating system.
fn of_system(kind: ErrorKind) -> Trouble {
    match kind {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Trouble::NoRight,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Trouble::Full,
        ErrorKind::FileTooLarge => Trouble::TooLarge,
        ErrorKind::NotADirectory => Trouble::NotAFolder,
        _ => Trouble::Other,
    }
}

/// An error of the operating system in the words that local files get everywhere else.
fn system_words(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "no space left there".to_owned(),
        ErrorKind::FileTooLarge => {
            "too large a file for a limit of this process or the file system".to_owned()
        }
        _ => error.to_string(),
    }
}

/// The operating system's error at the bottom of a chain of errors.
fn deepest_io<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut found = None;
    let mut cause = Some(error);
    while let Some(current) = cause {
        found = current.downcast_ref::<std::io::Error>().or(found);
        cause = current.source();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_from_refusal() {
        let of = |source: Box<dyn std::error::Error + Send + Sync>| {
            let error = object_store::Error::Generic {
                store: "S3",
                source,
            };
            diagnose(&error).0
        };
        let http = |kind, io| of(Box::new(HttpError::new(kind, std::io::Error::from(io))));
        // A name that is not found has an io error of no kind of its own.
        for (kind, io) in [
            (HttpErrorKind::Connect, ErrorKind::Other),
            (HttpErrorKind::Connect, ErrorKind::ConnectionRefused),
            (HttpErrorKind::Timeout, ErrorKind::TimedOut),
            (HttpErrorKind::Interrupted, ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(http(kind, io), Trouble::Silent, "{kind:?} {io:?}");
        }
        assert_eq!(
            http(HttpErrorKind::Decode, ErrorKind::Other),
            Trouble::Other
        );
        let answered =
            |status: &str| of(format!("Server returned non-2xx status code: {status}: x").into());
        for status in [
            "500 Internal Server Error",
            "503 Slow Down",
            "429 Too Many Requests",
        ] {
            assert_eq!(answered(status), Trouble::Silent, "{status}");
        }
        // Credentials that have expired, a method that is not known, a full disk.
        for status in [
            "400 Bad Request",
            "501 Not Implemented",
            "507 Insufficient Storage",
        ] {
            assert_eq!(answered(status), Trouble::Other, "{status}");
        }
        let full = std::io::Error::from(ErrorKind::StorageFull);
        assert_eq!(of(Box::new(full)), Trouble::Full);
        assert_eq!(of("out of order".into()), Trouble::Other);
    }

    #[test]
    fn stores_are_named_by_their_urls() {
        for (url, root) in [
            ("s3://mine/a/b", "s3://mine"),
            ("gs://mine/a", "gs://mine"),
            ("az://box/a", "az://box"),
        ] {
            let kind = match root {
                "s3://mine" => "AmazonS3(mine)",
                "gs://mine" => "GoogleCloudStorage(mine)",
                _ => "MicrosoftAzure { account: someone, container: box }",
            };
            assert_eq!(bucket_url(kind).as_deref(), Some(root));
            assert_eq!(bucket_of(url), Some(root));
        }
        assert_eq!(bucket_url("AnotherStore"), None);
        assert_eq!(bucket_of("run/journal"), None);
    }

    #[test]
    fn nothing_shown_has_a_secret_in_it() {
        assert_eq!(shown("https://user:pass@host/a?sig=abc"), "https://host/a");
        assert_eq!(shown("data/a b"), "data/a b");
        let text = "GET https://h/x?X-Amz-Signature=abcdef&list=1 failed";
        assert_eq!(
            redact(text),
            "GET https://h/x?X-Amz-Signature=***&list=1 failed"
        );
    }
}
