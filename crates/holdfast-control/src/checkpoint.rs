//! Checkpoints: saving a session's VM, putting it away (hibernation), bringing it back, forking it.
//!
//! A checkpoint is named before it is written and counts only once its session's row names it. What
//! no row names is removed by the sweep, so a crash anywhere leaves either the VM or its checkpoint.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use holdfast_core::{Actor, Checkpoint, SessionId, SessionState, SnapshotId, VmState};
use holdfast_host::{driver::StartFrom, guest::GuestError};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    Control, ControlError, CreateRequest, Live,
    actor::Next,
    board::Entry,
    control::{Inner, commit, random_hex},
    create::new_vm,
    machine::{agent, operate},
    records::{Edit, chain},
};

/// Deadline of the guest for holding its browser still, and for letting it go on.
const FREEZE_DEADLINE: Duration = Duration::from_secs(15);

/// Somebody waits for a checkpoint of a session that goes on running.
pub(crate) type SaveRequest = oneshot::Sender<Result<Checkpoint, ControlError>>;

/// Where a snapshot of this host is kept.
pub(crate) fn path(inner: &Inner, snapshot: SnapshotId) -> PathBuf {
    inner.config.snapshot_dir.join(snapshot.to_string())
}

/// Whether the next start of the VM restores something, rather than booting.
pub(crate) fn restores(inner: &Inner, live: &Live) -> bool {
    let Live { session, vm } = live;
    if session.attempts > 0 {
        return false;
    }
    if let Some(checkpoint) = &session.checkpoint {
        return session.state == SessionState::Resuming || checkpoint.vm != vm.id;
    }
    let first = vm.incarnation == 0 && session.ready_at.is_none();
    first && warm(inner, live).is_some()
}

/// Whether a VM that was not started yet will be cloned from the warm image.
pub(crate) fn will_be_cloned(inner: &Inner, live: &Live) -> bool {
    live.session.checkpoint.is_none() && restores(inner, live)
}

/// The secret of a VM that starts. One that is restored from a checkpoint of its own gets another than
/// it had then: by that its guest knows that it has to renew its clock and its randomness.
pub(crate) fn next_secret(live: &Live, to: VmState) -> Result<Option<String>, ControlError> {
    let then = live.session.checkpoint.as_ref().map(|checkpoint| &checkpoint.secret);
    if to == VmState::Restoring && then.is_some() && then == live.vm.secret.as_ref() {
        return random_hex::<32>().map(Some);
    }
    Ok(live.vm.secret.clone())
}

/// What a VM in its state starts from.
pub(crate) fn source(inner: &Inner, live: &Live) -> StartFrom {
    match (live.vm.state, &live.session.checkpoint) {
        (VmState::Restoring, Some(checkpoint)) => {
            StartFrom::Snapshot(path(inner, checkpoint.snapshot))
        }
        (VmState::Restoring, None) => {
            warm(inner, live).map_or(StartFrom::Boot, StartFrom::Snapshot)
        }
        // Its own disk is the empty one that it was made with.
        (_, Some(checkpoint)) if checkpoint.vm != live.vm.id => {
            StartFrom::DiskOf(path(inner, checkpoint.snapshot))
        }
        _ => StartFrom::Boot,
    }
}

/// The warm image that a VM in its state was, or is to be, cloned from.
pub(crate) fn cloned_from(inner: &Inner, live: &Live) -> Option<PathBuf> {
    let clones = live.vm.state == VmState::Restoring && live.session.checkpoint.is_none();
    clones.then(|| warm(inner, live)).flatten()
}

fn warm(inner: &Inner, live: &Live) -> Option<PathBuf> {
    let spec = &live.session.spec;
    inner.images.warm(&live.vm.image, spec.memory_mib, spec.vcpus)
}

/// Writes the checkpoint of a session that hibernates.
pub(crate) async fn save(inner: &Inner, entry: &Entry, live: &Live) -> Result<Next, ControlError> {
    if live.vm.state != VmState::Checkpointing {
        if !live.vm.state.can_become(VmState::Checkpointing) {
            let why = "The machine does not answer, so it cannot be put away now.";
            return back(inner, entry, why).await;
        }
        let edit = Edit::new(&live.session, &live.vm, inner.clock.now()).vm_to(
            VmState::Checkpointing,
            "Memory, devices and disk are being saved.",
            Actor::Reconciler,
        );
        commit(inner, entry, edit).await?;
    } else if !resume_vm(inner, entry).await {
        // A server that died here may have left it paused, when its guest cannot answer.
        let why = "The machine does not go on after a checkpoint that was interrupted.";
        return back(inner, entry, why).await;
    }
    fail::fail_point!("checkpoint.save");
    match write(inner, entry).await {
        Ok((checkpoint, _saving)) => {
            fail::fail_point!("checkpoint.saved");
            let Live { session, vm } = entry.live();
            let edit = Edit::new(&session, &vm, inner.clock.now())
                .with_session(|session| session.checkpoint = Some(checkpoint))
                .vm_to(VmState::Stopping, "Its state is saved.", Actor::Host);
            commit(inner, entry, edit).await?;
            Ok(Next::Again)
        }
        Err(error) => {
            let why = format!(
                "The machine could not be put away: {}. It goes on running.",
                chain(&error)
            );
            back(inner, entry, &why).await
        }
    }
}

/// Lets a session go on that could not be put away.
async fn back(inner: &Inner, entry: &Entry, why: &str) -> Result<Next, ControlError> {
    let resumed = resume_vm(inner, entry).await;
    let Live { session, vm } = entry.live();
    let edit =
        Edit::new(&session, &vm, inner.clock.now()).note("hibernate.failed", why, Actor::Host);
    let edit =
        if resumed && vm.state == VmState::Checkpointing {
            edit.vm_to(VmState::Running, why, Actor::Host)
                .session_to(SessionState::Ready, why, Actor::Reconciler)
                .detail(Some(why.to_owned()))
        } else {
            // The health ladder takes it from here.
            edit.detail(Some(why.to_owned()))
                .vm_to(VmState::Unhealthy, why, Actor::Host)
                .session_to(SessionState::Degraded, why, Actor::Reconciler)
        };
    commit(inner, entry, edit).await?;
    Ok(Next::Again)
}

/// Frees what the VM of a hibernating session holds: its checkpoint is written.
pub(crate) async fn put_away(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
) -> Result<Next, ControlError> {
    if let Some(next) = crate::teardown::remove(inner, entry, live).await? {
        return Ok(next);
    }
    fail::fail_point!("checkpoint.away");
    let Live { session, vm } = entry.live();
    let edit = Edit::new(&session, &vm, inner.clock.now())
        .with_vm(|vm| vm.secret = None)
        .detail(None)
        .vm_to(VmState::Gone, "Nothing of it is left on the host but its checkpoint.", Actor::Host)
        .session_to(SessionState::Hibernated, "The session was put away.", Actor::Reconciler);
    commit(inner, entry, edit).await?;
    inner.admission.release(entry.id);
    inner.room.send_modify(|n| *n += 1);
    metrics::counter!("holdfast_hibernations_total").increment(1);
    Ok(Next::Again)
}

/// Asks for a checkpoint when the last one is older than the configured interval.
pub(crate) fn ask_if_due(inner: &Inner, entry: &Entry, live: &Live) {
    let interval = inner.config.checkpoint_interval;
    if interval.is_zero() || entry.sign_in().is_some() {
        return;
    }
    // A checkpoint that failed has changed the VM's state too, so the next one waits as long.
    let last = match &live.session.checkpoint {
        Some(checkpoint) => checkpoint.taken_at.max(live.vm.state_since),
        None => live.vm.state_since,
    };
    if inner.clock.now() >= last + interval {
        let (answer, _) = oneshot::channel();
        entry.save_requests.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }
}

/// Takes a checkpoint of a session that goes on running, for everybody who asked.
pub(crate) async fn serve_requests(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
) -> Result<(), ControlError> {
    let requests =
        std::mem::take(&mut *entry.save_requests.lock().unwrap_or_else(PoisonError::into_inner));
    if requests.is_empty() {
        return Ok(());
    }
    let saved = save_running(inner, entry, live).await;
    for request in requests {
        let answer = match &saved {
            Ok(checkpoint) => Ok(checkpoint.clone()),
            Err(error) => Err(ControlError::Checkpoint(chain(error))),
        };
        // Nobody waits any more: the checkpoint is kept all the same.
        let _ = request.send(answer);
    }
    Ok(())
}

async fn save_running(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
) -> Result<Checkpoint, ControlError> {
    let why = "A checkpoint is being taken.";
    let edit = Edit::new(&live.session, &live.vm, inner.clock.now()).vm_to(
        VmState::Checkpointing,
        why,
        Actor::Reconciler,
    );
    commit(inner, entry, edit).await?;
    let written = write(inner, entry).await;
    let resumed = resume_vm(inner, entry).await;
    let Live { session, vm } = entry.live();
    let mut edit = Edit::new(&session, &vm, inner.clock.now());
    let answer = match written {
        Ok((checkpoint, saving)) => {
            let kept = checkpoint.clone();
            edit = edit.with_session(|session| session.checkpoint = Some(kept)).note(
                "checkpoint.taken",
                "A checkpoint was taken.",
                Actor::Host,
            );
            Ok((checkpoint, saving))
        }
        Err(error) => {
            let why = format!("No checkpoint could be taken: {}.", chain(&error));
            edit = edit.note("checkpoint.failed", &why, Actor::Host);
            Err(error)
        }
    };
    let to = if resumed { VmState::Running } else { VmState::Unhealthy };
    commit(inner, entry, edit.vm_to(to, "It goes on.", Actor::Host)).await?;
    answer.map(|(checkpoint, _saving)| checkpoint)
}

/// Lets a VM go on that a crash of the server left paused in the middle of a checkpoint.
pub(crate) async fn go_on(inner: &Inner, entry: &Entry, live: &Live) -> Result<(), ControlError> {
    let resumed = resume_vm(inner, entry).await;
    let to = if resumed { VmState::Running } else { VmState::Unhealthy };
    let why = "A checkpoint was interrupted; the machine goes on.";
    let edit = Edit::new(&live.session, &live.vm, inner.clock.now()).vm_to(to, why, Actor::Host);
    commit(inner, entry, edit).await
}

async fn resume_vm(inner: &Inner, entry: &Entry) -> bool {
    let (driver, vm) = (Arc::clone(&inner.driver), entry.live().vm.id);
    let resumed =
        operate(
            entry,
            "resuming",
            inner.config.step_deadline,
            async move { driver.resume(vm).await },
        )
        .await;
    if let Err(error) = &resumed {
        tracing::warn!(session = %entry.id, error = chain(error), "a VM could not be resumed after a checkpoint");
    }
    if resumed.is_ok()
        && let Err(error) = agent(inner, &entry.live().vm).thaw(FREEZE_DEADLINE).await
    {
        // It goes on by itself after a while.
        tracing::warn!(session = %entry.id, error = chain(&error), "the guest was not told to let its browser go on");
    }
    resumed.is_ok()
}

/// Holds the guest's browser still, so that no fork of the snapshot runs a process that shares its
/// randomness with the original.
async fn freeze(inner: &Inner, entry: &Entry) -> Result<(), ControlError> {
    match agent(inner, &entry.live().vm).freeze(FREEZE_DEADLINE).await {
        Ok(_) => Ok(()),
        Err(GuestError::Refused { status: 404, .. }) => {
            tracing::warn!(session = %entry.id, "the guest is of an older version and cannot hold its browser still");
            Ok(())
        }
        Err(error) => Err(ControlError::Checkpoint(format!(
            "the guest did not hold its browser still: {}",
            chain(&error)
        ))),
    }
}

/// Keeps a snapshot from the sweep until its row is written.
pub(crate) struct Saving {
    inner: Arc<Inner>,
    snapshot: SnapshotId,
}

impl Drop for Saving {
    fn drop(&mut self) {
        let mut saving = self.inner.saving.lock().unwrap_or_else(PoisonError::into_inner);
        saving.remove(&self.snapshot);
    }
}

async fn write(inner: &Inner, entry: &Entry) -> Result<(Checkpoint, Saving), ControlError> {
    let Live { session, vm } = entry.live();
    freeze(inner, entry).await?;
    let snapshot = SnapshotId::from_uuid(Uuid::now_v7());
    let inner_arc = inner.this.upgrade().ok_or(ControlError::Draining("the server is stopping"))?;
    inner.saving.lock().unwrap_or_else(PoisonError::into_inner).insert(snapshot);
    let saving = Saving { inner: inner_arc, snapshot };
    let (driver, id, dest) = (Arc::clone(&inner.driver), vm.id, path(inner, snapshot));
    let to = dest.clone();
    let written =
        operate(entry, "saving the machine", inner.config.snapshot_deadline, async move {
            driver.snapshot(id, &to).await
        })
        .await;
    let sized = match written {
        Ok(()) => inner.driver.snapshot_bytes(&dest).await,
        Err(error) => Err(error),
    };
    let bytes = match sized {
        Ok(bytes) => bytes,
        Err(error) => {
            if let Err(error) = inner.driver.discard_snapshot(&dest).await {
                tracing::warn!(session = %entry.id, error = chain(&error), "what was written of a checkpoint could not be removed yet");
            }
            return Err(error.into());
        }
    };
    let checkpoint = Checkpoint {
        snapshot,
        host: inner.host,
        session: entry.id,
        vm: vm.id,
        secret: vm.secret.clone().unwrap_or_default(),
        image: vm.image.clone(),
        taken_at: inner.clock.now(),
        bytes,
    };
    tracing::info!(session = %session.id, %snapshot, bytes, "checkpoint written");
    Ok((checkpoint, saving))
}

impl Control {
    /// Puts a session away: its VM's state is saved and its room given back. Repeating it is harmless.
    pub async fn hibernate(&self, id: SessionId, by: Actor) -> Result<Live, ControlError> {
        let entry = self.entry(id).await?;
        let Live { session, vm } = entry.live();
        match session.state {
            SessionState::Hibernating | SessionState::Hibernated => return Ok(entry.live()),
            SessionState::Ready if vm.state == VmState::Running => {}
            state => {
                return Err(ControlError::State {
                    state,
                    why: "only a session that is ready can be put away",
                });
            }
        }
        if entry.sign_in().is_some() {
            return Err(ControlError::State {
                state: session.state,
                why: "a sign-in is not put away, so that its credentials are never saved to disk",
            });
        }
        let edit = Edit::new(&session, &vm, self.inner().clock.now()).session_to(
            SessionState::Hibernating,
            "The session is being put away.",
            by,
        );
        commit(self.inner(), &entry, edit).await?;
        entry.wake.notify_one();
        Ok(entry.live())
    }

    /// Brings a hibernated session back, on a new VM. Repeating it is harmless.
    pub async fn resume(&self, id: SessionId, by: Actor) -> Result<Live, ControlError> {
        let entry = self.entry(id).await?;
        let Live { session, vm } = entry.live();
        match session.state {
            SessionState::Hibernated => {}
            SessionState::Resuming | SessionState::Ready | SessionState::Degraded => {
                return Ok(entry.live());
            }
            state => {
                return Err(ControlError::State {
                    state,
                    why: "only a hibernated session can be brought back",
                });
            }
        }
        let inner = self.inner();
        let now = inner.clock.now();
        let next = new_vm(inner, session.id, &vm.image, now)?;
        let id = next.id;
        let mut change = Edit::new(&session, &vm, now)
            .with_session(|session| {
                session.vm = Some(id);
                session.attempts = 0;
            })
            .session_to(SessionState::Resuming, "The session is being brought back.", by)
            .into_change();
        change.new_vm = Some(next);
        let written = inner.store.apply(change).await?;
        inner
            .board
            .accepted(&entry, holdfast_store::Change { vm: written.new_vm.clone(), ..written });
        inner.leases.extend(&entry, now, now + inner.config.lease);
        entry.wake.notify_one();
        Ok(entry.live())
    }

    /// Makes another session with the same state and a new identity. The first one goes on.
    pub async fn fork(
        &self,
        id: SessionId,
        request: CreateRequest,
    ) -> Result<(Live, bool), ControlError> {
        let entry = self.entry(id).await?;
        let Live { session, vm } = entry.live();
        if entry.sign_in().is_some() {
            return Err(ControlError::State {
                state: session.state,
                why: "a sign-in cannot be forked: its credentials belong to one session",
            });
        }
        let checkpoint = match (session.state, session.checkpoint.clone()) {
            (SessionState::Hibernated, Some(checkpoint)) => checkpoint,
            (SessionState::Ready, _) if vm.state == VmState::Running => {
                let (answer, saved) = oneshot::channel();
                entry.save_requests.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
                entry.wake.notify_one();
                saved
                    .await
                    .map_err(|_| ControlError::Checkpoint("the session ended first".into()))??
            }
            (state, _) => {
                return Err(ControlError::State {
                    state,
                    why: "only a session that is ready or hibernated can be forked",
                });
            }
        };
        self.create_from(request, Some(checkpoint)).await
    }

    /// Takes a checkpoint of a session that goes on running.
    pub async fn checkpoint(&self, id: SessionId) -> Result<Checkpoint, ControlError> {
        let entry = self.entry(id).await?;
        let Live { session, vm } = entry.live();
        if session.state != SessionState::Ready || vm.state != VmState::Running {
            return Err(ControlError::State {
                state: session.state,
                why: "only a session that is ready can be saved",
            });
        }
        if entry.sign_in().is_some() {
            return Err(ControlError::State {
                state: session.state,
                why: "a sign-in is not saved, so that its credentials are never on disk",
            });
        }
        let (answer, saved) = oneshot::channel();
        entry.save_requests.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        entry.wake.notify_one();
        saved.await.map_err(|_| ControlError::Checkpoint("the session ended first".into()))?
    }
}

/// Removes snapshots that no session's row names.
pub(crate) async fn sweep(inner: &Inner) -> Result<usize, ControlError> {
    let saving = || inner.saving.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // Whatever is being saved before or after the look at the directory may not have its row yet.
    let mut kept = saving();
    let found = inner.driver.snapshots_in(&inner.config.snapshot_dir).await?;
    kept.extend(saving());
    let states = SessionState::ALL.into_iter().filter(|s| !s.is_final()).collect();
    let filter = holdfast_store::SessionFilter { states, ..Default::default() };
    for session in inner.store.sessions(filter).await? {
        kept.extend(session.checkpoint.filter(|c| c.host == inner.host).map(|c| c.snapshot));
    }
    let mut removed = 0;
    for path in found {
        let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
        if id.is_some_and(|id: SnapshotId| kept.contains(&id)) || !inner.store_knows_host {
            continue;
        }
        match inner.driver.discard_snapshot(&path).await {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::error!(path = %path.display(), error = chain(&error), "a checkpoint that nobody needs could not be removed");
            }
        }
    }
    Ok(removed)
}

/// The checkpoint's last word on a session that came back: its VM's own disk is newer now.
pub(crate) fn used_up(live: &Live) -> bool {
    live.session.checkpoint.as_ref().is_some_and(|c| c.vm != live.vm.id)
}
