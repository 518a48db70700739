//! The store in PostgreSQL, Supabase's included: for several hosts.
//!
//! Everything is in a schema of its own, `holdfast`: Supabase serves tables in `public` through its
//! REST interface, and these hold secrets of VMs.
//!
//! Row-level security that hides rows would make a session look as if it had never existed, so
//! queries run with `row_security = off`: they fail then instead of answering less.
//!
//! Behind a transaction pooler (port 6543, or `?pgbouncer=true` in the URL) two statements outside a
//! transaction may reach two servers: every call is a transaction there and nothing stays prepared.

mod check;

use std::{str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    Connection, Executor, PgPool, Postgres,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};

pub(crate) use check::check_url;

use crate::{
    Result, Store, StoreCheck, StoreError,
    sql::{
        Backend, Link, Row, SqlStore, SqlxLink, args, failure,
        link::{answered, sqlx_link},
        migrate::{self, Migration, migrations},
    },
};

/// How long a call waits for a connection before it answers `Unavailable`.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections of one server; Supabase's smallest plan allows 60 for everybody.
const CONNECTIONS: u32 = 10;

/// Port of Supabase's transaction pooler.
const POOLER_PORT: u16 = 6543;

/// `holdfast` in ASCII: whoever migrates holds the advisory lock of this number.
const MIGRATION_LOCK: i64 = 0x686f_6c64_6661_7374;

/// What [`crate::sql`] relies on, whatever the defaults of the database are: a statement sees what
/// others committed before it began.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL row_security = off";

const MIGRATIONS: &[Migration] =
    migrations!["postgres": 1 => "0001_initial", 2 => "0002_sign_ins", 3 => "0003_draining"];

/// Where and how to connect.
#[derive(Clone)]
struct Target {
    options: PgConnectOptions,
    /// A transaction pooler is between.
    pooled: bool,
}

impl Target {
    fn parse(url: &str) -> Result<Self> {
        let (url, flagged) = take_pooler_flag(url);
        let options = PgConnectOptions::from_str(&url).map_err(|error| StoreError::Config {
            why: format!("{error}; expected `postgres://user:password@host:5432/database`"),
        })?;
        let pooled = flagged || options.get_port() == POOLER_PORT;
        // PgBouncer refuses a connection that asks for digits of floats; there are no floats.
        let options = options.application_name("holdfast").extra_float_digits(None);
        let options = if pooled { options.statement_cache_capacity(0) } else { options };
        Ok(Self { options, pooled })
    }
}

/// Takes `pgbouncer=...` out of the URL and answers whether it said `true`.
fn take_pooler_flag(url: &str) -> (String, bool) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), false) };
    let (flags, rest): (Vec<_>, Vec<_>) =
        query.split('&').partition(|pair| pair.starts_with("pgbouncer="));
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    (url, flags.contains(&"pgbouncer=true"))
}

struct PostgresBackend {
    target: Target,
    pool: PgPool,
}

/// Connects and brings the schema up to date.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn Store>> {
    let target = Target::parse(url)?;
    // The pool would only say that it timed out.
    let mut connection = check::connect(&target).await.map_err(check::ConnectError::into_error)?;
    let checked = check::look(&mut connection).await.map_err(failure::classify)?;
    if checked.code == "rows_hidden" {
        return Err(StoreError::Config { why: checked.detail });
    }
    // Nothing depends on the goodbye.
    let _ = connection.close().await;
    let pooled = target.pooled;
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                // A pooler hands the connection to others, so there it is set in each transaction.
                if !pooled {
                    connection.execute("SET row_security = off").await?;
                }
                Ok(())
            })
        })
        .connect_lazy_with(target.options.clone());
    let backend = PostgresBackend { target, pool };
    migrate(&backend).await?;
    Ok(Arc::new(SqlStore::new(backend)))
}

async fn migrate(backend: &PostgresBackend) -> Result<()> {
    let mut tx = backend.write().await?;
    tx.script(&format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")).await?;
    let sql = "SELECT nspname::text FROM pg_namespace WHERE nspname = 'holdfast'";
    if tx.fetch_optional(sql, args![]).await?.is_none() {
        tx.script("CREATE SCHEMA holdfast").await.map_err(explain_permission)?;
    }
    migrate::run(tx, MIGRATIONS).await.map_err(explain_permission)
}

fn explain_permission(error: StoreError) -> StoreError {
    let denied = match &error {
        StoreError::Unavailable { source } => source
            .downcast_ref::<sqlx::Error>()
            .and_then(sqlx::Error::as_database_error)
            .filter(|e| e.code().as_deref() == Some("42501"))
            .map(|e| e.message().to_owned()),
        _ => None,
    };
    match denied {
        Some(message) => StoreError::Config {
            why: format!(
                "{message}; let this role make and own the schema: \
                 CREATE SCHEMA holdfast AUTHORIZATION <role>"
            ),
        },
        None => error,
    }
}

#[async_trait]
impl Backend for PostgresBackend {
    type Link = SqlxLink<Postgres>;

    const KIND: &'static str = "postgres";
    // Leaves foreign keys that point at the row usable by others.
    const LOCK_ROWS: &'static str = " FOR NO KEY UPDATE";

    async fn read(&self) -> Result<Self::Link> {
        if self.target.pooled {
            return self.write().await;
        }
        let connection = answered(self.pool.acquire()).await?;
        Ok(SqlxLink::Plain { connection })
    }

    async fn write(&self) -> Result<Self::Link> {
        let transaction = answered(self.pool.begin_with(BEGIN)).await?;
        Ok(SqlxLink::Transaction { transaction, prepare: !self.target.pooled })
    }

    async fn ping(&self) -> Result<()> {
        let sql = "SELECT row_security_active('holdfast.sessions'::regclass) AS hidden";
        let row = self.read().await?.fetch_optional(sql, args![]).await?;
        match row.map(|row| row.flag("session", "hidden")).transpose()? {
            Some(false) => Ok(()),
            _ => Err(StoreError::Unavailable {
                source: "row-level security hides rows from this role; run `holdfast doctor`"
                    .into(),
            }),
        }
    }

    async fn check(&self) -> StoreCheck {
        check::check(&self.target).await
    }
}

/// Tables stand in the schema that statements name.
fn as_written(sql: &str) -> String {
    sql.to_owned()
}

sqlx_link!(Postgres, PgRow, as_written);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poolers_are_recognised() {
        let pooled = |url| Target::parse(url).expect("a URL").pooled;
        assert!(pooled("postgres://u:p@db.example:6543/postgres"));
        assert!(pooled("postgresql://u@h/d?pgbouncer=true"));
        assert!(pooled("postgres://u@h/d?sslmode=require&pgbouncer=true&port=5432"));
        assert!(!pooled("postgres://u@h/d?pgbouncer=false"));
        assert!(!pooled("postgres://u:p@h:5432/d?sslmode=require"));
    }

    #[test]
    fn only_the_flag_is_taken_out_of_the_url() {
        assert_eq!(take_pooler_flag("postgres://h/d"), ("postgres://h/d".into(), false));
        let (url, flag) = take_pooler_flag("postgres://h/d?sslmode=require&pgbouncer=true");
        assert_eq!((url.as_str(), flag), ("postgres://h/d?sslmode=require", true));
    }
}
