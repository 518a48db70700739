//! The store in one SQLite file: the default for one machine.
//!
//! Write-ahead log, synced at every commit: what was answered survives `kill -9` and a power cut.
//! One connection writes, a few read; readers never wait for the writer. The file holds secrets of
//! VMs and is readable by its owner only.

mod check;

use std::{path::Path, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, Sqlite, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};

pub(crate) use check::check_url;

use crate::{
    Result, Store, StoreCheck, StoreError,
    sql::{
        Backend, Link, SqlStore, SqlxLink, args, failure,
        link::{answered, sqlx_link},
        migrate::{self, Migration, migrations},
    },
};

/// How long a connection waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call waits for its turn before it answers `Unavailable`.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(8);

/// Bytes kept free in the files: as much as SQLite lets its log grow before it begins anew (1,000 pages).
const ROOM: u32 = 5 << 20;

/// Connections that read at the same time.
const READERS: u32 = 4;

const MIGRATIONS: &[Migration] =
    migrations!["sqlite": 1 => "0001_initial", 2 => "0002_sign_ins", 3 => "0003_draining"];

struct SqliteBackend {
    options: SqliteConnectOptions,
    writer: SqlitePool,
    readers: SqlitePool,
}

/// Opens the file, makes it when there is none, and brings its schema up to date.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn Store>> {
    let backend = connect(url).await?;
    migrate::run(backend.write().await?, MIGRATIONS).await?;
    if !is_in_memory(url)
        && let Err(error) = make_room(&backend).await
    {
        tracing::warn!(%error, "no room could be made in the store for the time when the disk is full");
    }
    Ok(Arc::new(SqlStore::new(backend)))
}

/// Makes room ahead of time, in the log and in the file: on a full disk it is ending sessions that frees
/// space, and an end has to be written before. What is deleted here stays in both files as room.
async fn make_room(backend: &SqliteBackend) -> Result<()> {
    for sql in [
        format!(
            "DROP TABLE IF EXISTS room; CREATE TABLE room (filler BLOB); \
             INSERT INTO room VALUES (zeroblob({ROOM}))"
        ),
        "DROP TABLE room".to_owned(),
    ] {
        let mut link = backend.write().await?;
        link.script(&sql).await?;
        link.commit().await?;
    }
    Ok(())
}

async fn connect(url: &str) -> Result<SqliteBackend> {
    let options = parse(url)?;
    let in_memory = is_in_memory(url);
    if !in_memory {
        create_file(&options).await?;
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
            // A full disk makes SQLite roll back by itself, which sqlx does not notice: such a connection
            // could never begin a transaction again.
            .after_release(|connection, _| {
                Box::pin(async move {
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_lazy_with(durable.clone())
    };
    let writer = pool(1);
    let readers = if in_memory { writer.clone() } else { pool(READERS) };
    Ok(SqliteBackend { options, writer, readers })
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
///
/// The file gets its name only once it has a write-ahead log: of two servers that made one at the
/// same time, SQLite would refuse one without waiting.
async fn create_file(options: &SqliteConnectOptions) -> Result<()> {
    use std::{
        fs::{DirBuilder, File, OpenOptions, hard_link, remove_file},
        io::ErrorKind,
        os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    };
    let path = options.get_filename();
    if path.exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| StoreError::Config {
        why: format!("{} cannot be made: {error}; make it writable for this user", path.display()),
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = directory.join(format!(".{name}.{}.new", uuid::Uuid::now_v7()));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
    let wal = options.clone().filename(&draft).journal_mode(SqliteJournalMode::Wal);
    let written = async { wal.connect().await?.close().await }.await;
    let named = written.map_err(failure::classify).and_then(|()| {
        match hard_link(&draft, path) {
            // Another server was faster; its file is as good.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(failed),
        }
    });
    let removed = remove_file(&draft).map_err(failed);
    named?;
    removed?;
    // The name of a new file is durable only when its directory is.
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(failed)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// SQLite rolls back by itself then, and whoever writes next must not find a broken connection.
    #[tokio::test]
    async fn a_full_disk_is_over_when_it_is_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite:{}/test.db", dir.path().display());
        let backend = connect(&url).await.expect("opened");
        let mut link = backend.write().await.expect("begun");
        // Raised to what there is: every new page finds the disk full.
        let full = "CREATE TABLE t (b BLOB); PRAGMA max_page_count = 1; \
                    INSERT INTO t VALUES (zeroblob(1000000))";
        let error = link.script(full).await.expect_err("it is full");
        assert!(error.is_unavailable(), "{error:?}");
        drop(link);
        let mut link = backend.write().await.expect("begun again");
        link.script("CREATE TABLE t (b BLOB)").await.expect("written");
        link.commit().await.expect("durable");
    }

    #[tokio::test]
    async fn room_is_made_ahead_of_a_full_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite:{}/test.db", dir.path().display());
        let store = open(&url).await.expect("opened");
        for name in ["test.db", "test.db-wal"] {
            let length = std::fs::metadata(dir.path().join(name)).expect("a file").len();
            assert!(length > u64::from(ROOM), "{name} has {length} bytes");
        }
        assert!(store.check().await.ok);
    }

    /// What durability and integrity rest on; a power cut cannot be tested here.
    #[tokio::test]
    async fn connections_are_durable_and_check_keys() {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite:{}/test.db", dir.path().display());
        let backend = connect(&url).await.expect("opened");
        for (pragma, expected) in
            [("journal_mode", "wal"), ("synchronous", "2"), ("foreign_keys", "1")]
        {
            let mut link = backend.write().await.expect("begun");
            let sql = format!("SELECT CAST({pragma} AS TEXT) AS v FROM pragma_{pragma}");
            let row = link.fetch_optional(&sql, args![]).await.expect("read").expect("a row");
            let value = crate::sql::Row::text(&row, "pragma", "v").expect("text");
            assert_eq!(value.as_deref(), Some(expected), "{pragma}");
        }
    }
}
