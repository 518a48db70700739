//! A connection of sqlx as a [`Link`](super::Link).

use std::{future::Future, time::Duration};

use sqlx::{Database, Transaction, pool::PoolConnection};

use super::failure;
use crate::{Result, StoreError};

/// How long a statement may take. Long enough for a busy disk, short enough that a network that
/// swallows packets does not hold a call until TCP gives up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer of the database, or `Unavailable` when there was none in time.
pub(crate) async fn answered<T>(
    call: impl Future<Output = std::result::Result<T, sqlx::Error>> + Send,
) -> Result<T> {
    match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(failure::classify),
        Err(elapsed) => Err(StoreError::Unavailable { source: Box::new(elapsed) }),
    }
}

/// A connection from the pool, or a transaction on one.
pub(crate) enum SqlxLink<DB: Database> {
    /// Each statement stands for itself.
    Plain {
        /// Taken from the pool.
        connection: PoolConnection<DB>,
    },
    /// All or nothing; rolled back when dropped.
    Transaction {
        /// Begun by the backend.
        transaction: Transaction<'static, DB>,
        /// Whether the server may keep statements prepared (not behind a transaction pooler).
        prepare: bool,
    },
}

impl<DB: Database> SqlxLink<DB> {
    pub(crate) fn connection(&mut self) -> &mut DB::Connection {
        match self {
            Self::Plain { connection } => connection,
            Self::Transaction { transaction, .. } => transaction,
        }
    }

    pub(crate) fn prepares(&self) -> bool {
        matches!(self, Self::Plain { .. } | Self::Transaction { prepare: true, .. })
    }

    pub(crate) async fn finish(self) -> std::result::Result<(), sqlx::Error> {
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Transaction { transaction, .. } => transaction.commit().await,
        }
    }
}

/// Implements [`Link`](super::Link) and [`Row`](super::Row) for one database of sqlx. `$sql` turns
/// the text of a statement into the one this database gets.
macro_rules! sqlx_link {
    ($db:ty, $row:ty, $sql:path) => {
        #[async_trait::async_trait]
        impl $crate::sql::Link for $crate::sql::SqlxLink<$db> {
            type Row = $row;

            async fn fetch(
                &mut self,
                sql: &str,
                args: Vec<$crate::sql::Value>,
            ) -> $crate::Result<Vec<$row>> {
                let query = bind(sql, args, self.prepares());
                $crate::sql::link::answered(query.fetch_all(self.connection())).await
            }

            async fn execute(
                &mut self,
                sql: &str,
                args: Vec<$crate::sql::Value>,
            ) -> $crate::Result<u64> {
                let query = bind(sql, args, self.prepares());
                let done = $crate::sql::link::answered(query.execute(self.connection())).await?;
                Ok(done.rows_affected())
            }

            async fn script(&mut self, sql: &str) -> $crate::Result<()> {
                sqlx::raw_sql(sqlx::AssertSqlSafe($sql(sql)))
                    .execute(self.connection())
                    .await
                    .map_err($crate::sql::failure::classify)?;
                Ok(())
            }

            async fn commit(self) -> $crate::Result<()> {
                $crate::sql::link::answered(self.finish()).await
            }
        }

        impl $crate::sql::Row for $row {
            fn int(&self, what: &'static str, column: &str) -> $crate::Result<Option<i64>> {
                sqlx::Row::try_get(self, column)
                    .map_err(|error| $crate::sql::failure::column(what, &error))
            }

            fn text(&self, what: &'static str, column: &str) -> $crate::Result<Option<String>> {
                sqlx::Row::try_get(self, column)
                    .map_err(|error| $crate::sql::failure::column(what, &error))
            }

            fn flag(&self, what: &'static str, column: &str) -> $crate::Result<bool> {
                sqlx::Row::try_get(self, column)
                    .map_err(|error| $crate::sql::failure::column(what, &error))
            }
        }

        /// Values travel as parameters only; the text is made of constants of this crate.
        fn bind(
            sql: &str,
            args: Vec<$crate::sql::Value>,
            prepare: bool,
        ) -> sqlx::query::Query<'static, $db, <$db as sqlx::Database>::Arguments> {
            let mut query = sqlx::query(sqlx::AssertSqlSafe($sql(sql))).persistent(prepare);
            for value in args {
                query = match value {
                    $crate::sql::Value::Int(value) => query.bind(value),
                    $crate::sql::Value::Text(value) => query.bind(value),
                    $crate::sql::Value::Flag(value) => query.bind(value),
                };
            }
            query
        }
    };
}
pub(crate) use sqlx_link;
