//! Taking a VM down: at the end of a session, or when it has failed for good.

use std::{sync::Arc, time::Duration};

use holdfast_core::{Actor, EndReason, SessionState, VmId, VmState};

use crate::{
    ControlError, Live,
    actor::Next,
    board::Entry,
    control::{Inner, commit, note},
    machine::operate,
    records::{Edit, chain},
};

/// Pause before the next attempt at a VM that resists.
const RETRY: Duration = Duration::from_secs(5);
/// How much of the guest's console is kept in the timeline of a failure.
const CONSOLE_BYTES: usize = 4096;
/// Deadline of reading it; without it, only an explanation is missing.
const CONSOLE_DEADLINE: Duration = Duration::from_secs(10);

/// Removes everything the VM owns and ends the session. Repeated until it succeeds: a row is
/// never `ended` while something of its VM is left.
pub(crate) async fn tear_down(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
) -> Result<Next, ControlError> {
    if let Some(next) = remove(inner, entry, live).await? {
        return Ok(next);
    }
    fail::fail_point!("step.ended");
    let Live { session, vm } = entry.live();
    let reason = session.end_reason.unwrap_or(EndReason::UserRequest);
    let edit = Edit::new(&session, &vm, inner.clock.now())
        .with_vm(|vm| vm.secret = None)
        .vm_to(VmState::Gone, "Nothing of it is left on the host.", Actor::Host)
        .session_to(SessionState::Ended, reason.sentence(), Actor::Reconciler);
    commit(inner, entry, edit).await?;
    inner.admission.release(entry.id);
    inner.room.send_modify(|n| *n += 1);
    metrics::counter!("holdfast_sessions_ended_total", "reason" => reason.as_str()).increment(1);
    tracing::info!(session = %entry.id, %reason, "session ended");
    Ok(Next::Done)
}

/// Frees what a failed session's VM holds; the session stays to be read.
pub(crate) async fn release(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
) -> Result<Next, ControlError> {
    if let Some(next) = remove(inner, entry, live).await? {
        return Ok(next);
    }
    let Live { session, vm } = entry.live();
    let edit = Edit::new(&session, &vm, inner.clock.now()).with_vm(|vm| vm.secret = None).vm_to(
        VmState::Gone,
        "Nothing of it is left on the host.",
        Actor::Host,
    );
    commit(inner, entry, edit).await?;
    inner.admission.release(entry.id);
    inner.room.send_modify(|n| *n += 1);
    Ok(Next::Again)
}

/// Answers `None` when everything is gone.
pub(crate) async fn remove(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
) -> Result<Option<Next>, ControlError> {
    if live.vm.state == VmState::Gone {
        return Ok(None);
    }
    if live.vm.state != VmState::Stopping {
        let edit = Edit::new(&live.session, &live.vm, inner.clock.now()).vm_to(
            VmState::Stopping,
            "The machine is being taken down.",
            Actor::Reconciler,
        );
        commit(inner, entry, edit).await?;
    }
    fail::fail_point!("step.destroy");
    let (driver, vm) = (Arc::clone(&inner.driver), live.vm.id);
    let removed =
        operate(entry, "taking the VM down", inner.config.teardown_deadline, async move {
            driver.destroy(vm).await
        })
        .await;
    fail::fail_point!("step.destroyed");
    match removed {
        Ok(()) => Ok(None),
        Err(error) => {
            let why = chain(&error);
            let text = format!("Taking the machine down failed and is tried again: {why}.");
            if entry.session().detail.as_deref() != Some(&text) {
                tracing::error!(session = %entry.id, vm = %vm, why, "taking a VM down failed");
                let Live { session, vm } = entry.live();
                let edit = Edit::new(&session, &vm, inner.clock.now())
                    .detail(Some(text.clone()))
                    .note("teardown.retry", &text, Actor::Host);
                commit(inner, entry, edit).await?;
            }
            metrics::counter!("holdfast_teardown_retries_total").increment(1);
            Ok(Some(Next::After(RETRY)))
        }
    }
}

/// Keeps the end of the guest's console in the timeline, so that a failure can be explained after
/// its VM is gone.
pub(crate) async fn keep_console(inner: &Inner, entry: &Entry, vm: VmId) {
    let console = inner.driver.console(vm, CONSOLE_BYTES);
    let Ok(console) = tokio::time::timeout(CONSOLE_DEADLINE, console).await else { return };
    match console {
        Ok(text) if !text.trim().is_empty() => {
            note(inner, entry, "vm.console", text.trim(), Actor::Guest).await;
        }
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(%vm, error = chain(&error), "there is no console to keep");
        }
    }
}
