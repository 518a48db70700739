//! Sessions: made together with their VM, changed by compare-and-set.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_core::{Generation, OwnerId, Session, SessionId, VmId};

use super::{
    Backend, Link, Value, args, convert, deliveries, events, placeholders, sealed, signins, vms,
};
use crate::{Change, Created, IdempotencyKey, NewSession, Result, SessionFilter, StoreError};

const INSERT: &str = "\
    INSERT INTO holdfast.sessions
        (id, owner_id, spec, state, vm_id, end_reason, detail, attempts, lease_expires_at,
         last_heartbeat_at, created_at, state_since, ready_at, ended_at, generation, checkpoint)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
    ON CONFLICT DO NOTHING";

/// Lease, owner, request and time of creation are not written.
const UPDATE: &str = "\
    UPDATE holdfast.sessions
    SET state = $3, vm_id = $4, end_reason = $5, detail = $6, attempts = $7, state_since = $8,
        ready_at = $9, ended_at = $10, checkpoint = $11, generation = generation + 1
    WHERE id = $1 AND generation = $2";

/// Waits for another transaction that holds the same key, so a race has one winner.
const CLAIM_KEY: &str = "\
    INSERT INTO holdfast.idempotency_keys (owner_id, key, request_sha256, session_id, vm_id)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT DO NOTHING";

pub(super) async fn get<B: Backend>(backend: &B, id: SessionId) -> Result<Option<Session>> {
    find(&mut backend.read().await?, id).await
}

pub(super) async fn list<B: Backend>(backend: &B, filter: SessionFilter) -> Result<Vec<Session>> {
    let mut args = Vec::new();
    let mut conditions = Vec::new();
    if let Some(owner) = filter.owner {
        args.push(owner.into());
        conditions.push(format!("owner_id = ${}", args.len()));
    }
    if !filter.states.is_empty() {
        let names = placeholders(args.len() + 1, filter.states.len());
        conditions.push(format!("state IN ({names})"));
        args.extend(filter.states.iter().map(|state| Value::from(state.as_str())));
    }
    let mut sql = "SELECT * FROM holdfast.sessions".to_owned();
    if !conditions.is_empty() {
        sql = format!("{sql} WHERE {}", conditions.join(" AND "));
    }
    sql.push_str(" ORDER BY created_at DESC, id DESC");
    if let Some(limit) = filter.limit {
        args.push(limit.into());
        sql = format!("{sql} LIMIT ${}", args.len());
    }
    let rows = backend.read().await?.fetch(&sql, args).await?;
    rows.iter().map(convert::session).collect()
}

pub(super) async fn create<B: Backend>(backend: &B, new: NewSession) -> Result<Created> {
    let NewSession { mut session, vm, sign_in, events, key } = new;
    session.vm = Some(vm.id);
    session.generation = Generation::FIRST;
    let mut tx = backend.write().await?;
    if let Some(key) = key
        && !claim_key(&mut tx, &session, vm.id, &key).await?
    {
        // Purged between the two statements.
        let gone = StoreError::Stale { what: "session" };
        return made_with(&mut tx, session.owner, &key).await?.ok_or(gone);
    }
    if tx.execute(INSERT, insert_args(&session)?).await? != 1 {
        return Err(StoreError::Stale { what: "session" });
    }
    let vm = vms::tie::<B>(&mut tx, vm, session.id).await?;
    if let Some(sign_in) = &sign_in {
        signins::insert(&mut tx, sign_in).await?;
    }
    let events: Vec<_> = events.into_iter().map(|body| (session.id, body)).collect();
    events::insert(&mut tx, &events).await?;
    tx.commit().await?;
    Ok(Created { session, vm, replayed: false })
}

pub(super) async fn apply<B: Backend>(backend: &B, change: Change) -> Result<Change> {
    let Change { session, vm, new_vm, sign_in, sealed, delivery, events } = change;
    let mut tx = backend.write().await?;
    let ids = session.iter().map(|s| s.id).chain(events.iter().map(|(id, _)| *id));
    let locked = lock::<B>(&mut tx, ids.collect()).await?;
    let session = match session {
        Some(session) => {
            let stored = convert::session(&locked[&session.id])?;
            Some(write(&mut tx, stored, session).await?)
        }
        None => None,
    };
    let vm = match vm {
        Some(vm) => {
            let stored = vms::find(&mut tx, vm.id, B::LOCK_ROWS).await?;
            let stored = stored.ok_or_else(|| vms::not_found(vm.id))?;
            Some(vms::write(&mut tx, &stored, vm).await?)
        }
        None => None,
    };
    if let Some(vm) = &new_vm {
        vms::insert(&mut tx, vm).await?;
    }
    let sign_in = match sign_in {
        Some(sign_in) => Some(signins::write::<B>(&mut tx, sign_in).await?),
        None => None,
    };
    if let Some(sealed) = &sealed {
        sealed::put(&mut tx, sealed).await?;
    }
    if let Some(delivery) = &delivery {
        deliveries::insert(&mut tx, delivery).await?;
    }
    events::insert(&mut tx, &events).await?;
    tx.commit().await?;
    Ok(Change { session, vm, new_vm, sign_in, sealed, delivery, events })
}

/// Locks the rows of these sessions, in the order of their ids. All must exist.
pub(super) async fn lock<B: Backend>(
    tx: &mut B::Link,
    ids: BTreeSet<SessionId>,
) -> Result<BTreeMap<SessionId, <B::Link as Link>::Row>> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = format!(
        "SELECT * FROM holdfast.sessions WHERE id IN ({}) ORDER BY id{}",
        placeholders(1, ids.len()),
        B::LOCK_ROWS
    );
    let rows = tx.fetch(&sql, ids.iter().map(|id| Value::from(*id)).collect()).await?;
    let mut found = BTreeMap::new();
    for row in rows {
        found.insert(convert::session_id(&row)?, row);
    }
    match ids.into_iter().find(|id| !found.contains_key(id)) {
        Some(id) => Err(StoreError::NotFound { what: "session", id: id.to_string() }),
        None => Ok(found),
    }
}

async fn find<L: Link>(link: &mut L, id: SessionId) -> Result<Option<Session>> {
    let sql = "SELECT * FROM holdfast.sessions WHERE id = $1";
    link.fetch_optional(sql, args![id]).await?.as_ref().map(convert::session).transpose()
}

/// Writes a session that was read under a lock if it still has the generation that `session`
/// carries.
async fn write<L: Link>(tx: &mut L, stored: Session, session: Session) -> Result<Session> {
    if stored.generation != session.generation {
        return Err(StoreError::Stale { what: "session" });
    }
    if stored.state != session.state && !stored.state.can_become(session.state) {
        return Err(StoreError::Transition {
            what: "session",
            from: stored.state.to_string(),
            to: session.state.to_string(),
        });
    }
    let written = tx
        .execute(
            UPDATE,
            args![
                session.id,
                session.generation.0,
                session.state.as_str(),
                session.vm,
                session.end_reason.map(holdfast_core::EndReason::as_str),
                session.detail.as_deref(),
                session.attempts,
                session.state_since,
                session.ready_at,
                session.ended_at,
                checkpoint_json(&session)?,
            ],
        )
        .await?;
    if written != 1 {
        return Err(StoreError::Stale { what: "session" });
    }
    Ok(Session {
        owner: stored.owner,
        spec: stored.spec,
        created_at: stored.created_at,
        lease_expires_at: stored.lease_expires_at,
        last_heartbeat_at: stored.last_heartbeat_at,
        generation: session.generation.next(),
        ..session
    })
}

/// Answers whether the key was free.
async fn claim_key<L: Link>(
    tx: &mut L,
    session: &Session,
    vm: VmId,
    key: &IdempotencyKey,
) -> Result<bool> {
    let args = args![session.owner, key.key.as_str(), key.request_sha256.as_str(), session.id, vm,];
    Ok(tx.execute(CLAIM_KEY, args).await? == 1)
}

/// What was made by the request that had the key first.
pub(super) async fn made_with<L: Link>(
    link: &mut L,
    owner: OwnerId,
    key: &IdempotencyKey,
) -> Result<Option<Created>> {
    let sql = "SELECT * FROM holdfast.idempotency_keys WHERE owner_id = $1 AND key = $2";
    let row = link.fetch_optional(sql, args![owner, key.key.as_str()]).await?;
    let Some(row) = row else { return Ok(None) };
    let made = convert::key(&row)?;
    if made.request_sha256 != key.request_sha256 {
        return Err(StoreError::KeyReused);
    }
    let gone = || StoreError::Stale { what: "session" };
    let session = find(link, made.session).await?.ok_or_else(gone)?;
    let vm = vms::find(link, session.vm.unwrap_or(made.vm), "").await?.ok_or_else(gone)?;
    Ok(Some(Created { session, vm, replayed: true }))
}

fn insert_args(session: &Session) -> Result<Vec<Value>> {
    let spec = serde_json::to_string(&session.spec)
        .map_err(|error| StoreError::Corrupt { what: "session", why: error.to_string() })?;
    Ok(args![
        session.id,
        session.owner,
        spec,
        session.state.as_str(),
        session.vm,
        session.end_reason.map(holdfast_core::EndReason::as_str),
        session.detail.as_deref(),
        session.attempts,
        session.lease_expires_at,
        session.last_heartbeat_at,
        session.created_at,
        session.state_since,
        session.ready_at,
        session.ended_at,
        session.generation.0,
        checkpoint_json(session)?,
    ])
}

fn checkpoint_json(session: &Session) -> Result<Option<String>> {
    let text = session.checkpoint.as_ref().map(serde_json::to_string).transpose();
    text.map_err(|error| StoreError::Corrupt { what: "session", why: error.to_string() })
}
