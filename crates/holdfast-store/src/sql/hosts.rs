//! What hosts say of themselves.

use super::{Backend, Link, args, convert};
use crate::{HostRecord, Result, StoreError};

const UPSERT: &str = "\
    INSERT INTO holdfast.hosts
        (id, name, driver, driver_reason, cpus, memory_mib, version, address, seen_at,
         draining_since)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (id) DO UPDATE
    SET name = excluded.name, driver = excluded.driver, driver_reason = excluded.driver_reason,
        cpus = excluded.cpus, memory_mib = excluded.memory_mib, version = excluded.version,
        address = excluded.address, seen_at = excluded.seen_at,
        draining_since = excluded.draining_since";

pub(super) async fn upsert<B: Backend>(backend: &B, host: HostRecord) -> Result<()> {
    let memory_mib = i64::try_from(host.memory_mib).map_err(|_| StoreError::Corrupt {
        what: "host",
        why: format!("{} MiB of memory", host.memory_mib),
    })?;
    let args = args![
        host.id,
        host.name,
        host.driver,
        host.driver_reason,
        host.cpus,
        memory_mib,
        host.version,
        host.address.map(|a| a.to_string()),
        host.seen_at,
        host.draining_since,
    ];
    let mut tx = backend.write().await?;
    tx.execute(UPSERT, args).await?;
    tx.commit().await
}

pub(super) async fn list<B: Backend>(backend: &B) -> Result<Vec<HostRecord>> {
    let sql = "SELECT * FROM holdfast.hosts ORDER BY name, id";
    let rows = backend.read().await?.fetch(sql, args![]).await?;
    rows.iter().map(convert::host).collect()
}
