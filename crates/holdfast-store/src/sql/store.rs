//! The Store trait over any [`Backend`].

use async_trait::async_trait;
use holdfast_core::{Event, EventBody, OwnerId, Session, SessionId, Timestamp, Vm, VmId};
use uuid::Uuid;

use super::{Backend, accounts, events, hosts, leases, retention, sessions, vms};
use crate::{
    Change, Created, HostRecord, LeaseTouch, NewSession, NewToken, Result, SessionFilter, Store,
    StoreCheck, TokenRecord,
};

/// A store in an SQL database.
pub(crate) struct SqlStore<B> {
    backend: B,
}

impl<B: Backend> SqlStore<B> {
    /// The schema of the database must be up to date.
    pub(crate) fn new(backend: B) -> Self {
        Self { backend }
    }
}

#[async_trait]
impl<B: Backend> Store for SqlStore<B> {
    async fn create_session(&self, new: NewSession) -> Result<Created> {
        sessions::create(&self.backend, new).await
    }

    async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        sessions::get(&self.backend, id).await
    }

    async fn sessions(&self, filter: SessionFilter) -> Result<Vec<Session>> {
        sessions::list(&self.backend, filter).await
    }

    async fn vm(&self, id: VmId) -> Result<Option<Vm>> {
        vms::get(&self.backend, id).await
    }

    async fn live_vms(&self) -> Result<Vec<Vm>> {
        vms::live(&self.backend).await
    }

    async fn apply(&self, change: Change) -> Result<Change> {
        sessions::apply(&self.backend, change).await
    }

    async fn append_events(&self, session: SessionId, events: Vec<EventBody>) -> Result<()> {
        events::append(&self.backend, session, events).await
    }

    async fn events(&self, session: SessionId, after: i64, limit: u32) -> Result<Vec<Event>> {
        events::list(&self.backend, session, after, limit).await
    }

    async fn touch_leases(&self, touches: Vec<LeaseTouch>) -> Result<()> {
        leases::touch(&self.backend, touches).await
    }

    async fn purge_ended(&self, before: Timestamp) -> Result<u64> {
        retention::purge_ended(&self.backend, before).await
    }

    async fn create_token(&self, token: NewToken) -> Result<TokenRecord> {
        accounts::create_token(&self.backend, token).await
    }

    async fn token_by_hash(&self, sha256: &str, now: Timestamp) -> Result<Option<TokenRecord>> {
        accounts::token_by_hash(&self.backend, sha256, now).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRecord>> {
        accounts::tokens(&self.backend).await
    }

    async fn revoke_token(&self, id: Uuid, at: Timestamp) -> Result<bool> {
        accounts::revoke_token(&self.backend, id, at).await
    }

    async fn ensure_owner(&self, name: &str, at: Timestamp) -> Result<OwnerId> {
        accounts::ensure_owner(&self.backend, name, at).await
    }

    async fn owner_name(&self, id: OwnerId) -> Result<Option<String>> {
        accounts::owner_name(&self.backend, id).await
    }

    async fn upsert_host(&self, host: HostRecord) -> Result<()> {
        hosts::upsert(&self.backend, host).await
    }

    async fn hosts(&self) -> Result<Vec<HostRecord>> {
        hosts::list(&self.backend).await
    }

    async fn ping(&self) -> Result<()> {
        self.backend.ping().await
    }

    async fn check(&self) -> StoreCheck {
        self.backend.check().await
    }

    fn kind(&self) -> &'static str {
        B::KIND
    }
}
