//! Forward-only migrations, applied by whoever opens the store.
//!
//! The caller hands in a transaction that no other server can hold at the same time, so two servers
//! that start at once apply each migration once, and a migration that fails leaves nothing behind.

use super::{Link, Row, args};
use crate::{Result, StoreError};

/// One step of the schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migration {
    /// Counts from 1 without gaps.
    pub version: i64,
    /// Name of its file.
    pub name: &'static str,
    /// Its statements.
    pub sql: &'static str,
}

/// Makes a list of migrations from the files of one backend.
macro_rules! migrations {
    ($backend:literal: $($version:literal => $name:literal),* $(,)?) => {
        &[$($crate::sql::migrate::Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../migrations/", $backend, "/", $name, ".sql")),
        }),*]
    };
}
pub(crate) use migrations;

const CREATE_TABLE: &str = "\
    CREATE TABLE IF NOT EXISTS holdfast.migrations (
        version BIGINT NOT NULL PRIMARY KEY,
        name    TEXT   NOT NULL
    )";

/// The version that a complete list leads to.
pub(crate) fn latest(migrations: &[Migration]) -> i64 {
    migrations.last().map_or(0, |m| m.version)
}

/// Version of the schema in the database; the table of migrations must exist.
pub(crate) async fn current(link: &mut impl Link) -> Result<i64> {
    let sql = "SELECT MAX(version) AS version FROM holdfast.migrations";
    let row = link.fetch_optional(sql, args![]).await?;
    Ok(row.map(|row| row.int("migration", "version")).transpose()?.flatten().unwrap_or(0))
}

/// Applies what is missing and commits. Refuses a schema that is newer than this version.
pub(crate) async fn run<L: Link>(mut tx: L, migrations: &'static [Migration]) -> Result<()> {
    tx.script(CREATE_TABLE).await?;
    let current = current(&mut tx).await?;
    if current > latest(migrations) {
        return Err(StoreError::Schema { why: newer(current, latest(migrations)) });
    }
    for migration in migrations.iter().filter(|m| m.version > current) {
        tx.script(migration.sql).await?;
        let sql = "INSERT INTO holdfast.migrations (version, name) VALUES ($1, $2)";
        tx.execute(sql, args![migration.version, migration.name]).await?;
        tracing::info!(version = migration.version, name = migration.name, "schema migrated");
    }
    tx.commit().await
}

/// What to do about a schema from the future.
pub(crate) fn newer(found: i64, known: i64) -> String {
    format!(
        "the database is at schema version {found} and this version of Holdfast knows up to \
         {known}; run the newer version, or restore the backup made before the upgrade"
    )
}
