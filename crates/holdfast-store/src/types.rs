//! Arguments and answers of the Store trait.

use std::net::Ipv4Addr;

use holdfast_core::{
    EventBody, HostId, OwnerId, Session, SessionId, SessionState, SignIn, Timestamp, Vm,
    signin::SealedInfo,
};
use uuid::Uuid;

/// A session to be made, with the VM that will serve it.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// The session; its `vm` names `vm.id` and its generation is the first.
    pub session: Session,
    /// Its VM: a new row (first generation), or one from a pool (the generation that was read).
    pub vm: Vm,
    /// The sign-in that it is for, if it is for one.
    pub sign_in: Option<SignIn>,
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

/// A write of up to one session, VM and sign-in with the events that explain it, all or nothing.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The session to write, with the generation that was read. Lease fields are not written here.
    pub session: Option<Session>,
    /// The VM to write, with the generation that was read.
    pub vm: Option<Vm>,
    /// A VM to make, for a session that gets another one.
    pub new_vm: Option<Vm>,
    /// The sign-in to write, with the generation that was read.
    pub sign_in: Option<SignIn>,
    /// Credentials to keep until they are fetched; those of the same session before are destroyed.
    pub sealed: Option<Sealed>,
    /// An announcement to be delivered.
    pub delivery: Option<Delivery>,
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
    /// Since when it takes no new sessions.
    pub draining_since: Option<Timestamp>,
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

/// Sealed credentials on their way to their recipient.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Whose.
    pub session: SessionId,
    /// An age file: nobody here can read it.
    pub ciphertext: Vec<u8>,
    /// What is in it, and until when it is kept.
    pub info: SealedInfo,
}

// Ciphertext has no place in a log either.
impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed")
            .field("session", &self.session)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// Answer to [`super::Store::take_sealed`].
#[derive(Debug, Clone)]
pub enum Taken {
    /// Here they are; they exist nowhere else any more.
    Now(Sealed),
    /// They were fetched before, or destroyed when their time was over.
    Before(SealedInfo),
    /// There never were any.
    Never,
}

/// An announcement (webhook) and how far its delivery is.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id; sent along, so that a receiver can tell repetitions.
    pub id: Uuid,
    /// The session that it speaks of.
    pub session: SessionId,
    /// Where it goes.
    pub url: String,
    /// Key of its signature.
    pub secret: String,
    /// The JSON text that is sent.
    pub body: String,
    /// Attempts so far.
    pub attempts: u32,
    /// When the next attempt is due; `None`: delivered, or given up.
    pub next_at: Option<Timestamp>,
    /// When the receiver took it.
    pub delivered_at: Option<Timestamp>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

// The secret must not reach a log through `{:?}`.
impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.id)
            .field("url", &self.url)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

/// A link by which somebody without a token may look at one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareLink {
    /// Its public id.
    pub id: Uuid,
    /// The session.
    pub session: SessionId,
    /// SHA-256 of the link's secret, lower-case hex.
    pub sha256: String,
    /// Nothing can be typed or clicked through it.
    pub view_only: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}
