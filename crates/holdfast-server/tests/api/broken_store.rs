//! A store that does not answer: 503, never 404 or 410, and nothing is destroyed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use holdfast_api::Code;
use holdfast_core::{
    Event, EventBody, OwnerId, Session, SessionId, SignIn, Timestamp, Vm, VmId, signin::SealedInfo,
};
use holdfast_server::Replaced;
use holdfast_store::{
    Change, Created, Delivery, HostRecord, IdempotencyKey, LeaseTouch, NewSession, NewToken,
    Result, SessionFilter, ShareLink, Store, StoreCheck, StoreError, Taken, TokenRecord,
};
use uuid::Uuid;

use crate::{
    server::{self, TestServer, until_state},
    streams::Viewer,
};

/// A store that can be made to fail.
pub struct Breakable {
    store: Arc<dyn Store>,
    broken: AtomicBool,
}

impl Breakable {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, broken: AtomicBool::new(false) }
    }

    pub fn break_it(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    fn here(&self) -> Result<&dyn Store> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable { source: "broken by the test".into() });
        }
        Ok(self.store.as_ref())
    }
}

#[async_trait]
impl Store for Breakable {
    async fn create_session(&self, new: NewSession) -> Result<Created> {
        self.here()?.create_session(new).await
    }
    async fn made_with(&self, owner: OwnerId, key: IdempotencyKey) -> Result<Option<Created>> {
        self.here()?.made_with(owner, key).await
    }
    async fn session(&self, id: SessionId) -> Result<Option<Session>> {
        self.here()?.session(id).await
    }
    async fn sessions(&self, filter: SessionFilter) -> Result<Vec<Session>> {
        self.here()?.sessions(filter).await
    }
    async fn vm(&self, id: VmId) -> Result<Option<Vm>> {
        self.here()?.vm(id).await
    }
    async fn live_vms(&self) -> Result<Vec<Vm>> {
        self.here()?.live_vms().await
    }
    async fn apply(&self, change: Change) -> Result<Change> {
        self.here()?.apply(change).await
    }
    async fn append_events(&self, session: SessionId, events: Vec<EventBody>) -> Result<()> {
        self.here()?.append_events(session, events).await
    }
    async fn events(&self, session: SessionId, after: i64, limit: u32) -> Result<Vec<Event>> {
        self.here()?.events(session, after, limit).await
    }
    async fn touch_leases(&self, touches: Vec<LeaseTouch>) -> Result<()> {
        self.here()?.touch_leases(touches).await
    }
    async fn purge_ended(&self, before: Timestamp) -> Result<u64> {
        self.here()?.purge_ended(before).await
    }
    async fn sign_in(&self, session: SessionId) -> Result<Option<SignIn>> {
        self.here()?.sign_in(session).await
    }
    async fn open_sign_ins(&self) -> Result<Vec<SignIn>> {
        self.here()?.open_sign_ins().await
    }
    async fn sealed_info(&self, session: SessionId) -> Result<Option<SealedInfo>> {
        self.here()?.sealed_info(session).await
    }
    async fn take_sealed(&self, session: SessionId, now: Timestamp) -> Result<Taken> {
        self.here()?.take_sealed(session, now).await
    }
    async fn destroy_expired_sealed(&self, now: Timestamp) -> Result<u64> {
        self.here()?.destroy_expired_sealed(now).await
    }
    async fn due_deliveries(&self, now: Timestamp, limit: u32) -> Result<Vec<Delivery>> {
        self.here()?.due_deliveries(now, limit).await
    }
    async fn update_delivery(&self, delivery: Delivery) -> Result<()> {
        self.here()?.update_delivery(delivery).await
    }
    async fn create_share(&self, link: ShareLink) -> Result<()> {
        self.here()?.create_share(link).await
    }
    async fn share_by_hash(&self, sha256: &str, now: Timestamp) -> Result<Option<ShareLink>> {
        self.here()?.share_by_hash(sha256, now).await
    }
    async fn shares(&self, session: SessionId, now: Timestamp) -> Result<Vec<ShareLink>> {
        self.here()?.shares(session, now).await
    }
    async fn revoke_share(&self, session: SessionId, id: Uuid, at: Timestamp) -> Result<bool> {
        self.here()?.revoke_share(session, id, at).await
    }
    async fn owner_key(&self, owner: OwnerId) -> Result<Option<String>> {
        self.here()?.owner_key(owner).await
    }
    async fn set_owner_key(&self, owner: OwnerId, key: Option<String>) -> Result<()> {
        self.here()?.set_owner_key(owner, key).await
    }
    async fn create_token(&self, token: NewToken) -> Result<TokenRecord> {
        self.here()?.create_token(token).await
    }
    async fn token_by_hash(&self, sha256: &str, now: Timestamp) -> Result<Option<TokenRecord>> {
        self.here()?.token_by_hash(sha256, now).await
    }
    async fn tokens(&self) -> Result<Vec<TokenRecord>> {
        self.here()?.tokens().await
    }
    async fn revoke_token(&self, id: Uuid, at: Timestamp) -> Result<bool> {
        self.here()?.revoke_token(id, at).await
    }
    async fn ensure_owner(&self, name: &str, at: Timestamp) -> Result<OwnerId> {
        self.here()?.ensure_owner(name, at).await
    }
    async fn owner_name(&self, id: OwnerId) -> Result<Option<String>> {
        self.here()?.owner_name(id).await
    }
    async fn upsert_host(&self, host: HostRecord) -> Result<()> {
        self.here()?.upsert_host(host).await
    }
    async fn hosts(&self) -> Result<Vec<HostRecord>> {
        self.here()?.hosts().await
    }
    async fn ping(&self) -> Result<()> {
        self.here()?.ping().await
    }
    async fn check(&self) -> StoreCheck {
        self.store.check().await
    }
    fn kind(&self) -> &'static str {
        self.store.kind()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_never_an_answer_about_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Breakable::new(server::store(&dir).await));
    let replaced = Replaced { store: Some(Arc::clone(&store) as _), ..Replaced::default() };
    let server = TestServer::start_with(|_| {}, replaced).await;
    let live = server.create_ready().await;
    let ended = server.create_ready().await;
    server.client.end_session(ended.id).await.unwrap();
    server::until("it ended", async || server.client.session(ended.id).await.is_err()).await;
    let ann = server.owner("ann").await;
    let mut viewer = Viewer::desktop(&server, live.id).await.unwrap();
    viewer.greeting().await;

    store.break_it(true);
    let unavailable = Some(Code::Unavailable);
    // What lives is served on from memory, and its lease goes on being extended.
    assert_eq!(server.client.session(live.id).await.unwrap().state, "ready");
    server.client.heartbeat(live.id).await.unwrap();
    server.client.session_vm(live.id).await.unwrap();
    Viewer::desktop(&server, live.id).await.unwrap().greeting().await;
    // What has to be asked for is unknown: not 404, not 410.
    for id in [ended.id, Uuid::now_v7()] {
        assert_eq!(server.client.session(id).await.unwrap_err().code(), unavailable, "{id}");
        assert_eq!(server.client.session_vm(id).await.unwrap_err().code(), unavailable, "{id}");
        assert_eq!(server.client.heartbeat(id).await.unwrap_err().code(), unavailable, "{id}");
        assert_eq!(server.client.end_session(id).await.unwrap_err().code(), unavailable, "{id}");
    }
    let answer = server.get(&format!("/api/sessions/{}", ended.id)).await;
    assert_eq!(answer.header("retry-after"), Some("2"));
    assert_eq!(server.client.sessions(None).await.unwrap_err().code(), unavailable);
    assert_eq!(server.client.end_session(live.id).await.unwrap_err().code(), unavailable);
    let key = Uuid::new_v4().to_string();
    let made = server.client.create_session(&holdfast_api::CreateSession::default(), &key).await;
    assert_eq!(made.unwrap_err().code(), unavailable);
    // A token that was never seen cannot be judged.
    assert_eq!(ann.version().await.unwrap_err().code(), unavailable);
    let readiness = server.client.readiness().await.unwrap();
    let store_check = readiness.checks.iter().find(|check| check.name == "store").unwrap();
    assert!(!readiness.ready && !store_check.ok);

    store.break_it(false);
    assert!(server.client.readiness().await.unwrap().ready);
    assert_eq!(server.client.session(ended.id).await.unwrap_err().code(), Some(Code::Gone));
    let still = until_state(&server.client, live.id, "ready").await;
    assert_eq!(still.vm_id, live.vm_id);
    viewer.ping_and_pong().await;
    server.stop().await;
}
