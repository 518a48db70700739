//! From a URL to a store.

use std::sync::Arc;

use crate::{Result, Store, StoreCheck, StoreError};

/// Opens the store that a URL names and brings its schema up to date.
///
/// - `sqlite:/var/lib/holdfast/holdfast.db`: a file, made with mode 0600 when there is none.
/// - `postgres://user:password@host:5432/database` (or `postgresql:`), also Supabase's. Behind a
///   transaction pooler (port 6543, or `?pgbouncer=true` in the URL) nothing is kept prepared.
///
/// Errors: [`StoreError::Config`] for a URL or credentials that cannot work,
/// [`StoreError::Schema`] for a schema newer than this version, [`StoreError::Unavailable`] when
/// trying again later can help.
pub async fn open(url: &str) -> Result<Arc<dyn Store>> {
    match Scheme::of(url)? {
        #[cfg(feature = "sqlite")]
        Scheme::Sqlite => crate::sqlite::open(url).await,
        #[cfg(feature = "postgres")]
        Scheme::Postgres => crate::postgres::open(url).await,
    }
}

/// Looks closely at the store that a URL names, for `doctor`. Never changes it, and answers also
/// when [`open`] would fail.
pub async fn check_url(url: &str) -> StoreCheck {
    let checked = match Scheme::of(url) {
        #[cfg(feature = "sqlite")]
        Ok(Scheme::Sqlite) => crate::sqlite::check_url(url).await,
        #[cfg(feature = "postgres")]
        Ok(Scheme::Postgres) => crate::postgres::check_url(url).await,
        Err(error) => Err(error),
    };
    checked.unwrap_or_else(|error| StoreCheck::failed("cannot_connect", error.to_string()))
}

enum Scheme {
    #[cfg(feature = "sqlite")]
    Sqlite,
    #[cfg(feature = "postgres")]
    Postgres,
}

impl Scheme {
    fn of(url: &str) -> Result<Self> {
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        match scheme {
            #[cfg(feature = "sqlite")]
            "sqlite" => Ok(Self::Sqlite),
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => Ok(Self::Postgres),
            // The rest of the URL may hold a password and is not repeated.
            _ => Err(StoreError::Config {
                why: format!(
                    "`{}` is no kind of store; accepted are `sqlite:/path/to/holdfast.db` and \
                     `postgres://user:password@host:5432/database`",
                    scheme.chars().take(20).collect::<String>()
                ),
            }),
        }
    }
}
