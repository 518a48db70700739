//! The simulated machine, through the same client that talks to real guests.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{sync::Arc, time::Duration};

use base64::Engine as _;
use futures::{SinkExt as _, StreamExt as _};
use holdfast_agent_api::{ClaimRequest, ExecRequest, ScreenSize, VNC_PORT};
use holdfast_core::{Screen, Timestamp, VmId};
use holdfast_host::{
    driver::{Driver, DriverError, EgressPolicy, ImageRef, Process, StartFrom, VmSpec},
    drivers::sim::{Fault, SimDriver, Step},
    guest::{AgentClient, GuestError},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

const DEADLINE: Duration = Duration::from_secs(5);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn spec() -> VmSpec {
    VmSpec {
        vm: VmId::from_uuid(uuid::Uuid::now_v7()),
        image: ImageRef { path: "/nonexistent".into(), digest: "image".to_owned() },
        memory_mib: 512,
        vcpus: 1,
        disk_mib: 64,
        egress: EgressPolicy::default(),
        screen: Screen { width: 320, height: 200 },
        eager: false,
    }
}

fn claim(vm: VmId, secret: &str) -> ClaimRequest {
    ClaimRequest {
        vm_id: vm.to_string(),
        session_id: None,
        secret: secret.to_owned(),
        time: Timestamp::now(),
        entropy: "00".repeat(64),
        hostname: "guest".to_owned(),
        dns: Vec::new(),
        locale: "en-US".to_owned(),
        timezone: "UTC".to_owned(),
        screen: ScreenSize { width: 320, height: 200 },
        start_url: None,
        cloned: false,
        fresh_browser: false,
        browser_after_ms: 0,
    }
}

async fn started(sim: &SimDriver) -> VmId {
    let spec = spec();
    sim.create(&spec).await.unwrap();
    sim.connect(spec.vm).await.unwrap();
    sim.start(spec.vm, &StartFrom::Boot).await.unwrap();
    spec.vm
}

fn agent(sim: &SimDriver, vm: VmId, secret: &str) -> AgentClient {
    AgentClient::new(Arc::new(sim.clone()), vm, secret.to_owned())
}

#[tokio::test]
async fn the_agent_is_claimed_once_and_obeys_its_secret() {
    let sim = SimDriver::in_memory();
    let vm = started(&sim).await;
    let agent_of = |secret| agent(&sim, vm, secret);
    let (owner, thief) = (agent_of(SECRET), agent_of("another"));
    let exec = ExecRequest {
        command: vec!["echo".to_owned(), "hello".to_owned(), "there".to_owned()],
        env: Vec::new(),
        cwd: None,
        stdin: None,
        timeout_ms: 1000,
        root: false,
    };
    let refused = |error| matches!(error, GuestError::Refused { status: 401, .. });
    assert!(refused(owner.exec(&exec).await.unwrap_err()), "before the claim");
    let first = owner.claim(&claim(vm, SECRET), DEADLINE).await.unwrap();
    let again = owner.claim(&claim(vm, SECRET), DEADLINE).await.unwrap();
    assert_eq!(first.boot_id, again.boot_id);
    let other = claim(vm, "fedcba9876543210fedcba9876543210");
    let error = thief.claim(&other, DEADLINE).await.unwrap_err();
    assert!(matches!(error, GuestError::Refused { status: 409, .. }));
    let health = owner.health(DEADLINE).await.unwrap();
    assert!(health.desktop_ready && health.vm_id == Some(vm.to_string()));
    let answer = owner.exec(&exec).await.unwrap();
    let output = base64::engine::general_purpose::STANDARD.decode(answer.stdout).unwrap();
    assert_eq!(output, b"hello there\n");
    assert!(refused(thief.exec(&exec).await.unwrap_err()));
    assert_eq!(owner.restart_service("xvnc", DEADLINE).await.unwrap().restarts, 1);
    assert!(owner.restart_service("nothing", DEADLINE).await.is_err());
    owner.metrics(DEADLINE).await.unwrap();
}

#[tokio::test]
async fn a_terminal_keeps_its_scrollback() {
    let sim = SimDriver::in_memory();
    let vm = started(&sim).await;
    let agent = agent(&sim, vm, SECRET);
    agent.claim(&claim(vm, SECRET), DEADLINE).await.unwrap();
    let mut first = agent.terminal("main", 80, 24, DEADLINE).await.unwrap();
    let prompt = first.next().await.unwrap().unwrap().into_data();
    assert!(first.next().await.unwrap().unwrap().to_text().unwrap().contains("ready"));
    first.send(Message::binary(&b"typed"[..])).await.unwrap();
    assert_eq!(first.next().await.unwrap().unwrap().into_data(), &b"typed"[..]);
    drop(first);
    let mut second = agent.terminal("main", 80, 24, DEADLINE).await.unwrap();
    let scrollback = second.next().await.unwrap().unwrap().into_data();
    assert_eq!(scrollback, [&prompt[..], b"typed"].concat());
}

#[tokio::test]
async fn a_viewer_is_shown_a_desktop() {
    let sim = SimDriver::in_memory();
    let vm = started(&sim).await;
    let mut viewer = sim.dial(vm, VNC_PORT).await.unwrap();
    let mut version = [0; 12];
    viewer.read_exact(&mut version).await.unwrap();
    assert_eq!(&version, b"RFB 003.008\n");
    viewer.write_all(&version).await.unwrap();
    assert_eq!((viewer.read_u8().await.unwrap(), viewer.read_u8().await.unwrap()), (1, 1));
    viewer.write_all(&[1]).await.unwrap();
    assert_eq!(viewer.read_u32().await.unwrap(), 0);
    viewer.write_all(&[1]).await.unwrap();
    assert_eq!((viewer.read_u16().await.unwrap(), viewer.read_u16().await.unwrap()), (320, 200));
    viewer.read_exact(&mut [0; 16]).await.unwrap();
    let name = viewer.read_u32().await.unwrap();
    viewer.read_exact(&mut vec![0; name as usize]).await.unwrap();
    viewer.write_all(&[3, 0, 0, 0, 0, 0, 1, 64, 0, 200]).await.unwrap();
    let mut picture = vec![0; 4 + 12 + 320 * 200 * 4];
    viewer.read_exact(&mut picture).await.unwrap();
    assert_eq!(picture[..4], [0, 0, 0, 1]);
    assert!(sim.dial(vm, 1).await.is_err());
}

#[tokio::test]
async fn vms_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let (vm, before) = {
        let sim = SimDriver::open(dir.path()).unwrap();
        let vm = started(&sim).await;
        agent(&sim, vm, SECRET).claim(&claim(vm, SECRET), DEADLINE).await.unwrap();
        (vm, sim.inspect(vm).await.unwrap())
    };
    let sim = SimDriver::open(dir.path()).unwrap();
    assert_eq!(sim.inspect(vm).await.unwrap(), before);
    let health = agent(&sim, vm, SECRET).health(DEADLINE).await.unwrap();
    assert_eq!(health.vm_id, Some(vm.to_string()));
    assert!(sim.crash(vm, "killed by a test"));
    assert!(sim.wait_exit(vm).await.unwrap().contains("killed by a test"));
    drop(sim);
    let sim = SimDriver::open(dir.path()).unwrap();
    assert!(matches!(sim.inspect(vm).await.unwrap().process, Process::Exited { .. }));
    assert!(matches!(sim.dial(vm, 8080).await.err(), Some(DriverError::Exited { .. })));
}

#[tokio::test(start_paused = true)]
async fn faults_happen_as_often_as_injected() {
    let sim = SimDriver::in_memory();
    let faults = sim.faults();
    let spec = spec();
    faults.inject(Step::Create, None, Fault::Fail("no".to_owned()), 2);
    for _ in 0..2 {
        assert!(sim.create(&spec).await.is_err());
        assert!(!sim.inspect(spec.vm).await.unwrap().directory);
    }
    sim.create(&spec).await.unwrap();
    let other = VmId::from_uuid(uuid::Uuid::now_v7());
    faults.inject(Step::Connect, Some(other), Fault::Fail("no".to_owned()), 1);
    sim.connect(spec.vm).await.unwrap();
    assert_eq!(faults.left(), 1);
    faults.clear();
    faults.inject(Step::Start, None, Fault::DoneButFailed("late".to_owned()), 1);
    assert!(sim.start(spec.vm, &StartFrom::Boot).await.is_err());
    let seen = sim.inspect(spec.vm).await.unwrap().process;
    assert!(matches!(seen, Process::Running { .. }));
    faults.inject(Step::Inspect, None, Fault::Unknown("unreadable".to_owned()), 1);
    let unknown = sim.inspect(spec.vm).await.unwrap().process;
    assert!(matches!(unknown, Process::Unknown { why } if why == "unreadable"));
    assert_eq!(sim.inspect(spec.vm).await.unwrap().process, seen);
    faults.inject(Step::Pause, None, Fault::Slow(Duration::from_hours(1)), 1);
    let began = tokio::time::Instant::now();
    sim.pause(spec.vm).await.unwrap();
    assert!(began.elapsed() >= Duration::from_hours(1));
    faults.inject(Step::Resume, None, Fault::Hang, 1);
    let hung = tokio::time::timeout(Duration::from_hours(24), sim.resume(spec.vm)).await;
    assert!(hung.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_silent_or_paused_guest_does_not_answer() {
    let sim = SimDriver::in_memory();
    sim.set_boot_time(Duration::from_secs(20));
    let vm = started(&sim).await;
    let agent = agent(&sim, vm, SECRET);
    assert!(!agent.health(DEADLINE).await.unwrap().desktop_ready);
    tokio::time::advance(Duration::from_secs(21)).await;
    assert!(agent.health(DEADLINE).await.unwrap().desktop_ready);
    let silent = |error| matches!(error, GuestError::Timeout { .. });
    assert!(sim.silence(vm, true));
    assert!(silent(agent.health(DEADLINE).await.unwrap_err()));
    assert!(sim.silence(vm, false));
    agent.health(DEADLINE).await.unwrap();
    sim.pause(vm).await.unwrap();
    assert!(silent(agent.health(DEADLINE).await.unwrap_err()));
    sim.resume(vm).await.unwrap();
    agent.health(DEADLINE).await.unwrap();
    sim.destroy(vm).await.unwrap();
    assert!(agent.health(DEADLINE).await.is_err());
    assert_eq!(sim.list().await.unwrap(), []);
}
