//! The store in one SQLite file: the default for one machine.
//!
//! Write-ahead log, synced at every commit: what was answered survives `kill -9` and a power cut.
//! One connection writes, a few read; readers never wait for the writer. The file holds secrets of
//! VMs and is readable by its owner only.

mod check;

use std::{path::Path, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    Sqlite, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

pub(crate) use check::check_url;

use crate::{
    Result, Store, StoreCheck, StoreError,
    sql::{
        Backend, Link, SqlStore, SqlxLink, args,
        link::{answered, sqlx_link},
        migrate::{self, Migration, migrations},
    },
};

/// How long a connection waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call waits for its turn before it answers `Unavailable`.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(8);

/// Connections that read at the same time.
const READERS: u32 = 4;

const MIGRATIONS: &[Migration] = migrations!["sqlite": 1 => "0001_initial"];

struct SqliteBackend {
    options: SqliteConnectOptions,
    writer: SqlitePool,
    readers: SqlitePool,
}

/// Opens the file, makes it when there is none, and brings its schema up to date.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn Store>> {
    let options = parse(url)?;
    let in_memory = is_in_memory(url);
    if !in_memory {
        create_file(options.get_filename())?;
    }
    let durable =
        options.clone().journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    let pool = |connections| {
        SqlitePoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // An in-memory database ends with its last connection.
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(durable.clone())
    };
    let writer = pool(1);
    let readers = if in_memory { writer.clone() } else { pool(READERS) };
    let backend = SqliteBackend { options, writer, readers };
    migrate::run(backend.write().await?, MIGRATIONS).await?;
    Ok(Arc::new(SqlStore::new(backend)))
}

fn parse(url: &str) -> Result<SqliteConnectOptions> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| StoreError::Config { why: format!("{error}; expected {EXPECTED}") })?;
    if options.get_filename().as_os_str().is_empty() {
        return Err(StoreError::Config { why: format!("it names no file; expected {EXPECTED}") });
    }
    Ok(options.busy_timeout(BUSY_TIMEOUT).foreign_keys(true).create_if_missing(false))
}

const EXPECTED: &str = "`sqlite:/path/to/holdfast.db`";

fn is_in_memory(url: &str) -> bool {
    url.contains(":memory:") || url.contains("mode=memory")
}

/// Makes the file, and directories above it, readable by their owner only. SQLite gives its log and
/// its index the mode of the file. An existing file is left as it is.
fn create_file(path: &Path) -> Result<()> {
    use std::{
        fs::{DirBuilder, File, OpenOptions},
        os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    };
    if path.exists() {
        return Ok(());
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let create = || {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        // The name of a new file is durable only when its directory is.
        File::open(directory)?.sync_all()
    };
    create().map_err(|error| StoreError::Config {
        why: format!("{} cannot be made: {error}; make it writable for this user", path.display()),
    })
}

#[async_trait]
impl Backend for SqliteBackend {
    type Link = SqlxLink<Sqlite>;

    const KIND: &'static str = "sqlite";
    // A transaction that writes holds the whole file.
    const LOCK_ROWS: &'static str = "";

    async fn read(&self) -> Result<Self::Link> {
        let connection = answered(self.readers.acquire()).await?;
        Ok(SqlxLink::Plain { connection })
    }

    async fn write(&self) -> Result<Self::Link> {
        // IMMEDIATE: what is read in a transaction that writes is still so when it commits.
        let transaction = answered(self.writer.begin_with("BEGIN IMMEDIATE")).await?;
        Ok(SqlxLink::Transaction { transaction, prepare: true })
    }

    async fn ping(&self) -> Result<()> {
        let sql = "SELECT version FROM holdfast.migrations LIMIT 1";
        self.read().await?.fetch(sql, args![]).await.map(|_| ())
    }

    async fn check(&self) -> StoreCheck {
        check::check(&self.options).await
    }
}

/// SQLite has no schemas: tables stand under their own names.
fn without_schema(sql: &str) -> String {
    sql.replace("holdfast.", "")
}

sqlx_link!(Sqlite, SqliteRow, without_schema);
