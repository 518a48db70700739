//! The Store trait over any [`Backend`].

use async_trait::async_trait;
use holdfast_core::{
    Event, EventBody, OwnerId, Session, SessionId, SignIn, Timestamp, Vm, VmId, signin::SealedInfo,
};
use uuid::Uuid;

use super::{
    Backend, accounts, deliveries, events, hosts, leases, retention, sealed, sessions, shares,
    signins, vms,
};
use crate::{
    Change, Created, Delivery, HostRecord, IdempotencyKey, LeaseTouch, NewSession, NewToken,
    Result, SessionFilter, ShareLink, Store, StoreCheck, Taken, TokenRecord,
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

    async fn made_with(&self, owner: OwnerId, key: IdempotencyKey) -> Result<Option<Created>> {
        sessions::made_with(&mut self.backend.read().await?, owner, &key).await
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

    async fn sign_in(&self, session: SessionId) -> Result<Option<SignIn>> {
        signins::get(&self.backend, session).await
    }

    async fn open_sign_ins(&self) -> Result<Vec<SignIn>> {
        signins::open(&self.backend).await
    }

    async fn sealed_info(&self, session: SessionId) -> Result<Option<SealedInfo>> {
        sealed::info(&self.backend, session).await
    }

    async fn take_sealed(&self, session: SessionId, now: Timestamp) -> Result<Taken> {
        sealed::take(&self.backend, session, now).await
    }

    async fn destroy_expired_sealed(&self, now: Timestamp) -> Result<u64> {
        sealed::destroy_expired(&self.backend, now).await
    }

    async fn due_deliveries(&self, now: Timestamp, limit: u32) -> Result<Vec<Delivery>> {
        deliveries::due(&self.backend, now, limit).await
    }

    async fn update_delivery(&self, delivery: Delivery) -> Result<()> {
        deliveries::update(&self.backend, delivery).await
    }

    async fn create_share(&self, link: ShareLink) -> Result<()> {
        shares::create(&self.backend, link).await
    }

    async fn share_by_hash(&self, sha256: &str, now: Timestamp) -> Result<Option<ShareLink>> {
        shares::by_hash(&self.backend, sha256, now).await
    }

    async fn shares(&self, session: SessionId, now: Timestamp) -> Result<Vec<ShareLink>> {
        shares::list(&self.backend, session, now).await
    }

    async fn revoke_share(&self, session: SessionId, id: Uuid, at: Timestamp) -> Result<bool> {
        shares::revoke(&self.backend, session, id, at).await
    }

    async fn owner_key(&self, owner: OwnerId) -> Result<Option<String>> {
        accounts::owner_key(&self.backend, owner).await
    }

    async fn set_owner_key(&self, owner: OwnerId, key: Option<String>) -> Result<()> {
        accounts::set_owner_key(&self.backend, owner, key).await
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
