//! What an error of the database means.

use crate::StoreError;

/// Turns an error of sqlx into one of the store. What is not known for certain to be something else
/// is `Unavailable`: it says nothing about any record, so nothing is destroyed because of it.
pub(crate) fn classify(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) => match database.code().as_deref() {
            // PostgreSQL: no such table, column or schema.
            Some("42P01" | "42703" | "3F000") => missing(database.message()),
            // SQLite: SQLITE_CORRUPT and SQLITE_NOTADB.
            Some("11" | "26") => {
                let why = format!(
                    "{}; put a backup in its place, or move it away to begin with an empty one",
                    database.message()
                );
                StoreError::Corrupt { what: "database", why }
            }
            // SQLite has one code for every error in a statement.
            Some("1") if database.message().starts_with("no such ") => missing(database.message()),
            _ => StoreError::Unavailable { source: Box::new(error) },
        },
        sqlx::Error::Configuration(why) => StoreError::Config { why: why.to_string() },
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::Decode(_) => column("row", &error),
        _ => StoreError::Unavailable { source: Box::new(error) },
    }
}

/// A column is not what it should be.
pub(crate) fn column(what: &'static str, error: &sqlx::Error) -> StoreError {
    StoreError::Corrupt { what, why: error.to_string() }
}

fn missing(message: &str) -> StoreError {
    let why = format!("{message}; restart the server, which brings the schema up to date");
    StoreError::Schema { why }
}
