//! Events: every change is explained. A session's events, in order, are its timeline.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{SessionId, Timestamp, VmId};

/// Who caused a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A person or program through the API.
    User,
    /// The reconciler, following its rules.
    Reconciler,
    /// Something in the guest.
    Guest,
    /// The host: a process ended, a disk filled up.
    Host,
}

impl Actor {
    /// Every actor.
    pub const ALL: [Self; 4] = [Self::User, Self::Reconciler, Self::Guest, Self::Host];

    /// The name used in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Reconciler => "reconciler",
            Self::Guest => "guest",
            Self::Host => "host",
        }
    }

    /// The actor of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.as_str() == name)
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened, before the store gave it a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventBody {
    /// The VM concerned, if one was.
    pub vm: Option<VmId>,
    /// When.
    pub at: Timestamp,
    /// Stable name for programs, such as `session.state` or `step.network`.
    pub kind: String,
    /// State before, for a transition.
    pub from: Option<String>,
    /// State after, for a transition.
    pub to: Option<String>,
    /// Why, as a sentence for people.
    pub why: String,
    /// Who caused it.
    pub by: Actor,
}

/// An entry of a session's timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Rises by one at least with every event of the store; the `id` of Server-Sent Events.
    pub seq: i64,
    /// The session whose timeline it belongs to.
    pub session: SessionId,
    /// What happened.
    pub body: EventBody,
}
