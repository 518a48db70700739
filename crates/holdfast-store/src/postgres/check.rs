//! A close look at a PostgreSQL database, without changing it.

use std::error::Error as _;

use sqlx::{ConnectOptions, PgConnection, Row as _, raw_sql};

use super::{ACQUIRE_TIMEOUT, MIGRATIONS, Target};
use crate::{
    Result, StoreCheck, StoreError,
    sql::{TABLES, failure, migrate},
};

/// Why there is no connection.
pub(super) enum ConnectError {
    /// The server refused this user, password or database.
    Refused(StoreCheck),
    /// No answer, or none that can be understood.
    Failed(sqlx::Error),
    /// No answer in time.
    TimedOut,
}

impl ConnectError {
    /// For `open`.
    pub(super) fn into_error(self) -> StoreError {
        match self {
            Self::Refused(check) => StoreError::Config { why: check.detail },
            Self::Failed(error) => failure::classify(error),
            Self::TimedOut => StoreError::Unavailable { source: NO_ANSWER.into() },
        }
    }

    fn into_check(self) -> StoreCheck {
        let detail = match self {
            Self::Refused(check) => return check,
            Self::Failed(error) => format!("{error}{}", source_of(&error)),
            Self::TimedOut => NO_ANSWER.to_owned(),
        };
        let detail = format!("{detail}; check host, port and network, and that the server runs");
        StoreCheck::failed("cannot_connect", detail)
    }
}

const NO_ANSWER: &str = "the database server did not answer in time";

/// The cause, where the text of the error does not have it already.
fn source_of(error: &sqlx::Error) -> String {
    let text = error.to_string();
    match error.source().map(ToString::to_string) {
        Some(cause) if !text.contains(&cause) => format!(": {cause}"),
        _ => String::new(),
    }
}

pub(super) async fn connect(target: &Target) -> Result<PgConnection, ConnectError> {
    let error = match tokio::time::timeout(ACQUIRE_TIMEOUT, target.options.connect()).await {
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error)) => error,
        Err(_) => return Err(ConnectError::TimedOut),
    };
    let Some(database) = error.as_database_error() else { return Err(ConnectError::Failed(error)) };
    let message = database.message().to_owned();
    let user = target.options.get_username();
    let check = match database.code().as_deref() {
        // Supabase's pooler names the user `<role>.<project>` and has no code of its own.
        _ if message.contains("Tenant or user not found") => StoreCheck::failed(
            "wrong_credentials",
            format!("{message}; the user must read `postgres.<project>` and the region must fit"),
        ),
        // invalid_password, invalid_authorization_specification, insufficient_privilege
        Some("28P01" | "28000" | "42501") => StoreCheck::failed(
            "wrong_credentials",
            format!("{message}; check user (`{user}`) and password in the URL"),
        ),
        // invalid_catalog_name
        Some("3D000") => StoreCheck::failed(
            "cannot_connect",
            format!("{message}; make it (createdb), or name another in the URL"),
        ),
        _ => return Err(ConnectError::Failed(error)),
    };
    Err(ConnectError::Refused(check))
}

pub(crate) async fn check_url(url: &str) -> Result<StoreCheck> {
    Ok(check(&Target::parse(url)?).await)
}

pub(super) async fn check(target: &Target) -> StoreCheck {
    let mut connection = match connect(target).await {
        Ok(connection) => connection,
        Err(error) => return error.into_check(),
    };
    match tokio::time::timeout(ACQUIRE_TIMEOUT, look(&mut connection)).await {
        Ok(Ok(check)) => check,
        Ok(Err(error)) => ConnectError::Failed(error).into_check(),
        Err(_) => ConnectError::TimedOut.into_check(),
    }
}

/// One row for each table, also for those that this role may not touch.
const LOOK_AT_TABLES: &str = "\
    SELECT c.relname::text AS name,
           row_security_active(c.oid) AS hidden,
           has_schema_privilege(n.oid, 'USAGE')
               AND has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
               AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE')
               AS permitted
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'holdfast' AND c.relkind IN ('r', 'p')";

const LOOK_AT_SERVER: &str = "\
    SELECT current_user::text AS role, current_database()::text AS database,
           pg_is_in_recovery() AS standby,
           current_setting('transaction_read_only') = 'on' AS read_only";

struct Table {
    name: String,
    hidden: bool,
    permitted: bool,
}

/// Simple queries only: they pass every pooler.
pub(super) async fn look(connection: &mut PgConnection) -> Result<StoreCheck, sqlx::Error> {
    let server = raw_sql(LOOK_AT_SERVER).fetch_one(&mut *connection).await?;
    let role: String = server.try_get("role")?;
    let database: String = server.try_get("database")?;
    let mut tables = Vec::new();
    for row in raw_sql(LOOK_AT_TABLES).fetch_all(&mut *connection).await? {
        tables.push(Table {
            name: row.try_get("name")?,
            hidden: row.try_get("hidden")?,
            permitted: row.try_get("permitted")?,
        });
    }
    let ours = |table: &&Table| TABLES.contains(&table.name.as_str());

    if !tables.iter().any(|table| table.name == "migrations") {
        return Ok(StoreCheck::not_migrated(&format!("database `{database}`")));
    }
    if let Some(table) = tables.iter().filter(ours).find(|table| table.hidden) {
        let detail = format!(
            "row-level security hides rows of holdfast.{} from role `{role}`, so sessions would \
             look as if they did not exist; connect as the role that owns the tables, or run: \
             ALTER TABLE holdfast.{0} DISABLE ROW LEVEL SECURITY",
            table.name
        );
        return Ok(StoreCheck::failed("rows_hidden", detail));
    }
    if let Some(table) = tables.iter().filter(ours).find(|table| !table.permitted) {
        let detail = format!(
            "role `{role}` may not read and write holdfast.{}; connect as the role that owns the \
             tables, or run: GRANT USAGE ON SCHEMA holdfast TO {role}; \
             GRANT ALL ON ALL TABLES IN SCHEMA holdfast TO {role}",
            table.name
        );
        return Ok(StoreCheck::failed("wrong_credentials", detail));
    }
    let version: i64 =
        raw_sql("SELECT COALESCE(MAX(version), 0) AS version FROM holdfast.migrations")
            .fetch_one(&mut *connection)
            .await?
            .try_get("version")?;
    if let Some(check) = StoreCheck::of_version(version, migrate::latest(MIGRATIONS)) {
        return Ok(check);
    }
    if let Some(name) = TABLES.iter().find(|name| !tables.iter().any(|t| t.name == **name)) {
        return Ok(StoreCheck::table_missing(name));
    }
    if server.try_get("standby")? {
        let detail = "this server is a standby and takes no writes; name the primary in the URL";
        return Ok(StoreCheck::failed("read_only", detail));
    }
    if server.try_get("read_only")? {
        let detail = format!(
            "transactions are read-only by default; check for a full disk (Supabase then does \
             this), and undo it with: ALTER DATABASE \"{database}\" RESET \
             default_transaction_read_only; also look at the settings of role `{role}`"
        );
        return Ok(StoreCheck::failed("read_only", detail));
    }
    Ok(StoreCheck::ok(format!("database `{database}` as role `{role}`, schema version {version}")))
}
