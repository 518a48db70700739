//! One life of a server as a process of its own, which dies where it is told to; see [`crate::crash`].

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holdfast_agent_api::tool::Outcome;
use holdfast_control::{Clock, Control, ControlConfig, CreateRequest, ImageSource, NewSignIn};
use holdfast_core::{
    Actor, EndReason, HostId, Session, SessionId, SessionSpec, SessionState, SignInStep, Timestamp,
    Vm, VmState, health::Patience,
};
use holdfast_host::{
    bake::{self, Shape},
    driver::{Driver, ImageRef},
    drivers::sim::SimDriver,
    warm::WarmLibrary,
};
use holdfast_store::{SessionFilter, Store};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    gate::GatedDriver,
    world::{OneImage, parts, spec},
};

/// What the process is to do, and where it dies: variables of its environment.
pub const DIR: &str = "HOLDFAST_LIFE_DIR";
pub const GOAL: &str = "HOLDFAST_LIFE_GOAL";
pub const POINT: &str = "HOLDFAST_LIFE_POINT";

const DEADLINE: Duration = Duration::from_mins(1);
/// Nobody has its key.
const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

/// One life of a server: goes on from where the last one died.
#[tokio::test(flavor = "multi_thread")]
async fn life_of_a_server() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let (goal, point) = (std::env::var(GOAL).unwrap(), std::env::var(POINT).unwrap());
    let life = Life::begin(Path::new(&dir), &goal, point).await;
    tokio::time::timeout(DEADLINE, life.reach(&goal)).await.expect("it comes to an end");
}

struct Life {
    store: Arc<dyn Store>,
    machine: SimDriver,
    sick: Arc<AtomicBool>,
    control: Control,
    point: String,
    dir: PathBuf,
}

impl Life {
    async fn begin(dir: &Path, goal: &str, point: String) -> Self {
        let store = format!("sqlite:{}", dir.join("life.db").display());
        let store = holdfast_store::open(&store).await.unwrap();
        let machine = SimDriver::open(dir.join("sim")).unwrap();
        let pool = usize::from(goal == "pooled");
        let config = ControlConfig {
            snapshot_dir: dir.join("snapshots"),
            pool_min: pool,
            pool_max: pool,
            pool_memory_mib: spec().memory_mib,
            pool_vcpus: spec().vcpus,
            probe_interval: Duration::from_millis(50),
            sweep_interval: Duration::from_millis(200),
            patience: Patience {
                interval: Duration::from_millis(20),
                failures: 1,
                ..Patience::default()
            },
            ..ControlConfig::default()
        };
        let sick = Arc::new(AtomicBool::new(false));
        let driver: Arc<dyn Driver> = Arc::new(GatedDriver {
            driver: machine.clone(),
            dead: CancellationToken::new(),
            sick: Arc::clone(&sick),
        });
        let mut parts = parts(Arc::clone(&store), driver, config, Clock::System);
        if pool > 0 {
            parts.images = Arc::new(WarmImage(baked(dir).await));
        }
        let control = Control::new(parts);
        Self { store, machine, sick, control, point, dir: dir.to_owned() }
    }

    /// From now on, reaching the point is the end.
    fn arm(&self) {
        if self.point.is_empty() {
            return;
        }
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            usual(panic);
            // Any other panic is a failure of the test, and no death that was asked for.
            if panic.to_string().contains("failpoint") {
                std::process::abort();
            }
        }));
        fail::cfg(self.point.as_str(), "panic").unwrap();
    }

    fn came_here_before(&self, what: &str) -> bool {
        let mark = self.dir.join(what);
        let before = mark.exists();
        std::fs::write(mark, "").unwrap();
        before
    }

    async fn reach(&self, goal: &str) {
        match goal {
            "ready" => {
                self.arm();
                self.control.start().await.unwrap();
                self.session().await;
                self.until(SessionState::Ready).await;
            }
            "adopted" => {
                if !self.dir.join("made").exists() {
                    self.control.start().await.unwrap();
                    self.session().await;
                    self.until(SessionState::Ready).await;
                    self.control.stop().await;
                    self.came_here_before("made");
                }
                self.arm();
                self.control.start().await.unwrap();
                self.until(SessionState::Ready).await;
            }
            "repaired" => {
                self.ready_once().await;
                // As often as the server dies, its machine dies too.
                let before = self.records().await.1.incarnation;
                if !self.came_here_before("repaired") {
                    assert!(self.machine.crash(self.records().await.1.id, "signal 9"));
                }
                self.arm_and_start().await;
                let first = if self.point.is_empty() { 2 } else { before + 1 };
                self.until_vm(|vm| vm.incarnation >= first).await;
                self.until(SessionState::Ready).await;
            }
            "resumed" => {
                self.ready_once().await;
                let vm = self.records().await.1.id;
                self.machine.silence(vm, true);
                self.arm_and_start().await;
                let session = self.until(SessionState::Degraded).await;
                self.until_event(session.id, "repair.resume").await;
                self.machine.silence(vm, false);
                self.until(SessionState::Ready).await;
            }
            "service" => {
                self.ready_once().await;
                self.sick.store(true, Ordering::SeqCst);
                self.arm_and_start().await;
                let session = self.session().await;
                self.until_event(session.id, "repair.service").await;
                self.sick.store(false, Ordering::SeqCst);
                self.until(SessionState::Ready).await;
            }
            "ended" => {
                self.ready_once().await;
                self.arm_and_start().await;
                let session = self.session().await;
                let _ = self.control.end(session.id, EndReason::UserRequest, Actor::User).await;
                self.until(SessionState::Ended).await;
            }
            "swept" => {
                self.ready_once().await;
                let session = self.session().await;
                // A machine that no record knows.
                let spec = holdfast_host::driver::VmSpec {
                    vm: holdfast_core::VmId::from_uuid(Uuid::from_u128(77)),
                    image: holdfast_control::ImageSource::current(&crate::world::OneImage).unwrap(),
                    memory_mib: 1024,
                    vcpus: 1,
                    disk_mib: 1024,
                    egress: holdfast_host::driver::EgressPolicy::default(),
                    screen: session.spec.screen,
                    eager: false,
                };
                self.machine.create(&spec).await.unwrap();
                self.arm_and_start().await;
                until(async || self.machine.list().await.unwrap().len() == 1).await;
            }
            "hibernated" => {
                self.ready_once().await;
                self.arm_and_start().await;
                let session = self.session().await;
                let _ = self.control.hibernate(session.id, Actor::User).await;
                self.until(SessionState::Hibernated).await;
                self.control.sweep().await.unwrap();
                let kept = std::fs::read_dir(self.dir.join("snapshots")).unwrap().count();
                assert_eq!(kept, 1, "what was half written is gone");
            }
            "brought back" => {
                self.ready_once().await;
                let id = self.session().await.id;
                if self.came_here_before("away") {
                    self.arm_and_start().await;
                } else {
                    self.control.start().await.unwrap();
                    self.control.hibernate(id, Actor::User).await.unwrap();
                    self.until(SessionState::Hibernated).await;
                    self.arm();
                }
                let _ = self.control.resume(id, Actor::User).await;
                self.until(SessionState::Ready).await;
                let vm = self.records().await.1;
                assert_eq!(self.machine.claim(vm.id).map(|claim| claim.secret), vm.secret);
            }
            "pooled" => {
                self.arm_and_start().await;
                until(async || self.control.waiting() == 1).await;
                self.session().await;
                self.until(SessionState::Ready).await;
                until(async || self.control.waiting() == 1).await;
            }
            "signed in" => {
                self.arm_and_start().await;
                let id = self.sign_in().await;
                until(async || self.signs_in(id).await).await;
                let session = self.until(SessionState::Ended).await;
                assert_eq!(session.end_reason, Some(EndReason::Completed));
                assert!(self.store.sealed_info(id).await.unwrap().is_some());
            }
            other => panic!("no such goal: {other}"),
        }
        self.census().await;
    }

    /// A session that was ready before anything was armed.
    async fn ready_once(&self) {
        if self.came_here_before("ready") {
            return;
        }
        let url = format!("sqlite:{}", self.dir.join("life.db").display());
        let store = holdfast_store::open(&url).await.unwrap();
        let driver: Arc<dyn Driver> = Arc::new(self.machine.clone());
        let config = ControlConfig::default();
        let first = Control::new(parts(store, driver, config, Clock::System));
        first.start().await.unwrap();
        let life = Self {
            store: Arc::clone(&self.store),
            machine: self.machine.clone(),
            sick: Arc::default(),
            control: first,
            point: String::new(),
            dir: self.dir.clone(),
        };
        life.session().await;
        life.until(SessionState::Ready).await;
        life.control.stop().await;
    }

    async fn arm_and_start(&self) {
        self.arm();
        self.control.start().await.unwrap();
    }

    /// The one session: made when there is none.
    async fn session(&self) -> Session {
        if let Some(session) = self.sessions().await.into_iter().next() {
            return session;
        }
        let owner = self.store.ensure_owner("ann", Timestamp::now()).await.unwrap();
        let key = holdfast_store::IdempotencyKey { key: "one".into(), request_sha256: "0".into() };
        let request = CreateRequest { owner, spec: spec(), sign_in: None, key: Some(key) };
        self.control.create(request).await.unwrap().0.session
    }

    /// The one sign-in: made when there is none.
    async fn sign_in(&self) -> SessionId {
        if let Some(session) = self.sessions().await.into_iter().next() {
            return session.id;
        }
        let owner = self.store.ensure_owner("ann", Timestamp::now()).await.unwrap();
        let request = CreateRequest {
            owner,
            spec: SessionSpec { provider: "codex".into(), ..spec() },
            sign_in: Some(NewSignIn { recipients: vec![RECIPIENT.into()], webhook: None }),
            key: None,
        };
        self.control.create(request).await.unwrap().0.session.id
    }

    /// Does what a person does once the link is there; answers whether it is done.
    async fn signs_in(&self, id: SessionId) -> bool {
        let sign_in = self.store.sign_in(id).await.unwrap().unwrap();
        if sign_in.step == SignInStep::SignIn
            && let Some(tool) = self.machine.tool(self.records().await.1.id)
        {
            tool.end(Outcome::Succeeded);
        }
        sign_in.is_done()
    }

    async fn sessions(&self) -> Vec<Session> {
        self.store.sessions(SessionFilter::default()).await.unwrap()
    }

    async fn records(&self) -> (Session, Vm) {
        let session = self.sessions().await.into_iter().next().unwrap();
        let vm = self.store.vm(session.vm.unwrap()).await.unwrap().unwrap();
        (session, vm)
    }

    async fn until(&self, state: SessionState) -> Session {
        until(async || self.records().await.0.state == state).await;
        self.records().await.0
    }

    async fn until_event(&self, id: SessionId, kind: &str) {
        until(async || {
            let events = self.store.events(id, 0, 10_000).await.unwrap();
            events.iter().any(|event| event.body.kind == kind)
        })
        .await;
    }

    async fn until_vm(&self, holds: impl Fn(&Vm) -> bool) {
        until(async || holds(&self.records().await.1)).await;
    }

    /// One session, on one machine, and both say the same.
    async fn census(&self) {
        let sessions = self.sessions().await;
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        let (session, vm) = self.records().await;
        assert_eq!((session.vm, vm.session), (Some(vm.id), Some(session.id)));
        assert_eq!(vm.host, HostId::from_uuid(Uuid::from_u128(1)));
        let mut at = None;
        for event in self.store.events(session.id, 0, 10_000).await.unwrap() {
            if event.body.kind == "session.state" {
                assert_eq!(event.body.from.as_deref(), at.as_deref());
                at = event.body.to;
            }
        }
        assert_eq!(at.as_deref(), Some(session.state.as_str()));
        let mut rows: Vec<_> =
            self.store.live_vms().await.unwrap().into_iter().map(|vm| vm.id).collect();
        let mut found: Vec<_> =
            self.machine.list().await.unwrap().into_iter().map(|seen| seen.vm).collect();
        rows.sort();
        found.sort();
        assert_eq!(found, rows, "on the machine, and in the records");
        assert_eq!(found.contains(&vm.id), vm.state != VmState::Gone);
        assert_eq!(found.len(), usize::from(vm.state != VmState::Gone) + self.control.waiting());
    }
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    while !holds().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The image, with a warm image of it.
struct WarmImage(PathBuf);

impl ImageSource for WarmImage {
    fn current(&self) -> Result<ImageRef, String> {
        OneImage.current()
    }
    fn by_digest(&self, digest: &str) -> Result<ImageRef, String> {
        OneImage.by_digest(digest)
    }
    fn warm(&self, _: &str, _: u32, _: u8) -> Option<PathBuf> {
        Some(self.0.clone())
    }
}

/// The warm image: baked in the first life, on another machine.
async fn baked(dir: &Path) -> PathBuf {
    let library = WarmLibrary::new(&dir.join("cache"));
    if let Some(image) = library.list().unwrap().into_iter().next() {
        return image.path;
    }
    let spec = spec();
    let shape = Shape {
        image: OneImage.current().unwrap(),
        memory_mib: spec.memory_mib,
        vcpus: spec.vcpus,
        disk_mib: ControlConfig::default().disk_mib,
    };
    let driver: Arc<dyn Driver> = Arc::new(SimDriver::in_memory());
    let stop = CancellationToken::new();
    bake::bake(&driver, &library, &shape, &|_| {}, &stop).await.unwrap().image.path
}
