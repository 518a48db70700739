//! Sealed credentials: kept until they are handed over, once.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::{SessionId, Timestamp, signin::SealedInfo};

use super::{Backend, Link, args, convert};
use crate::{Result, Sealed, StoreError, Taken};

const UPSERT: &str = "\
    INSERT INTO holdfast.sealed (session_id, ciphertext, files, sealed_at, expires_at, fetched_at)
    VALUES ($1, $2, $3, $4, $5, NULL)
    ON CONFLICT (session_id) DO UPDATE
    SET ciphertext = excluded.ciphertext, files = excluded.files, sealed_at = excluded.sealed_at,
        expires_at = excluded.expires_at, fetched_at = NULL";

pub(super) async fn put<L: Link>(tx: &mut L, sealed: &Sealed) -> Result<()> {
    let files = serde_json::to_string(&sealed.info.files).map_err(|error| StoreError::Corrupt {
        what: "sealed credentials",
        why: error.to_string(),
    })?;
    let ciphertext = STANDARD.encode(&sealed.ciphertext);
    let Sealed { session, info, .. } = sealed;
    tx.execute(UPSERT, args![*session, ciphertext, files, info.sealed_at, info.expires_at]).await?;
    Ok(())
}

pub(super) async fn info<B: Backend>(backend: &B, id: SessionId) -> Result<Option<SealedInfo>> {
    let sql = "SELECT files, sealed_at, expires_at, fetched_at FROM holdfast.sealed \
               WHERE session_id = $1";
    let row = backend.read().await?.fetch_optional(sql, args![id]).await?;
    row.as_ref().map(convert::sealed_info).transpose()
}

pub(super) async fn take<B: Backend>(
    backend: &B,
    session: SessionId,
    now: Timestamp,
) -> Result<Taken> {
    let mut tx = backend.write().await?;
    let find = format!("SELECT * FROM holdfast.sealed WHERE session_id = $1{}", B::LOCK_ROWS);
    let Some(row) = tx.fetch_optional(&find, args![session]).await? else {
        return Ok(Taken::Never);
    };
    let mut info = convert::sealed_info(&row)?;
    let Some(text) = convert::ciphertext(&row)?.filter(|_| info.expires_at > now) else {
        return Ok(Taken::Before(info));
    };
    let ciphertext = STANDARD.decode(text).map_err(|error| StoreError::Corrupt {
        what: "sealed credentials",
        why: error.to_string(),
    })?;
    let wipe =
        "UPDATE holdfast.sealed SET ciphertext = NULL, fetched_at = $2 WHERE session_id = $1";
    tx.execute(wipe, args![session, now]).await?;
    tx.commit().await?;
    info.fetched_at = Some(now);
    Ok(Taken::Now(Sealed { session, ciphertext, info }))
}

pub(super) async fn destroy_expired<B: Backend>(backend: &B, now: Timestamp) -> Result<u64> {
    let sql = "UPDATE holdfast.sealed SET ciphertext = NULL \
               WHERE ciphertext IS NOT NULL AND expires_at <= $1";
    let mut tx = backend.write().await?;
    let destroyed = tx.execute(sql, args![now]).await?;
    tx.commit().await?;
    Ok(destroyed)
}
