//! Machine and records compared, in this process: control on a real store, with simulated VMs.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_control::{Clock, Control, ControlConfig, ImageSource, Parts};
use holdfast_core::{
    Actor, EndReason, EventBody, Generation, HostId, OwnerId, Screen, Session, SessionId,
    SessionSpec, SessionState, Timestamp, Vm, VmId, VmState, provider::Catalog,
};
use holdfast_host::{
    driver::{Driver as _, EgressPolicy, ImageRef, StartFrom, VmSpec},
    drivers::sim::SimDriver,
};
use holdfast_store::{NewSession, Store};
use uuid::Uuid;

use super::scratch;
use crate::{
    report::{Report, Samples, Table},
    usage,
};

/// Times that machine and records are compared, and sessions that are changed.
const RUNS: usize = 10;
/// Time over which processor time is counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Longest time for one change.
const SOON: Duration = Duration::from_secs(30);
const MEMORY_MIB: u32 = 1024;

pub(super) async fn measure(sizes: &[usize], report: &mut Report) -> Result<()> {
    let mut table = Table::new(
        "Reconciling",
        "Control on SQLite (in memory, so without waiting for a disk) in this process, simulated VMs, all of them running and watched. Adopting is \
         from reading the store until every session is served. A sweep compares everything on the \
         machine with all records. One change: a VM that died until its session is ready again, a \
         session that was ended until nothing is left of it; nothing is polled for that.",
    );
    for count in sizes {
        let world = World::make(*count).await?;
        let outcome = world.measure(&mut table).await;
        world.control.stop().await;
        outcome?;
    }
    report.add(table);
    Ok(())
}

struct OneImage(ImageRef);

impl ImageSource for OneImage {
    fn current(&self) -> Result<ImageRef, String> {
        Ok(self.0.clone())
    }

    fn by_digest(&self, _digest: &str) -> Result<ImageRef, String> {
        Ok(self.0.clone())
    }
}

/// A host with sessions that run.
struct World {
    control: Control,
    driver: SimDriver,
    sessions: Vec<(SessionId, VmId)>,
    image: ImageRef,
    _dir: tempfile::TempDir,
}

impl World {
    async fn make(count: usize) -> Result<Self> {
        let dir = scratch()?;
        let store =
            holdfast_store::open(&format!("sqlite:{}", dir.path().join("db").display())).await?;
        let driver = SimDriver::in_memory();
        let image =
            ImageRef { path: PathBuf::from("/nonexistent"), digest: "simulated".to_owned() };
        let host = HostId::from_uuid(Uuid::now_v7());
        let owner = store.ensure_owner("bench", Timestamp::now()).await?;
        let mut sessions = Vec::with_capacity(count);
        for _ in 0..count {
            let new = running(host, owner, &image);
            let vm = new.vm.id;
            driver.create(&spec(vm, &image)).await?;
            driver.connect(vm).await?;
            driver.start(vm, &StartFrom::Boot).await?;
            sessions.push((new.session.id, vm));
            store.create_session(new).await?;
        }
        let config = ControlConfig {
            lease: Duration::from_hours(1),
            max_vms: usize::MAX,
            memory_budget_mib: u64::MAX,
            snapshot_dir: dir.path().join("snapshots"),
            // Only when asked for.
            sweep_interval: Duration::from_hours(1),
            ..ControlConfig::default()
        };
        let control = Control::new(Parts {
            store: Arc::clone(&store) as Arc<dyn Store>,
            driver: Arc::new(driver.clone()),
            images: Arc::new(OneImage(image.clone())),
            providers: Arc::new(Catalog::shipped()?),
            config,
            clock: Clock::System,
            memory: Arc::new(|| None),
            host,
            store_knows_host: true,
        });
        Ok(Self { control, driver, sessions, image, _dir: dir })
    }

    async fn measure(&self, table: &mut Table) -> Result<()> {
        let count = self.sessions.len();
        let began = Instant::now();
        let adopted = self.control.start().await?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        ensure!(adopted == count, "{adopted} of {count} sessions were adopted");
        table.add(format!("{count} sessions: adopted"), "ms", took);
        if count == 1000 {
            table.aim(0.5, 2000.0);
        }
        // The first sweep is control's own, the first probes are of all at once.
        tokio::time::sleep(WINDOW / 2).await;

        let (mut unchanged, mut one) = (Samples::default(), Samples::default());
        for _ in 0..RUNS {
            unchanged.time(self.sweep(0).await?);
            let stray = VmId::from_uuid(Uuid::now_v7());
            self.driver.create(&spec(stray, &self.image)).await?;
            one.time(self.sweep(1).await?);
        }
        let (mut revived, mut ended) = (Samples::default(), Samples::default());
        for (session, vm) in self.sessions.iter().step_by((count / RUNS / 2).max(1)).take(RUNS) {
            revived.time(self.revive(*session, *vm).await?);
        }
        for (session, vm) in self.sessions.iter().take(RUNS) {
            ended.time(self.end(*session, *vm).await?);
        }
        let pid = std::process::id() as i32;
        let before = usage::cpu_ms(pid)?;
        tokio::time::sleep(WINDOW).await;
        let busy = (usage::cpu_ms(pid)? - before) / WINDOW.as_millis() as f64 * 100.0;
        table
            .add(format!("{count} sessions: sweep, nothing changed"), "ms", unchanged)
            .add(format!("{count} sessions: sweep that removes one stray VM"), "ms", one)
            .add(format!("{count} sessions: one VM died, until ready again"), "ms", revived)
            .add(format!("{count} sessions: one ended, until nothing is left"), "ms", ended)
            .add(format!("{count} sessions: processor, nothing changes"), "% of a core", busy);
        Ok(())
    }

    async fn sweep(&self, removed: usize) -> Result<Duration> {
        let began = Instant::now();
        let report = self.control.sweep().await?;
        let took = began.elapsed();
        ensure!(report.removed.len() == removed, "{report:?}");
        Ok(took)
    }

    async fn revive(&self, session: SessionId, vm: VmId) -> Result<Duration> {
        let began = Instant::now();
        ensure!(self.driver.crash(vm, "as measured"), "{vm} did not run");
        self.until(session, "it is ready again", |session, vm| {
            session == SessionState::Ready && vm.incarnation > 1
        })
        .await?;
        Ok(began.elapsed())
    }

    async fn end(&self, session: SessionId, vm: VmId) -> Result<Duration> {
        let began = Instant::now();
        self.control.end(session, EndReason::UserRequest, Actor::User).await?;
        self.until(session, "it has ended", |session, _| session == SessionState::Ended).await?;
        let took = began.elapsed();
        ensure!(!self.driver.inspect(vm).await?.directory, "something is left of {vm}");
        Ok(took)
    }

    async fn until(
        &self,
        id: SessionId,
        what: &str,
        is: impl Fn(SessionState, &Vm) -> bool,
    ) -> Result<()> {
        let mut notices = self.control.notices();
        let waited = async {
            loop {
                let live = self.control.find(id).await?.context("the session is gone")?;
                if is(live.session.state, &live.vm) {
                    return anyhow::Ok(());
                }
                // One that was missed is no matter: what is asked for is looked at again.
                let _ = notices.recv().await;
            }
        };
        tokio::time::timeout(SOON, waited).await.with_context(|| format!("{id}: {what}"))?
    }
}

fn spec(vm: VmId, image: &ImageRef) -> VmSpec {
    VmSpec {
        vm,
        image: image.clone(),
        memory_mib: MEMORY_MIB,
        vcpus: 1,
        // As control's own default, so that a VM that is started again is the same.
        disk_mib: ControlConfig::default().disk_mib,
        egress: EgressPolicy::default(),
        screen: Screen::DEFAULT,
        eager: false,
    }
}

/// Records of a session that has been ready for a while.
fn running(host: HostId, owner: OwnerId, image: &ImageRef) -> NewSession {
    let (id, vm) = (SessionId::from_uuid(Uuid::now_v7()), VmId::from_uuid(Uuid::now_v7()));
    let now = Timestamp::now();
    let session = Session {
        id,
        owner,
        spec: SessionSpec {
            provider: "desktop".to_owned(),
            name: String::new(),
            screen: Screen::DEFAULT,
            start_url: None,
            locale: "en-US".to_owned(),
            timezone: "Etc/UTC".to_owned(),
            memory_mib: MEMORY_MIB,
            vcpus: 1,
        },
        state: SessionState::Ready,
        vm: Some(vm),
        end_reason: None,
        detail: None,
        attempts: 0,
        lease_expires_at: now + Duration::from_hours(1),
        last_heartbeat_at: now,
        checkpoint: None,
        created_at: now,
        state_since: now,
        ready_at: Some(now),
        ended_at: None,
        generation: Generation::FIRST,
    };
    let vm = Vm {
        id: vm,
        session: Some(id),
        host,
        state: VmState::Running,
        driver: "sim".to_owned(),
        image: image.digest.clone(),
        address: None,
        incarnation: 1,
        secret: Some("00".repeat(32)),
        created_at: now,
        state_since: now,
        generation: Generation::FIRST,
    };
    let event = EventBody {
        vm: None,
        at: now,
        kind: "session.state".to_owned(),
        from: None,
        to: Some("ready".to_owned()),
        why: "It was made to be measured.".to_owned(),
        by: Actor::User,
    };
    NewSession { session, vm, sign_in: None, events: vec![event], key: None }
}
