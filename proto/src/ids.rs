//! Names and numbers that must not be mixed up, each with a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A name that is no acceptable identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no {kind}: use 1 to 100 letters, digits, dots, underscores and hyphens")]
pub struct BadId {
    kind: &'static str,
    text: String,
}

/// Letters of a digest.
pub const DIGEST: usize = 64;

/// Whether this is a blake3 digest as it is written everywhere: [`DIGEST`] hexadecimal digits, lower case.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.len() == DIGEST && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// Identifiers become parts of object paths, so their alphabet is small and they are short.
fn checked(kind: &'static str, text: &str) -> Result<String, BadId> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = (1..=100).contains(&text.len())
        && text.chars().all(allowed)
        && text.chars().any(|c| c.is_ascii_alphanumeric());
    if good {
        Ok(text.to_owned())
    } else {
        Err(BadId {
            kind,
            text: text.to_owned(),
        })
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the name.
            ///
            /// # Errors
            /// When it is empty, longer than 100 bytes or has other characters than ASCII
            /// letters, digits, `.`, `_` and `-`.
            pub fn new(text: &str) -> Result<Self, BadId> {
                checked($kind, text).map(Self)
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $number:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text_id! {
    /// A run: one training of one job file into one run directory.
    RunId, "run id"
}
text_id! {
    /// A worker, by the name that its launcher gave it: unique in the run, and the same for the
    /// process that replaces it.
    MemberId, "member id"
}
number_id! {
    /// One process of a member: a restarted worker is not taken for its predecessor.
    Incarnation, u64
}
number_id! {
    /// A numbered agreement on members, ranks and lanes; 0 before the first.
    Generation, u64
}
number_id! {
    /// A coordinator's time in office, counted in the journal; a higher one fences a lower one.
    Term, u64
}
number_id! {
    /// Place of a member in its generation, from 0.
    Rank, u32
}
number_id! {
    /// A canonical virtual worker, from 0.
    Lane, u32
}

impl MemberId {
    /// Order in which people count: `worker-2` before `worker-10`.
    #[must_use]
    pub fn natural_key(&self) -> (&str, u64, &str) {
        let digits = self.0.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (name, number) = self.0.split_at(self.0.len() - digits);
        (name, number.parse().unwrap_or(u64::MAX), self.as_str())
    }
}

/// The run's shared secret. It is never shown: neither by `Debug` nor in a log.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes a token that somebody chose.
    ///
    /// # Errors
    /// When it has fewer than 8 or more than 200 characters, or others than visible ASCII
    /// (it travels in a header).
    pub fn new(text: &str) -> Result<Self, BadToken> {
        let good = (8..=200).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadToken)
        }
    }

    /// A new token: 256 bits of the operating system's randomness, in hex.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn random() -> std::io::Result<Self> {
        random_bytes::<32>().map(|bytes| Self(hex(&bytes)))
    }

    /// The secret itself, for the header and for a child's environment only.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares without telling by its time how much of the token was right.
    #[must_use]
    pub fn matches(&self, other: &str) -> bool {
        blake3::hash(self.0.as_bytes()) == blake3::hash(other.as_bytes())
    }
}

/// A token that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token has 8 to 200 visible ASCII characters")]
pub struct BadToken;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

impl Incarnation {
    /// A number that no other process has.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn random() -> std::io::Result<Self> {
        random_bytes::<8>().map(|bytes| Self(u64::from_le_bytes(bytes)))
    }
}

fn random_bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for bad in ["", "a/b", "..", ".", "-", "ä", "a b", &"x".repeat(101)] {
            assert!(MemberId::new(bad).is_err(), "{bad}");
        }
        assert_eq!(
            MemberId::new("worker-0").expect("good").as_str(),
            "worker-0"
        );
    }

    #[test]
    fn members_are_ordered_as_people_count() {
        let mut ids = ["worker-10", "worker-2", "b", "worker-0"]
            .map(|text| MemberId::new(text).expect("good"));
        ids.sort_by(|a, b| a.natural_key().cmp(&b.natural_key()));
        assert_eq!(
            ids.map(String::from),
            ["b", "worker-0", "worker-2", "worker-10"]
        );
    }

    #[test]
    fn digests_have_their_length_and_small_letters() {
        assert!(is_digest(&"0af9".repeat(16)));
        for other in ["0af9".repeat(15), "0AF9".repeat(16), "0ag9".repeat(16)] {
            assert!(!is_digest(&other), "{other}");
        }
    }

    #[test]
    fn a_token_is_compared_and_never_shown() {
        let token = Token::random().expect("randomness");
        assert_eq!(token.reveal().len(), 64);
        assert!(token.matches(token.reveal()));
        assert!(!token.matches("another token"));
        assert_eq!(format!("{token:?}"), "Token(hidden)");
        assert!(Token::new("short").is_err());
    }
}
