//! A close look at a SQLite file, without changing it.

use sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{MIGRATIONS, is_in_memory, parse};
use crate::{
    Result, StoreCheck,
    sql::{TABLES, migrate},
};

pub(crate) async fn check_url(url: &str) -> Result<StoreCheck> {
    let options = parse(url)?;
    if is_in_memory(url) {
        return Ok(StoreCheck::ok("an in-memory database, gone when the process ends"));
    }
    Ok(check(&options).await)
}

pub(super) async fn check(options: &SqliteConnectOptions) -> StoreCheck {
    let path = options.get_filename().display().to_string();
    let in_memory = path.starts_with("file:sqlx-in-memory");
    if !in_memory && !options.get_filename().exists() {
        let detail = format!("there is no file {path} yet; starting the server makes it");
        return StoreCheck::failed("missing_table", detail);
    }
    let connection = options.clone().connect().await;
    let looked = match connection {
        Ok(mut connection) => look(&mut connection, &path).await,
        Err(error) => Err(error),
    };
    looked.unwrap_or_else(|error| {
        let detail = format!(
            "{path} cannot be read: {error}; check that it is a SQLite database and that this user \
             may read and write it"
        );
        StoreCheck::failed("cannot_connect", detail)
    })
}

async fn look(connection: &mut SqliteConnection, path: &str) -> Result<StoreCheck, sqlx::Error> {
    let present: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'")
            .fetch_all(&mut *connection)
            .await?;
    let missing = |table: &&&str| !present.iter().any(|name| name == **table);
    let version: i64 = if present.iter().any(|name| name == "migrations") {
        sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM migrations")
            .fetch_one(&mut *connection)
            .await?
    } else {
        0
    };
    let latest = migrate::latest(MIGRATIONS);
    if version == 0 {
        return Ok(StoreCheck::not_migrated(path));
    }
    if let Some(check) = StoreCheck::of_version(version, latest) {
        return Ok(check);
    }
    if let Some(table) = TABLES.iter().find(missing) {
        return Ok(StoreCheck::table_missing(table));
    }
    if let Err(error) = try_to_write(connection).await {
        let read_only = error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            // The low byte of an extended code is SQLITE_READONLY; 5 is SQLITE_BUSY.
            .and_then(|code| code.parse::<i32>().ok())
            .map(|code| code & 0xff);
        match read_only {
            // Another process is writing, so the file can be written.
            Some(5) => {}
            Some(8) => {
                let detail = format!(
                    "{path} cannot be written: {error}; give this user write access to the file \
                     and its directory"
                );
                return Ok(StoreCheck::failed("read_only", detail));
            }
            _ => return Err(error),
        }
    }
    Ok(StoreCheck::ok(format!("{path}, schema version {version}")))
}

/// Takes the lock for writing, writes a page and takes it back.
async fn try_to_write(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    for sql in ["BEGIN IMMEDIATE", "UPDATE migrations SET name = name", "ROLLBACK"] {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}
