//! Forgetting what ended long ago.

use holdfast_core::{SessionState, Timestamp, VmState};

use super::{Backend, Link, Value, args, convert, placeholders};
use crate::Result;

/// Sessions forgotten in one transaction, so that other writers need not wait long.
const BATCH: u32 = 200;

/// A session with a VM that is not gone is kept: its row is what says whose that VM is.
const FIND: &str = "\
    SELECT id FROM holdfast.sessions AS s
    WHERE s.state = $1 AND COALESCE(s.ended_at, s.state_since) < $2
      AND NOT EXISTS (SELECT 1 FROM holdfast.vms AS v
                      WHERE (v.session_id = s.id OR v.id = s.vm_id) AND v.state <> $3)
    ORDER BY id LIMIT $4";

pub(super) async fn purge_ended<B: Backend>(backend: &B, before: Timestamp) -> Result<u64> {
    let mut purged = 0;
    loop {
        let mut tx = backend.write().await?;
        let (ended, gone) = (SessionState::Ended.as_str(), VmState::Gone.as_str());
        let rows = tx.fetch(FIND, args![ended, before, gone, BATCH]).await?;
        if rows.is_empty() {
            return Ok(purged);
        }
        let mut ids = Vec::with_capacity(rows.len());
        for row in &rows {
            ids.push(Value::from(convert::session_id(row)?));
        }
        let list = placeholders(1, ids.len());
        // VMs, events and keys go with the session; the first statement is for a VM whose own tie
        // was cut.
        let vms = format!(
            "DELETE FROM holdfast.vms WHERE id IN
                 (SELECT vm_id FROM holdfast.sessions WHERE id IN ({list}))"
        );
        tx.execute(&vms, ids.clone()).await?;
        let sessions = format!("DELETE FROM holdfast.sessions WHERE id IN ({list})");
        purged += tx.execute(&sessions, ids).await?;
        tx.commit().await?;
    }
}
