//! The pool: VMs restored from the warm image, made unique and brought to rest before anybody asks.
//!
//! Each has a row without a session. A claim ties it to its session in the transaction that makes
//! the session, so two sessions can never get the same VM. Owns VMs from their row until that tie;
//! must never touch one that has a session.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use holdfast_agent_api::{ClaimRequest, Health, ScreenSize};
use holdfast_core::{
    Generation, OwnerId, Screen, SessionId, SessionSpec, Timestamp, Vm, VmId, VmState,
};
use holdfast_host::{
    driver::{DriverError, Process, StartFrom, VmSpec},
    guest::AgentClient,
};
use holdfast_store::Change;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    ControlError,
    control::{Inner, random_hex},
    guest_clock,
    records::chain,
};

/// Time between looks at the pool when nobody wakes it.
const INTERVAL: Duration = Duration::from_secs(5);
/// Deadline from the row of a VM until it is ready to be claimed.
const MAKE_DEADLINE: Duration = Duration::from_mins(3);
/// Pause after a VM could not be made, doubled up to 5 minutes.
const PAUSE: Duration = Duration::from_secs(10);
/// Requests within this time count as demand.
const DEMAND_WINDOW: Duration = Duration::from_mins(5);
/// Whoever asked for a machine waits for its first page or link this long, which takes all of its processors.
const FIRST_USE: Duration = Duration::from_secs(10);
/// A pool that is short this long is filled however busy the host is.
const LONGEST_SHORT: Duration = Duration::from_mins(1);
/// Time between looks at a guest that is being made.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Default)]
struct State {
    ready: VecDeque<Vm>,
    asked: VecDeque<Timestamp>,
    /// Since when it would have been filled.
    short_since: Option<Timestamp>,
    /// To be removed, again and again until it succeeds.
    leaving: VecDeque<VmId>,
}

/// VMs that wait for a session.
#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    pub wake: Notify,
}

impl Pool {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM for such a session, if there is one; it belongs to the caller from now on.
    pub(crate) fn take(&self, inner: &Inner, spec: &SessionSpec, image: &str) -> Option<Vm> {
        let now = inner.clock.now();
        let mut state = self.lock();
        state.asked.push_back(now);
        let fits = spec.memory_mib == inner.config.pool_memory_mib
            && spec.vcpus == inner.config.pool_vcpus;
        let index = state.ready.iter().position(|vm| fits && vm.image == image)?;
        let vm = state.ready.remove(index);
        drop(state);
        self.wake.notify_one();
        if let Some(vm) = &vm {
            inner.admission.release(ticket_of(vm.id));
        }
        vm
    }

    /// Takes back a VM that was not tied to a session after all.
    pub(crate) fn put_back(&self, inner: &Inner, vm: Vm) {
        hold(inner, &vm);
        self.lock().ready.push_back(vm);
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().ready.len()
    }

    fn is_empty(&self) -> bool {
        let state = self.lock();
        state.ready.is_empty() && state.leaving.is_empty()
    }

    /// As many as were asked for lately, within the configured bounds; none on a host that is drained.
    fn target(&self, inner: &Inner) -> usize {
        if inner.draining.load(Ordering::Acquire) {
            return 0;
        }
        let since = inner.clock.now() - DEMAND_WINDOW;
        let mut state = self.lock();
        while state.asked.front().is_some_and(|at| *at < since) {
            state.asked.pop_front();
        }
        let (least, most) = (inner.config.pool_min, inner.config.pool_max);
        state.asked.len().clamp(least, most.max(least))
    }

    /// Whether a VM can be made without taking processors from those that somebody waits for.
    fn may_fill(&self, inner: &Inner) -> bool {
        let now = inner.clock.now();
        let mut state = self.lock();
        let short_since = *state.short_since.get_or_insert(now);
        let asked = state.asked.iter().filter(|at| **at > now - FIRST_USE).count();
        let waited_for = asked.max(inner.admission.coming_up());
        let processors = (waited_for + 1) * usize::from(inner.config.pool_vcpus);
        waited_for == 0
            || processors <= inner.config.processors
            || short_since < now - LONGEST_SHORT
    }
}

/// Pool VMs take part in admission under an id of their own.
fn ticket_of(vm: VmId) -> SessionId {
    SessionId::from_uuid(vm.as_uuid())
}

fn hold(inner: &Inner, vm: &Vm) {
    let owner = OwnerId::from_uuid(Uuid::nil());
    inner.admission.hold(ticket_of(vm.id), owner, inner.config.pool_memory_mib, vm.created_at);
}

/// Fills the pool.
pub(crate) async fn run(inner: Arc<Inner>) {
    let is_off = inner.config.pool_max == 0 && inner.config.pool_min == 0;
    let mut pause = PAUSE;
    // What waits from a time when there was a pool is removed by its rounds.
    while !is_off || !inner.pool.is_empty() {
        let wait = match round(&inner).await {
            Ok(true) => {
                pause = PAUSE;
                continue;
            }
            Ok(false) => {
                pause = PAUSE;
                INTERVAL
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "a VM for the pool could not be made");
                pause = (pause * 2).min(Duration::from_mins(5));
                pause
            }
        };
        metrics::gauge!("holdfast_pool_ready").set(inner.pool.len() as f64);
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = inner.pool.wake.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One step towards the target; answers whether another may follow at once.
async fn round(inner: &Arc<Inner>) -> Result<bool, ControlError> {
    if remove_leaving(inner).await? {
        return Ok(true);
    }
    if let Some(dead) = find_dead(inner).await {
        tracing::warn!(vm = %dead.id, "a VM of the pool ended; it is replaced");
        retire(inner, dead).await?;
        return Ok(true);
    }
    let target = inner.pool.target(inner);
    let current = inner.images.current().ok().map(|image| image.digest);
    let stale = {
        let mut state = inner.pool.lock();
        let crowded = state.ready.len() > target || inner.admission.somebody_waits();
        let index =
            state.ready.iter().position(|vm| crowded || Some(&vm.image) != current.as_ref());
        index.and_then(|index| state.ready.remove(index))
    };
    if let Some(vm) = stale {
        retire(inner, vm).await?;
        return Ok(true);
    }
    if inner.pool.len() >= target {
        inner.pool.lock().short_since = None;
        return Ok(false);
    }
    let has_room = inner.admission.room_beside(inner.config.pool_memory_mib);
    if !has_room || inner.admission.somebody_waits() || !inner.pool.may_fill(inner) {
        return Ok(false);
    }
    make(inner).await
}

async fn find_dead(inner: &Inner) -> Option<Vm> {
    let ready: Vec<Vm> = inner.pool.lock().ready.iter().cloned().collect();
    for vm in ready {
        let gone = match inner.driver.inspect(vm.id).await {
            Ok(observed) => {
                matches!(observed.process, Process::Exited { .. } | Process::NotStarted)
            }
            // Unknown is not dead.
            Err(_) => false,
        };
        if gone {
            let mut state = inner.pool.lock();
            let index = state.ready.iter().position(|other| other.id == vm.id);
            return index.and_then(|index| state.ready.remove(index));
        }
    }
    None
}

/// Takes over the VMs that an earlier server left waiting; those that are half made are to leave.
pub(crate) async fn adopt(inner: &Inner) -> Result<(), ControlError> {
    let rows = inner.store.live_vms().await?;
    for vm in rows.into_iter().filter(|vm| vm.session.is_none() && vm.host == inner.host) {
        let process = inner.driver.inspect(vm.id).await.map(|observed| observed.process);
        // One that cannot be seen is kept: unknown is not dead.
        let ended = matches!(process, Ok(Process::Exited { .. } | Process::NotStarted));
        if vm.state == VmState::Running && !ended {
            inner.pool.put_back(inner, vm);
        } else {
            inner.pool.lock().leaving.push_back(vm.id);
        }
    }
    Ok(())
}

async fn retire(inner: &Inner, vm: Vm) -> Result<(), ControlError> {
    inner.pool.lock().leaving.push_back(vm.id);
    remove_leaving(inner).await.map(drop)
}

/// Removes the VM that is to leave first; says whether there was one.
async fn remove_leaving(inner: &Inner) -> Result<bool, ControlError> {
    let Some(id) = inner.pool.lock().leaving.front().copied() else { return Ok(false) };
    // What memory knows of the row may be older than an attempt that failed half way.
    let row = inner.store.vm(id).await?;
    if let Some(vm) = row.filter(|vm| vm.session.is_none() && vm.state != VmState::Gone) {
        let vm = if vm.state == VmState::Stopping {
            vm
        } else {
            step(inner, vm, VmState::Stopping).await?
        };
        inner.driver.destroy(id).await?;
        step(inner, vm, VmState::Gone).await?;
    }
    inner.pool.lock().leaving.retain(|other| *other != id);
    inner.admission.release(ticket_of(id));
    inner.room.send_modify(|n| *n += 1);
    Ok(true)
}

async fn step(inner: &Inner, mut vm: Vm, to: VmState) -> Result<Vm, ControlError> {
    vm.state = to;
    vm.state_since = inner.clock.now();
    let change = Change { vm: Some(vm.clone()), ..Change::default() };
    Ok(inner.store.apply(change).await?.vm.unwrap_or(vm))
}

async fn make(inner: &Arc<Inner>) -> Result<bool, ControlError> {
    let image = inner.images.current().map_err(ControlError::NoImage)?;
    let (memory_mib, vcpus) = (inner.config.pool_memory_mib, inner.config.pool_vcpus);
    let Some(warm) = inner.images.warm(&image.digest, memory_mib, vcpus) else { return Ok(false) };
    let now = inner.clock.now();
    let vm = Vm {
        id: VmId::from_uuid(Uuid::now_v7()),
        session: None,
        host: inner.host,
        state: VmState::Planned,
        driver: inner.driver.name().to_owned(),
        image: image.digest.clone(),
        address: None,
        incarnation: 1,
        secret: Some(random_hex::<32>()?),
        created_at: now,
        state_since: now,
        generation: Generation::FIRST,
    };
    hold(inner, &vm);
    let written = inner.store.apply(Change { new_vm: Some(vm.clone()), ..Change::default() }).await;
    let vm = match written {
        Ok(change) => change.new_vm.unwrap_or(vm),
        Err(error) => {
            inner.admission.release(ticket_of(vm.id));
            return Err(error.into());
        }
    };
    let spec = VmSpec {
        vm: vm.id,
        image,
        memory_mib,
        vcpus,
        disk_mib: inner.config.disk_mib,
        egress: inner.config.egress.clone(),
        screen: Screen::DEFAULT,
        eager: true,
    };
    fail::fail_point!("pool.make");
    let mut latest = vm;
    let made = tokio::select! {
        made = tokio::time::timeout(MAKE_DEADLINE, bring_up(inner, &mut latest, &spec, &warm)) => {
            made.unwrap_or_else(|_| Err(ControlError::Guest("it was not ready in time".into())))
        }
        // The next server finds the row and removes what is half made.
        () = inner.stop.cancelled() => return Ok(false),
    };
    match made {
        Ok(()) => {
            tracing::info!(vm = %latest.id, "a VM waits in the pool");
            inner.images.warm_worked(&warm);
            let mut state = inner.pool.lock();
            state.short_since = None;
            state.ready.push_back(latest);
            Ok(true)
        }
        Err(error) => {
            let damaged = matches!(&error, ControlError::Driver(DriverError::Snapshot { .. }));
            let restored = matches!(error, ControlError::Driver(_) | ControlError::Guest(_));
            if restored && latest.state == VmState::Restoring {
                inner.images.warm_failed(&warm, damaged, &chain(&error));
            }
            retire(inner, latest).await?;
            Err(error)
        }
    }
}

async fn bring_up(
    inner: &Inner,
    vm: &mut Vm,
    spec: &VmSpec,
    warm: &std::path::Path,
) -> Result<(), ControlError> {
    *vm = step(inner, vm.clone(), VmState::Preparing).await?;
    inner.driver.create(spec).await?;
    vm.address = Some(inner.driver.connect(vm.id).await?);
    *vm = step(inner, vm.clone(), VmState::Restoring).await?;
    inner.driver.start(vm.id, &StartFrom::Snapshot(warm.to_owned())).await?;
    let secret = vm.secret.clone().unwrap_or_default();
    let agent = AgentClient::new(Arc::clone(&inner.driver), vm.id, secret.clone());
    wait_for(&agent, |_| true).await;
    let id = vm.id.to_string();
    let claim = ClaimRequest {
        hostname: format!("hf-{}", &id[id.len() - 12..]),
        vm_id: id,
        session_id: None,
        secret,
        time: Timestamp::now(),
        entropy: random_hex::<64>()?,
        dns: inner.config.dns.clone(),
        locale: "en-US".to_owned(),
        timezone: "Etc/UTC".to_owned(),
        screen: ScreenSize { width: Screen::DEFAULT.width, height: Screen::DEFAULT.height },
        start_url: None,
        cloned: true,
        fresh_browser: inner.config.fresh_browser,
        browser_after_ms: 0,
    };
    let answer = agent
        .claim(&claim, Duration::from_secs(30))
        .await
        .map_err(|error| ControlError::Guest(chain(&error)))?;
    guest_clock::set_after(&agent, answer.time).await;
    wait_for(&agent, |health| health.desktop_ready && health.browser_ready).await;
    *vm = step(inner, vm.clone(), VmState::Running).await?;
    Ok(())
}

/// Looks until the guest is as wanted; the caller has the deadline.
async fn wait_for(agent: &AgentClient, wanted: impl Fn(&Health) -> bool) {
    loop {
        if let Ok(health) = agent.health(Duration::from_secs(3)).await
            && wanted(&health)
        {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}
