//! A machine with a database, on which servers come and go.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_control::{
    Attached, Clock, Control, ControlConfig, ControlError, CreateRequest, GuestPort, ImageSource,
    Parts,
};
use holdfast_core::{
    HostId, OwnerId, Screen, Session, SessionId, SessionSpec, Timestamp, Vm, health::Patience,
    provider::Catalog,
};
use holdfast_host::{
    driver::{Driver, GuestStream, ImageRef},
    drivers::sim::SimDriver,
};
use holdfast_store::{SessionFilter, Store};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::gate::{Database, GatedDriver, GatedStore};

/// The one image that there is.
pub struct OneImage;

impl ImageSource for OneImage {
    fn current(&self) -> Result<ImageRef, String> {
        Ok(ImageRef { path: "/nowhere".into(), digest: "0".repeat(64) })
    }
    fn by_digest(&self, _digest: &str) -> Result<ImageRef, String> {
        self.current()
    }
}

/// Durations of a server in these tests.
pub fn config() -> ControlConfig {
    ControlConfig {
        lease: Duration::from_mins(1),
        grace: Duration::from_mins(5),
        max_lifetime: Duration::from_hours(2),
        patience: Patience::default(),
        ..ControlConfig::default()
    }
}

/// A directory in memory where there is one: these tests are about order, not about disks.
pub fn fast_dir() -> TempDir {
    let shm = Path::new("/dev/shm");
    let dir = tempfile::Builder::new().prefix("holdfast-life-").tempdir_in(shm);
    dir.or_else(|_| tempfile::tempdir()).unwrap()
}

/// What a session is asked for with.
pub fn spec() -> SessionSpec {
    SessionSpec {
        provider: "desktop".into(),
        name: String::new(),
        screen: Screen::DEFAULT,
        start_url: None,
        locale: "en-US".into(),
        timezone: "Etc/UTC".into(),
        memory_mib: 1024,
        vcpus: 1,
    }
}

pub fn parts(
    store: Arc<dyn Store>,
    driver: Arc<dyn Driver>,
    config: ControlConfig,
    clock: Clock,
) -> Parts {
    Parts {
        store,
        driver,
        images: Arc::new(OneImage),
        providers: Arc::new(Catalog::shipped().unwrap()),
        config,
        clock,
        memory: Arc::new(|| None),
        host: HostId::from_uuid(Uuid::from_u128(1)),
        store_knows_host: true,
    }
}

pub struct World {
    pub database: Arc<Database>,
    pub machine: SimDriver,
    pub owner: OwnerId,
    pub config: ControlConfig,
    pub control: Control,
    /// Memory that the host has available, in MiB.
    pub available: Arc<AtomicU64>,
    clock: Clock,
    dead: CancellationToken,
    _threads: Threads,
    _dir: TempDir,
}

impl World {
    /// A machine with a server that has started.
    pub async fn new(mut config: ControlConfig) -> Self {
        let dir = fast_dir();
        config.snapshot_dir = dir.path().join("snapshots");
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let url = format!("sqlite:{}", dir.path().join("life.db").display());
        let (sender, opened) = std::sync::mpsc::sync_channel(1);
        threads.spawn(async move { sender.send(holdfast_store::open(&url).await.unwrap()) });
        let store = opened.recv().unwrap();
        let database = Arc::new(Database::new(store, threads.handle().clone()));
        let owner = database
            .ask(|store| {
                Box::pin(async move { store.ensure_owner("ann", Timestamp::UNIX_EPOCH).await })
            })
            .unwrap();
        let machine = SimDriver::open(dir.path().join("sim")).unwrap();
        let clock = Clock::tokio(Timestamp::from_second(1_800_000_000).unwrap());
        let dead = CancellationToken::new();
        let available = Arc::new(AtomicU64::new(u64::MAX));
        let control = control(&database, &machine, &config, &clock, &available, &dead);
        control.start().await.unwrap();
        Self {
            database,
            machine,
            owner,
            config,
            control,
            available,
            clock,
            dead,
            _threads: Threads(Some(threads)),
            _dir: dir,
        }
    }

    /// Kills the server, and starts another.
    pub async fn restart(&mut self) {
        self.dead.cancel();
        self.dead = CancellationToken::new();
        self.control = control(
            &self.database,
            &self.machine,
            &self.config,
            &self.clock,
            &self.available,
            &self.dead,
        );
        // A store that is away is waited for, as the server does.
        if self.control.start().await.is_err() {
            assert!(self.database.is_away(), "a server starts");
        }
    }

    /// Goes on with a start that could not be done.
    pub async fn started(&self) -> bool {
        self.control.is_started() || self.control.start().await.is_ok()
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn request(&self) -> CreateRequest {
        CreateRequest { owner: self.owner, spec: spec(), sign_in: None, key: None }
    }

    pub async fn create(&self) -> Result<Session, ControlError> {
        self.control.create(self.request()).await.map(|(live, _)| live.session)
    }

    pub async fn open(&self, id: SessionId) -> Result<(GuestStream, Attached), ControlError> {
        self.control.open(id, GuestPort::Desktop).await
    }

    /// What the database says of a session, also while it is said to be away.
    pub fn stored(&self, id: SessionId) -> Option<Session> {
        self.database.ask(|store| Box::pin(async move { store.session(id).await })).unwrap()
    }

    /// The ids of all sessions in the database, newest first.
    pub fn all(&self) -> Vec<Session> {
        let filter = SessionFilter::default();
        self.database.ask(|store| Box::pin(async move { store.sessions(filter).await })).unwrap()
    }

    /// What the database says of a session's VM.
    pub fn vm(&self, session: &Session) -> Vm {
        let id = session.vm.expect("a session has a VM");
        self.database.ask(|store| Box::pin(async move { store.vm(id).await })).unwrap().unwrap()
    }

    /// Names of the snapshots on this host.
    pub fn snapshots(&self) -> Vec<String> {
        let found = std::fs::read_dir(&self.config.snapshot_dir).into_iter().flatten().flatten();
        found.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    /// Waits until the session is in one of these states.
    pub async fn until(&self, id: SessionId, states: &[&str]) -> Session {
        let deadline = self.now() + Duration::from_hours(1);
        loop {
            let session = self.stored(id).unwrap();
            if states.contains(&session.state.as_str()) {
                return session;
            }
            assert!(self.now() < deadline, "{} is never {states:?}", session.state);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Threads of the database. They are left to end by themselves: a test may not wait for them.
struct Threads(Option<tokio::runtime::Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(threads) = self.0.take() {
            threads.shutdown_background();
        }
    }
}

fn control(
    database: &Arc<Database>,
    machine: &SimDriver,
    config: &ControlConfig,
    clock: &Clock,
    available: &Arc<AtomicU64>,
    dead: &CancellationToken,
) -> Control {
    let store = GatedStore { database: Arc::clone(database), dead: dead.clone() };
    let driver = GatedDriver { driver: machine.clone(), dead: dead.clone(), sick: Arc::default() };
    let available = Arc::clone(available);
    Control::new(Parts {
        memory: Arc::new(move || Some(available.load(Ordering::Relaxed))),
        ..parts(Arc::new(store), Arc::new(driver), config.clone(), clock.clone())
    })
}
