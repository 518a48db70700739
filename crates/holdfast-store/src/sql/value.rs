//! Values going into statements and coming out of rows.

use holdfast_core::{HostId, OwnerId, SessionId, Timestamp, VmId};
use uuid::Uuid;

use crate::Result;

/// A parameter of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// Numbers and times.
    Int(Option<i64>),
    /// Everything else: ids, names, states, JSON.
    Text(Option<String>),
    /// Yes or no.
    Flag(bool),
}

/// A row of an answer. Columns are asked for by name; `what` names the kind of record for the error
/// when a column is missing or of another type.
pub(crate) trait Row: Send + Sync {
    /// A number, or NULL.
    fn int(&self, what: &'static str, column: &str) -> Result<Option<i64>>;
    /// A text, or NULL.
    fn text(&self, what: &'static str, column: &str) -> Result<Option<String>>;
    /// A boolean.
    fn flag(&self, what: &'static str, column: &str) -> Result<bool>;
}

/// Makes a list of [`Value`]s.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::sql::Value::from($value)),*] };
}
pub(crate) use args;

/// `$first, $first+1, ...`: `count` parameters, the first of which has this number.
pub(crate) fn placeholders(first: usize, count: usize) -> String {
    let names: Vec<_> = (first..first + count).map(|n| format!("${n}")).collect();
    names.join(", ")
}

/// Nanoseconds since 1970 UTC. Times outside the years 1677 to 2262 become the nearest that fits.
pub(crate) fn nanoseconds(at: Timestamp) -> i64 {
    let wide = at.as_nanosecond();
    i64::try_from(wide).unwrap_or(if wide < 0 { i64::MIN } else { i64::MAX })
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(Some(value.into()))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Flag(value)
    }
}

impl From<Timestamp> for Value {
    fn from(value: Timestamp) -> Self {
        nanoseconds(value).into()
    }
}

impl From<Option<Timestamp>> for Value {
    fn from(value: Option<Timestamp>) -> Self {
        Self::Int(value.map(nanoseconds))
    }
}

impl From<String> for Value {
    // PostgreSQL has no zero characters in texts, and output of a guest may have them.
    fn from(value: String) -> Self {
        let clean = if value.contains('\0') { value.replace('\0', "\u{fffd}") } else { value };
        Self::Text(Some(clean))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        value.to_owned().into()
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        value.map_or(Self::Text(None), Self::from)
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        value.map_or(Self::Text(None), Self::from)
    }
}

macro_rules! from_id {
    ($($id:ty),*) => {$(
        impl From<$id> for Value {
            fn from(value: $id) -> Self {
                Self::Text(Some(value.to_string()))
            }
        }

        impl From<Option<$id>> for Value {
            fn from(value: Option<$id>) -> Self {
                Self::Text(value.map(|id| id.to_string()))
            }
        }
    )*};
}
from_id!(SessionId, VmId, HostId, OwnerId, Uuid);
