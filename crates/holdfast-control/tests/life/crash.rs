//! A process that dies at every failpoint, twice in a row, and is started again: what it was doing
//! is done in the end, nothing is lost and nothing is left.
//!
//! This test's own program is the process: [`life_of_a_server`] does nothing unless asked to.

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holdfast_control::{Clock, Control, ControlConfig, CreateRequest};
use holdfast_core::{
    Actor, EndReason, HostId, Session, SessionId, SessionState, Timestamp, Vm, VmState,
    health::Patience,
};
use holdfast_host::{driver::Driver, drivers::sim::SimDriver};
use holdfast_store::{SessionFilter, Store};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::gate::GatedDriver;
use crate::world::{fast_dir, parts, spec};

/// What the process is to do, and where it dies: variables of its environment.
const DIR: &str = "HOLDFAST_LIFE_DIR";
const GOAL: &str = "HOLDFAST_LIFE_GOAL";
const POINT: &str = "HOLDFAST_LIFE_POINT";

/// Exits of [`life_of_a_server`].
const SIGABRT: i32 = 6;
const DEADLINE: Duration = Duration::from_mins(1);

/// Points by what reaches them. All but the first are reached again after the first death.
const CREATED: [&str; 1] = ["create.after"];
const CREATE: [&str; 8] = [
    "create.before",
    "step.disk",
    "step.network",
    "step.start",
    "step.claim",
    "step.ready",
    "commit.before",
    "commit.after",
];
const ADOPT: [&str; 2] = ["adopt.read", "adopt.spawn"];
const REPAIR: [&str; 4] = ["repair.stop", "repair.stopped", "commit.before", "commit.after"];
const RESUME: [&str; 1] = ["repair.resume"];
const SERVICE: [&str; 1] = ["repair.service"];
const END: [&str; 6] =
    ["step.end", "step.destroy", "step.destroyed", "step.ended", "commit.before", "commit.after"];
const SWEEP: [&str; 1] = ["sweep.remove"];

#[test]
fn dies_while_a_session_is_made() {
    for point in CREATED {
        dies("ready", point, 1);
    }
    for point in CREATE {
        dies_twice("ready", point);
    }
}

#[test]
fn dies_while_sessions_are_adopted() {
    for point in ADOPT {
        dies_twice("adopted", point);
    }
}

#[test]
fn dies_while_a_machine_is_repaired() {
    for point in REPAIR {
        dies_twice("repaired", point);
    }
    for point in SERVICE {
        dies_twice("service", point);
    }
}

#[test]
fn dies_while_a_machine_is_resumed() {
    for point in RESUME {
        dies_twice("resumed", point);
    }
}

#[test]
fn dies_while_a_session_is_ended() {
    for point in END {
        dies_twice("ended", point);
    }
}

#[test]
fn dies_while_an_orphan_is_removed() {
    for point in SWEEP {
        dies_twice("swept", point);
    }
}

/// A failpoint that no test reaches proves nothing.
#[test]
fn every_failpoint_is_in_a_list() {
    let mut listed = BTreeSet::new();
    for list in [&CREATED[..], &CREATE, &ADOPT, &REPAIR, &RESUME, &SERVICE, &END, &SWEEP] {
        listed.extend(list.iter().map(|name| (*name).to_owned()));
    }
    let mut found = BTreeSet::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in std::fs::read_dir(source).unwrap() {
        let file = file.unwrap();
        // Those have tests of their own.
        let elsewhere = ["checkpoint", "pool", "signin"];
        let name = file.file_name().into_string().unwrap();
        if elsewhere.iter().any(|other| name.starts_with(other)) {
            continue;
        }
        let text = std::fs::read_to_string(file.path()).unwrap();
        for part in text.split("fail_point!(\"").skip(1) {
            found.insert(part.split('"').next().unwrap().to_owned());
        }
    }
    assert_eq!(found, listed);
}

/// Failpoints are compiled into tests alone: the command is built without the feature.
#[test]
fn failpoints_are_in_no_program() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let tree = Command::new(cargo)
        .args(["tree", "--offline", "-p", "holdfast", "-e", "normal,build,features", "-i", "fail"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&tree.stdout);
    assert!(text.contains("fail v"), "{text}{}", String::from_utf8_lossy(&tree.stderr));
    assert!(!text.contains("failpoints"), "{text}");
}

fn dies_twice(goal: &str, point: &str) {
    dies(goal, point, 2);
}

fn dies(goal: &str, point: &str, times: u32) {
    let dir = fast_dir();
    for death in 1..=times {
        let output = process(dir.path(), goal, point);
        assert_eq!(
            output.status.signal(),
            Some(SIGABRT),
            "{goal}: {point} was not reached for death {death}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let output = process(dir.path(), goal, "");
    assert!(
        output.status.success(),
        "{goal} after dying at {point}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn process(dir: &Path, goal: &str, point: &str) -> std::process::Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::life_of_a_server", "--nocapture"])
        .env(DIR, dir)
        .env(GOAL, goal)
        .env(POINT, point)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap()
}

/// One life of a server: goes on from where the last one died.
#[tokio::test(flavor = "multi_thread")]
async fn life_of_a_server() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let (goal, point) = (std::env::var(GOAL).unwrap(), std::env::var(POINT).unwrap());
    let life = Life::begin(Path::new(&dir), point).await;
    tokio::time::timeout(DEADLINE, life.reach(&goal)).await.expect("it comes to an end");
}

struct Life {
    store: Arc<dyn Store>,
    machine: SimDriver,
    sick: Arc<AtomicBool>,
    control: Control,
    point: String,
    dir: std::path::PathBuf,
}

impl Life {
    async fn begin(dir: &Path, point: String) -> Self {
        let store = format!("sqlite:{}", dir.join("life.db").display());
        let store = holdfast_store::open(&store).await.unwrap();
        let machine = SimDriver::open(dir.join("sim")).unwrap();
        let config = ControlConfig {
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
        let control = Control::new(parts(Arc::clone(&store), driver, config, Clock::System));
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
        let found: Vec<_> =
            self.machine.list().await.unwrap().into_iter().map(|seen| seen.vm).collect();
        match vm.state {
            VmState::Gone => assert_eq!(found, []),
            _ => assert_eq!(found, [vm.id]),
        }
    }
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    while !holds().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
