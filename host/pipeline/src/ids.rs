//! Identifiers as types. Each accepts only what is safe in a path, a log line and a SQL value.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// An identifier was not of its form.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{value}` is not a valid {kind}: use {rule}")]
pub struct InvalidId {
    kind: &'static str,
    rule: &'static str,
    value: String,
}

impl InvalidId {
    fn new(kind: &'static str, rule: &'static str, value: &str) -> Self {
        // The value comes from outside: bounded and without control characters, so that it may be logged.
        let value = value.chars().filter(|c| !c.is_control()).take(80).collect();
        Self { kind, rule, value }
    }
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(value) { Ok(Self(value.to_owned())) } else { Err(InvalidId::new($kind, $rule, value)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
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

fn is_label(value: &str) -> bool {
    (1..=63).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-')
}

fn is_object_key(value: &str) -> bool {
    (1..=256).contains(&value.len())
        && value.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        })
}

string_id!(
    /// A customer of the platform.
    TenantId, "tenant id", "1-63 of a-z, 0-9 and `-`, not at an end", is_label
);
string_id!(
    /// A tenant's function, unique within the tenant.
    FunctionName, "function name", "1-63 of a-z, 0-9 and `-`, not at an end", is_label
);
string_id!(
    /// A job, as the API shows it: `video_` and 32 hexadecimal digits.
    JobId, "job id", "`video_` and 32 hexadecimal digits", |v| {
        v.strip_prefix("video_").is_some_and(|d| d.len() == 32 && d.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
    }
);
string_id!(
    /// Where an object lies in the object store: made from a tenant and a digest, never from a name that a user chose.
    ObjectKey, "object key", "parts of letters, digits, `-`, `_` and `.`, split by `/`", is_object_key
);

impl JobId {
    /// The id made of 16 random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(format!("video_{}", to_hex(&bytes)))
    }
}

/// A SHA-256 digest: the identity of a component version and of a stored object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with these bytes. Hashing itself is done where the bytes are.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", &self.to_hex()[..12])
    }
}

impl FromStr for Digest {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId::new("digest", "64 hexadecimal digits", value);
        if value.len() != 64 || !value.is_ascii() {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(value.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        value.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_hex()
    }
}

/// The device queue's opaque name for whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u64);

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_could_leave_a_path_or_a_log_line_are_refused() {
        for bad in ["", ".", "..", "a/b", "A", "a_b", "-a", "a-", "a\n", "é", &"a".repeat(64)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad:?}");
        }
        for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a b", "a\0"] {
            assert!(bad.parse::<ObjectKey>().is_err(), "{bad:?}");
        }
        assert!("acme-2".parse::<TenantId>().is_ok() && "acme/ab12.mp4".parse::<ObjectKey>().is_ok());
    }

    proptest! {
        #[test]
        fn digests_survive_their_text_form(bytes: [u8; 32]) {
            prop_assert_eq!(Digest::new(bytes).to_hex().parse::<Digest>().unwrap(), Digest::new(bytes));
        }

        #[test]
        fn parsing_any_text_never_panics(text in ".{0,100}") {
            let _ = (text.parse::<Digest>(), text.parse::<JobId>(), text.parse::<ObjectKey>(), text.parse::<TenantId>());
        }
    }
}
