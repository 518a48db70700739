//! Links by which somebody without a token may look at one session.

use holdfast_core::{SessionId, Timestamp};
use uuid::Uuid;

use super::{Backend, Link, args, convert};
use crate::{Result, ShareLink};

const INSERT: &str = "\
    INSERT INTO holdfast.shares
        (id, session_id, sha256, view_only, created_at, expires_at, revoked_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)";

pub(super) async fn create<B: Backend>(backend: &B, link: ShareLink) -> Result<()> {
    let mut tx = backend.write().await?;
    let values = args![
        link.id,
        link.session,
        link.sha256,
        link.view_only,
        link.created_at,
        link.expires_at,
        link.revoked_at,
    ];
    tx.execute(INSERT, values).await?;
    tx.commit().await
}

pub(super) async fn by_hash<B: Backend>(
    backend: &B,
    sha256: &str,
    now: Timestamp,
) -> Result<Option<ShareLink>> {
    let sql = "SELECT * FROM holdfast.shares \
               WHERE sha256 = $1 AND revoked_at IS NULL AND expires_at > $2";
    let row = backend.read().await?.fetch_optional(sql, args![sha256, now]).await?;
    row.as_ref().map(convert::share).transpose()
}

pub(super) async fn list<B: Backend>(
    backend: &B,
    session: SessionId,
    now: Timestamp,
) -> Result<Vec<ShareLink>> {
    let sql = "SELECT * FROM holdfast.shares \
               WHERE session_id = $1 AND revoked_at IS NULL AND expires_at > $2 \
               ORDER BY created_at DESC, id DESC";
    let rows = backend.read().await?.fetch(sql, args![session, now]).await?;
    rows.iter().map(convert::share).collect()
}

pub(super) async fn revoke<B: Backend>(
    backend: &B,
    session: SessionId,
    id: Uuid,
    at: Timestamp,
) -> Result<bool> {
    let sql = "UPDATE holdfast.shares SET revoked_at = COALESCE(revoked_at, $3) \
               WHERE session_id = $1 AND id = $2";
    let mut tx = backend.write().await?;
    let revoked = tx.execute(sql, args![session, id, at]).await?;
    tx.commit().await?;
    Ok(revoked == 1)
}
