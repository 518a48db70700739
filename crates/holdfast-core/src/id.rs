//! Typed ids. An id is a UUID (version 7 where Holdfast makes it) wrapped in a type of its own, so
//! that a session's id cannot be passed where a VM's is expected.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The text is not the hyphenated form of a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a {kind} id: expected a UUID such as 01936f2e-7c1a-7e65-a3f0-2d8a9f3b1c44"
)]
pub struct ParseIdError {
    /// What kind of id was expected: `session`, `vm`, `host`, `owner` or `snapshot`.
    pub kind: &'static str,
    /// The refused text, cut to 64 characters.
    pub text: String,
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID made by the caller.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.as_hyphenated(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, "({})"), self.0.as_hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            // Only the canonical form is accepted: one id has one spelling, in URLs, file names
            // and logs alike.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let canonical = text.len() == 36 && !text.bytes().any(|b| b.is_ascii_uppercase());
                match Uuid::try_parse(text) {
                    Ok(uuid) if canonical => Ok(Self(uuid)),
                    _ => Err(ParseIdError {
                        kind: $kind,
                        text: text.chars().take(64).collect(),
                    }),
                }
            }
        }
    };
}

typed_id!(
    /// A session: what a user asks for and returns to.
    SessionId, "session"
);
typed_id!(
    /// A virtual machine serving a session.
    VmId, "vm"
);
typed_id!(
    /// A machine that runs VMs.
    HostId, "host"
);
typed_id!(
    /// An owner of sessions.
    OwnerId, "owner"
);
typed_id!(
    /// A saved state of a VM.
    SnapshotId, "snapshot"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_the_canonical_spelling() {
        let text = "01936f2e-7c1a-7e65-a3f0-2d8a9f3b1c44";
        let id: SessionId = text.parse().expect("canonical");
        assert_eq!(id.to_string(), text);
        for bad in [
            "",
            "x",
            "01936F2E-7C1A-7E65-A3F0-2D8A9F3B1C44",
            "01936f2e7c1a7e65a3f02d8a9f3b1c44",
            "{01936f2e-7c1a-7e65-a3f0-2d8a9f3b1c44}",
            "urn:uuid:01936f2e-7c1a-7e65-a3f0-2d8a9f3b1c44",
        ] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?} was accepted");
        }
    }
}
