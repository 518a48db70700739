//! The part of the SQL backends that is the same for all of them.
//!
//! Statements are written once, with `$1` parameters and tables named `holdfast.<table>`; a
//! [`Backend`] brings what differs: how to connect, how a transaction begins, how rows are locked,
//! how its errors read. Columns have four types only ([`Value`]), so records are converted once.
//!
//! To add a table: one migration in each of `migrations/sqlite` and `migrations/postgres`, a line
//! for it in both lists of migrations and in [`TABLES`], and a module here with its statements.

mod accounts;
mod convert;
mod deliveries;
mod events;
pub(crate) mod failure;
mod hosts;
mod leases;
pub(crate) mod link;
pub(crate) mod migrate;
mod retention;
mod sealed;
mod sessions;
mod shares;
mod signins;
mod store;
mod value;
mod vms;

use async_trait::async_trait;

use crate::{Result, StoreCheck};

pub(crate) use link::SqlxLink;
pub(crate) use store::SqlStore;
pub(crate) use value::{Row, Value, args, placeholders};

/// Every table, for `check`.
pub(crate) const TABLES: &[&str] = &[
    "migrations",
    "owners",
    "tokens",
    "hosts",
    "sessions",
    "vms",
    "events",
    "idempotency_keys",
    "sign_ins",
    "sealed",
    "deliveries",
    "shares",
];

/// What differs between databases.
#[async_trait]
pub(crate) trait Backend: Send + Sync + 'static {
    /// A connection or transaction in use.
    type Link: Link;

    /// Name of the backend, as in [`crate::Store::kind`].
    const KIND: &'static str;

    /// Ends a SELECT whose rows this transaction writes next; nobody else can write them until it
    /// ends. Rows are always locked in the order sessions (by id), then VMs, so that two
    /// transactions cannot wait for each other.
    const LOCK_ROWS: &'static str;

    /// For single statements that read.
    async fn read(&self) -> Result<Self::Link>;

    /// Begins a transaction that writes. Rolled back when dropped.
    async fn write(&self) -> Result<Self::Link>;

    /// See [`crate::Store::ping`].
    async fn ping(&self) -> Result<()>;

    /// See [`crate::Store::check`].
    async fn check(&self) -> StoreCheck;
}

/// A connection or transaction in use.
#[async_trait]
pub(crate) trait Link: Send + Sized {
    /// What a query answers.
    type Row: Row;

    /// Runs a query and answers its rows.
    async fn fetch(&mut self, sql: &str, args: Vec<Value>) -> Result<Vec<Self::Row>>;

    /// Runs a statement and answers how many rows it wrote.
    async fn execute(&mut self, sql: &str, args: Vec<Value>) -> Result<u64>;

    /// Runs several statements without parameters.
    async fn script(&mut self, sql: &str) -> Result<()>;

    /// Makes everything durable. Nothing to do outside a transaction.
    async fn commit(self) -> Result<()>;

    /// Runs a query of which at most one row is wanted.
    async fn fetch_optional(&mut self, sql: &str, args: Vec<Value>) -> Result<Option<Self::Row>> {
        Ok(self.fetch(sql, args).await?.into_iter().next())
    }
}
