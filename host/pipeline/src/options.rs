//! A choice with settings, as text: `name`, `name:value`, `name:key=value,key=value`. One spelling for the command line,
//! HTTP and stored requests.

use crate::error::{StageError, StageResult};
use std::str::FromStr;

/// A choice whose settings are being read.
pub(crate) struct Options<'a> {
    field: &'static str,
    hint: &'static str,
    name: &'a str,
    /// Key and value; the key is empty for a value without one.
    given: Vec<(&'a str, &'a str)>,
}

impl<'a> Options<'a> {
    /// Splits `text`, the value of request field `field`. `hint` says what would be right.
    pub(crate) fn parse(field: &'static str, hint: &'static str, text: &'a str) -> Self {
        let (name, settings) = text.trim().split_once(':').unwrap_or((text.trim(), ""));
        let given = settings.split(',').map(str::trim).filter(|setting| !setting.is_empty());
        let given = given.map(|setting| setting.split_once('=').unwrap_or(("", setting))).collect();
        Self { field, hint, name: name.trim(), given }
    }

    pub(crate) fn name(&self) -> &'a str {
        self.name
    }

    /// The setting `key`, or `default`.
    pub(crate) fn take<T: FromStr>(&mut self, key: &str, default: T) -> StageResult<T> {
        let Some(index) = self.given.iter().position(|(given, _)| given.trim() == key) else { return Ok(default) };
        let (_, value) = self.given.remove(index);
        value.trim().parse().map_err(|_| self.refuse())
    }

    /// The setting `key`, which may come first without its name.
    pub(crate) fn take_first<T: FromStr>(&mut self, key: &'a str, default: T) -> StageResult<T> {
        if let Some(first) = self.given.first_mut().filter(|(given, _)| given.is_empty()) {
            first.0 = key;
        }
        self.take(key, default)
    }

    /// Refuses settings that nobody took.
    pub(crate) fn nothing_left(&self) -> StageResult<()> {
        if self.given.is_empty() { Ok(()) } else { Err(self.refuse()) }
    }

    pub(crate) fn refuse(&self) -> StageError {
        StageError::invalid(self.field, self.hint)
    }
}

/// In JSON such a choice is its text.
macro_rules! text_in_serde {
    ($($kind:ty),+) => {$(
        impl TryFrom<String> for $kind {
            type Error = StageError;
            fn try_from(text: String) -> StageResult<Self> {
                text.parse()
            }
        }

        impl From<$kind> for String {
            fn from(kind: $kind) -> Self {
                kind.to_string()
            }
        }
    )+};
}
pub(crate) use text_in_serde;
