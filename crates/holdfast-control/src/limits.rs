//! Limits of a session in use: its lease, how long nobody may use it, and its lifetime.
//!
//! A live lease protects from everything but an explicit end, the lifetime, and the idle limit
//! where one is configured. What a lease says is read again from the store before it counts as
//! expired. Each limit is announced in the timeline before it strikes.

use std::{sync::atomic::Ordering, time::Duration};

use holdfast_core::{Actor, EndReason, Session, SessionState, Timestamp, Vm};

use crate::{
    Control, ControlConfig, ControlError, Live,
    board::Entry,
    config::OnIdle,
    control::{Inner, commit, end_entry, note, reread},
    records::Edit,
};

/// When limits strike, as things stand now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// When the session counts as idle; `None` without an idle limit, or while it does not apply.
    pub idle_at: Option<Timestamp>,
    /// When its lifetime is over.
    pub ends_at: Timestamp,
    /// Until when it is kept with nobody attached.
    pub kept_until: Timestamp,
}

/// What was announced already. Lost in a crash, which only announces it again.
#[derive(Debug, Default)]
pub(crate) struct Warned {
    lifetime: Option<Timestamp>,
    idle: Option<Timestamp>,
    lease: Option<Timestamp>,
}

impl Control {
    /// When the limits of a session strike; `None` once it is ending.
    pub fn limits(&self, session: &Session) -> Option<Limits> {
        if matches!(session.state, SessionState::Ending | SessionState::Ended) {
            return None;
        }
        let inner = self.inner();
        if session.state == SessionState::Hibernated {
            let until = session.state_since + inner.config.keep_hibernated;
            return Some(Limits { idle_at: None, ends_at: until, kept_until: until });
        }
        let entry = inner.board.get(session.id);
        let vm = entry.as_ref().map(|entry| entry.live().vm);
        Some(Limits {
            idle_at: entry.and_then(|entry| idle_at(inner, &entry, session)),
            ends_at: ends_at(inner, session, vm.as_ref()),
            kept_until: session.lease_expires_at + inner.config.grace,
        })
    }

    /// When a session counts as idle if nobody uses it, from the moment on at which that is announced.
    pub fn idle_soon(&self, session: &Session) -> Option<Timestamp> {
        let inner = self.inner();
        let at = idle_at(inner, &*inner.board.get(session.id)?, session)?;
        (inner.clock.now() >= at - ahead(&inner.config, inner.config.idle)).then_some(at)
    }
}

/// Does what the limits of a session in use ask for; answers whether one struck.
pub(crate) async fn enforce(
    inner: &Inner,
    entry: &Entry,
    live: &Live,
    warned: &mut Warned,
) -> Result<bool, ControlError> {
    let now = inner.clock.now();
    if now >= ends_at(inner, &live.session, Some(&live.vm)) {
        end_entry(inner, entry, EndReason::MaxLifetime, Actor::Reconciler).await?;
        return Ok(true);
    }
    if let Some(at) = idle_at(inner, entry, &live.session)
        && now >= at
    {
        let why = "Nobody used the session for longer than its idle limit; it is put away.";
        return leave(inner, entry, EndReason::Idle, why).await.map(|()| true);
    }
    if unattended(inner, entry, true).await? {
        return Ok(true);
    }
    announce(inner, entry, live, warned, now).await;
    Ok(false)
}

/// Ends a session that nobody returned to, or puts it away; answers whether it did.
pub(crate) async fn unattended(
    inner: &Inner,
    entry: &Entry,
    in_use: bool,
) -> Result<bool, ControlError> {
    let over = || {
        let until = entry.session().lease_expires_at + inner.config.grace;
        inner.clock.now() >= until && !has_streams(entry)
    };
    if !over() {
        return Ok(false);
    }
    reread(inner, entry).await?;
    if !over() {
        return Ok(false);
    }
    if in_use {
        let why = "Nobody returned; the session is put away.";
        leave(inner, entry, EndReason::LeaseExpired, why).await?;
    } else {
        end_entry(inner, entry, EndReason::LeaseExpired, Actor::Reconciler).await?;
    }
    Ok(true)
}

/// Puts the session away where that is wanted and possible, and ends it otherwise.
async fn leave(
    inner: &Inner,
    entry: &Entry,
    reason: EndReason,
    why: &str,
) -> Result<(), ControlError> {
    let Live { session, vm } = entry.live();
    let can_sleep = session.state == SessionState::Ready && entry.sign_in().is_none();
    if !can_sleep || inner.config.on_idle == OnIdle::End {
        return end_entry(inner, entry, reason, Actor::Reconciler).await;
    }
    let edit = Edit::new(&session, &vm, inner.clock.now()).session_to(
        SessionState::Hibernating,
        why,
        Actor::Reconciler,
    );
    commit(inner, entry, edit).await
}

/// The lifetime begins when the session is made, and again when it is brought back: on a VM of its
/// own, which would otherwise end as soon as it is there.
fn ends_at(inner: &Inner, session: &Session, vm: Option<&Vm>) -> Timestamp {
    let began_at = vm.map_or(session.created_at, |vm| vm.created_at.max(session.created_at));
    began_at + inner.config.max_lifetime
}

/// A sign-in waits for its person with a deadline of its own, so it is not idle before its end.
fn idle_at(inner: &Inner, entry: &Entry, session: &Session) -> Option<Timestamp> {
    let applies = matches!(session.state, SessionState::Ready | SessionState::Degraded)
        && entry.sign_in().is_none_or(|sign_in| sign_in.is_done())
        && !inner.config.idle.is_zero();
    applies.then(|| entry.used_at().max(session.ready_at.unwrap_or_default()) + inner.config.idle)
}

/// How long before its end a limit is announced: a short one in its second half.
fn ahead(config: &ControlConfig, limit: Duration) -> Duration {
    config.warn.min(limit / 2)
}

async fn announce(inner: &Inner, entry: &Entry, live: &Live, warned: &mut Warned, now: Timestamp) {
    let config = &inner.config;
    let ends_at = ends_at(inner, &live.session, Some(&live.vm));
    if warned.lifetime != Some(ends_at) && now >= ends_at - ahead(config, config.max_lifetime) {
        warned.lifetime = Some(ends_at);
        let text = format!("The session reaches its maximum lifetime at {ends_at} and ends then.");
        note(inner, entry, "limit.lifetime", &text, Actor::Reconciler).await;
    }
    if let Some(idle_at) = idle_at(inner, entry, &live.session)
        && warned.idle != Some(idle_at)
        && now >= idle_at - ahead(config, config.idle)
    {
        warned.idle = Some(idle_at);
        let text = format!("Nobody is using the session. It counts as idle at {idle_at}.");
        note(inner, entry, "limit.idle", &text, Actor::Reconciler).await;
    }
    let lease = entry.session().lease_expires_at;
    if now >= lease && !has_streams(entry) && warned.lease != Some(lease) {
        warned.lease = Some(lease);
        let until = (lease + config.grace).strftime("%Y-%m-%d %H:%M:%S UTC");
        let text = format!("Nobody is attached any more. The session is kept until {until}.");
        note(inner, entry, "limit.lease", &text, Actor::Reconciler).await;
    }
}

fn has_streams(entry: &Entry) -> bool {
    entry.streams.load(Ordering::Acquire) > 0
}
