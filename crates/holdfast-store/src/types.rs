//! Arguments and answers of the Store trait.

use std::net::Ipv4Addr;

use holdfast_core::{EventBody, HostId, OwnerId, Session, SessionId, SessionState, Timestamp, Vm};
use uuid::Uuid;

/// A session to be made, with the VM that will serve it.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// The session; its `vm` names `vm.id` and its generation is the first.
    pub session: Session,
    /// Its VM: a new row (first generation), or one from a pool (the generation that was read).
    pub vm: Vm,
    /// First entries of the timeline.
    pub events: Vec<EventBody>,
    /// Makes a repeated request harmless.
    pub key: Option<IdempotencyKey>,
}

/// An `Idempotency-Key` header with a digest of the request that it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The header's value, at most 255 characters; belongs to the session's owner.
    pub key: String,
    /// SHA-256 of the request's body, lower-case hex.
    pub request_sha256: String,
}

/// Answer to [`super::Store::create_session`].
#[derive(Debug, Clone)]
pub struct Created {
    /// The session as stored.
    pub session: Session,
    /// Its VM as stored.
    pub vm: Vm,
    /// It was made by an earlier request with the same key.
    pub replayed: bool,
}

/// A write of up to one session and one VM with the events that explain it.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The session to write, with the generation that was read. Lease fields are not written here.
    pub session: Option<Session>,
    /// The VM to write, with the generation that was read.
    pub vm: Option<Vm>,
    /// Events for the session's timeline.
    pub events: Vec<(SessionId, EventBody)>,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    /// Only this owner's.
    pub owner: Option<OwnerId>,
    /// Only in these states; empty means all.
    pub states: Vec<SessionState>,
    /// At most this many; `None` means all.
    pub limit: Option<u32>,
}

/// A lease to be extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTouch {
    /// Whose.
    pub session: SessionId,
    /// When somebody was attached.
    pub heartbeat_at: Timestamp,
    /// Until when that protects the session.
    pub expires_at: Timestamp,
}

/// A token to be stored.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Its public id.
    pub id: Uuid,
    /// Whose.
    pub owner: OwnerId,
    /// A label for people.
    pub name: String,
    /// SHA-256 of the token, lower-case hex; the token itself is never stored.
    pub sha256: String,
    /// It may do everything for every owner.
    pub admin: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
}

/// A token as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its public id.
    pub id: Uuid,
    /// Whose.
    pub owner: OwnerId,
    /// A label for people.
    pub name: String,
    /// It may do everything for every owner.
    pub admin: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// Driver that it runs VMs with.
    pub driver: String,
    /// Why that driver.
    pub driver_reason: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Version of the server.
    pub version: String,
    /// Address at which other servers reach it.
    pub address: Option<Ipv4Addr>,
    /// When it last said so.
    pub seen_at: Timestamp,
}

/// What [`super::Store::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreCheck {
    /// Everything is as it should be.
    pub ok: bool,
    /// Stable name of the finding: `ok`, `cannot_connect`, `wrong_credentials`, `missing_table`,
    /// `old_schema`, `newer_schema`, `rows_hidden`, `read_only`.
    pub code: &'static str,
    /// What was found, and what to do about it.
    pub detail: String,
}
