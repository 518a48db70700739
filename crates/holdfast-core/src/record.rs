//! The records that the store keeps: a session, its VM and the tie between them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    EndReason, HostId, OwnerId, SessionId, SessionState, SnapshotId, Timestamp, VmId, VmState,
};

/// Counts the writes of a record. A write carries the generation that it read and is refused when
/// another write came between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub i64);

impl Generation {
    /// The generation of a record that was just made.
    pub const FIRST: Self = Self(1);

    /// The generation after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of a desktop in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Screen {
    /// 320 to 7680.
    pub width: u16,
    /// 240 to 4320.
    pub height: u16,
}

impl Screen {
    /// What a session gets when it does not ask.
    pub const DEFAULT: Self = Self { width: 1280, height: 800 };

    /// Whether both sides are in range.
    pub const fn is_valid(self) -> bool {
        self.width >= 320 && self.width <= 7680 && self.height >= 240 && self.height <= 4320
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What the user asked for. Never changes after creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSpec {
    /// The provider's name; `desktop` is the plain one.
    pub provider: String,
    /// A name for people, at most 100 characters; may be empty.
    pub name: String,
    /// Size of the desktop.
    pub screen: Screen,
    /// The page that the browser opens first; `None` leaves the start page.
    pub start_url: Option<String>,
    /// BCP 47 language of the desktop, such as `en-US`.
    pub locale: String,
    /// IANA name of the time zone, such as `Europe/Berlin`.
    pub timezone: String,
    /// Memory of the VM in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
}

/// A session as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id, readable from the moment the API returned it until its retention ends.
    pub id: SessionId,
    /// Who may see and drive it.
    pub owner: OwnerId,
    /// What was asked for.
    pub spec: SessionSpec,
    /// Where it stands.
    pub state: SessionState,
    /// The VM now serving it. A session keeps its VM's id through restarts of that VM.
    pub vm: Option<VmId>,
    /// Why it ended; set from `ending` on.
    pub end_reason: Option<EndReason>,
    /// A sentence with the cause of `degraded`, `failed` or the end.
    pub detail: Option<String>,
    /// Attempts at starting the VM so far.
    pub attempts: u32,
    /// Until when somebody is known to be attached.
    pub lease_expires_at: Timestamp,
    /// The last time somebody was attached.
    pub last_heartbeat_at: Timestamp,
    /// Its last saved state, where there is one.
    pub checkpoint: Option<Checkpoint>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When the state last changed.
    pub state_since: Timestamp,
    /// When it became `ready` for the first time.
    pub ready_at: Option<Timestamp>,
    /// When it became `ended`.
    pub ended_at: Option<Timestamp>,
    /// Counts its writes.
    pub generation: Generation,
}

/// A saved state of a session's VM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Names the snapshot's directory on its host.
    pub snapshot: SnapshotId,
    /// The host that keeps it.
    pub host: HostId,
    /// The session that it was taken of; another one's checkpoint makes a fork.
    pub session: SessionId,
    /// The VM that it was taken of: the identity inside.
    pub vm: VmId,
    /// Secret of the agent inside, hex.
    pub secret: String,
    /// Digest of the image that it needs.
    pub image: String,
    /// The instant that it shows.
    pub taken_at: Timestamp,
    /// Space that it takes, in bytes.
    pub bytes: u64,
}

// The secret must not reach a log through `{:?}`.
impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("snapshot", &self.snapshot)
            .field("vm", &self.vm)
            .field("taken_at", &self.taken_at)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A VM as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its id: also the name of its directory and, after `hf-`, of its network namespace.
    pub id: VmId,
    /// The session it serves; `None` while it waits in a pool.
    pub session: Option<SessionId>,
    /// The machine it runs on.
    pub host: HostId,
    /// Where it stands.
    pub state: VmState,
    /// Name of the driver that made it.
    pub driver: String,
    /// Digest of the image it was made from.
    pub image: String,
    /// Its address on its host: unique there, for display only; nobody outside the host dials it.
    pub address: Option<std::net::Ipv4Addr>,
    /// Counts boots and restores. A stream opened to one incarnation is never carried on to another.
    pub incarnation: u32,
    /// Secret that the agent was claimed with, hex; set before the claim is sent.
    pub secret: Option<String>,
    /// When the row was made.
    pub created_at: Timestamp,
    /// When the state last changed.
    pub state_since: Timestamp,
    /// Counts its writes.
    pub generation: Generation,
}
