//! A simulated machine with a store and images, on which servers come and go.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use holdfast_agent_api::ClaimRequest;
use holdfast_control::{
    Clock, Control, ControlConfig, ControlError, CreateRequest, ImageSource, Live, Parts,
};
use holdfast_core::{
    HostId, OwnerId, Screen, SessionId, SessionSpec, Timestamp, Vm, provider::Catalog,
};
use holdfast_host::{
    bake::{self, Shape},
    driver::{Driver, ImageRef},
    drivers::sim::SimDriver,
    guest::AgentClient,
    warm::WarmLibrary,
};
use holdfast_store::Store;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// The image, and its warm image where one was baked.
#[derive(Default)]
pub struct Images {
    pub warm: Mutex<Option<PathBuf>>,
    /// What control said of it: damaged or not, and why.
    pub failures: Mutex<Vec<(bool, String)>>,
}

impl ImageSource for Images {
    fn current(&self) -> Result<ImageRef, String> {
        Ok(ImageRef { path: "/nowhere".into(), digest: "0".repeat(64) })
    }
    fn by_digest(&self, _: &str) -> Result<ImageRef, String> {
        self.current()
    }
    fn warm(&self, _: &str, _: u32, _: u8) -> Option<PathBuf> {
        self.warm.lock().unwrap().clone()
    }
    fn warm_failed(&self, _: &Path, damaged: bool, why: &str) {
        self.failures.lock().unwrap().push((damaged, why.to_owned()));
    }
}

pub struct Bench {
    pub control: Control,
    pub machine: SimDriver,
    pub images: Arc<Images>,
    pub store: Arc<dyn Store>,
    pub owner: OwnerId,
    pub config: ControlConfig,
    dir: TempDir,
}

impl Bench {
    pub async fn new(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let dir = tempfile::Builder::new().prefix("holdfast-warm-").tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("store.db").display());
        let store = holdfast_store::open(&url).await.unwrap();
        let owner = store.ensure_owner("ann", Timestamp::now()).await.unwrap();
        let machine = SimDriver::open(dir.path().join("sim")).unwrap();
        let mut config = ControlConfig {
            snapshot_dir: dir.path().join("snapshots"),
            pool_memory_mib: 1024,
            pool_vcpus: 1,
            probe_interval: Duration::from_millis(50),
            ..ControlConfig::default()
        };
        change(&mut config);
        let images = Arc::new(Images::default());
        let control = control(&store, &machine, &images, &config);
        Self { control, machine, images, store, owner, config, dir }
    }

    /// The server takes over what is there.
    pub async fn start(self) -> Self {
        self.control.start().await.unwrap();
        self
    }

    /// Another server takes over. What the one before was doing stays half done.
    pub async fn restart(&mut self) {
        self.control.stop().await;
        self.control = control(&self.store, &self.machine, &self.images, &self.config);
        self.control.start().await.unwrap();
    }

    pub async fn bake(&self) -> PathBuf {
        // The machine that bakes is another one, so its VMs are not this one's.
        let driver: Arc<dyn Driver> = Arc::new(SimDriver::in_memory());
        let shape = Shape {
            image: self.images.current().unwrap(),
            memory_mib: 1024,
            vcpus: 1,
            disk_mib: self.config.disk_mib,
        };
        let library = WarmLibrary::new(&self.dir.path().join("cache"));
        let stop = CancellationToken::new();
        let baked = bake::bake(&driver, &library, &shape, &|_| {}, &stop).await.unwrap();
        *self.images.warm.lock().unwrap() = Some(baked.image.path.clone());
        baked.image.path
    }

    pub fn request(&self) -> CreateRequest {
        let spec = SessionSpec {
            provider: "desktop".into(),
            name: String::new(),
            screen: Screen::DEFAULT,
            start_url: None,
            locale: "en-US".into(),
            timezone: "Etc/UTC".into(),
            memory_mib: 1024,
            vcpus: 1,
        };
        CreateRequest { owner: self.owner, spec, sign_in: None, key: None }
    }

    pub async fn create(&self) -> Result<Live, ControlError> {
        self.control.create(self.request()).await.map(|(live, _)| live)
    }

    /// A session that is ready.
    pub async fn ready(&self) -> Live {
        let id = self.create().await.unwrap().session.id;
        self.until(id, "ready").await
    }

    /// Waits until the session is in this state.
    pub async fn until(&self, id: SessionId, state: &str) -> Live {
        let began = Instant::now();
        loop {
            let live = self.control.find(id).await.unwrap().unwrap();
            if live.session.state.as_str() == state {
                return live;
            }
            if began.elapsed() > PATIENCE {
                panic!("{} is never {state}:\n{}", live.session.state, self.timeline(id).await);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn timeline(&self, id: SessionId) -> String {
        let events = self.store.events(id, 0, 1000).await.unwrap();
        events.iter().map(|e| format!("{} {}\n", e.body.kind, e.body.why)).collect()
    }

    /// How often something of this kind happened.
    pub async fn count(&self, id: SessionId, kind: &str) -> usize {
        self.timeline(id).await.lines().filter(|line| line.starts_with(kind)).count()
    }

    pub fn claim(&self, live: &Live) -> ClaimRequest {
        self.machine.claim(live.vm.id).unwrap()
    }

    pub async fn boot_id(&self, live: &Live) -> String {
        let secret = live.vm.secret.clone().unwrap();
        let driver: Arc<dyn Driver> = Arc::new(self.machine.clone());
        let agent = AgentClient::new(driver, live.vm.id, secret);
        agent.health(PATIENCE).await.unwrap().boot_id
    }

    pub fn snapshots(&self) -> usize {
        std::fs::read_dir(&self.config.snapshot_dir).map_or(0, Iterator::count)
    }

    /// VMs that wait for a session, once there are so many.
    pub async fn waiting(&self, wanted: usize) -> Vec<Vm> {
        let began = Instant::now();
        loop {
            let vms = self.store.live_vms().await.unwrap();
            let ready = |vm: &Vm| vm.session.is_none() && vm.state.as_str() == "running";
            let ready: Vec<_> = vms.into_iter().filter(ready).collect();
            if ready.len() == wanted && self.control.waiting() == wanted {
                return ready;
            }
            assert!(began.elapsed() < PATIENCE, "{} wait, not {wanted}", ready.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn control(
    store: &Arc<dyn Store>,
    machine: &SimDriver,
    images: &Arc<Images>,
    config: &ControlConfig,
) -> Control {
    Control::new(Parts {
        store: Arc::clone(store),
        driver: Arc::new(machine.clone()),
        images: Arc::clone(images) as Arc<dyn ImageSource>,
        providers: Arc::new(Catalog::shipped().unwrap()),
        config: config.clone(),
        clock: Clock::System,
        memory: Arc::new(|| None),
        host: HostId::from_uuid(Uuid::from_u128(1)),
        store_knows_host: true,
    })
}
