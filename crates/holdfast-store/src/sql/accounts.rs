//! Owners and their tokens.

use holdfast_core::{OwnerId, Timestamp};
use uuid::Uuid;

use super::{Backend, Link, args, convert};
use crate::{NewToken, Result, StoreError, TokenRecord};

pub(super) async fn create_token<B: Backend>(backend: &B, token: NewToken) -> Result<TokenRecord> {
    let sql = "INSERT INTO holdfast.tokens
                   (id, owner_id, name, sha256, admin, created_at, expires_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7)
               ON CONFLICT DO NOTHING";
    let NewToken { id, owner, name, sha256, admin, created_at, expires_at } = token;
    let mut tx = backend.write().await?;
    let args = args![id, owner, name.as_str(), sha256, admin, created_at, expires_at];
    if tx.execute(sql, args).await? != 1 {
        return Err(StoreError::Stale { what: "token" });
    }
    tx.commit().await?;
    Ok(TokenRecord { id, owner, name, admin, created_at, expires_at, revoked_at: None })
}

pub(super) async fn token_by_hash<B: Backend>(
    backend: &B,
    sha256: &str,
    now: Timestamp,
) -> Result<Option<TokenRecord>> {
    let sql = "SELECT * FROM holdfast.tokens
               WHERE sha256 = $1 AND revoked_at IS NULL
                 AND (expires_at IS NULL OR expires_at > $2)";
    let row = backend.read().await?.fetch_optional(sql, args![sha256, now]).await?;
    row.as_ref().map(convert::token).transpose()
}

pub(super) async fn tokens<B: Backend>(backend: &B) -> Result<Vec<TokenRecord>> {
    let sql = "SELECT * FROM holdfast.tokens ORDER BY created_at DESC, id DESC";
    let rows = backend.read().await?.fetch(sql, args![]).await?;
    rows.iter().map(convert::token).collect()
}

/// The first revocation stays the time of the revocation.
pub(super) async fn revoke_token<B: Backend>(backend: &B, id: Uuid, at: Timestamp) -> Result<bool> {
    let sql = "UPDATE holdfast.tokens SET revoked_at = COALESCE(revoked_at, $2) WHERE id = $1";
    let mut tx = backend.write().await?;
    let found = tx.execute(sql, args![id, at]).await? == 1;
    tx.commit().await?;
    Ok(found)
}

pub(super) async fn ensure_owner<B: Backend>(
    backend: &B,
    name: &str,
    at: Timestamp,
) -> Result<OwnerId> {
    let find = "SELECT id FROM holdfast.owners WHERE name = $1";
    if let Some(row) = backend.read().await?.fetch_optional(find, args![name]).await? {
        return convert::owner_id(&row);
    }
    let insert = "INSERT INTO holdfast.owners (id, name, created_at) VALUES ($1, $2, $3)
                  ON CONFLICT DO NOTHING";
    let mut tx = backend.write().await?;
    tx.execute(insert, args![Uuid::now_v7(), name, at]).await?;
    let row = tx.fetch_optional(find, args![name]).await?;
    let id = convert::owner_id(&row.ok_or(StoreError::Stale { what: "owner" })?)?;
    tx.commit().await?;
    Ok(id)
}

pub(super) async fn owner_name<B: Backend>(backend: &B, id: OwnerId) -> Result<Option<String>> {
    let sql = "SELECT name FROM holdfast.owners WHERE id = $1";
    let row = backend.read().await?.fetch_optional(sql, args![id]).await?;
    row.as_ref().map(convert::owner_name).transpose()
}

pub(super) async fn owner_key<B: Backend>(backend: &B, id: OwnerId) -> Result<Option<String>> {
    let sql = "SELECT recipient FROM holdfast.owners WHERE id = $1";
    let row = backend.read().await?.fetch_optional(sql, args![id]).await?;
    Ok(row.as_ref().map(convert::owner_key).transpose()?.flatten())
}

pub(super) async fn set_owner_key<B: Backend>(
    backend: &B,
    id: OwnerId,
    key: Option<String>,
) -> Result<()> {
    let mut tx = backend.write().await?;
    let sql = "UPDATE holdfast.owners SET recipient = $2 WHERE id = $1";
    if tx.execute(sql, args![id, key]).await? != 1 {
        return Err(StoreError::NotFound { what: "owner", id: id.to_string() });
    }
    tx.commit().await
}
