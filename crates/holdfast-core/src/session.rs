//! Session states and the table of allowed transitions.
//!
//! ```text
//!                       ┌──────────────────────────────────────────────┐
//!  requested ─> starting ─> ready <─> degraded                         │ any state but
//!                  │          │ \________  │                           │ ended
//!                  │          v           \ v                          v
//!                  │      hibernating ─> hibernated ─> resuming     ending ─> ended
//!                  v                          ^            │  └─> ready
//!               failed <──────────────────────┴────────────┘
//! ```
//!
//! `failed` is reached only when every retry is used up; it still has a row, an explanation and,
//! until it is ended, the VM's logs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Accepted and stored; no work has begun (it may be queued).
    Requested,
    /// Its VM is being made.
    Starting,
    /// The desktop can be used.
    Ready,
    /// The VM does not answer as it should; repair is under way.
    Degraded,
    /// A checkpoint is being written.
    Hibernating,
    /// It exists only as a checkpoint.
    Hibernated,
    /// Its VM is being brought back from the checkpoint.
    Resuming,
    /// It is being taken down.
    Ending,
    /// Gone; the reason is kept until its retention ends.
    Ended,
    /// Every retry is used up; the reason is kept.
    Failed,
}

impl SessionState {
    /// Every state, in the order of a session's life.
    pub const ALL: [Self; 10] = [
        Self::Requested,
        Self::Starting,
        Self::Ready,
        Self::Degraded,
        Self::Hibernating,
        Self::Hibernated,
        Self::Resuming,
        Self::Ending,
        Self::Ended,
        Self::Failed,
    ];

    /// Whether a session may go from this state to `to` in one step.
    pub const fn can_become(self, to: Self) -> bool {
        use SessionState::{
            Degraded, Ended, Ending, Failed, Hibernated, Hibernating, Ready, Requested, Resuming,
            Starting,
        };
        match (self, to) {
            (Ended, _) => false,
            // Delete wins: an end is accepted in any state.
            (from, Ending) => !matches!(from, Ending),
            (Requested, Starting)
            | (Starting, Ready | Failed)
            | (Ready, Degraded | Hibernating)
            // A VM that died is made again, from its checkpoint or from its disk.
            | (Degraded, Ready | Resuming | Starting | Hibernating | Failed)
            | (Hibernating, Hibernated | Ready | Degraded)
            | (Hibernated, Resuming | Failed)
            | (Resuming, Ready | Failed)
            | (Ending, Ended) => true,
            _ => false,
        }
    }

    /// Whether nothing will change any more without a new request from the user.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Ended)
    }

    /// Whether a VM is expected to exist.
    pub const fn wants_vm(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Ready | Self::Degraded | Self::Hibernating | Self::Resuming
        )
    }

    /// The name used in the API, in the store and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Hibernating => "hibernating",
            Self::Hibernated => "hibernated",
            Self::Resuming => "resuming",
            Self::Ending => "ending",
            Self::Ended => "ended",
            Self::Failed => "failed",
        }
    }

    /// The state of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Its owner, or an administrator, ended it.
    UserRequest,
    /// Nobody was attached for longer than the lease and its grace.
    LeaseExpired,
    /// Nobody did anything for longer than the idle limit.
    Idle,
    /// The maximum lifetime was reached.
    MaxLifetime,
    /// Its job, such as a sign-in, was done.
    Completed,
    /// It could not be started or repaired; the timeline has the evidence.
    Failed,
}

impl EndReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::UserRequest,
        Self::LeaseExpired,
        Self::Idle,
        Self::MaxLifetime,
        Self::Completed,
        Self::Failed,
    ];

    /// The name used in the API, in the store and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UserRequest => "user_request",
            Self::LeaseExpired => "lease_expired",
            Self::Idle => "idle",
            Self::MaxLifetime => "max_lifetime",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// The reason of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == name)
    }

    /// A sentence for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::UserRequest => "The session was ended on request.",
            Self::LeaseExpired => "Nobody was connected to the session for longer than its lease.",
            Self::Idle => "The session was idle for longer than its limit.",
            Self::MaxLifetime => "The session reached its maximum lifetime.",
            Self::Completed => "The session did what it was made for.",
            Self::Failed => "The session's machine could not be started or repaired.",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table, written out a second time: a change has to be made in both places.
    #[test]
    fn the_transition_table_is_exactly_this() {
        use SessionState::*;
        let allowed: &[(SessionState, &[SessionState])] = &[
            (Requested, &[Starting, Ending]),
            (Starting, &[Ready, Ending, Failed]),
            (Ready, &[Degraded, Hibernating, Ending]),
            (Degraded, &[Starting, Ready, Hibernating, Resuming, Ending, Failed]),
            (Hibernating, &[Ready, Degraded, Hibernated, Ending]),
            (Hibernated, &[Resuming, Ending, Failed]),
            (Resuming, &[Ready, Ending, Failed]),
            (Ending, &[Ended]),
            (Ended, &[]),
            (Failed, &[Ending]),
        ];
        assert_eq!(allowed.len(), SessionState::ALL.len());
        for (from, targets) in allowed {
            for to in SessionState::ALL {
                assert_eq!(from.can_become(to), targets.contains(&to), "{from} -> {to}");
            }
        }
    }

    #[test]
    fn delete_is_accepted_in_every_state_but_the_last() {
        for from in SessionState::ALL {
            let already = matches!(from, SessionState::Ending | SessionState::Ended);
            assert_eq!(from.can_become(SessionState::Ending), !already, "{from}");
        }
    }

    #[test]
    fn names_round_trip_and_match_serde() {
        for s in SessionState::ALL {
            assert_eq!(SessionState::from_name(s.as_str()), Some(s));
        }
        for r in EndReason::ALL {
            assert_eq!(EndReason::from_name(r.as_str()), Some(r));
        }
        assert_eq!(SessionState::from_name("cancelled"), None);
    }
}
