//! The Store trait, its conformance suite and its SQL backends.
//!
//! The store is the one truth about sessions and VMs; memory elsewhere is only a cache of it. It
//! must never decide: which transition is right is decided in `holdfast-core`, and the store only
//! refuses what would break a record (a stale generation, a transition outside the tables).

#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod check;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod open;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
pub mod types;

use async_trait::async_trait;
use holdfast_core::{
    Event, EventBody, OwnerId, Session, SessionId, SignIn, Timestamp, Vm, VmId, signin::SealedInfo,
};

pub use error::StoreError;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use open::{check_url, open};
pub use types::{
    Change, Created, Delivery, HostRecord, IdempotencyKey, LeaseTouch, NewSession, NewToken,
    Sealed, SessionFilter, ShareLink, StoreCheck, Taken, TokenRecord,
};

/// Result of a store call.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Sessions, VMs, events, owners' tokens and hosts.
///
/// "Not found" is `Ok(None)`; a query that failed is `Err`. The two are never mixed up: nothing may
/// be destroyed because of an `Err`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes session, VM, the tie between them and their first events in one transaction. With a
    /// key that was used before by the same owner, answers what was made then, or
    /// [`StoreError::KeyReused`] when the request was another.
    async fn create_session(&self, new: NewSession) -> Result<Created>;

    /// What a request with this key made before; refuses it as [`Store::create_session`] does.
    async fn made_with(&self, owner: OwnerId, key: IdempotencyKey) -> Result<Option<Created>>;

    /// A session by id, whatever its state.
    async fn session(&self, id: SessionId) -> Result<Option<Session>>;

    /// Sessions, newest first.
    async fn sessions(&self, filter: SessionFilter) -> Result<Vec<Session>>;

    /// A VM by id, whatever its state.
    async fn vm(&self, id: VmId) -> Result<Option<Vm>>;

    /// All VMs that are not gone.
    async fn live_vms(&self) -> Result<Vec<Vm>>;

    /// Writes the records given, each only if the store still holds the generation it carries, and
    /// appends the events, in one transaction. Answers the records with their new generations. A
    /// transition that the tables of core do not allow is [`StoreError::Transition`].
    async fn apply(&self, change: Change) -> Result<Change>;

    /// Appends events to a session's timeline. [`StoreError::NotFound`] when there is no such session.
    async fn append_events(&self, session: SessionId, events: Vec<EventBody>) -> Result<()>;

    /// Events of one session with a number above `after`, oldest first, at most `limit`. Within a
    /// session an event never appears after one with a higher number, so a reader that goes on from
    /// the last number it saw misses none.
    async fn events(&self, session: SessionId, after: i64, limit: u32) -> Result<Vec<Event>>;

    /// Extends leases in one transaction. A lease never gets shorter and no generation changes, so
    /// heartbeats cannot make another writer stale. Unknown ids are passed over.
    async fn touch_leases(&self, touches: Vec<LeaseTouch>) -> Result<()>;

    /// Forgets sessions that ended before `before`, with their VMs, events and keys. Answers how many.
    /// A session with a VM that is not gone is kept.
    async fn purge_ended(&self, before: Timestamp) -> Result<u64>;

    /// The sign-in of a session.
    async fn sign_in(&self, session: SessionId) -> Result<Option<SignIn>>;

    /// Sign-ins that are not done.
    async fn open_sign_ins(&self) -> Result<Vec<SignIn>>;

    /// What sealed credentials of a session there are, or were.
    async fn sealed_info(&self, session: SessionId) -> Result<Option<SealedInfo>>;

    /// Hands sealed credentials over, once: in one transaction they are read, marked as fetched and
    /// their content is destroyed. Of two callers at once, one gets them.
    async fn take_sealed(&self, session: SessionId, now: Timestamp) -> Result<Taken>;

    /// Destroys the content of sealed credentials whose time is over. Answers how many.
    async fn destroy_expired_sealed(&self, now: Timestamp) -> Result<u64>;

    /// Announcements that are due, oldest first.
    async fn due_deliveries(&self, now: Timestamp, limit: u32) -> Result<Vec<Delivery>>;

    /// Writes how far a delivery is.
    async fn update_delivery(&self, delivery: Delivery) -> Result<()>;

    /// Stores a share link.
    async fn create_share(&self, link: ShareLink) -> Result<()>;

    /// The share link with this SHA-256, unless revoked or expired at `now`.
    async fn share_by_hash(&self, sha256: &str, now: Timestamp) -> Result<Option<ShareLink>>;

    /// Share links of a session that work at `now`.
    async fn shares(&self, session: SessionId, now: Timestamp) -> Result<Vec<ShareLink>>;

    /// Revokes a share link of a session. Answers whether there was one.
    async fn revoke_share(&self, session: SessionId, id: uuid::Uuid, at: Timestamp)
    -> Result<bool>;

    /// The age public key that an owner's credentials are sealed to when a session names none.
    async fn owner_key(&self, owner: OwnerId) -> Result<Option<String>>;

    /// Sets or removes that key.
    async fn set_owner_key(&self, owner: OwnerId, key: Option<String>) -> Result<()>;

    /// Stores a token's hash.
    async fn create_token(&self, token: NewToken) -> Result<TokenRecord>;

    /// The token with this SHA-256 (lower-case hex), unless revoked or expired at `now`.
    async fn token_by_hash(&self, sha256: &str, now: Timestamp) -> Result<Option<TokenRecord>>;

    /// All tokens, newest first, revoked ones too.
    async fn tokens(&self) -> Result<Vec<TokenRecord>>;

    /// Revokes a token by its id. Answers whether there was one.
    async fn revoke_token(&self, id: uuid::Uuid, at: Timestamp) -> Result<bool>;

    /// The id of the owner with this name, made when there is none.
    async fn ensure_owner(&self, name: &str, at: Timestamp) -> Result<OwnerId>;

    /// The name of an owner.
    async fn owner_name(&self, id: OwnerId) -> Result<Option<String>>;

    /// Writes what a host says of itself.
    async fn upsert_host(&self, host: HostRecord) -> Result<()>;

    /// All hosts.
    async fn hosts(&self) -> Result<Vec<HostRecord>>;

    /// A cheap read that proves that the store answers.
    async fn ping(&self) -> Result<()>;

    /// Looks closely, for `doctor`: connection, schema version, permissions, writability.
    async fn check(&self) -> StoreCheck;

    /// `sqlite` or `postgres`.
    fn kind(&self) -> &'static str;
}
