//! VM states and the table of allowed transitions.
//!
//! ```text
//!  planned ─> preparing ─┬─> booting ───┬─> running <─> unhealthy
//!                        └─> restoring ─┘     │  \        │ (restart: back to preparing)
//!                                             v   v       v
//!                                        paused <-> checkpointing
//!  any but gone ─> stopping ─> gone
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a VM stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It has a row and nothing on the machine.
    Planned,
    /// Directory, network and disk are being made.
    Preparing,
    /// The VMM runs; the guest is starting from its kernel.
    Booting,
    /// The VMM runs; the guest is being loaded from a snapshot.
    Restoring,
    /// The agent is claimed and the desktop answers.
    Running,
    /// It ran, and does not answer now.
    Unhealthy,
    /// Its processors are stopped.
    Paused,
    /// Its state is being written to disk.
    Checkpointing,
    /// It is being taken down.
    Stopping,
    /// Nothing of it is left on the machine.
    Gone,
}

impl VmState {
    /// Every state, in the order of a VM's life.
    pub const ALL: [Self; 10] = [
        Self::Planned,
        Self::Preparing,
        Self::Booting,
        Self::Restoring,
        Self::Running,
        Self::Unhealthy,
        Self::Paused,
        Self::Checkpointing,
        Self::Stopping,
        Self::Gone,
    ];

    /// Whether a VM may go from this state to `to` in one step.
    pub const fn can_become(self, to: Self) -> bool {
        use VmState::{
            Booting, Checkpointing, Gone, Paused, Planned, Preparing, Restoring, Running, Stopping,
            Unhealthy,
        };
        match (self, to) {
            (Gone, _) => false,
            (from, Stopping) => !matches!(from, Stopping),
            (Planned, Preparing)
            // A failed restore falls back to a cold boot of the same VM, through preparing.
            | (Preparing, Booting | Restoring)
            | (Booting, Running | Preparing)
            | (Restoring, Running | Preparing)
            | (Running, Unhealthy | Paused | Checkpointing)
            // A dead VMM is started again on the same disk or from its checkpoint.
            | (Unhealthy, Running | Preparing)
            | (Paused, Running | Checkpointing | Unhealthy)
            | (Checkpointing, Running | Paused | Unhealthy)
            | (Stopping, Gone) => true,
            _ => false,
        }
    }

    /// The name used in the API, in the store and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Preparing => "preparing",
            Self::Booting => "booting",
            Self::Restoring => "restoring",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::Paused => "paused",
            Self::Checkpointing => "checkpointing",
            Self::Stopping => "stopping",
            Self::Gone => "gone",
        }
    }

    /// The state of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_table_is_exactly_this() {
        use VmState::*;
        let allowed: &[(VmState, &[VmState])] = &[
            (Planned, &[Preparing, Stopping]),
            (Preparing, &[Booting, Restoring, Stopping]),
            (Booting, &[Preparing, Running, Stopping]),
            (Restoring, &[Preparing, Running, Stopping]),
            (Running, &[Unhealthy, Paused, Checkpointing, Stopping]),
            (Unhealthy, &[Preparing, Running, Stopping]),
            (Paused, &[Running, Unhealthy, Checkpointing, Stopping]),
            (Checkpointing, &[Running, Unhealthy, Paused, Stopping]),
            (Stopping, &[Gone]),
            (Gone, &[]),
        ];
        assert_eq!(allowed.len(), VmState::ALL.len());
        for (from, targets) in allowed {
            for to in VmState::ALL {
                assert_eq!(from.can_become(to), targets.contains(&to), "{from} -> {to}");
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for s in VmState::ALL {
            assert_eq!(VmState::from_name(s.as_str()), Some(s));
        }
    }
}
