//! Leases, written in bulk and apart from everything else.

use std::collections::BTreeMap;

use holdfast_core::SessionId;

use super::{Backend, Link, Value, args, placeholders};
use crate::{LeaseTouch, Result};

/// Leases in one statement.
const ROWS: usize = 500;

pub(super) async fn touch<B: Backend>(backend: &B, touches: Vec<LeaseTouch>) -> Result<()> {
    let touches = merge(touches);
    if touches.is_empty() {
        return Ok(());
    }
    let mut tx = backend.write().await?;
    // By id, so that two servers cannot wait for each other.
    for touches in touches.chunks(ROWS) {
        lock::<B>(&mut tx, touches).await?;
        extend(&mut tx, touches).await?;
    }
    tx.commit().await
}

/// One touch a session, with the latest of its times, in the order of ids.
fn merge(touches: Vec<LeaseTouch>) -> Vec<LeaseTouch> {
    let mut latest = BTreeMap::<SessionId, LeaseTouch>::new();
    for touch in touches {
        let kept = latest.entry(touch.session).or_insert(touch);
        kept.heartbeat_at = kept.heartbeat_at.max(touch.heartbeat_at);
        kept.expires_at = kept.expires_at.max(touch.expires_at);
    }
    latest.into_values().collect()
}

async fn lock<B: Backend>(tx: &mut B::Link, touches: &[LeaseTouch]) -> Result<()> {
    if B::LOCK_ROWS.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "SELECT id FROM holdfast.sessions WHERE id IN ({}) ORDER BY id{}",
        placeholders(1, touches.len()),
        B::LOCK_ROWS
    );
    tx.fetch(&sql, touches.iter().map(|t| Value::from(t.session)).collect()).await?;
    Ok(())
}

async fn extend<L: Link>(tx: &mut L, touches: &[LeaseTouch]) -> Result<()> {
    let rows: Vec<_> =
        (0..touches.len()).map(|row| format!("({})", placeholders(row * 3 + 1, 3))).collect();
    let sql = format!(
        "WITH touch (id, heartbeat_at, expires_at) AS (VALUES {})
         UPDATE holdfast.sessions
         SET last_heartbeat_at = CASE WHEN touch.heartbeat_at > sessions.last_heartbeat_at
                 THEN touch.heartbeat_at ELSE sessions.last_heartbeat_at END,
             lease_expires_at = CASE WHEN touch.expires_at > sessions.lease_expires_at
                 THEN touch.expires_at ELSE sessions.lease_expires_at END
         FROM touch
         WHERE sessions.id = touch.id
           AND (touch.heartbeat_at > sessions.last_heartbeat_at
                OR touch.expires_at > sessions.lease_expires_at)",
        rows.join(", ")
    );
    let mut values = Vec::with_capacity(touches.len() * 3);
    for touch in touches {
        values.extend(args![touch.session, touch.heartbeat_at, touch.expires_at]);
    }
    tx.execute(&sql, values).await?;
    Ok(())
}
