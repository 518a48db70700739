//! Announcements on their way to webhooks.

use holdfast_core::Timestamp;

use super::{Backend, Link, args, convert};
use crate::{Delivery, Result};

const INSERT: &str = "\
    INSERT INTO holdfast.deliveries
        (id, session_id, url, secret, body, attempts, next_at, delivered_at, last_error)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

const UPDATE: &str = "\
    UPDATE holdfast.deliveries
    SET attempts = $2, next_at = $3, delivered_at = $4, last_error = $5
    WHERE id = $1";

pub(super) async fn insert<L: Link>(tx: &mut L, delivery: &Delivery) -> Result<()> {
    let values = args![
        delivery.id,
        delivery.session,
        delivery.url.as_str(),
        delivery.secret.as_str(),
        delivery.body.as_str(),
        delivery.attempts,
        delivery.next_at,
        delivery.delivered_at,
        delivery.last_error.as_deref(),
    ];
    tx.execute(INSERT, values).await?;
    Ok(())
}

pub(super) async fn due<B: Backend>(
    backend: &B,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Delivery>> {
    let sql = "SELECT * FROM holdfast.deliveries WHERE next_at <= $1 ORDER BY next_at LIMIT $2";
    let rows = backend.read().await?.fetch(sql, args![now, limit]).await?;
    rows.iter().map(convert::delivery).collect()
}

pub(super) async fn update<B: Backend>(backend: &B, delivery: Delivery) -> Result<()> {
    let Delivery { id, attempts, next_at, delivered_at, last_error, .. } = delivery;
    let mut tx = backend.write().await?;
    tx.execute(UPDATE, args![id, attempts, next_at, delivered_at, last_error]).await?;
    tx.commit().await
}
