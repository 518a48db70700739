//! A store and a driver that die with their server: after that, no call of it returns or reaches
//! anything, as after `kill -9`. What runs on in its tasks is never seen again.
//!
//! The store is a real one on threads of its own. Its caller's thread waits for it, so that paused
//! time stands still meanwhile, and a history is the same each time that it is run.

use std::{
    net::Ipv4Addr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use async_trait::async_trait;
use holdfast_agent_api::{AGENT_PORT, Health};
use holdfast_core::{
    Event, EventBody, OwnerId, Session, SessionId, SignIn, Timestamp, Vm, VmId, signin::SealedInfo,
};
use holdfast_host::driver::{
    self, Driver, GuestStream, Observed, Probe, StartFrom, Stop, Usage, VmSpec,
};
use holdfast_store::{
    Change, Created, Delivery, HostRecord, IdempotencyKey, LeaseTouch, NewSession, NewToken,
    Result, SessionFilter, ShareLink, Store, StoreCheck, StoreError, Taken, TokenRecord,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a call of the store takes, each way. Long enough that a server can die in it.
const WAY: Duration = Duration::from_millis(2);

/// The database, which outlives every server.
pub struct Database {
    store: Arc<dyn Store>,
    runtime: tokio::runtime::Handle,
    away: AtomicBool,
    /// Transactions that wrote leases.
    pub lease_writes: AtomicU64,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl Database {
    pub fn new(store: Arc<dyn Store>, runtime: tokio::runtime::Handle) -> Self {
        let (away, lease_writes) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { store, runtime, away, lease_writes }
    }

    /// Lets every call fail from now on, or answers again.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::SeqCst)
    }

    /// Asks the database itself, whatever is said of it.
    pub fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(Arc<dyn Store>) -> Answer<T>,
    ) -> Result<T> {
        let (sender, answer) = mpsc::sync_channel(1);
        let call = call(Arc::clone(&self.store));
        self.runtime.spawn(async move { sender.send(call.await) });
        answer.recv().expect("the database answers")
    }
}

/// The database as one server sees it.
pub struct GatedStore {
    pub database: Arc<Database>,
    pub dead: CancellationToken,
}

impl GatedStore {
    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(Arc<dyn Store>) -> Answer<T> + Send,
    ) -> Result<T> {
        self.wait().await;
        let answer = if self.database.is_away() {
            Err(StoreError::Unavailable { source: "the database is away".into() })
        } else {
            self.database.ask(call)
        };
        self.wait().await;
        answer
    }

    async fn wait(&self) {
        tokio::time::sleep(WAY).await;
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

macro_rules! gated {
    ($($name:ident($($arg:ident: $kind:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for GatedStore {
            $(async fn $name(&self, $($arg: $kind),*) -> Result<$answer> {
                self.call(move |store| Box::pin(async move { store.$name($($arg),*).await })).await
            })*

            async fn touch_leases(&self, touches: Vec<LeaseTouch>) -> Result<()> {
                self.database.lease_writes.fetch_add(1, Ordering::SeqCst);
                self.call(move |store| Box::pin(async move { store.touch_leases(touches).await }))
                    .await
            }
            async fn share_by_hash(&self, hash: &str, now: Timestamp) -> Result<Option<ShareLink>> {
                let hash = hash.to_owned();
                self.call(move |store| Box::pin(async move { store.share_by_hash(&hash, now).await }))
                    .await
            }
            async fn token_by_hash(&self, hash: &str, now: Timestamp) -> Result<Option<TokenRecord>> {
                let hash = hash.to_owned();
                self.call(move |store| Box::pin(async move { store.token_by_hash(&hash, now).await }))
                    .await
            }
            async fn ensure_owner(&self, name: &str, at: Timestamp) -> Result<OwnerId> {
                let name = name.to_owned();
                self.call(move |store| Box::pin(async move { store.ensure_owner(&name, at).await }))
                    .await
            }
            async fn check(&self) -> StoreCheck {
                self.database.store.check().await
            }
            fn kind(&self) -> &'static str {
                self.database.store.kind()
            }
        }
    };
}

gated! {
    create_session(new: NewSession) -> Created;
    made_with(owner: OwnerId, key: IdempotencyKey) -> Option<Created>;
    session(id: SessionId) -> Option<Session>;
    sessions(filter: SessionFilter) -> Vec<Session>;
    vm(id: VmId) -> Option<Vm>;
    live_vms() -> Vec<Vm>;
    apply(change: Change) -> Change;
    append_events(session: SessionId, events: Vec<EventBody>) -> ();
    events(session: SessionId, after: i64, limit: u32) -> Vec<Event>;
    purge_ended(before: Timestamp) -> u64;
    sign_in(session: SessionId) -> Option<SignIn>;
    open_sign_ins() -> Vec<SignIn>;
    sealed_info(session: SessionId) -> Option<SealedInfo>;
    take_sealed(session: SessionId, now: Timestamp) -> Taken;
    destroy_expired_sealed(now: Timestamp) -> u64;
    due_deliveries(now: Timestamp, limit: u32) -> Vec<Delivery>;
    update_delivery(delivery: Delivery) -> ();
    create_share(link: ShareLink) -> ();
    shares(session: SessionId, now: Timestamp) -> Vec<ShareLink>;
    revoke_share(session: SessionId, id: Uuid, at: Timestamp) -> bool;
    owner_key(owner: OwnerId) -> Option<String>;
    set_owner_key(owner: OwnerId, key: Option<String>) -> ();
    create_token(token: NewToken) -> TokenRecord;
    tokens() -> Vec<TokenRecord>;
    revoke_token(id: Uuid, at: Timestamp) -> bool;
    owner_name(id: OwnerId) -> Option<String>;
    upsert_host(host: HostRecord) -> ();
    hosts() -> Vec<HostRecord>;
    ping() -> ();
}

/// Answers one request as an agent whose desktop is down.
async fn say_sick(mut stream: tokio::io::DuplexStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.unwrap_or(0) > 0 {}
    let health = Health {
        protocol: holdfast_agent_api::PROTOCOL,
        version: "0".into(),
        claimed: true,
        vm_id: None,
        uptime_ms: 1,
        time: Timestamp::UNIX_EPOCH,
        boot_id: String::new(),
        services: Vec::new(),
        desktop_ready: false,
        browser_ready: true,
    };
    let body = serde_json::to_string(&health).unwrap();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// The machine as one server sees it.
pub struct GatedDriver<D> {
    pub driver: D,
    pub dead: CancellationToken,
    /// Guests say that their desktop is down.
    pub sick: Arc<AtomicBool>,
}

impl<D: Driver> GatedDriver<D> {
    async fn alive<T>(&self, call: impl Future<Output = T> + Send) -> T {
        tokio::select! {
            biased;
            () = self.dead.cancelled() => std::future::pending().await,
            answer = call => answer,
        }
    }
}

#[async_trait]
impl<D: Driver> Driver for GatedDriver<D> {
    fn name(&self) -> &'static str {
        self.driver.name()
    }
    async fn probe(&self) -> Probe {
        self.alive(self.driver.probe()).await
    }
    async fn create(&self, spec: &VmSpec) -> driver::Result<()> {
        self.alive(self.driver.create(spec)).await
    }
    async fn connect(&self, vm: VmId) -> driver::Result<Ipv4Addr> {
        self.alive(self.driver.connect(vm)).await
    }
    async fn start(&self, vm: VmId, from: &StartFrom) -> driver::Result<()> {
        self.alive(self.driver.start(vm, from)).await
    }
    async fn pause(&self, vm: VmId) -> driver::Result<()> {
        self.alive(self.driver.pause(vm)).await
    }
    async fn resume(&self, vm: VmId) -> driver::Result<()> {
        self.alive(self.driver.resume(vm)).await
    }
    async fn snapshot(&self, vm: VmId, dest: &Path) -> driver::Result<()> {
        self.alive(self.driver.snapshot(vm, dest)).await
    }
    async fn stop(&self, vm: VmId, how: Stop) -> driver::Result<()> {
        self.alive(self.driver.stop(vm, how)).await
    }
    async fn destroy(&self, vm: VmId) -> driver::Result<()> {
        self.alive(self.driver.destroy(vm)).await
    }
    async fn inspect(&self, vm: VmId) -> driver::Result<Observed> {
        self.alive(self.driver.inspect(vm)).await
    }
    async fn list(&self) -> driver::Result<Vec<Observed>> {
        self.alive(self.driver.list()).await
    }
    async fn wait_exit(&self, vm: VmId) -> driver::Result<String> {
        self.alive(self.driver.wait_exit(vm)).await
    }
    async fn dial(&self, vm: VmId, port: u16) -> driver::Result<GuestStream> {
        if port == AGENT_PORT && self.sick.load(Ordering::SeqCst) {
            let (near, far) = tokio::io::duplex(4096);
            tokio::spawn(say_sick(far));
            return Ok(Box::pin(near));
        }
        self.alive(self.driver.dial(vm, port)).await
    }
    async fn console(&self, vm: VmId, max_bytes: usize) -> driver::Result<String> {
        self.alive(self.driver.console(vm, max_bytes)).await
    }
    async fn usage(&self, vm: VmId) -> driver::Result<Usage> {
        self.alive(self.driver.usage(vm)).await
    }
}
