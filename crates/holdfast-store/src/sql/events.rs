//! Timelines.
//!
//! A reader asks for numbers above the last it saw, so within a session a number must never become
//! visible after a higher one. Whoever inserts therefore holds the lock of the session's row from
//! before the number is drawn until the commit.

use holdfast_core::{Event, EventBody, SessionId};

use super::{Backend, Link, args, convert, placeholders, sessions};
use crate::Result;

const COLUMNS: usize = 8;

/// Rows in one statement: well below the smallest limit on parameters (32,766 in SQLite).
const ROWS: usize = 500;

pub(super) async fn append<B: Backend>(
    backend: &B,
    session: SessionId,
    events: Vec<EventBody>,
) -> Result<()> {
    let mut tx = backend.write().await?;
    sessions::lock::<B>(&mut tx, [session].into()).await?;
    let events: Vec<_> = events.into_iter().map(|body| (session, body)).collect();
    insert(&mut tx, &events).await?;
    tx.commit().await
}

/// The sessions are locked, or were made by this transaction.
pub(super) async fn insert<L: Link>(tx: &mut L, events: &[(SessionId, EventBody)]) -> Result<()> {
    for events in events.chunks(ROWS) {
        let rows: Vec<_> = (0..events.len())
            .map(|row| format!("({})", placeholders(row * COLUMNS + 1, COLUMNS)))
            .collect();
        let sql = format!(
            "INSERT INTO holdfast.events
                 (session_id, vm_id, at, kind, from_state, to_state, why, actor)
             VALUES {}",
            rows.join(", ")
        );
        let mut values = Vec::with_capacity(events.len() * COLUMNS);
        for (session, body) in events {
            values.extend(args![
                *session,
                body.vm,
                body.at,
                body.kind.as_str(),
                body.from.as_deref(),
                body.to.as_deref(),
                body.why.as_str(),
                body.by.as_str(),
            ]);
        }
        tx.execute(&sql, values).await?;
    }
    Ok(())
}

pub(super) async fn list<B: Backend>(
    backend: &B,
    session: SessionId,
    after: i64,
    limit: u32,
) -> Result<Vec<Event>> {
    let sql = "SELECT * FROM holdfast.events WHERE session_id = $1 AND seq > $2 \
               ORDER BY seq LIMIT $3";
    let rows = backend.read().await?.fetch(sql, args![session, after, limit]).await?;
    rows.iter().map(convert::event).collect()
}
