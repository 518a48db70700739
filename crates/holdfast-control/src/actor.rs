//! The actor of a session: the only writer of its progress.
//!
//! ```text
//!   records + machine ──plan──> step ──execute──> write under the generation that was read ─┐
//!        ^──────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! It keeps nothing that a crash may not lose. An end interrupts every wait, but never an
//! operation on the machine: those run to their end or their deadline first.

use std::{sync::Arc, time::Duration};

use holdfast_core::{
    Actor, EndReason, SessionState, VmState,
    plan::{Step, plan},
};
use holdfast_host::driver::{DriverError, StartFrom};
use holdfast_store::StoreError;

use crate::{
    ControlError, Live,
    admission::{self, Cause, Verdict},
    board::Entry,
    bringup, checkpoint,
    control::{Inner, commit, end_entry, note, reread},
    limits::{self, Warned},
    machine::{Look, look, operate, spec},
    probe::Watcher,
    records::{Edit, chain},
    teardown,
};

/// What the actor does after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Plan again now.
    Again,
    /// Plan again after this long, or when woken.
    After(Duration),
    /// The session is over.
    Done,
}

/// What an actor remembers between steps. Nothing in it has to survive a crash.
#[derive(Default)]
struct Memory {
    watcher: Watcher,
    queued_at: Option<(usize, Cause)>,
    warned: Warned,
}

/// Time between looks at the host's memory while a session waits for some.
const MEMORY_INTERVAL: Duration = Duration::from_secs(2);
/// Pause after a step that failed for a reason outside the session, such as a lost store; doubled
/// up to the second value.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

pub(crate) async fn run(inner: Arc<Inner>, entry: Arc<Entry>) {
    let mut memory = Memory::default();
    let mut pause = PAUSES.0;
    let mut last_error = String::new();
    loop {
        let next = tokio::select! {
            () = inner.stop.cancelled() => return,
            next = step(&inner, &entry, &mut memory) => next,
        };
        let next = match next {
            Ok(next) => {
                pause = PAUSES.0;
                last_error.clear();
                next
            }
            Err(ControlError::Store(StoreError::Stale { .. })) => Next::Again,
            Err(error) => {
                let text = chain(&error);
                // Once per cause, not once per attempt.
                if text != last_error {
                    tracing::warn!(session = %entry.id, error = text, "a step could not be done; it is tried again");
                    last_error = text;
                }
                metrics::counter!("holdfast_reconcile_errors_total").increment(1);
                let after = Next::After(pause);
                pause = (pause * 2).min(PAUSES.1);
                // The store may hold something newer than memory after an error.
                let _ = reread(&inner, &entry).await;
                after
            }
        };
        match next {
            Next::Again => {}
            Next::After(wait) => tokio::select! {
                () = inner.stop.cancelled() => return,
                () = entry.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            },
            Next::Done => {
                inner.board.remove(entry.id);
                return;
            }
        }
    }
}

async fn step(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    memory: &mut Memory,
) -> Result<Next, ControlError> {
    let live = entry.live();
    // Only a start needs to know the machine before it plans; watching looks for itself.
    let starting = matches!(live.session.state, SessionState::Starting | SessionState::Resuming);
    let Look { machine, why, .. } =
        if starting { look(inner, live.vm.id).await } else { Look::unknown(None) };
    let step = plan(&live.session, &live.vm, machine);
    tracing::debug!(session = %entry.id, ?step, vm = %live.vm.state, "planned");
    metrics::counter!("holdfast_reconcile_steps_total", "step" => format!("{step:?}")).increment(1);
    match step {
        Step::Admit => admit(inner, entry, &live, &mut memory.queued_at).await,
        Step::BeginPreparing => {
            let edit = Edit::new(&live.session, &live.vm, inner.clock.now()).vm_to(
                VmState::Preparing,
                "Room was found; the machine is being made.",
                Actor::Reconciler,
            );
            commit(inner, entry, edit).await.map(|()| Next::Again)
        }
        Step::MakeDisk => make_disk(inner, entry, &live).await,
        Step::MakeNetwork => make_network(inner, entry, &live).await,
        Step::BeginStart => {
            let to = if checkpoint::restores(inner, &live) {
                VmState::Restoring
            } else {
                VmState::Booting
            };
            let secret = checkpoint::next_secret(&live, to)?;
            let edit = Edit::new(&live.session, &live.vm, inner.clock.now())
                .with_vm(|vm| {
                    vm.incarnation += 1;
                    vm.secret = secret;
                })
                .vm_to(to, "Disk and network are there.", Actor::Reconciler);
            commit(inner, entry, edit).await.map(|()| Next::Again)
        }
        Step::StartVmm => start_vmm(inner, entry, &live).await,
        Step::BringUp => bringup::bring_up(inner, entry, &live).await,
        Step::StartFailed => {
            let why = why.unwrap_or_else(|| "the VMM ended".to_owned());
            bringup::start_failed(inner, entry, &live, &why, false).await
        }
        Step::Watch => watch(inner, entry, &live, memory).await,
        Step::Save => checkpoint::save(inner, entry, &live).await,
        Step::PutAway => checkpoint::put_away(inner, entry, &live).await,
        Step::TearDown => teardown::tear_down(inner, entry, &live).await,
        Step::Release => teardown::release(inner, entry, &live).await,
        Step::LookAgain => {
            let why = why.unwrap_or_default();
            tracing::warn!(session = %entry.id, why, "the state of the VMM could not be determined; nothing is done");
            Ok(Next::After(Duration::from_secs(2)))
        }
        Step::Rest => rest(inner, entry, &live).await,
    }
}

async fn admit(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
    queued_at: &mut Option<(usize, Cause)>,
) -> Result<Next, ControlError> {
    let mut room = inner.room.subscribe();
    let needs_mib =
        admission::needs(live.session.spec.memory_mib, checkpoint::will_be_cloned(inner, live));
    match inner.admission.ask(&live.session, needs_mib) {
        Verdict::Admitted { more } => {
            if more {
                inner.room.send_modify(|n| *n += 1);
            }
            let edit = Edit::new(&live.session, &live.vm, inner.clock.now()).detail(None);
            let edit = if live.session.state == SessionState::Resuming {
                edit.vm_to(VmState::Preparing, "Room was found.", Actor::Reconciler)
            } else {
                edit.session_to(SessionState::Starting, "Work has begun.", Actor::Reconciler)
            };
            commit(inner, entry, edit).await.map(|()| Next::Again)
        }
        Verdict::Queued { position, cause, why } => {
            // That others come first is what a place says; between an end and their start it is all there is.
            let is_told = queued_at.is_some_and(|(place, before)| {
                place == position && (before == cause || cause == Cause::Turn)
            });
            if !is_told {
                *queued_at = Some((position, cause));
                let text = format!("Waiting for room, place {position} in the queue: {why}.");
                let edit = Edit::new(&live.session, &live.vm, inner.clock.now())
                    .detail(Some(text.clone()))
                    .note("session.queued", &text, Actor::Reconciler);
                commit(inner, entry, edit).await?;
            }
            if limits::unattended(inner, entry, false).await? {
                return Ok(Next::Again);
            }
            // The lease of a waiting session runs out too.
            let wait = match cause {
                Cause::HostMemory => MEMORY_INTERVAL.min(inner.config.lease),
                _ => inner.config.lease,
            };
            tokio::select! {
                _ = room.changed() => {}
                () = entry.ending.cancelled() => {}
                () = entry.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            Ok(Next::Again)
        }
    }
}

async fn make_disk(inner: &Inner, entry: &Entry, live: &Live) -> Result<Next, ControlError> {
    fail::fail_point!("step.disk");
    let result = match spec(inner, live) {
        Ok(spec) => {
            let driver = Arc::clone(&inner.driver);
            operate(entry, "making the disk", inner.config.step_deadline, async move {
                driver.create(&spec).await
            })
            .await
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => {
            note(inner, entry, "step.disk", "The machine's own disk was made.", Actor::Host).await;
            Ok(Next::Again)
        }
        Err(error) => {
            bringup::start_failed(inner, entry, live, &chain(&error), error.is_permanent()).await
        }
    }
}

async fn make_network(inner: &Inner, entry: &Entry, live: &Live) -> Result<Next, ControlError> {
    fail::fail_point!("step.network");
    let (driver, vm) = (Arc::clone(&inner.driver), live.vm.id);
    let result = operate(entry, "making the network", inner.config.step_deadline, async move {
        driver.connect(vm).await
    })
    .await;
    match result {
        Ok(address) => {
            let text =
                format!("A network of its own was made; its address on the host is {address}.");
            let edit = Edit::new(&live.session, &live.vm, inner.clock.now())
                .with_vm(|vm| vm.address = Some(address))
                .note("step.network", &text, Actor::Host);
            commit(inner, entry, edit).await.map(|()| Next::Again)
        }
        Err(error) => {
            bringup::start_failed(inner, entry, live, &chain(&error), error.is_permanent()).await
        }
    }
}

async fn start_vmm(inner: &Inner, entry: &Entry, live: &Live) -> Result<Next, ControlError> {
    fail::fail_point!("step.start");
    let (driver, vm) = (Arc::clone(&inner.driver), live.vm.id);
    let from = checkpoint::source(inner, live);
    let warm = checkpoint::cloned_from(inner, live);
    let text = match &from {
        StartFrom::Boot => "The virtual machine was switched on.",
        StartFrom::Snapshot(_) if live.session.checkpoint.is_some() => {
            "The virtual machine was restored from its checkpoint."
        }
        StartFrom::Snapshot(_) => "The virtual machine was cloned from the warm image.",
        StartFrom::DiskOf(_) => {
            "The virtual machine was switched on with the disk of its checkpoint. Files are kept; open programs are lost."
        }
    };
    let result = operate(entry, "starting the VMM", inner.config.step_deadline, async move {
        driver.start(vm, &from).await
    })
    .await;
    match result {
        Ok(()) => {
            note(inner, entry, "step.start", text, Actor::Host).await;
            Ok(Next::Again)
        }
        Err(error) => {
            if let Some(warm) = warm {
                let damaged = matches!(error, DriverError::Snapshot { .. });
                inner.images.warm_failed(&warm, damaged, &chain(&error));
            }
            bringup::start_failed(inner, entry, live, &chain(&error), error.is_permanent()).await
        }
    }
}

/// Leases and health of a session in use.
async fn watch(
    inner: &Arc<Inner>,
    entry: &Arc<Entry>,
    live: &Live,
    memory: &mut Memory,
) -> Result<Next, ControlError> {
    if limits::enforce(inner, entry, live, &mut memory.warned).await? {
        return Ok(Next::Again);
    }
    if matches!(live.vm.state, VmState::Checkpointing | VmState::Paused) {
        checkpoint::go_on(inner, entry, live).await?;
        return Ok(Next::Again);
    }
    if live.session.state == SessionState::Ready && live.vm.state == VmState::Running {
        checkpoint::ask_if_due(inner, entry, live);
        checkpoint::serve_requests(inner, entry, live).await?;
        if entry.live().vm.generation != live.vm.generation {
            return Ok(Next::Again);
        }
    }
    memory.watcher.watch(inner, entry, live).await
}

/// A failed session waits for its owner to read why, for as long as an unattended one would live.
async fn rest(inner: &Inner, entry: &Entry, live: &Live) -> Result<Next, ControlError> {
    match live.session.state {
        SessionState::Failed => {
            let until = live.session.state_since + inner.config.grace;
            let now = inner.clock.now();
            if now >= until {
                end_entry(inner, entry, EndReason::Failed, Actor::Reconciler).await?;
                return Ok(Next::Again);
            }
            let wait = Duration::try_from(until.duration_since(now)).unwrap_or(inner.config.grace);
            Ok(Next::After(wait))
        }
        SessionState::Hibernated => {
            let until = live.session.state_since + inner.config.keep_hibernated;
            let now = inner.clock.now();
            if now >= until {
                end_entry(inner, entry, EndReason::Idle, Actor::Reconciler).await?;
                return Ok(Next::Again);
            }
            let wait = Duration::try_from(until.duration_since(now)).unwrap_or(inner.config.grace);
            Ok(Next::After(wait))
        }
        SessionState::Ended => Ok(Next::Done),
        _ => Ok(Next::After(inner.config.grace)),
    }
}
