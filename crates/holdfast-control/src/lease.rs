//! Leases: proof that somebody is attached.
//!
//! A heartbeat is taken in memory and answered at once; the store gets all of them together once a
//! second. A crash loses at most that second, and every lease starts afresh when sessions are
//! adopted, so no live lease can count as expired.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_core::{SessionId, Timestamp};
use holdfast_store::LeaseTouch;

use crate::{board::Entry, control::Inner};

/// Time between writes of heartbeats.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Leases that the store has not seen yet.
#[derive(Default)]
pub(crate) struct LeaseBook {
    dirty: Mutex<HashMap<SessionId, LeaseTouch>>,
}

impl LeaseBook {
    /// Extends a lease; answers until when it holds.
    pub(crate) fn extend(
        &self,
        entry: &Entry,
        heartbeat_at: Timestamp,
        expires_at: Timestamp,
    ) -> Timestamp {
        let expires_at = entry.extend(heartbeat_at, expires_at);
        self.put(LeaseTouch { session: entry.id, heartbeat_at, expires_at });
        expires_at
    }

    fn put(&self, touch: LeaseTouch) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = dirty.entry(touch.session).or_insert(touch);
        kept.expires_at = kept.expires_at.max(touch.expires_at);
        kept.heartbeat_at = kept.heartbeat_at.max(touch.heartbeat_at);
    }

    fn take(&self) -> Vec<LeaseTouch> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *dirty).into_values().collect()
    }
}

/// Writes all heartbeats since the last time; keeps them when the store does not take them.
pub(crate) async fn flush(inner: &Inner) {
    let touches = inner.leases.take();
    if touches.is_empty() {
        return;
    }
    if let Err(error) = inner.store.touch_leases(touches.clone()).await {
        tracing::warn!(
            leases = touches.len(),
            error = &error as &dyn std::error::Error,
            "heartbeats could not be written; they are kept"
        );
        for touch in touches {
            inner.leases.put(touch);
        }
    }
}

pub(crate) async fn flush_loop(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(FLUSH_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => flush(&inner).await,
            () = inner.stop.cancelled() => return,
        }
    }
}
